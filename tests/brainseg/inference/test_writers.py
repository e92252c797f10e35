from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from predictions import read_pixels, read_rows, run_predict

from brainseg.data.slice_store import SliceStore
from brainseg.inference.overlay import encode_picture
from brainseg.inference.predictor import Predictor
from brainseg.inference.readers import read_user_image


def test_a_patient_in_masks_outlines_stack_and_scores(
    model_file: Path, predictor: Predictor, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_predict(model_file, patient, out=out) == 0
    images = [patient / f"{patient.name}_{number}.tif" for number in range(1, 7)]
    masks = predictor.masks([read_user_image(path) for path in images])
    folder = out / patient.name
    for path, mask in zip(images, masks, strict=True):
        assert np.array_equal(read_pixels(folder / f"{path.stem}_mask.tif"), mask * 255)
        assert (folder / f"{path.stem}_outline.png").exists()
    done, stack = cv2.imreadmulti(str(folder / f"{patient.name}_stack.tif"), flags=-1)
    assert done
    assert np.array_equal(np.stack(stack), np.stack(masks) * 255)
    rows = read_rows(out / "predictions.csv")
    assert [row["area_pixels"] for row in rows] == [str(mask.sum()) for mask in masks]
    totals = read_rows(out / "patients.csv")
    assert [row["patient"] for row in totals] == [patient.name.rsplit("_", 1)[0]]
    for name in ("TP", "FP", "FN", "TN"):
        assert int(totals[0][name]) == sum(int(row[name]) for row in rows)
    tp, fp, fn = (int(totals[0][name]) for name in ("TP", "FP", "FN"))
    assert float(totals[0]["dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".TIFF"])
def test_every_format_and_a_single_slice(
    model_file: Path, predictor: Predictor, data: SliceStore, tmp_path: Path, suffix: str
) -> None:
    image = data.image(2)
    path = tmp_path / f"slice{suffix}"
    path.write_bytes(encode_picture(image, suffix))
    assert run_predict(model_file, path, out=tmp_path / "out") == 0
    kept = {".jpg": ".png", ".TIFF": ".tiff"}.get(suffix, suffix)
    written = read_pixels(tmp_path / "out" / f"slice_mask{kept}")
    assert np.array_equal(written, predictor.masks([read_user_image(path)])[0] * 255)
    row = read_rows(tmp_path / "out" / "predictions.csv")[0]
    assert row["dice"] == ""
    assert 0 <= float(row["max_probability"]) <= 1


@pytest.mark.slow
def test_sub_folders_are_patients_of_their_own(
    model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    root = tmp_path / "two"
    for folder in sorted(path for path in data.root.iterdir() if path.is_dir())[:2]:
        shutil.copytree(folder, root / folder.name)
    assert run_predict(model_file, root, out=tmp_path / "out") == 0
    assert len(read_rows(tmp_path / "out" / "patients.csv")) == 2
    assert len(list((tmp_path / "out").glob("two/*/*_stack.tif"))) == 2
