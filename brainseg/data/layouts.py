"""The folder layout of the dataset: finds its slices and reads them.

Layout (kaggle_3m): `<root>/<patient folder>/<slice>.tif` with `<slice>_mask.tif` beside it. The
channels of an image are three sequences in this order: pre-contrast, FLAIR, post-contrast.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainseg.data.image_files import read_image, read_mask, show_name, show_shape
from brainseg.errors import DataError
from brainseg.storage.urls import Location, is_url

MASK_SUFFIX = "_mask.tif"
ENVIRONMENT_VARIABLE = "BRAINSEG_DATA"
_PATIENT_FOLDER = re.compile(r"((?:TCGA|PHANTOM)_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d{8}")
_ARCHIVE_COPIES = (".", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
_NOT_DATA = ("data.csv", "dataset.yaml", "phantom.json", "thumbs.db", "desktop.ini")
_NOT_DATA_STEMS = ("readme", "license", "licence", "changelog", "citation")
_DATE = re.compile(r"[\W_]*(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])$")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image, or a volume of slices, and its mask.

    Attributes:
        name: Name of the image; of a volume's slices, its beginning.
        patient: Its patient.
        images: One file, or one per channel.
        mask: The mask's file.
        scan: Which of the patient's examinations an image is of; a volume is one of its own.
    """

    name: str
    patient: str
    images: tuple[Path, ...]
    mask: Path
    scan: str = ""


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
        state = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"the data folder {path} {state}")
    if any(path.glob(f"*{MASK_SUFFIX}")):
        raise DataError(f"{path} holds slices itself: give the folder above, of all patients")
    listings = {}
    for copy in _ARCHIVE_COPIES:
        listing = _list_patient_files(path / copy)
        if listing:
            listings[(path / copy).resolve()] = listing
    if not listings:
        there = list(itertools.islice(_find_unused(path, ()), _SHOWN + 1))
        raise DataError(
            f"no patient folders with *{MASK_SUFFIX} files in {path}, which holds "
            f"{_name_some(there) if there else 'nothing'}; give the kaggle_3m folder of the LGG "
            "MRI segmentation dataset, or describe your own in a dataset.yaml (docs/data.md)"
        )
    root, *copies = listings
    for copy_root in copies:
        if listings[copy_root] != listings[root]:
            raise DataError(f"{copy_root} and {root} hold different slices: give one of them")
    notes = [f"{copy_root} is a second copy of the same slices: not used" for copy_root in copies]
    return root, notes


def find_slices(root: Path) -> list[ImageFiles]:
    """Pair images with masks by name.

    Args:
        root: Folder of patient folders.

    Returns:
        Slices in natural order of their paths, `_2` before `_10`; a folder's together.

    Raises:
        DataError: If an image has no mask or a mask no image; `problems` lists them all.
    """
    names = sorted(_list_patient_files(root), key=lambda name: path_key(*name.split("/")))
    known = set(names)
    slices, problems = [], []
    for name in names:
        if name.endswith(MASK_SUFFIX):
            image = name.removesuffix(MASK_SUFFIX) + ".tif"
            if image not in known:
                problems.append(f"{name}: its image {Path(image).name} is missing")
                continue
            folder, stem = Path(image).parent.name, Path(image).stem
            patient, files = patient_of(folder), (root / image,)
            slices.append(ImageFiles(stem, patient, files, root / name, folder))
        elif name.removesuffix(".tif") + MASK_SUFFIX not in known:
            problems.append(f"{name}: its mask {Path(name).stem}{MASK_SUFFIX} is missing")
    if problems:
        shown = [show_name(problem) for problem in problems]
        raise DataError(f"{len(problems)} slices in {root} lack their other half", shown)
    return slices


def read_slice(files: ImageFiles) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode and check a slice of the dataset.

    Returns:
        The image, uint8 (S, S, 3), and the mask, uint8 (S, S), 1 for tumour.

    Raises:
        DataError: If a file is damaged, or the image is not square.
    """
    (path,) = files.images
    image = read_image(path)
    if image.shape[0] != image.shape[1]:
        raise DataError(f"{show_name(path)}: {show_shape(image.shape)}; expected a square")
    return image, read_mask(files.mask, image)


def patient_of(folder: str) -> str:
    """Return the patient of a patient folder, by the folder's name."""
    # Two examinations of a patient, which differ in the date, must not be two patients.
    match = _PATIENT_FOLDER.fullmatch(folder)
    return match.group(1) if match else folder


def natural_key(name: str) -> list[int | str]:
    """Return a key that sorts `_2` before `_10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def path_key(folder: str, name: str) -> tuple[list[int | str], str, list[int | str], str]:
    """Return a key that sorts paths as `natural_key` does, but keeps a folder's files together.

    By the path alone, files of `1` and `01`, or of `a` and `a/2_old`, would alternate.
    """
    return natural_key(f"{folder}/"), folder, natural_key(name), name


def describe_unused(root: Path, used: Iterable[Path], remedy: str) -> list[str]:
    """Return a sentence that names what lies below a folder and is not used, or none.

    Hidden files, and those that are no data, such as README, are left out; an empty folder is
    named with a slash at its end.

    Raises:
        OSError: If a folder cannot be read.
    """
    left = sorted(_find_unused(root, {str(path) for path in used}), key=natural_key)
    return [f"{len(left)} files {remedy}: {_name_some(left)}"] if left else []


def _find_unused(root: Path, used: Collection[str]) -> Iterator[str]:
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        if not files and not folders and Path(folder) != root:
            yield f"{show_name(os.path.relpath(folder, root))}/"
        for name in files:
            if name.startswith(".") or _is_no_data(name.lower()):
                continue
            if (path := f"{folder}/{name}") not in used:
                yield show_name(os.path.relpath(path, root))


def find_namesakes(patients: Iterable[str]) -> list[str]:
    """Return a sentence if patients may be one: names that differ in case or a date only."""
    groups: dict[str, list[str]] = {}
    for patient in patients:
        plain = unicodedata.normalize("NFKC", patient).strip().casefold()
        groups.setdefault(_DATE.sub("", plain) or plain, []).append(patient)
    found = [" and ".join(map(show_name, group)) for group in groups.values() if group[1:]]
    if not found:
        return []
    return [
        f"{len(found)} pairs of patients may be one, who would train and test: "
        f"{_name_some(found)}. If so, give them one name, or a patient_pattern in a dataset.yaml "
        "(docs/data.md)"
    ]


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if names[_SHOWN:] else "")


def _is_no_data(name: str) -> bool:
    return name in _NOT_DATA or name.split(".")[0] in _NOT_DATA_STEMS


def _raise(error: OSError) -> None:
    raise error


def _list_patient_files(root: Path) -> dict[str, int]:
    """Relative path -> size in bytes of each .tif in a patient folder; hidden ones are skipped."""
    if not root.is_dir():
        return {}
    found: dict[str, int] = {}
    for folder in root.iterdir():
        if folder.name.startswith((".", "__MACOSX")) or not folder.is_dir():
            continue
        files = [f for f in folder.iterdir() if f.suffix == ".tif" and f.name[0] != "."]
        if any(f.name.endswith(MASK_SUFFIX) for f in files) or _PATIENT_FOLDER.match(folder.name):
            found |= {f"{folder.name}/{f.name}": f.stat().st_size for f in files}
    return found
