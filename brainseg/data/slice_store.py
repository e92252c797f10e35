"""The slice store: a dataset, checked and decoded once per machine into a memory-mapped array.

All processes of a machine map the same file and thus share one copy in memory. It is in the user's
cache folder (`BRAINSEG_CACHE` moves it), never beside the data.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from brainseg.data.about import CHANNELS, LGG, About
from brainseg.data.description import FILE as DESCRIPTION
from brainseg.data.description import (
    Description,
    Files,
    Item,
    find_files,
    read_description,
    read_patient,
)
from brainseg.data.layouts import (
    SliceFile,
    find_default_root,
    find_root,
    find_slices,
    read_slice,
)
from brainseg.data.phantom import MARKER, VERSION, generate_phantom
from brainseg.errors import DataError
from brainseg.storage.files import FAR_WAITS, cache_folder, retry_storage, write_folder, write_text
from brainseg.storage.remote import RemoteFolder, pull, require_store
from brainseg.storage.urls import Location, is_url

_FORMAT = 2
_PIXELS, _TABLE = "slices.bin", "table.json"
_AHEAD = 32
PHANTOM = "phantom://"
"""The URL of the generated dataset, which every machine generates for itself."""

_FETCHED = (
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".nii", ".nii.gz"),
    *(".csv", MARKER, DESCRIPTION),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of the store: its name, its patient, its number of tumour pixels."""

    name: str
    patient: str
    tumour_pixels: int


@dataclass(frozen=True)
class SliceStore:
    """A checked dataset. It pickles without its pixels, which the receiving process maps.

    Attributes:
        folder: Folder of the decoded array.
        root: Dataset folder that it was decoded from.
        source: Location that another machine opens: the dataset folder or its URL.
        fingerprint: SHA-256 of the names and pixels of all slices, in order.
        synthetic: Whether the dataset was generated.
        slices: Slices in natural order of their paths, a patient's together.
        shapes: Height and width of each slice in pixels, as stored.
        notes: Sentences to print.
        channels: Names of the C channels of an image.
        about: What a report says of the dataset.
        covariates: Patient -> further columns of the dataset's manifest.
    """

    folder: Path
    root: Path
    source: Location
    fingerprint: str
    synthetic: bool
    slices: tuple[Slice, ...]
    shapes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = CHANNELS
    about: About = LGG
    covariates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def flat(self) -> NDArray[np.uint8]:
        """All slices one after the other, uint8, read-only: (H, W, C + 1) each, the mask last."""
        return np.memmap(self.folder / _PIXELS, np.uint8, mode="r")

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        sizes = [height * width * (len(self.channels) + 1) for height, width in self.shapes]
        return np.cumsum([0, *sizes])

    @property
    def size(self) -> int:
        """Longest side of a slice in pixels."""
        return max(max(shape) for shape in self.shapes)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (N, H, W, C + 1), read-only, of a dataset whose slices have one size.

        Raises:
            DataError: If they have several sizes.
        """
        if len(set(self.shapes)) > 1:
            raise DataError(f"the slices of {self.root} have several sizes: they make no array")
        return self.flat.reshape(-1, *self.shapes[0], len(self.channels) + 1)

    @property
    def patients(self) -> list[str]:
        """Patients in order of appearance."""
        return list(dict.fromkeys(item.patient for item in self.slices))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of a slice, uint8 (H, W, C)."""
        return np.ascontiguousarray(self._slice(index)[:, :, :-1])

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of a slice, uint8 (H, W), 1 for tumour."""
        return np.ascontiguousarray(self._slice(index)[:, :, -1])

    def _slice(self, index: int) -> NDArray[np.uint8]:
        start, end = self._starts[index], self._starts[index + 1]
        return self.flat[start:end].reshape(*self.shapes[index], -1)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "flat"}


class _Table(BaseModel):
    """What is stored beside the pixels."""

    fingerprint: str
    bytes: int
    slices: tuple[Slice, ...]
    shapes: tuple[tuple[int, int], ...]


def open_dataset(path: Location) -> SliceStore:
    """Open the slice store of a dataset; check the dataset and build the store if there is none.

    Args:
        path: The kaggle_3m folder, its parent, or the root of the Kaggle archive; or the URL of
            one of these, which is copied to this machine's cache as far as it is not there
            already.

    Raises:
        DataError: If the folder or a file cannot be used; `problems` lists every file.
        StorageError: If a URL cannot be read.
    """
    folder = Path(_fetch(str(path)) if is_url(path) else path).expanduser()
    description = read_description(folder)
    if description is None:
        root, notes = find_root(folder)
        files = Files(tuple(_item_of(item) for item in find_slices(root)), {}, tuple(notes))
    else:
        root = folder.resolve()
        files = find_files(root, description)
    store = cache_folder("slices") / _signature(root, files.items)
    with FileLock(f"{store}.lock"):
        table = _read_table(store) or _build(store, files.items, description)
    return SliceStore(
        folder=store,
        root=root,
        source=path if is_url(path) else root,
        fingerprint=table.fingerprint,
        synthetic=(root / MARKER).exists(),
        slices=table.slices,
        shapes=table.shapes,
        notes=files.notes,
        channels=description.channel_names if description else CHANNELS,
        about=description.about if description else LGG,
        covariates=files.covariates,
    )


def open_default(path: Location | None) -> SliceStore:
    """Open the dataset that a command was given, else the default one, else a generated one.

    Raises:
        DataError: If it cannot be used.
        StorageError: If it is behind a URL that does not answer.
    """
    source = path or find_default_root()
    require_store(source or Path())
    return open_dataset(source or PHANTOM)


def _fetch(url: str) -> Path:
    """Return this machine's copy of a dataset behind a URL, made equal to it.

    Processes that ask at the same time wait for one of them.
    """
    if url == PHANTOM:
        return generate_phantom(cache_folder("phantom") / f"version-{VERSION}")
    remote = RemoteFolder(url)
    folder = cache_folder("data") / hashlib.sha256(url.encode()).hexdigest()[:24]
    with FileLock(f"{folder}.lock"):

        def fetch() -> int:
            remote.require()  # a bucket that is gone would pass for an empty one
            return len(pull(remote, folder, _is_fetched, what="fetching slices"))

        if not retry_storage(fetch, f"the copy of {url}", FAR_WAITS):
            raise DataError(f"nothing is below {url}: give the URL of the kaggle_3m folder")
    return folder


def _is_fetched(name: str) -> bool:
    return name.endswith(_FETCHED) and not any(part[0] == "." for part in name.split("/"))


def _item_of(files: SliceFile) -> Item:
    return Item(files.name, files.patient, (files.image,), files.mask)


def _signature(root: Path, items: Sequence[Item]) -> str:
    """A hash of the dataset's state, without decoding it: a changed file gives another store."""
    digest = hashlib.sha256(f"{_FORMAT} {root}".encode())
    paths = [path for item in items for path in (*item.images, item.mask)]
    for path in [*paths, *(root / name for name in (DESCRIPTION,) if (root / name).exists())]:
        stat = path.stat()
        digest.update(f"\n{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _read_table(folder: Path) -> _Table | None:
    """The table of a store, or None if there is no store or it is damaged."""
    try:
        table = _Table.model_validate_json((folder / _TABLE).read_bytes())
        return table if (folder / _PIXELS).stat().st_size == table.bytes else None
    except (OSError, ValidationError):
        return None


Decoded = list[tuple[Slice, NDArray[np.uint8]]]
"""Slices with their pixels, uint8 (H, W, C + 1)."""


def _build(folder: Path, items: Sequence[Item], description: Description | None) -> _Table:
    # The lock is held, so these are of processes that died.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover)
    if description is None:
        side = _first_size(items)
        read: Callable[[Sequence[Item]], Decoded] = functools.partial(_read_lgg, side=side)
        units = [[item] for item in items]
        slice_bytes = side * side * 4
    else:
        read = functools.partial(_read_described, description=description)
        units = [list(own) for _, own in itertools.groupby(items, key=lambda i: i.patient)]
        slice_bytes = 0
    with write_folder(folder) as aside:
        _check_space(aside, len(items) * slice_bytes)
        with (aside / _PIXELS).open("wb") as file:
            slices, shapes, hashes = _decode_all(units, read, file)
        _check_shared(slices, hashes)
        lines = "".join(f"{item.name} {h}\n" for item, h in zip(slices, hashes, strict=True))
        table = _Table(
            fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
            bytes=(aside / _PIXELS).stat().st_size,
            slices=tuple(slices),
            shapes=tuple(shapes),
        )
        write_text(aside / _TABLE, table.model_dump_json())
        shutil.rmtree(folder, ignore_errors=True)
    return table


def _first_size(items: Sequence[Item]) -> int:
    """Side of the first slice that can be read; all others must have it."""
    for item in items:
        try:
            return int(read_slice(_slice_file(item))[0].shape[0])
        except DataError:
            continue
    first = items[0].images[0]
    raise DataError(f"none of the {len(items)} slices can be read; the first is {first}")


def _slice_file(item: Item) -> SliceFile:
    return SliceFile(item.name, item.patient, item.images[0], item.mask)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the slice store needs {needed / 1e9:.1f} GB in {folder.parent}, "
            f"which has {free / 1e9:.1f} GB free; set BRAINSEG_CACHE to a larger disk"
        )


def _read_lgg(items: Sequence[Item], side: int) -> Decoded:
    """Decode a slice of the LGG layout, whose slices have one size."""
    (item,) = items
    image, mask = read_slice(_slice_file(item))
    if image.shape[0] != side:
        raise DataError(f"{item.name}: {image.shape[0]} pixels wide, the first slice is {side}")
    return [(Slice(item.name, item.patient, int(mask.sum())), np.dstack([image, mask]))]


def _read_described(items: Sequence[Item], description: Description) -> Decoded:
    """Decode all slices of a patient of a described dataset."""
    return [
        (Slice(name, items[0].patient, int(mask.sum())), np.dstack([image, mask]))
        for name, image, mask in read_patient(items, description)
    ]


def _decode_all(
    units: Sequence[Sequence[Item]], read: Callable[[Sequence[Item]], Decoded], file: BinaryIO
) -> tuple[list[Slice], list[tuple[int, int]], list[str]]:
    """Write the pixels of all slices; return the slices, their sizes and their pixels' hashes.

    All files are read before the problems of all are raised together.
    """

    def attempt(unit: Sequence[Item]) -> Decoded | str:
        try:
            return read(unit)
        except DataError as error:
            return f"{unit[0].images[0].parent.name}/{error}"

    slices: list[Slice] = []
    shapes: list[tuple[int, int]] = []
    hashes: list[str] = []
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
                for item, pixels in decoded:
                    content = pixels.tobytes()
                    file.write(content)
                    slices.append(item)
                    shapes.append((pixels.shape[0], pixels.shape[1]))
                    hashes.append(hashlib.blake2b(content, digest_size=16).hexdigest())
    if problems:
        raise DataError(f"{len(problems)} of {len(units)} slices cannot be used", problems)
    return slices, shapes, hashes


def _check_shared(slices: list[Slice], hashes: list[str]) -> None:
    """Refuse a tumour slice of two patients, which could be in training and in test."""
    owner: dict[str, Slice] = {}
    problems = []
    for item, digest in zip(slices, hashes, strict=True):
        first = owner.setdefault(digest, item)
        if item.tumour_pixels and first.patient != item.patient:
            problems.append(f"{item.name}: the same pixels as {first.name}, of another patient")
    if problems:
        raise DataError(f"{len(problems)} slices belong to two patients", problems)
