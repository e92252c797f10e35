"""A user's own dataset, described by a `dataset.yaml` beside its images.

Patterns name files relative to the folder, such as `{patient}/{name}.png`: `{patient}` and
`{name}` stand for any text without a slash. docs/data.md has examples.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import regex
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from brainseg.config import Name
from brainseg.data.about import About
from brainseg.data.image_files import decode, show_name, show_shape
from brainseg.data.layouts import ImageFiles, describe_unused, natural_key
from brainseg.data.nifti import VOLUME_SUFFIXES, is_volume, open_volume
from brainseg.data.preprocess import rescale
from brainseg.errors import ConfigError, DataError
from brainseg.plugins import LAYOUT_GROUP, describe_error, load_function
from brainseg.storage.files import read_cells, write_csv, write_text
from brainseg.storage.values import Line, read_yaml, validated

DESCRIPTION_FILE, MANIFEST_FILE = "dataset.yaml", "manifest.csv"
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_UNUSED = "match no pattern and are not used"
_SECONDS = 2.0  # a pattern such as (a|aa)+b may take for ever
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_COUNTED = ("slices", "tumour_slices", "tumour_pixels", "missing")
"""Columns of a study's patients.csv that are counted and cannot be given."""

Row = Mapping[str, Any]
Pattern = Annotated[Line, Field(max_length=300)]
Value = Annotated[int, Field(ge=-(2**31), lt=2**32)]


class Description(About):
    """The content of a `dataset.yaml`: what a report says of the dataset, and where its files are.

    Attributes:
        images: Pattern of the image files; or channel -> pattern, if each channel has a file.
        masks: Pattern of the mask files, with the same placeholders.
        manifest: A CSV file instead of patterns, with the columns image (or one for each channel,
            by its name), mask and patient; further columns describe the patients.
        channels: Names of an image's channels, in the order of the file.
        patient_pattern: A regular expression; its first group in what `{patient}` found is the
            patient, such as `(.*)_\\d{8}` to take a date off.
        tumour: Values of a mask that are tumour; None takes all but 0, of masks of two values.
    """

    images: Pattern | Annotated[dict[Name, Pattern], Field(max_length=64)] | None = None
    masks: Pattern | None = None
    manifest: Pattern | None = None
    channels: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    patient_pattern: Pattern | None = None
    tumour: Annotated[tuple[Value, ...], Field(max_length=256)] | None = None

    @field_validator("images", "masks", "manifest")
    @classmethod
    def _check_pattern(cls, value: Any) -> Any:
        for pattern in value.values() if isinstance(value, dict) else [value]:
            path = PurePosixPath(pattern or "")
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{pattern} leaves the folder of {DESCRIPTION_FILE}")
            for name in _PLACEHOLDER.findall(pattern or ""):
                if name not in ("patient", "name"):
                    raise ValueError(
                        f"{pattern} holds {{{name}}}; expected {{patient}} or {{name}}"
                    )
        return value

    @field_validator("patient_pattern")
    @classmethod
    def _check_patient_pattern(cls, value: str | None) -> str | None:
        try:
            if value is not None and regex.compile(value).groups < 1:
                raise ValueError("needs a group in brackets, which is the patient")
        except regex.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _check_sources(self) -> Description:
        if (self.manifest is None) == (self.images is None or self.masks is None):
            raise ValueError("give images and masks, or a manifest")
        if isinstance(self.images, dict) and self.channels:
            raise ValueError("images names the channels already: leave out channels")
        if not self.channel_names:
            raise ValueError("name the channels of an image, such as channels: [FLAIR]")
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(self.images) if isinstance(self.images, dict) else self.channels

    @property
    def about(self) -> About:
        """What a report says of the dataset."""
        return About(**self.model_dump(include=set(About.model_fields)))


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset.

    Attributes:
        items: In natural order, a patient's together.
        covariates: Patient -> further columns of the manifest.
        notes: Sentences on what was not used and what was assumed.
    """

    items: tuple[ImageFiles, ...]
    covariates: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]


def read_description(root: Path) -> Description | None:
    """Read the `dataset.yaml` of a folder, or return None if there is none.

    Raises:
        DataError: Naming the file and the key.
    """
    path = root / DESCRIPTION_FILE
    if not os.path.lexists(path):
        return None
    try:
        return validated(Description, read_yaml(path), str(path))
    except ConfigError as error:
        raise DataError(str(error)) from error


def write_manifest(reference: str, root: object) -> Path:
    """Run a user's function once to find the files of a dataset.

    What it found is written as manifest.csv and dataset.yaml, which every command, process and
    machine reads without running anything.

    Args:
        reference: Of `find(root: Path)`, which yields a dictionary per image or volume: `image`
            (or a key per channel), `mask`, `patient`, and perhaps covariates. Paths are absolute
            or relative to the root, and lie below it.
        root: The dataset's folder.

    Returns:
        The folder.

    Raises:
        ConfigError: If the function cannot be loaded, fails or finds nothing, no folder is given,
            or it has one of the files already.
        DataError: If there is no such folder.
    """
    if not isinstance(root, Path):
        raise ConfigError(f"--layout needs --data with a folder of this machine, not {root}")
    find = load_function(reference, LAYOUT_GROUP, "--layout")
    if not root.expanduser().is_dir():
        raise DataError(f"--layout: there is no folder {root}: correct --data")
    folder = root.expanduser().resolve()
    if there := [name for name in (DESCRIPTION_FILE, MANIFEST_FILE) if (folder / name).exists()]:
        raise ConfigError(
            f"--layout: {folder / there[0]} is there already: move it away to write it again"
        )
    try:
        rows = [{str(k): v for k, v in row.items()} for row in find(folder)]
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"--layout {reference} fails: {describe_error(error)}") from error
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not rows or not {"mask", "patient"} <= set(keys):
        raise ConfigError(
            f"--layout {reference} gave {len(rows)} rows with the keys "
            f"{', '.join(keys) or 'none'}; expected image (or one per channel), mask and patient"
        )
    lines = []
    for row in rows:
        line = {key: "" if row.get(key) is None else row[key] for key in keys}
        for key, value in line.items():
            if isinstance(value, Path):
                path = folder / value
                line[key] = path.relative_to(folder) if path.is_relative_to(folder) else path
        lines.append(line)
    write_csv(folder / MANIFEST_FILE, lines, keys)
    text = (
        f"# Written by --layout {Path(reference).name}. Complete it: docs/data.md.\n"
        f'name: {json.dumps(folder.name)}\nsource: ""\nlicence: ""\nmanifest: {MANIFEST_FILE}\n'
        f"channels: {json.dumps(_name_channels(folder, lines, keys))}\n"
    )
    write_text(folder / DESCRIPTION_FILE, text)
    return folder


def _name_channels(folder: Path, rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Return names for the channels of a manifest: its columns of files, or numbers."""
    if "image" not in keys:
        others = [key for key in keys if key not in ("mask", "patient")]
        files = [key for key in others if all((folder / str(row[key])).is_file() for row in rows)]
        return files or others
    count = 1
    with suppress(DataError):  # of a file that cannot be used, which opening the dataset names
        values = read_values(folder / str(rows[0]["image"]))
        count = values.shape[3] if values.ndim == 4 else 1
    return [f"channel {number + 1}" for number in range(count)]


def find_files(root: Path, description: Description) -> DatasetFiles:
    """Pair the images of a dataset with their masks.

    Raises:
        DataError: If halves are missing or files lie outside the folder; `problems` lists them.
    """
    if description.manifest is not None:
        return _read_manifest(root, description)
    assert description.images is not None
    assert description.masks is not None
    patterns = description.images
    by_channel = list(patterns.values()) if isinstance(patterns, dict) else [patterns]
    masks = _match(root, description.masks)
    found = [_match(root, pattern) for pattern in by_channel]
    keys = sorted(set(found[0]).union(*found[1:]), key=lambda key: natural_key("/".join(key)))
    mask_files = set(masks.values())
    keys = [key for key in keys if not all(one.get(key) in mask_files for one in found)]
    problems, items = [], []
    for key in keys:
        missing = [p for p, one in zip(by_channel, found, strict=True) if key not in one]
        shown = next(one[key] for one in found if key in one).relative_to(root)
        if missing:
            problems.append(f"{shown}: its image {_fill(missing[0], key)} is missing")
        elif key not in masks:
            problems.append(f"{shown}: its mask {_fill(description.masks, key)} is missing")
        else:
            images, patient = tuple(one[key] for one in found), _patient(key, description)
            items.append(ImageFiles(key[1] or key[0], patient, images, masks[key], key[0]))
    problems += [
        f"{masks[key].relative_to(root)}: its image {_fill(by_channel[0], key)} is missing"
        for key in masks.keys() - set(keys)
    ]
    if problems or not items:
        text = f"{len(problems)} files in {root} lack their other half"
        shown_problems = [show_name(problem) for problem in problems]
        raise DataError(
            text if problems else f"no file in {root} matches {', '.join(by_channel)}",
            shown_problems,
        )
    notes = []
    if not any("{patient}" in pattern for pattern in by_channel):
        notes.append("the patterns hold no {patient}: each image is taken as a patient of its own")
    used = {path for item in items for path in (*item.images, item.mask)}
    notes += describe_unused(root, used, _UNUSED)
    return DatasetFiles(tuple(_together(items)), {}, tuple(notes))


Spacing = tuple[float, float]
"""Millimetres from row to row and from column to column of a slice."""


class DecodedSlice(NamedTuple):
    """A slice of a described dataset.

    Attributes:
        name: Its name.
        scan: Which of the patient's examinations it is of.
        image: uint8 (H, W, C).
        mask: uint8 (H, W), 1 for tumour.
        spacing: None if the first channel's file names none.
    """

    name: str
    scan: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    spacing: Spacing | None


def read_patient(items: Sequence[ImageFiles], description: Description) -> list[DecodedSlice]:
    """Decode and check the slices of one patient.

    Values that are not bytes are rescaled, each channel from its 0.5th to its 99.5th percentile
    over the scan's values that are not 0.

    Raises:
        DataError: Naming the first file that cannot be used, or whose voxels lie elsewhere than
            those of the item's first file.
    """
    scans: dict[str, list[tuple[str, NDArray[Any], NDArray[np.uint8], Spacing | None]]] = {}
    for item in items:
        values, mask_values = _read_image(item, description), read_values(item.mask)
        if values.shape[:3] != mask_values.shape[:3] or mask_values.ndim != 3:
            raise DataError(
                f"{item.mask.name}: {show_shape(mask_values.shape)} (slices, rows, columns), but "
                f"its image {show_shape(values.shape[:-1])}"
            )
        _check_affines(item)
        mask = _to_mask(mask_values, description.tumour, item.mask.name)
        several = len(values) > 1
        names = [f"{item.name}_{n + 1}" if several else item.name for n in range(len(values))]
        spacings = [_read_spacing(item.images[0])] * len(values)
        own = scans.setdefault(item.name if several else item.scan, [])
        own += zip(names, values, mask, spacings, strict=True)
    found = []
    for scan, slices in scans.items():
        images = to_bytes([image for _, image, *_ in slices])
        for image, (name, _, mask, spacing) in zip(images, slices, strict=True):
            found.append(DecodedSlice(name, scan, image, mask, spacing))
    return found


def _check_affines(item: ImageFiles) -> None:
    """Compare the affines of an item's files; images have none."""
    first, *others = item.images
    if is_volume(first):
        like = open_volume(first)
        for path in filter(is_volume, (*others, item.mask)):
            open_volume(path).check_affine(like)


def _read_spacing(path: Path) -> Spacing | None:
    return open_volume(path).spacing if is_volume(path) else None


def _read_image(item: ImageFiles, description: Description) -> NDArray[Any]:
    """The values of an item, (N, H, W, C)."""
    parts = [read_values(path) for path in item.images]
    if len(parts) > 1:
        for path, part in zip(item.images, parts, strict=True):
            if part.ndim != 3 or part.shape != parts[0].shape:
                raise DataError(
                    f"{path.name}: {show_shape(part.shape)}; expected one channel, "
                    f"{show_shape(parts[0].shape)} as {item.images[0].name} has"
                )
        return np.stack(parts, axis=-1)
    values = parts[0][..., None] if parts[0].ndim == 3 else parts[0]
    expected = len(description.channel_names)
    if values.shape[3] != expected:
        raise DataError(
            f"{item.images[0].name}: {values.shape[3]} channels; {DESCRIPTION_FILE} names "
            f"{expected}: {', '.join(description.channel_names)}"
        )
    return values


def read_values(path: Path) -> NDArray[Any]:
    """Return the values of a file, (N, H, W) or (N, H, W, C); N is 1 for an image.

    Raises:
        DataError: If the file is damaged, too large, or has other than 8 or 16 bits.
    """
    if is_volume(path):
        return open_volume(path).read_values()
    if not path.name.lower().endswith(_IMAGES):
        raise DataError(f"{path.name}: expected {', '.join((*_IMAGES, *VOLUME_SUFFIXES))}")
    image = decode(path)
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path.name}: {image.dtype}; expected 8 or 16 bits")
    if image.ndim == 3 and image.shape[2] in (3, 4):
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        image = np.asarray(cv2.cvtColor(image, code))
    return image[None]


def _to_mask(values: NDArray[Any], tumour: tuple[int, ...] | None, name: str) -> NDArray[np.uint8]:
    found = np.unique(values)
    if tumour is not None:
        return np.isin(values, tumour).astype(np.uint8)
    if not (set(found.tolist()) <= {0, 1} or set(found.tolist()) <= {0, 255}):
        shown = ", ".join(f"{value:g}" for value in found[:6])
        raise DataError(
            f"{name}: values {shown}; expected 0 and 255, or 0 and 1: name the tumour's in "
            f"{DESCRIPTION_FILE}, such as tumour: [1, 2]"
        )
    return (values > 0).astype(np.uint8)


def to_bytes(images: Sequence[NDArray[Any]]) -> list[NDArray[np.uint8]]:
    """Return the images of one scan as bytes, rescaled together unless all are bytes already.

    Args:
        images: (H, W, C) each.
    """
    if all(image.dtype == np.uint8 for image in images):
        return [np.ascontiguousarray(image) for image in images]
    return rescale(images)


Key = tuple[str, str]
"""What `{patient}` and `{name}` stand for in a file's path; empty if absent."""


def _match(root: Path, pattern: str) -> dict[Key, Path]:
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+)"

    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts += [re.escape(pattern[end : match.start()]), group(match)]
        end = match.end()
    text = "".join(parts) + re.escape(pattern[end:])
    wanted = re.compile(text.replace(r"\*", "[^/]*"))
    found: dict[Key, Path] = {}
    for path in sorted(root.glob(_PLACEHOLDER.sub("*", pattern))):
        fits = wanted.fullmatch(path.relative_to(root).as_posix())
        if fits and path.is_file() and not path.name.startswith("."):
            names = fits.groupdict()
            found.setdefault((names.get("patient", ""), names.get("name", "")), path)
    return found


def _fill(pattern: str, key: Key) -> str:
    return pattern.replace("{patient}", key[0]).replace("{name}", key[1])


def _patient(key: Key, description: Description) -> str:
    patient = key[0] or key[1]
    if description.patient_pattern is not None:
        try:
            found = regex.fullmatch(description.patient_pattern, patient, timeout=_SECONDS)
        except TimeoutError as error:
            raise DataError(
                f"{DESCRIPTION_FILE}: patient_pattern: {description.patient_pattern} took more "
                f"than {_SECONDS:g} s for {show_name(patient)}: give a simpler pattern"
            ) from error
        patient = found.group(1) if found else patient
    return patient


def _together(items: Sequence[ImageFiles]) -> list[ImageFiles]:
    """Sort items so that those of a patient follow each other."""
    order = {patient: n for n, patient in enumerate(dict.fromkeys(i.patient for i in items))}
    return sorted(items, key=lambda item: order[item.patient])


def _read_manifest(root: Path, description: Description) -> DatasetFiles:
    assert description.manifest is not None
    path = root / description.manifest
    columns, cells = read_cells(path)
    channels = description.channel_names
    images = ["image"] if "image" in columns else list(channels)
    lacking = [name for name in (*images, "mask", "patient") if name not in columns]
    if lacking:
        raise DataError(
            f"{path} lacks the column {lacking[0]}; expected image (or one per channel: "
            f"{', '.join(channels)}), mask and patient"
        )
    counted = [name for name in columns if name in _COUNTED]
    if counted:
        raise DataError(f"{path}, line 1: {counted[0]} is counted here: rename that column")
    problems: list[str] = []
    items: list[ImageFiles] = []
    covariates: dict[str, dict[str, str]] = {}
    for line, values in cells:
        row = dict(zip(columns, values, strict=True))
        files = [_inside(root, row[name], f"line {line}", problems) for name in images]
        mask = _inside(root, row["mask"], f"line {line}", problems)
        if not row["patient"]:
            problems.append(f"line {line}: no patient")
        name = Path(files[0].name.removesuffix(".gz")).stem
        items.append(ImageFiles(name, row["patient"], tuple(files), mask))
        rest = {k: v for k, v in row.items() if k and k not in (*images, "mask", "patient")}
        covariates.setdefault(row["patient"], rest)
    if problems or not items:
        raise DataError(f"{path}: {len(problems) or 'no'} lines cannot be used", problems)
    used = {file for item in items for file in (*item.images, item.mask)} | {path}
    notes = describe_unused(root, used, _UNUSED)
    # As patterns are read: neighbouring slices and folds do not depend on the order of the lines.
    ordered = sorted(items, key=lambda i: natural_key(i.images[0].relative_to(root).as_posix()))
    if _by_patient(items) != _by_patient(ordered):
        notes.append(
            f"the lines of {description.manifest} are not in the natural order of their files' "
            "names, which is taken for the order of slices"
        )
    return DatasetFiles(tuple(_together(ordered)), covariates, tuple(notes))


def _by_patient(items: Sequence[ImageFiles]) -> list[ImageFiles]:
    """Return the items with patients in alphabetical order, and those of each in their own."""
    return sorted(items, key=lambda item: item.patient)


def _inside(root: Path, name: str, where: str, problems: list[str]) -> Path:
    path = root / name
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        problems.append(f"{where}: {name!r} is not a path below {root}")
    elif not path.is_file():
        problems.append(f"{where}: there is no file {show_name(name)}")
    return path
