"""The folder layout of the dataset: finds its slices, decodes and checks them.

Layout (kaggle_3m): `<root>/<patient folder>/<slice>.tif` with `<slice>_mask.tif` beside it. The
channels of an image are three sequences in this order: pre-contrast, FLAIR, post-contrast.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.errors import DataError
from brainseg.storage.urls import Location, is_url

MASK_SUFFIX = "_mask.tif"
ENVIRONMENT_VARIABLE = "BRAINSEG_DATA"
_PATIENT_FOLDER = re.compile(r"((?:TCGA|PHANTOM)_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d{8}")
_ARCHIVE_COPIES = (".", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")


@dataclass(frozen=True, slots=True)
class SliceFile:
    """A slice on disk: its name without suffix, its patient, its image and mask files."""

    name: str
    patient: str
    image: Path
    mask: Path


def find_default_root() -> Location | None:
    """Return the dataset of a command without `--data`, or None if there is none.

    Raises:
        DataError: If the environment variable names a folder that does not exist.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        if is_url(named):
            return named
        if not Path(named).is_dir():
            raise DataError(f"{ENVIRONMENT_VARIABLE} is {named}, which is not a folder")
        return Path(named)
    local = Path("data/kaggle_3m")
    return local if local.is_dir() else None


def find_root(path: Path | str) -> tuple[Path, list[str]]:
    """Find the folder of patient folders at or below a path.

    Args:
        path: The kaggle_3m folder, its parent, or the root of the Kaggle archive, which holds the
            same tree twice.

    Returns:
        The absolute root, and sentences to print.

    Raises:
        DataError: If there is no such folder, or the archive's two copies differ.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"the data folder {path} does not exist")
    if any(path.glob(f"*{MASK_SUFFIX}")):
        raise DataError(f"{path} holds slices itself: give the folder above, of all patients")
    listings = {}
    for copy in _ARCHIVE_COPIES:
        listing = _list_patient_files(path / copy)
        if listing:
            listings[(path / copy).resolve()] = listing
    if not listings:
        raise DataError(
            f"no patient folders with *{MASK_SUFFIX} files in {path}; "
            "give the kaggle_3m folder of the LGG MRI segmentation dataset"
        )
    root, *copies = listings
    for copy_root in copies:
        if listings[copy_root] != listings[root]:
            raise DataError(f"{copy_root} and {root} hold different slices: give one of them")
    notes = [f"{copy_root} is a second copy of the same slices: not used" for copy_root in copies]
    return root, notes


def find_slices(root: Path) -> list[SliceFile]:
    """Pair images with masks by name.

    Args:
        root: Folder of patient folders.

    Returns:
        Slices in natural order of their paths: `_2` before `_10`.

    Raises:
        DataError: If an image has no mask or a mask no image; `problems` lists them all.
    """
    names = sorted(_list_patient_files(root), key=natural_key)
    known = set(names)
    slices, problems = [], []
    for name in names:
        if name.endswith(MASK_SUFFIX):
            image = name.removesuffix(MASK_SUFFIX) + ".tif"
            if image not in known:
                problems.append(f"{name}: its image {Path(image).name} is missing")
                continue
            folder, stem = Path(image).parent.name, Path(image).stem
            slices.append(SliceFile(stem, patient_of(folder), root / image, root / name))
        elif name.removesuffix(".tif") + MASK_SUFFIX not in known:
            problems.append(f"{name}: its mask {Path(name).stem}{MASK_SUFFIX} is missing")
    if problems:
        raise DataError(f"{len(problems)} slices in {root} lack their other half", problems)
    return slices


def read_slice(files: SliceFile) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode and check a slice of the dataset.

    Returns:
        The image, uint8 (S, S, 3), and the mask, uint8 (S, S), 1 for tumour.

    Raises:
        DataError: If a file is damaged, or the image is not square.
    """
    image = read_image(files.image)
    if image.shape[0] != image.shape[1]:
        raise DataError(f"{files.image.name}: {_shape(image)}; expected a square")
    return image, read_mask(files.mask, image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image.

    Returns:
        uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.

    Raises:
        DataError: If the file is damaged, or not uint8 with three channels.
    """
    image = decode(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path.name}: {_shape(image)} {image.dtype}; expected three channels of uint8"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_mask(path: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode the true mask of an image.

    Args:
        path: The mask file.
        image: Its image, uint8 (H, W, 3).

    Returns:
        uint8 (H, W), 1 for tumour.

    Raises:
        DataError: If the file is damaged, of another size, or not a mask.
    """
    mask = decode(path)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{path.name}: {_shape(mask)} {mask.dtype}; expected one channel of uint8")
    if mask.shape != image.shape[:2]:
        raise DataError(f"{path.name}: {_shape(mask)}, but its image {_shape(image)}")
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        shown = ", ".join(str(value) for value in values[:6])
        raise DataError(f"{path.name}: values {shown} ...; expected 0 and 255, or 0 and 1")
    binary = mask.astype(bool).astype(np.uint8)
    share = float(np.mean(binary))
    if share > 0.5:
        raise DataError(f"{path.name}: {share:.0%} is tumour; is it inverted?")
    return binary


def patient_of(folder: str) -> str:
    """Return the patient of a patient folder, by the folder's name."""
    # Two examinations of a patient, which differ in the date, must not be two patients.
    match = _PATIENT_FOLDER.fullmatch(folder)
    return match.group(1) if match else folder


def natural_key(name: str) -> list[int | str]:
    """Return a key that sorts `_2` before `_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def decode(path: Path) -> NDArray[np.generic]:
    """Decode an image file as it is.

    Raises:
        DataError: If the file is damaged or no image.
    """
    # cv2.imread would return None for any error, and cannot open some names.
    try:
        raw = np.fromfile(path, dtype=np.uint8)
        decoded = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
    except (OSError, cv2.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if decoded is None:
        raise DataError(f"{path.name}: {raw.size} bytes that are no image, or a truncated one")
    return np.asarray(decoded)


def _list_patient_files(root: Path) -> dict[str, int]:
    """Relative path -> size in bytes of each .tif in a patient folder; hidden ones are skipped."""
    if not root.is_dir():
        return {}
    found: dict[str, int] = {}
    for folder in root.iterdir():
        if folder.name.startswith((".", "__MACOSX")) or not folder.is_dir():
            continue
        files = [f for f in folder.glob("*.tif") if not f.name.startswith(".")]
        if any(f.name.endswith(MASK_SUFFIX) for f in files) or _PATIENT_FOLDER.match(folder.name):
            found |= {f"{folder.name}/{f.name}": f.stat().st_size for f in files}
    return found


def _shape(array: NDArray[np.generic]) -> str:
    return "x".join(str(side) for side in array.shape)
