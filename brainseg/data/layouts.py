"""The folder layout of the dataset: finds its slices, decodes and checks them.

Layout (kaggle_3m): `<root>/<patient folder>/<slice>.tif` with `<slice>_mask.tif` beside it. The
channels of an image are three sequences in this order: pre-contrast, FLAIR, post-contrast.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import unicodedata
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from brainseg.errors import DataError
from brainseg.storage.files import regular_file
from brainseg.storage.urls import Location, escape, is_url

MAX_SIDE = 4096
"""Pixels along a side of an image that is read: 16.8 megapixels."""
MAX_BYTES = 64 * 2**20
"""Bytes of an image file that is read."""
MASK_SUFFIX = "_mask.tif"
ENVIRONMENT_VARIABLE = "BRAINSEG_DATA"
_PATIENT_FOLDER = re.compile(r"((?:TCGA|PHANTOM)_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d{8}")
_ARCHIVE_COPIES = (".", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
_FORMATS = {"TIFF": (".tif", ".tiff"), "PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
_REFUSED_MODES = {
    "P": "a palette of colours",
    "PA": "a palette of colours",
    "LA": "grey values and transparency",
    "CMYK": "four channels of ink (CMYK)",
    "LAB": "Lab colours",
}
"""Pillow's modes of images that OpenCV would convert, or read without a channel."""
_CHECKED = ("tiff_deflate", "tiff_adobe_deflate")
"""Compressions with a checksum, in Pillow's words."""
_STRIPS = ((273, 279), (324, 325))  # the tags of offsets and sizes, of strips and of tiles
_ORIENTATION = 274  # the number of the tag, in TIFF and Exif
_NOT_DATA = ("data.csv", "dataset.yaml", "phantom.json", "thumbs.db", "desktop.ini")
_NOT_DATA_STEMS = ("readme", "license", "licence", "changelog", "citation")
_DATE = re.compile(r"[\W_]*(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])$")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHOWN = 5

# A damaged file is reported once, by this program.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.utils.logging.setLogLevel(0)


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
            f"{show_name(path)}: {show_shape(image.shape)} {image.dtype}; expected three channels "
            "of uint8"
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
        raise DataError(
            f"{show_name(path)}: {show_shape(mask.shape)} {mask.dtype}; expected one channel of "
            "uint8"
        )
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{show_name(path)}: {show_shape(mask.shape)}, but its image {show_shape(image.shape)}"
        )
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        shown = ", ".join(str(value) for value in values[:6])
        raise DataError(f"{show_name(path)}: values {shown} ...; expected 0 and 255, or 0 and 1")
    return mask.astype(bool).astype(np.uint8)


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


def decode(path: Path) -> NDArray[np.generic]:
    """Decode an image file as it is, after a look at its header.

    Raises:
        DataError: If the file is damaged, no image, too large, of another format than its name
            says, or one that would be read in part or altered: of several pages, with a palette,
            ink or transparent grey, turned by a tag.
    """
    size = require_file(path)
    if size > MAX_BYTES:
        raise DataError(f"{show_name(path)}: {size:,} bytes; at most {MAX_BYTES:,} are read")
    # cv2.imread would return None for any error, and cannot open some names.
    try:
        raw = path.read_bytes()
        _check_header(path, raw)
        decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise DataError(f"{show_name(path)}: cannot be read: {show_error(error)}") from error
    if decoded is None:
        raise DataError(f"{show_name(path)}: {len(raw):,} bytes, damaged or truncated")
    return np.asarray(decoded)


def _check_header(path: Path, raw: bytes) -> None:
    """Refuse an image that OpenCV would not decode as it is, before its pixels are decoded."""
    try:
        with Image.open(io.BytesIO(raw), formats=tuple(_FORMATS)) as image:
            if image.format == "PNG":  # OpenCV allocates what a chunk claims to hold
                image.verify()
        with Image.open(io.BytesIO(raw), formats=tuple(_FORMATS)) as image:
            reason = _find_fault(image, path.suffix.lower())
            if reason is None and image.info.get("compression") in _CHECKED:
                _check_strips(image, raw)
    except UnidentifiedImageError as error:
        reason = f"not a TIFF, PNG or JPEG image, or a truncated one: {len(raw):,} bytes"
        raise DataError(f"{show_name(path)}: {reason}") from error
    except Image.DecompressionBombError:
        reason = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; at most {MAX_SIDE} along a side"
    except Exception as error:  # a damaged header may raise anything
        reason = f"cannot be read, perhaps truncated: {show_error(error)}"
    if reason is not None:
        raise DataError(f"{show_name(path)}: {reason}")


def _check_strips(image: Any, raw: bytes) -> None:
    """Compare a TIFF's strips or tiles with their checksums, which libtiff does not read.

    Raises:
        zlib.error: If one is damaged.
        EOFError: If one is cut, or far longer than the image.
    """
    tags, longest = image.tag_v2, 16 * image.width * image.height + 2**20
    for starts, sizes in _STRIPS:
        for start, size in zip(tags.get(starts, ()), tags.get(sizes, ()), strict=True):
            strip = zlib.decompressobj()
            strip.decompress(raw[start : start + size], longest)
            if not strip.eof:
                raise EOFError("a strip is not whole")


def _find_fault(image: Image.Image, suffix: str) -> str | None:
    (width, height), pages = image.size, getattr(image, "n_frames", 1)
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels; at most {MAX_SIDE} along a side"
    if pages != 1:
        return f"{pages} pages; expected one slice in a file"
    if suffix not in _FORMATS.get(image.format or "", ()):
        return f"holds a {image.format} image, against its name: give the original, or rename it"
    if image.mode in _REFUSED_MODES:
        return f"{_REFUSED_MODES[image.mode]}; expected grey values or three channels: convert it"
    if (turned := image.getexif().get(_ORIENTATION, 1)) != 1:
        return f"turned by its orientation tag ({turned}): save it upright, without the tag"
    return None


def require_file(path: Path) -> int:
    """Return the size in bytes of a file of data.

    Raises:
        DataError: If there is none, or it is a folder, a pipe or a device.
    """
    try:
        return regular_file(path).stat().st_size
    except (DataError, OSError) as error:
        raise DataError(f"{show_name(path)}: {show_name(str(error))}") from error


def show_name(name: Path | str) -> str:
    """Return the last part of a path, or a text, with what no terminal shows as escapes."""
    return escape(name.name if isinstance(name, Path) else name)


def show_shape(shape: Sequence[int]) -> str:
    """Return an array's shape as messages give it, such as `256x256x3`."""
    return "x".join(str(side) for side in shape)


def show_error(error: Exception, length: int = 200) -> str:
    """Return what another library's error says, in one line of at most `length` characters."""
    return show_name(" ".join(str(error).split()))[:length]


def is_writable_name(name: str) -> bool:
    """Return whether tables can hold a name: it is UTF-8, without control characters."""
    return _UNSAFE.search(name) is None


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
