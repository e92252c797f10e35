from __future__ import annotations

import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from brainseg.data.image_files import decode, read_image
from brainseg.errors import DataError


def test_channels_keep_the_files_order(tmp_path: Path) -> None:
    pre, flair, post = (np.full((32, 32), v, np.uint8) for v in (10, 20, 30))
    cv2.imwrite(str(tmp_path / "s.tif"), np.dstack([post, flair, pre]))  # OpenCV writes BGR
    assert read_image(tmp_path / "s.tif")[0, 0].tolist() == [10, 20, 30]


def test_any_file_name_can_be_read(tmp_path: Path) -> None:
    ok, encoded = cv2.imencode(".tif", np.zeros((32, 32, 3), np.uint8))
    assert ok
    encoded.tofile(tmp_path / "Schädel 1 (Kopie).tif")
    assert read_image(tmp_path / "Schädel 1 (Kopie).tif").shape == (32, 32, 3)


def test_a_chunk_that_claims_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:33] + b"\xf0\0\0\0IDAT")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"a\.png"):
        decode(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # kB
