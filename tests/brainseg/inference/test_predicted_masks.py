from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import DataError
from brainseg.inference.predicted_masks import read_predicted_masks


def _write(path: Path, mask: NDArray[np.bool_], tumour: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask.astype(np.uint8) * tumour)


def _masks(data: SliceStore) -> list[NDArray[np.bool_]]:
    """A mask for every slice of the first two patients, each another one."""
    count = sum(item.patient in data.patients[:2] for item in data.slices)
    rng = np.random.default_rng(5)
    return [rng.random(data.shapes[index]) < 0.2 for index in range(count)]


@pytest.mark.parametrize("layout", ["nnunet 2d", "predict", "nnunet 3d", "3d named as slices"])
def test_masks_are_found_in_every_layout(tmp_path: Path, data: SliceStore, layout: str) -> None:
    masks = _masks(data)
    by_patient: dict[str, list[NDArray[np.bool_]]] = {}
    for item, mask in zip(data.slices, masks, strict=False):
        by_patient.setdefault(item.patient, []).append(mask)
        if layout == "nnunet 2d":
            _write(tmp_path / f"{item.name}.png", mask, tumour=1)
        elif layout == "predict":
            folder = tmp_path / "kaggle_3m" / f"{item.patient}_20000101"
            _write(folder / f"{item.name}_mask.tif", mask)
            _write(folder / f"{item.name}_outline.png", mask)
    (tmp_path / "dataset.json").write_text("{}")
    if "3d" in layout:
        for patient, own in by_patient.items():
            name = patient
            if layout == "3d named as slices":
                first = next(item for item in data.slices if item.patient == patient)
                name = first.name.rpartition("_")[0]
            volume = np.stack(own).transpose(2, 1, 0).astype(np.uint8)
            # Axes to the left, to the back and up, as the program writes them.
            affine = np.diag([-1.0, -1.0, 1.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    wanted = [0, 2, len(masks) - 1]
    found = read_predicted_masks(tmp_path, data, wanted)
    assert list(found) == wanted
    for index in wanted:
        assert np.array_equal(found[index], masks[index])


def test_volumes_of_a_patient_with_two_scans_are_named_after_both(
    tmp_path: Path, data: SliceStore
) -> None:
    masks, scans = _masks(data), data.patients[:2]
    slices = [
        replace(item, name=f"s{n}", patient="P", scan=item.patient) if n < len(masks) else item
        for n, item in enumerate(data.slices)
    ]
    two = replace(data, slices=tuple(slices))
    for scan, name in zip(scans, (f"P_{scans[0]}", scans[1]), strict=True):
        own = [mask for mask, item in zip(masks, slices, strict=False) if item.scan == scan]
        volume = np.stack(own).transpose(2, 1, 0).astype(np.uint8)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    found = read_predicted_masks(tmp_path, two, range(len(masks)))
    assert all(np.array_equal(found[n], mask) for n, mask in enumerate(masks))
    (tmp_path / f"{scans[1]}.nii.gz").unlink()
    with pytest.raises(DataError) as error:
        read_predicted_masks(tmp_path, two, range(len(masks)))
    assert f"expected s{len(masks) - 1}.png or P_{scans[1]}.nii.gz" in error.value.problems[-1]


def test_everything_wrong_is_listed_at_once(tmp_path: Path, data: SliceStore) -> None:
    masks, names = _masks(data), [item.name for item in data.slices]
    with pytest.raises(DataError, match="no such folder"):
        read_predicted_masks(tmp_path / "nowhere", data, [0])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="no masks; expected PNG, TIFF or NIfTI"):
        read_predicted_masks(tmp_path, data, [0])
    _write(tmp_path / f"{names[0]}.png", masks[0][:-2])
    cv2.imwrite(
        str(tmp_path / f"{names[1]}.png"),
        np.arange(masks[1].size, dtype=np.uint8).reshape(masks[1].shape),
    )
    _write(tmp_path / f"{names[2]}.png", masks[2])
    _write(tmp_path / f"{names[2]}.tif", masks[2])
    _write(tmp_path / "stranger.png", masks[0])
    (tmp_path / f"{names[3]}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="6 problems") as caught:
        read_predicted_masks(tmp_path, data, [0, 1, 2, 3, 4])
    text = "\n".join(caught.value.problems)
    for words in (
        "the slice is",
        "expected 0 and one other",
        f"slice {names[2]}: several masks",
        "not a TIFF, PNG or JPEG image",
        f"slice {names[4]}: no mask; expected {names[4]}.png or",
        "stranger.png: belongs to no slice",
    ):
        assert words in text


def test_slices_of_one_name_are_told_apart_by_their_patients_folder(
    tmp_path: Path, data: SliceStore
) -> None:
    mask, item = _masks(data)[0], data.slices[0]
    _write(tmp_path / item.patient / f"{item.name}.png", mask)
    _write(tmp_path / "elsewhere" / f"{item.name}.png", ~mask)
    with pytest.raises(DataError) as caught:
        read_predicted_masks(tmp_path, data, [0])
    assert "elsewhere" in "".join(caught.value.problems)
    (tmp_path / "elsewhere" / f"{item.name}.png").unlink()
    assert np.array_equal(read_predicted_masks(tmp_path, data, [0])[0], mask)


def test_a_mask_is_never_taken_for_another_patients(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    root = tmp_path / "data"
    for patient in ("A", "B", "C"):
        for number in range(3):
            image = rng.integers(0, 255, (32, 40), np.uint8)
            (root / "images" / patient).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / patient / f"slice_{number}.png"), image)
            _write(root / "masks" / patient / f"slice_{number}.png", image > 200)
    (root / "dataset.yaml").write_text(
        "images: images/{patient}/{name}.png\nmasks: masks/{patient}/{name}.png\nchannels: [T2]\n"
    )
    data = open_dataset(root)
    everything = range(len(data.slices))
    for name, kind in (
        ("one", "A/slice_{}.png"),
        ("flat", "slice_{}.png"),
        ("volume", "slice.nii.gz"),
    ):
        folder = tmp_path / name
        for number in range(3):
            if kind.endswith("png"):
                _write(folder / kind.format(number), np.ones((32, 40), bool))
        if kind.endswith("gz"):
            folder.mkdir()
            volume = np.ones((40, 32, 3), np.uint8)
            nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), folder / kind)
        with pytest.raises(DataError) as caught:
            read_predicted_masks(folder, data, everything)
        assert sum(": no mask" in text for text in caught.value.problems) == (
            6 if name == "one" else 9
        )
    for item in data.slices:
        _write(tmp_path / "joined" / f"{item.patient}_{item.name}_mask.png", np.eye(32, 40) > 0)
    assert len(read_predicted_masks(tmp_path / "joined", data, everything)) == 9
    for patient in ("A", "B", "C"):
        volume = rng.integers(0, 2, (40, 32, 3), np.uint8) * 2
        path = tmp_path / "own" / f"{patient}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), path)
    assert len(read_predicted_masks(tmp_path / "own", data, everything)) == 9


@pytest.mark.parametrize("depth", [1, 3])
def test_a_volume_of_masks_with_another_affine_than_the_image_is_refused(
    depth: int, tmp_path: Path
) -> None:
    rng, affine = np.random.default_rng(4), np.diag([-1.0, -1.0, 2.0, 1.0])
    root, masks = tmp_path / "data", tmp_path / "masks"
    for folder in (root / "images", root / "labels", masks):
        folder.mkdir(parents=True)
    for patient in ("A", "B", "C"):
        values = rng.integers(0, 255, (40, 32, depth), np.uint8)
        for name, stored in (("images", values), ("labels", np.uint8(values > 200))):
            path = root / name / f"{patient}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(stored, affine), path)
        own = affine if patient == "A" else np.eye(4)
        mask = nibabel.Nifti1Image(np.uint8(values > 200), own)
        nibabel.save(mask, masks / f"{patient}.nii.gz")
    (root / "dataset.yaml").write_text(
        "images: images/{patient}.nii.gz\nmasks: labels/{patient}.nii.gz\nchannels: [T2]\n"
    )
    data = open_dataset(root)
    with pytest.raises(DataError, match="2 problems") as caught:
        read_predicted_masks(masks, data, range(3 * depth))
    assert "B.nii.gz: its affine (the identity, which tools write" in caught.value.problems[0]
    found = read_predicted_masks(masks, data, range(depth))
    assert all(np.array_equal(found[n], data.mask(n) > 0) for n in range(depth))
