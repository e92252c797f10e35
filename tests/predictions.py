"""Runs the predict command in tests and reads what it writes."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg import predict


def run_predict(model: Path, *inputs: Path | str, out: Path) -> int:
    """Run the command on the CPU and return its exit code."""
    return predict.main([str(model), *map(str, inputs), "--out", str(out), "--device", "cpu"])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Decode an image file as it is."""
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)
