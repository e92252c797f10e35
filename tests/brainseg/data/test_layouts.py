from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.data.layouts import find_default_root, find_root, find_slices, natural_key
from brainseg.data.slice_store import open_dataset
from brainseg.errors import DataError


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_root, tmp_path / "kaggle_3m"))


def _first(root: Path) -> tuple[Path, Path]:
    mask = sorted(root.glob("*/*_1_mask.tif"))[0]
    return mask.with_name(mask.name.replace("_mask", "")), mask


def test_the_folder_its_parent_and_the_archive_give_the_same_root(root: Path) -> None:
    assert find_root(root) == find_root(root.parent) == (root.resolve(), [])


def test_the_second_copy_in_the_archive_is_named_and_not_used(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lgg-mri-segmentation" / "kaggle_3m"
    shutil.copytree(root, copy)
    found, notes = find_root(tmp_path)
    assert found == root.resolve()
    assert len(notes) == 1
    assert "second copy" in notes[0]


def test_two_copies_that_differ_are_refused(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lgg-mri-segmentation" / "kaggle_3m"
    shutil.copytree(root, copy)
    _first(copy)[0].unlink()
    with pytest.raises(DataError, match="different slices"):
        find_root(tmp_path)


def test_slices_come_in_natural_order_with_patients_from_folder_names(root: Path) -> None:
    folder = root / "TCGA_CS_9999_20000101"
    folder.mkdir()
    image, mask = _first(root)
    for number in (1, 2, 10):
        shutil.copy(image, folder / f"{folder.name}_{number}.tif")
        shutil.copy(mask, folder / f"{folder.name}_{number}_mask.tif")
    ours = [item for item in find_slices(root) if item.patient == "TCGA_CS_9999"]
    assert [item.name.rsplit("_", 1)[1] for item in ours] == ["1", "2", "10"]


def test_the_slices_of_a_folder_follow_each_other_whatever_the_folders_names(root: Path) -> None:
    before = [item.images[0] for item in find_slices(root)]
    assert before == sorted(before, key=lambda path: natural_key(str(path)))
    image, mask = _first(root)
    for folder in ("1", "01", "a", "a b", "a-2"):
        (root / folder).mkdir()
        for number in (1, 2, 3):
            shutil.copy(image, root / folder / f"{number}.tif")
            shutil.copy(mask, root / folder / f"{number}_mask.tif")
    folders = [item.scan for item in find_slices(root)]
    runs = [folder for folder, _ in itertools.groupby(folders)]
    assert len(runs) == len(set(runs))
    assert [run for run in runs if run[0] == "a"] == ["a b", "a-2", "a"]  # as by whole paths


def test_two_examinations_of_one_patient_are_one_patient(root: Path) -> None:
    folders = [root / f"TCGA_DU_1234_{date}" for date in ("19990101", "20010101")]
    image, mask = _first(root)
    for folder in folders:
        folder.mkdir()
        shutil.copy(image, folder / f"{folder.name}_1.tif")
        shutil.copy(mask, folder / f"{folder.name}_1_mask.tif")
    assert sum(item.patient == "TCGA_DU_1234" for item in find_slices(root)) == 2


def test_junk_is_ignored(root: Path) -> None:
    before = len(find_slices(root))
    (root / ".DS_Store").write_bytes(b"x")
    (root / "data.csv").write_text("Patient\n")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._a_mask.tif").write_bytes(b"x")
    (_first(root)[0].parent / "Thumbs.db").write_bytes(b"x")
    assert len(find_slices(root)) == before


@pytest.mark.parametrize("half", [0, 1])
def test_a_missing_half_is_named(root: Path, half: int) -> None:
    gone = _first(root)[half]
    gone.unlink()
    with pytest.raises(DataError) as caught:
        find_slices(root)
    assert len(caught.value.problems) == 1
    assert gone.name in caught.value.problems[0]


def test_a_patient_folder_is_refused_with_what_to_give_instead(root: Path) -> None:
    with pytest.raises(DataError, match="give the folder above"):
        find_root(_first(root)[0].parent)


def test_a_folder_without_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no patient folders"):
        find_root(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_root(tmp_path / "nowhere")


def test_the_environment_must_name_a_folder(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("BRAINSEG_DATA", str(root))
    assert find_default_root() == root
    monkeypatch.setenv("BRAINSEG_DATA", str(root / "nowhere"))
    with pytest.raises(DataError, match="BRAINSEG_DATA"):
        find_default_root()


def _rewrite(path: Path, array: NDArray[np.generic]) -> None:
    assert cv2.imwrite(str(path), array)


IMAGE = np.full((32, 32, 3), 7, np.uint8)
RAMP = np.arange(1024, dtype=np.uint16).reshape(32, 32).astype(np.uint8)

# Kind of damage -> the image's new content, the mask's, and words of the message.
KINDS: dict[
    str, tuple[bytes | NDArray[np.generic] | None, bytes | NDArray[np.generic] | None, str]
]
KINDS = {
    "truncated": (b"II*\0\x08\0\0\0", None, "truncated"),
    "empty": (None, b"", "0 bytes"),
    "html": (b"<html>404</html>", None, "not a TIFF"),
    "16 bit": (IMAGE.astype(np.uint16) * 256, None, "uint16"),
    "grey": (IMAGE[:, :, 0], None, "expected three channels"),
    "four channels": (np.dstack([IMAGE, IMAGE[:, :, 0]]), None, "32x32x4"),
    "oblong": (IMAGE[:16], None, "expected a square"),
    "other size": (np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), "64 pixels"),
    "mask of another size": (None, np.zeros((16, 16), np.uint8), "but its image"),
    "soft mask": (None, RAMP, "expected 0 and 255"),
    "colour mask": (None, IMAGE, "expected one channel"),
    "inverted mask": (None, np.full((32, 32), 255, np.uint8), "inverted"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_named_with_what_is_wrong(root: Path, kind: str) -> None:
    # The last patient's, so that the dataset's common size is known when it is met.
    name = sorted(root.glob("PHANTOM_*"))[-1].name
    *contents, words = KINDS[kind]
    for path, content in zip((f"{name}_3.tif", f"{name}_3_mask.tif"), contents, strict=True):
        if isinstance(content, bytes):
            (root / name / path).write_bytes(content)
        elif content is not None:
            _rewrite(root / name / path, content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 of 72 slices") as caught:
        open_dataset(root)
    assert len(caught.value.problems) == 1
    assert f"{name}_3" in caught.value.problems[0]
    assert words in caught.value.problems[0]


def test_all_problems_are_listed_at_once(root: Path) -> None:
    for folder in sorted(root.glob("PHANTOM_*"))[:3]:
        (folder / f"{folder.name}_2.tif").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert len(caught.value.problems) == 3


def test_a_tumour_slice_of_two_patients_is_refused(root: Path) -> None:
    mask = next(m for m in sorted(root.glob("*/*_mask.tif")) if _pixels(m).any())
    image = mask.with_name(mask.name.replace("_mask", ""))
    folder = root / "PHANTOM_CS_9999_20000101"
    folder.mkdir()
    shutil.copy(image, folder / f"{folder.name}_1.tif")
    shutil.copy(mask, folder / f"{folder.name}_1_mask.tif")
    with pytest.raises(DataError, match="belong to two patients"):
        open_dataset(root)


def _pixels(path: Path) -> NDArray[np.uint8]:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found, np.uint8)


def test_masks_of_zeros_and_ones_are_the_same_masks(root: Path, phantom_root: Path) -> None:
    for mask in root.glob("*/*_mask.tif"):
        _rewrite(mask, _pixels(mask) // 255)
    assert open_dataset(root).fingerprint == open_dataset(phantom_root).fingerprint
