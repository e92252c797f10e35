from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.data.split import PARTS
from brainseg.explore.exploration import Exploration, explore
from brainseg.explore.measurements import (
    measure_slices,
)
from brainseg.explore.quality import check_quality, check_splits
from brainseg.inference.overlay import encode_picture


def test_every_rotation_is_verified(data: SliceStore) -> None:
    rows = check_splits(data, 44)
    assert [(row["rotation"], row["part"]) for row in rows] == [
        (rotation, part) for rotation in range(10) for part in PARTS
    ]
    for rotation in range(10):
        own = [row for row in rows if row["rotation"] == rotation]
        assert sum(row["slices"] for row in own) == len(data.slices)
        assert sum(row["tumour_slices"] for row in own) == measure_slices(data).has_tumour.sum()
        assert not any(row["shared_patients"] for row in own)
    tested = sum(row["patients"] for row in rows if row["part"] == "test")
    assert tested == len(data.patients)  # each patient once


def test_splits_that_cannot_be_built_have_an_error(small_dataset: Path) -> None:
    rows = check_splits(open_dataset(small_dataset), 44)
    assert all("2 patients" in row["error"] for row in rows)


def test_a_clean_dataset_has_no_findings(data: SliceStore, exploration: Exploration) -> None:
    text = " ".join(exploration.findings)
    assert "All 72 slices decode" in text
    absent = text.split("Looked for and not found: ")[1]
    assert "slices without any signal" in absent
    assert "slices with the same pixels as another one" in absent


def test_patients_that_data_csv_lacks_are_named(
    data: SliceStore, exploration: Exploration
) -> None:
    table = pd.DataFrame({"age": "1"}, [*data.patients[1:], "PHANTOM_XX_9999"])
    findings = check_quality(data, exploration.found, exploration.patients, table)
    text = " ".join(findings)
    assert f"Patients without a row in data.csv: 1 ({data.patients[0]})" in text
    assert "Rows of data.csv without slices: 1 (PHANTOM_XX_9999)" in text


def _findings(folder: Path) -> str:
    return " ".join(explore(open_dataset(folder), seed=1).findings)


def _slices(folder: Path, patient: int = 0) -> list[Path]:
    root = sorted(path for path in folder.iterdir() if path.is_dir())[patient]
    return [root / f"{root.name}_{number}.tif" for number in range(1, 6)]


def _rewrite(path: Path, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    pixels = np.asarray(cv2.imread(str(path), -1), np.uint8)
    path.write_bytes(cv2.imencode(".tif", change(pixels))[1].tobytes())


def _blank(paths: list[Path]) -> None:
    _rewrite(paths[0], lambda pixels: pixels * 0)


def _twin(paths: list[Path]) -> None:
    paths[0].write_bytes(paths[4].read_bytes())


def _missing_in_one(paths: list[Path]) -> None:
    _rewrite(paths[1], lambda pixels: pixels[..., [1, 1, 2]])


def _saturate(paths: list[Path]) -> None:
    _rewrite(paths[2], lambda pixels: np.maximum(pixels, np.uint8(255)))


def _brighten(paths: list[Path]) -> None:
    for path in paths:
        _rewrite(path, lambda pixels: np.maximum(pixels, np.uint8(90)))


def _name_by_uids(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        uid = 7 * 10**25 + number + 10 * (number == 4)
        path.rename(path.with_name(f"1.2.{uid}.tif"))
        path.with_name(f"{path.stem}_mask.tif").rename(path.with_name(f"1.2.{uid}_mask.tif"))


def _renumber(paths: list[Path]) -> None:
    for path in (paths[4], paths[4].with_name(f"{paths[4].stem}_mask.tif")):
        path.rename(path.with_name(path.name.replace("_5", "_9")))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_blank, "Slices without any signal: 1 "),
        (_twin, "Slices with the same pixels as another one: 1 "),
        (_missing_in_one, "Patients with a sequence missing in some slices only: 1 "),
        (_saturate, "Slices with more than 1 % of a sequence saturated: 1 "),
        (_brighten, "Sequences of patients whose background is not black: 3 "),
        (_name_by_uids, "Patients whose slices are not numbered without gaps: 1 "),
        (_renumber, "Patients whose slices are not numbered without gaps: 1 "),
    ],
)
def test_each_kind_of_damage_is_reported(
    small_dataset: Path, damage: Callable[[list[Path]], None], sentence: str
) -> None:
    assert sentence not in _findings(small_dataset)
    damage(_slices(small_dataset))
    assert sentence in _findings(small_dataset)


def test_specks_borders_and_holes_of_masks_are_found(small_dataset: Path) -> None:
    paths = _slices(small_dataset)
    for path, has_tumour in zip(paths, (True, False, True, False, False), strict=True):
        mask = np.zeros((32, 32), np.uint8)
        if has_tumour:
            mask[0:3, 0:3] = 255
        path.with_name(f"{path.stem}_mask.tif").write_bytes(encode_picture(mask, ".tif"))
    text = _findings(small_dataset)
    assert f"Tumour-free slices between two with tumour: 1 ({paths[1].stem})" in text
    assert re.search(rf"Masks with a speck of fewer than 10 pixels: \d \({paths[0].stem}, ", text)
    assert "Masks that touch the border of the slice: 2 " in text
