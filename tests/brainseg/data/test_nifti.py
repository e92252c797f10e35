from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from predictions import read_rows, run_predict

from brainseg.data.nifti import open_volume
from brainseg.data.slice_store import SliceStore
from brainseg.errors import DataError
from brainseg.inference.mask_metrics import compare_outlines
from brainseg.inference.predictor import Predictor

AFFINES = {
    "as it is": np.diag([-1.0, -1.0, 5.0, 1.0]),
    "mirrored": np.diag([1.0, 1.0, 5.0, 1.0]),
    "coronal": np.array([[1.0, 0, 0, -5], [0, 0, 2.0, 3], [0, -1.0, 0, 9], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in ("as it is", "mirrored")), "coronal"],
)
def test_a_volume_is_predicted_slice_by_slice_with_its_affine(
    model_file: Path, predictor: Predictor, data: SliceStore, tmp_path: Path, name: str
) -> None:
    """Whatever way a volume is stored, its slices reach the network the same way up."""
    images = np.stack([data.image(index) for index in range(6)])  # z, y, x
    true = np.stack([data.mask(index) for index in range(6)])
    in_place = nibabel.Nifti1Image(images.transpose(2, 1, 0, 3), AFFINES["as it is"])
    own = nibabel.orientations.io_orientation(AFFINES[name])
    lps = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nibabel.orientations.ornt_transform(lps, own)
    stored = nibabel.orientations.apply_orientation(np.asarray(in_place.dataobj), turn)
    nibabel.save(nibabel.Nifti1Image(stored, AFFINES[name]), tmp_path / "head.nii.gz")
    stored = nibabel.orientations.apply_orientation(true.transpose(2, 1, 0), turn)
    nibabel.save(nibabel.Nifti1Image(stored, AFFINES[name]), tmp_path / "head_mask.nii.gz")
    assert run_predict(model_file, tmp_path / "head.nii.gz", out=tmp_path / "out") == 0
    written = nibabel.load(tmp_path / "out" / "head_mask.nii.gz")
    assert np.array_equal(written.affine, AFFINES[name])
    assert written.shape == stored.shape
    assert written.get_data_dtype() == np.uint8
    back = nibabel.orientations.apply_orientation(
        np.asarray(written.dataobj), nibabel.orientations.ornt_transform(own, lps)
    )
    assert np.array_equal(back.transpose(2, 1, 0), np.stack(predictor.masks(list(images))))
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [row["slice"] for row in rows] == list("123456")
    tumour = [int(row["TP"]) + int(row["FN"]) for row in rows]
    assert tumour == true.sum(axis=(1, 2)).tolist()
    assert len(list((tmp_path / "out").glob("*_outline.png"))) == 6
    spacing = open_volume(tmp_path / "head.nii.gz").spacing
    assert spacing is not None
    masks = predictor.masks(list(images))
    for row, *pair in zip(rows, masks, true > 0, strict=True):
        outlines = compare_outlines(*pair)
        assert row["hd95"] == ("" if np.isnan(outlines.hd95) else f"{outlines.hd95:.3f}")
        assert bool(row["hd95_mm"]) == bool(row["hd95"])
        if spacing == (1, 1):
            assert row["hd95_mm"] == row["hd95"]


@pytest.mark.parametrize("name", AFFINES)
def test_the_spacing_is_that_of_rows_and_columns_whatever_the_order_of_axes(
    tmp_path: Path, name: str
) -> None:
    own = nibabel.orientations.io_orientation(AFFINES[name])[:, 0].astype(int)
    affine = AFFINES[name].copy()
    for axis, world in enumerate(own):  # 0.4 to the left, 0.7 to the back, 3 up
        affine[:3, axis] *= (0.4, 0.7, 3.0)[world] / np.linalg.norm(affine[:3, axis])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine)
    for unit, factor in ((None, 1), ("mm", 1), ("micron", 0.001)):
        if unit:
            image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "v.nii")
        expected = (0.7 * factor, 0.4 * factor)
        assert open_volume(tmp_path / "v.nii").spacing == pytest.approx(expected)
    image.header.set_xyzt_units("meter")  # 0.7 m: not a distance of pixels
    nibabel.save(image, tmp_path / "v.nii")
    assert open_volume(tmp_path / "v.nii").spacing is None


def test_a_header_that_tells_nothing_has_no_spacing(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "v.nii")
    assert open_volume(tmp_path / "v.nii").spacing is None
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "v.nii")
    assert open_volume(tmp_path / "v.nii").spacing == (1, 1)


def test_the_affines_of_two_volumes_are_compared_where_their_voxels_lie(tmp_path: Path) -> None:
    image = np.diag([-1.0, -1.0, 2.0, 1.0])

    def check(affine: NDArray[np.float64]) -> None:
        for name, its in (("image.nii", image), ("mask.nii", affine)):
            nibabel.save(
                nibabel.Nifti1Image(np.zeros((40, 50, 6), np.uint8), its), tmp_path / name
            )
        open_volume(tmp_path / "mask.nii").check_affine(open_volume(tmp_path / "image.nii"))

    check(image + 0.05 * np.eye(4, 4, 3))  # rounded
    moved, thicker = image.copy(), image.copy()
    moved[2, 3], thicker[2, 2] = 2.0, 2.1
    for affine, words in (
        (np.eye(4), r"\(the identity, which .*axes RAS and LPS, corners up to \d"),
        (moved, "axes LPS and LPS, corners up to 1 voxels apart"),
        (thicker, "corners up to 0.25 voxels apart"),
    ):
        with pytest.raises(DataError, match=words) as error:
            check(affine)
        assert str(error.value).startswith("mask.nii: its affine")
        assert "not that of image.nii" in str(error.value)
