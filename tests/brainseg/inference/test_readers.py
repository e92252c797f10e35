from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from predictions import read_rows, run_predict

from brainseg.data.about import CHANNELS
from brainseg.data.slice_store import SliceStore
from brainseg.errors import DataError
from brainseg.inference.overlay import encode_picture
from brainseg.inference.predictor import Predictor
from brainseg.inference.readers import find_scans, read_batches, read_user_image


def _save_png(path: Path, image: NDArray[np.unsignedinteger]) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _bad_files(folder: Path) -> dict[str, str]:
    """Write every kind of bad file; return name -> what its sentence says."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    _save_png(folder / "sixteen_bits.png", rgb.astype(np.uint16) * 257)
    _save_png(folder / "sixteen_bits_grey.png", rgb[:, :, 0].astype(np.uint16) * 257)
    _save_png(folder / "grey.png", rgb[:, :, 0])
    _save_png(folder / "transparent.png", np.dstack([rgb, rgb[:, :, :1]]))
    _save_png(folder / "tiny.png", rgb[:8, :8])
    Image.fromarray(rgb).convert("CMYK").save(folder / "ink.tif")
    Image.fromarray(rgb).convert("CMYK").save(folder / "ink_photo.jpg")
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    Image.fromarray(rgb).save(
        folder / "pages.tif", save_all=True, append_images=[Image.fromarray(rgb)]
    )
    (folder / "cut_slice.tif").write_bytes(encode_picture(rgb, ".tif")[:4000])
    (folder / "cut_picture.png").write_bytes(encode_picture(rgb, ".png")[:4000])
    (folder / "text.tif").write_text("no image")
    (folder / "empty.tif").write_bytes(b"")
    (folder / "gif.png").write_bytes(b"GIF89a" + bytes(64))
    Image.new("1", (10_000, 10_000)).save(folder / "hundred_megapixels.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    volume = rng.integers(0, 1700, (32, 32, 4, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "sixteen.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume[..., 0], np.eye(4)), folder / "one.nii")
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    cut = (folder / "sixteen.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    return {
        "sixteen_bits.png": "64x64x3 uint16; expected three channels of uint8",
        "sixteen_bits_grey.png": "64x64 uint16; expected three channels",
        "grey.png": "64x64 uint8; expected three channels",
        "transparent.png": "64x64x4 uint8; expected three",
        "tiny.png": "8 x 8 pixels; expected sides from 32 to 4096",
        "ink.tif": "four channels of ink (CMYK); expected grey values or three",
        "ink_photo.jpg": "four channels of ink (CMYK); expected grey values or three",
        "palette.png": "a palette of colours; expected grey values or three",
        "pages.tif": "2 pages; expected one slice in a file",
        "cut_slice.tif": "not a TIFF",
        "cut_picture.png": "truncated",
        "text.tif": "not a TIFF, PNG or JPEG image",
        "empty.tif": "not a TIFF, PNG or JPEG image",
        "gif.png": "not a TIFF, PNG or JPEG image",
        "hundred_megapixels.png": "10000 x 10000 pixels; at most 4096 along a side",
        "bomb.png": "pixels; at most 4096 along a side",
        "sixteen.nii.gz": "int16 from 0 to 1699; expected integers from 0 to 255",
        "one.nii": "32x32x4; expected three sequences on a fourth axis",
        "broken.nii.gz": "not a NIfTI volume",
        "cut.nii.gz": "damaged",
    }


def test_bad_files_are_reported_and_the_others_predicted(
    model_file: Path, data: SliceStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        expected = _bad_files(folder)
    (folder / "good.png").write_bytes(encode_picture(data.image(2)))
    (folder / "notes.csv").write_text("not an input at all")
    code = run_predict(model_file, folder, tmp_path / "missing.tif", out=tmp_path / "out")
    assert code == 3
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == len(expected) + 2
    assert sum(line.endswith("nor masks of one: notes.csv") for line in errors) == 1
    for name, sentence in expected.items():
        lines = [line for line in errors if f"/{name}: " in line]
        assert len(lines) == 1, name
        assert sentence in lines[0]
    assert any("missing.tif: there is no such file" in line for line in errors)
    assert [Path(row["file"]).name for row in read_rows(tmp_path / "out" / "predictions.csv")] == [
        "good.png"
    ]


def test_a_bad_mask_is_named(
    model_file: Path, data: SliceStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture(data.image(2)))
    (tmp_path / "a_mask.png").write_bytes(encode_picture(np.full((32, 32), 7, np.uint8)))
    assert run_predict(model_file, tmp_path / "a.png", out=tmp_path / "out") == 3
    assert "a_mask.png: values 7 ...; expected 0 and 255" in capfd.readouterr().err


def test_damaged_files_raise_only_data_errors(data: SliceStore, tmp_path: Path) -> None:
    """Random damage to files: an image, or a DataError; no other exception, no crash."""

    rng = np.random.default_rng(0)
    for suffix in (".tif", ".png", ".jpg"):
        whole = np.frombuffer(encode_picture(data.image(2), suffix), np.uint8)
        for _ in range(150):
            broken = whole.copy()
            positions = rng.integers(0, min(len(whole), 400), 6)
            broken[positions] = rng.integers(0, 256, 6)
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(broken.tobytes())
            try:
                assert read_user_image(path).shape[2] == 3
            except DataError as error:
                assert path.name in str(error)


def test_inputs_of_one_name_do_not_overwrite_each_other(data: SliceStore, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(encode_picture(data.image(0)))
    scans, problems = find_scans([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"])
    assert len(scans) == 1
    assert "would overwrite the results" in problems[0]
    scans, problems = find_scans([tmp_path, tmp_path / "a"])
    assert len(scans) == 2  # the folder above tells them apart; a/x.png is predicted once
    assert not problems


def test_patients_of_one_name_are_told_apart_and_slices_come_in_natural_order(
    data: SliceStore, tmp_path: Path
) -> None:
    picture = encode_picture(data.image(0))
    for folder in ("siteA/01", "siteB/01", "siteB/02", "TCGA_CS_1_20000101", "TCGA_CS_1_20010101"):
        (tmp_path / folder).mkdir(parents=True)
        for number in (10, 2):
            (tmp_path / folder / f"{number}.png").write_bytes(picture)
    for case in ("caseA", "caseB"):
        (tmp_path / case).mkdir()
        volume = nibabel.Nifti1Image(np.zeros((32, 32, 2, 3), np.uint8), np.eye(4))
        nibabel.save(volume, tmp_path / case / "image.nii.gz")
    scans, problems = find_scans([tmp_path])
    assert not problems
    images = [scan for scan in scans if not scan.is_volume]
    assert [scan.path.stem for scan in images] == ["2", "10"] * 5
    # Two examinations of a TCGA patient: one patient, two volumes.
    assert list(dict.fromkeys(scan.patient for scan in scans)) == [
        "TCGA_CS_1",
        *(str(tmp_path / case / "image") for case in ("caseA", "caseB")),
        *(str(tmp_path / site / "01") for site in ("siteA", "siteB")),
        "02",
    ]
    assert len({scan.volume for scan in scans}) == 7
    given = [tmp_path / "siteB/02" / name for name in ("10.png", "2.png", "10.png")]
    assert [scan.path.name for scan in find_scans(given)[0]] == ["2.png", "10.png"]


def test_the_images_of_a_folder_stay_together_whatever_the_names(tmp_path: Path) -> None:
    folders = ["1", "01", "pat", "pat/2_old"]
    for folder in folders:
        (tmp_path / folder).mkdir()
        for number in (1, 2, 3):
            path = tmp_path / folder / f"{number}.png"
            _save_png(path, np.full((32, 32), number * 60, np.uint16))
        volume = nibabel.Nifti1Image(np.zeros((32, 32, 2), np.uint16), np.eye(4))
        nibabel.save(volume, tmp_path / folder / "2b.nii.gz")
    scans, problems = find_scans([tmp_path])
    volumes = [volume for volume, _ in itertools.groupby(scan.volume for scan in scans)]
    assert len(volumes) == len(set(volumes)) == 2 * len(folders)
    for batch in read_batches(scans, 1, problems, ["FLAIR"], rescales=True):
        pixels = [slices.images[0].max() for scan, slices in batch if not scan.is_volume]
        assert pixels in ([], [0, 128, 255])  # rescaled over all three
    assert not problems


def test_slices_that_are_predicted_alone_are_not_all_in_memory_at_once(
    predictor: Predictor, patient: Path
) -> None:
    def batches(*, together: bool, rescales: bool = False) -> list[list[NDArray[np.uint8]]]:
        found = read_batches(scans, 2, [], CHANNELS, rescales=rescales, together=together)
        return [[image for _, slices in batch for image in slices.images] for batch in found]

    scans, _ = find_scans([patient])
    (whole,) = batches(together=True)
    parts = batches(together=False)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(np.concatenate(batches(together=False, rescales=True)), whole)
    masks = [mask for part in parts for mask in predictor.masks(part)]
    assert np.array_equal(masks, predictor.masks(whole))


def test_a_folder_with_an_image_of_16_bits_is_rescaled_as_a_whole(tmp_path: Path) -> None:
    for number in range(6):
        level = np.uint16(900) if number == 5 else np.uint8(100)
        _save_png(tmp_path / f"{number}.png", np.full((32, 32), level))
    (tmp_path / "7.png").write_bytes(b"no image")
    scans, problems = find_scans([tmp_path])
    (batch,) = read_batches(scans, 2, problems, ["T2"], rescales=True, together=False)
    assert [slices.images[0].max() for _, slices in batch] == [0] * 5 + [255]
    assert len(problems) == 1


def test_a_true_mask_with_another_affine_than_its_volume_is_refused(tmp_path: Path) -> None:
    for name, affine in (("v.nii.gz", np.diag([-1, -1, 2, 1])), ("v_mask.nii.gz", np.eye(4))):
        values = np.zeros((40, 36, 3), np.uint8)
        values[3, 4] = 1
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / name)
    problems: list[str] = []
    scans, _ = find_scans([tmp_path])
    assert list(read_batches(scans, 8, problems, ["FLAIR"])) == []
    assert "v_mask.nii.gz: its affine (the identity" in problems[0]
    assert "is not that of v.nii.gz" in problems[0]
