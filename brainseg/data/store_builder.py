"""Builds the slice store: checks and decodes a dataset, and writes its pixels and their table."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from tqdm import tqdm

from brainseg.data.about import CHANNELS
from brainseg.data.description import Description, Spacing, read_patient
from brainseg.data.layouts import ImageFiles, read_slice
from brainseg.errors import DataError
from brainseg.storage.files import damage_checksum, write_folder, write_text

FORMAT = 6
"""Of the two files of a store; another number gives another store."""
PIXELS_FILE, TABLE_FILE = "slices.bin", "table.json"
_AHEAD = 32
_FILLED = 0.5
"""The share of a slice above which its mask is taken for an inverted one."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of the store.

    Attributes:
        name: Its name.
        patient: Its patient.
        tumour_pixels: Number of its tumour pixels.
        scan: Which of the patient's examinations it is of.
    """

    name: str
    patient: str
    tumour_pixels: int
    scan: str = ""

    @property
    def volume(self) -> tuple[str, str]:
        """Patient and scan, which slices of one volume share."""
        return self.patient, self.scan


class StoreTable(BaseModel):
    """What is stored beside the pixels, after a line with its own SHA-256."""

    fingerprint: str
    checksum: str
    slices: tuple[Slice, ...]
    shapes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    spacings: tuple[Spacing, ...] = ()


class _Found(NamedTuple):
    """All slices of a dataset: their sizes, the hashes of their pixels and of their images."""

    slices: list[Slice]
    shapes: list[tuple[int, int]]
    hashes: list[str]
    images: list[str]
    spacings: list[Spacing | None]


Decoded = list[tuple[Slice, NDArray[np.uint8], Spacing | None]]
"""Slices with their pixels, uint8 (H, W, C + 1), and their spacing if it is known."""


def build_store(
    folder: Path, items: Sequence[ImageFiles], description: Description | None
) -> StoreTable:
    """Check and decode a dataset, and write its store; a damaged one is replaced.

    The caller holds the store's lock.

    Args:
        folder: The store's folder.
        items: The files of the dataset, a patient's together.
        description: What its `dataset.yaml` says; None if it has the LGG layout.

    Returns:
        What stands beside the pixels.

    Raises:
        DataError: If a file or the dataset as a whole cannot be used, or the disk has no room;
            `problems` lists every file.
    """
    # The lock is held, so these are of processes that died.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover)
    if description is None:
        read: Callable[[Sequence[ImageFiles]], Decoded] = _read_lgg
        units = [[item] for item in items]
    else:
        read = functools.partial(_read_described, description=description)
        units = [list(own) for _, own in itertools.groupby(items, key=lambda i: i.patient)]
    with write_folder(folder) as aside:
        _check_space(aside, 0 if description else len(items) * _first_bytes(items))
        with (aside / PIXELS_FILE).open("wb") as file:
            decoded = _decode_all(units, read, file)
        _check_masks(decoded, description)
        if description is None:
            _check_sizes(decoded)
        names = _whole_names(decoded.slices, described=description is not None)
        lines = "".join(f"{name} {h}\n" for name, h in zip(names, decoded.hashes, strict=True))
        table = StoreTable(
            fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
            checksum=damage_checksum(aside / PIXELS_FILE),
            slices=tuple(decoded.slices),
            shapes=tuple(decoded.shapes),
            notes=(*_find_copies(decoded), *_note_spacing(decoded)),
            spacings=_common_spacings(decoded),
        )
        text = table.model_dump_json()
        write_text(aside / TABLE_FILE, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        shutil.rmtree(folder, ignore_errors=True)
    return table


def _whole_names(slices: Sequence[Slice], *, described: bool) -> list[str]:
    """Return names that identify slices across patients and scans.

    A slice of the LGG dataset is called after its folder; one of a described dataset has its
    patient before its name, and its scan where the patient has several.
    """
    scans = Counter(patient for patient, _ in {item.volume for item in slices})
    names = []
    for item in slices:
        parts = [item.patient, item.name] if described else [item.name]
        needed = scans[item.patient] > 1 or not described
        if needed and not item.name.startswith(f"{item.scan}_"):
            parts.insert(-1, item.scan)
        names.append("/".join(parts))
    return names


def _first_bytes(items: Sequence[ImageFiles]) -> int:
    """The bytes of the first slice that can be read, by which the space needed is estimated."""
    for item in items:
        try:
            return read_slice(item)[1].size * (len(CHANNELS) + 1)
        except DataError:
            continue
    return 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the slice store needs {needed / 1e9:.1f} GB in {folder.parent}, "
            f"which has {free / 1e9:.1f} GB free; set BRAINSEG_CACHE to a larger disk"
        )


def _read_lgg(items: Sequence[ImageFiles]) -> Decoded:
    """Decode a slice of the LGG layout."""
    (item,) = items
    image, mask = read_slice(item)
    found = Slice(item.name, item.patient, int(mask.sum()), item.scan)
    return [(found, np.dstack([image, mask]), None)]


def _read_described(items: Sequence[ImageFiles], description: Description) -> Decoded:
    """Decode all slices of a patient of a described dataset."""
    return [
        (
            Slice(one.name, items[0].patient, int(one.mask.sum()), one.scan),
            np.dstack([one.image, one.mask]),
            one.spacing,
        )
        for one in read_patient(items, description)
    ]


def _decode_all(
    units: Sequence[Sequence[ImageFiles]],
    read: Callable[[Sequence[ImageFiles]], Decoded],
    file: BinaryIO,
) -> _Found:
    """Write the pixels of all slices.

    All files are read before the problems of all are raised together.
    """

    def attempt(unit: Sequence[ImageFiles]) -> Decoded | str:
        try:
            return read(unit)
        except DataError as error:
            return f"{unit[0].images[0].parent.name}/{error}"

    found = _Found([], [], [], [], [])
    problems: list[str] = []
    total = sum(len(unit) for unit in units)
    with (
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=total, desc="checking slices", unit="slice", disable=None) as bar,
    ):
        # A few at a time: what is decoded faster than it is written would fill the memory.
        for start in range(0, len(units), _AHEAD):
            chunk = units[start : start + _AHEAD]
            for unit, decoded in zip(chunk, pool.map(attempt, chunk), strict=True):
                bar.update(len(unit))
                if isinstance(decoded, str):
                    problems.append(decoded)
                    continue
                for item, pixels, spacing in decoded:
                    content = pixels.tobytes()
                    file.write(content)
                    found.slices.append(item)
                    found.shapes.append((pixels.shape[0], pixels.shape[1]))
                    found.hashes.append(hashlib.blake2b(content, digest_size=16).hexdigest())
                    found.images.append(_hash_image(pixels[:, :, :-1]))
                    found.spacings.append(spacing)
    if problems:
        what = "slices" if total == len(units) else "patients"
        raise DataError(f"{len(problems)} of {len(units)} {what} cannot be used", problems)
    return found


def _hash_image(image: NDArray[np.uint8]) -> str:
    """A hash of an image alone; empty for one without content, which many patients may have."""
    if (image == image[0, 0]).all():
        return ""
    return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def _check_masks(found: _Found, description: Description | None) -> None:
    """Refuse masks that are all empty, or inverted.

    A slice of a described dataset may be mostly tumour, such as one cut around it.
    """
    sizes = [height * width for height, width in found.shapes]
    shares = [item.tumour_pixels / n for item, n in zip(found.slices, sizes, strict=True)]
    values = description.tumour if description else None
    if not any(shares):
        named = f"the values {', '.join(map(str, values))}" if values else "tumour"
        raise DataError(
            f"none of the {len(shares)} masks holds {named}: are these the masks of these images?"
        )
    filled = [
        f"{item.name}: {share:.0%} of its mask is tumour; is it inverted?"
        for item, share in zip(found.slices, shares, strict=True)
        if share > _FILLED
    ]
    if 2 * len(filled) > len(shares) and values is None:
        raise DataError(
            f"{len(filled)} of {len(shares)} masks are mostly tumour, so they seem to be "
            "inverted: 0 stands for no tumour, 255 or 1 for tumour. If they are right, name "
            "tumour: [255] in a dataset.yaml (docs/data.md)"
        )
    if filled and description is None:
        raise DataError(f"{len(filled)} of {len(shares)} slices cannot be used", filled)


def _check_sizes(found: _Found) -> None:
    """Refuse slices of the LGG layout that are not of the size that most have."""
    usual = Counter(found.shapes).most_common(1)[0][0]
    problems = [
        f"{item.name}: {shape[0]} pixels wide; most slices are {usual[0]}"
        for item, shape in zip(found.slices, found.shapes, strict=True)
        if shape != usual
    ]
    if problems:
        raise DataError(f"{len(problems)} of {len(found.slices)} slices cannot be used", problems)


def _common_spacings(found: _Found) -> tuple[Spacing, ...]:
    """Return the spacing of every slice; none if some slices have none."""
    known = [spacing for spacing in found.spacings if spacing is not None]
    return tuple(known) if len(known) == len(found.slices) else ()


def _note_spacing(found: _Found) -> list[str]:
    missing = found.spacings.count(None)
    if missing in (0, len(found.slices)):
        return []
    return [
        f"{missing} of {len(found.slices)} slices have no spacing in their file's header: no "
        "distance is given in millimetres, unless data.spacing_mm is set"
    ]


def _find_copies(found: _Found) -> list[str]:
    """Return sentences on slices that are there twice.

    Raises:
        DataError: If a slice with tumour is there of two patients: it could be in training and in
            test.
    """
    owners: dict[str, list[Slice]] = {}
    for item, digest in zip(found.slices, found.images, strict=True):
        if digest:
            owners.setdefault(digest, []).append(item)
    shared: list[str] = []
    foreign: list[str] = []
    own: list[str] = []
    for first, *others in owners.values():
        with_tumour = any(item.tumour_pixels for item in (first, *others))
        for item in others:
            if item.patient == first.patient:
                own.append(f"{item.name} is {first.name}")
            else:
                words = f"{item.name}: the same pixels as {first.name}, of another patient"
                (shared if with_tumour else foreign).append(words)
    if shared:
        raise DataError(f"{len(shared)} slices belong to two patients", shared)
    notes = []
    if foreign:
        notes.append(
            f"{len(foreign)} slices without tumour belong to two patients, who may be one: "
            f"{', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}"
        )
    if own:
        notes.append(
            f"{len(own)} slices are copies of another slice of their patient, which then counts "
            f"twice; remove them: {', '.join(own[:3])}{' ...' if own[3:] else ''}"
        )
    return notes
