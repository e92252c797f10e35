"""The generated dataset: its layout, its determinism, and that it is neither empty nor trivial."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from brainseg.data.phantom import MARKER, generate_phantom
from brainseg.data.slice_store import PHANTOM, open_dataset
from brainseg.data.split import split_by_patient
from brainseg.errors import DataError
from brainseg.storage.files import write_text

Volume = npt.NDArray[np.uint8]
SMALL = {"patients": 2, "slices": 6, "size": 32}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer patients than by default, with enough slices to see a tumour's shape."""
    root = tmp_path_factory.mktemp("data") / "phantom"
    return generate_phantom(root, patients=20, slices=12)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def pixels(path: Path | str) -> Volume:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found)


def read_patient(folder: Path) -> tuple[Volume, Volume]:
    """Read images (slices, size, size, 3), as RGB, and masks (slices, size, size) in order."""
    masks = sorted(folder.glob("*_mask.tif"), key=lambda path: int(path.stem.split("_")[-2]))
    images = [str(path).replace("_mask", "") for path in masks]
    return (
        np.stack([cv2.cvtColor(pixels(path), cv2.COLOR_BGR2RGB) for path in images]),
        np.stack([pixels(path) for path in masks]),
    )


def read_all(root: Path) -> list[tuple[Volume, Volume]]:
    return [read_patient(folder) for folder in sorted(root.glob("PHANTOM_*"))]


def brain_of(images: Volume) -> npt.NDArray[np.bool_]:
    """Find the head by its FLAIR signal and peel off scalp and skull."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))
    brains = np.zeros(images.shape[:3], np.uint8)
    for flair, brain in zip(images[..., 1], brains, strict=True):
        head = cv2.convexHull(cv2.findNonZero((cv2.medianBlur(flair, 5) > 20).astype(np.uint8)))
        cv2.erode(cv2.fillConvexPoly(np.zeros_like(flair), head, 1), kernel, dst=brain)
    return brains > 0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = generate_phantom(tmp_path / "a", **SMALL)
    second = generate_phantom(tmp_path / "b", **SMALL)
    assert files_of(first) == files_of(second)


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    first = files_of(generate_phantom(tmp_path / "a", **SMALL, seed=1))
    second = files_of(generate_phantom(tmp_path / "b", **SMALL, seed=2))
    assert first.keys() == second.keys()
    same = [name for name in first if first[name] == second[name] and "_mask" not in name]
    assert same == []


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = files_of(generate_phantom(tmp_path / "few", patients=1, slices=6, size=32))
    many = files_of(generate_phantom(tmp_path / "many", patients=2, slices=6, size=32))
    assert few.keys() < many.keys()
    assert all(many[name] == few[name] for name in few if name != MARKER)


def test_every_slice_has_its_mask_in_a_folder_that_names_the_phantom(phantom: Path) -> None:
    folders = sorted(path for path in phantom.iterdir() if path.is_dir())
    assert len(folders) == 20
    assert folders[0].name == "PHANTOM_CS_0001_20000101"
    for folder in folders:
        slices = {f"{folder.name}_{n}.tif" for n in range(1, 13)}
        masks = {f"{folder.name}_{n}_mask.tif" for n in range(1, 13)}
        assert {path.name for path in folder.iterdir()} == slices | masks


def test_images_and_masks_have_the_types_of_the_dataset(phantom: Path) -> None:
    for folder in sorted(phantom.glob("PHANTOM_*"))[:3]:
        image = pixels(folder / f"{folder.name}_6.tif")
        mask = pixels(folder / f"{folder.name}_6_mask.tif")
        assert (image.shape, mask.shape) == ((64, 64, 3), (64, 64))
        assert image.dtype == mask.dtype == np.uint8


def test_the_marker_holds_the_parameters(phantom: Path) -> None:
    marker = json.loads((phantom / MARKER).read_text(encoding="utf-8"))
    assert "no patient data" in marker["synthetic"]
    expected = {"patients": 20, "slices": 12, "size": 64, "seed": 44}
    assert expected.items() <= marker["parameters"].items()


def test_the_default_phantoms_test_four_patients() -> None:
    data = open_dataset(PHANTOM)
    assert (len(data.patients), len(data.slices), data.size) == (40, 240, 64)
    split = split_by_patient(data.slices, 0, 44)
    assert [len(part) for part in (split.train, split.val, split.test)] == [28, 8, 4]


def test_masks_are_0_or_255(phantom: Path) -> None:
    masks = np.stack([masks for _, masks in read_all(phantom)])
    assert np.unique(masks).tolist() == [0, 255]


def test_about_a_third_of_the_slices_hold_tumour(phantom: Path) -> None:
    masks = np.stack([masks for _, masks in read_all(phantom)])
    assert 0.25 <= masks.any(axis=(2, 3)).mean() <= 0.45


def test_every_tumour_spans_neighbouring_slices_away_from_the_ends(phantom: Path) -> None:
    for _, masks in read_all(phantom):
        held = np.flatnonzero(masks.any(axis=(1, 2)))
        assert len(held) >= 2
        assert np.all(np.diff(held) == 1)
        assert held[0] > 0
        assert held[-1] < len(masks) - 1


def test_every_tumour_changes_its_cross_section(phantom: Path) -> None:
    for _, masks in read_all(phantom):
        areas = np.count_nonzero(masks, axis=(1, 2))
        assert len(set(areas[areas > 0])) > 1


def test_a_single_slice_still_holds_a_tumour(tmp_path: Path) -> None:
    root = generate_phantom(tmp_path / "flat", patients=4, slices=1, size=32)
    assert all(masks.any() for _, masks in read_all(root))


def test_tumours_are_brighter_in_flair_than_the_brain_around(phantom: Path) -> None:
    for images, masks in read_all(phantom):
        held = masks.any(axis=(1, 2))
        flair, tumour = images[held][..., 1], masks[held] > 0
        rest = brain_of(images[held]) & ~tumour
        assert flair[tumour].mean() > 1.1 * flair[rest].mean()


def test_tumours_are_darker_before_contrast_where_the_channel_is_there(phantom: Path) -> None:
    for images, masks in read_all(phantom):
        held = masks.any(axis=(1, 2))
        pre, flair, tumour = images[held][..., 0], images[held][..., 1], masks[held] > 0
        rest = brain_of(images[held]) & ~tumour
        assert np.array_equal(pre, flair) or pre[tumour].mean() < pre[rest].mean()


def test_some_patients_carry_flair_in_place_of_a_missing_channel(phantom: Path) -> None:
    flair_twice = [
        np.array_equal(images[..., 0], images[..., 1])
        or np.array_equal(images[..., 2], images[..., 1])
        for images, _ in read_all(phantom)
    ]
    assert 1 <= sum(flair_twice) <= 5


def test_no_threshold_on_flair_solves_it(phantom: Path) -> None:
    patients = read_all(phantom)
    flair = np.stack([images[..., 1] for images, _ in patients])
    brain = np.stack([brain_of(images) for images, _ in patients])
    tumour = np.stack([masks for _, masks in patients]) > 0
    for region in (np.ones_like(brain), brain):
        found = [(flair >= level) & region for level in range(256)]
        dice = [2 * (f & tumour).sum() / (f.sum() + tumour.sum()) for f in found]
        assert max(dice) < 0.6


def test_a_second_call_rewrites_nothing(tmp_path: Path) -> None:
    root = generate_phantom(tmp_path / "phantom", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    assert generate_phantom(root, **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def test_a_root_with_other_parameters_is_refused(tmp_path: Path) -> None:
    root = generate_phantom(tmp_path / "phantom", **SMALL)
    before = files_of(root)
    with pytest.raises(DataError, match="was generated with"):
        generate_phantom(root, **SMALL, seed=45)
    assert files_of(root) == before


@pytest.mark.parametrize("marker", [None, "", "[]", "{}"])
def test_a_root_that_is_no_phantom_is_refused(tmp_path: Path, marker: str | None) -> None:
    if marker is not None:
        (tmp_path / MARKER).write_text(marker, encoding="utf-8")
    with pytest.raises(DataError, match="is not a generated dataset"):
        generate_phantom(tmp_path, **SMALL)


@pytest.mark.parametrize("wrong", [{"patients": 0}, {"slices": 0}, {"size": 16}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="cannot generate"):
        generate_phantom(tmp_path / "phantom", **(SMALL | wrong))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("brainseg.data.phantom.cv2.imencode", fail)
    with pytest.raises(OSError, match="disk full"):
        generate_phantom(tmp_path / "phantom", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_loses_the_race_uses_the_winners_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = generate_phantom(tmp_path / "winner", **SMALL)
    root = tmp_path / "phantom"

    def finish_first(path: Path, text: str) -> None:
        winner.rename(root)
        write_text(path, text)

    monkeypatch.setattr("brainseg.data.phantom.write_text", finish_first)
    assert generate_phantom(root, **SMALL) == root
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]
