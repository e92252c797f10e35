"""The slice store: a dataset, checked and decoded once per machine into a memory-mapped array.

All processes of a machine map the same file and thus share one copy in memory. It is in the user's
cache folder (`BRAINSEG_CACHE` moves it), never beside the data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from brainseg.data.layouts import (
    CHANNELS,
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

_FORMAT = 1
_PIXELS, _TABLE = "slices.npy", "table.json"
PHANTOM = "phantom://"
"""The URL of the generated dataset, which every machine generates for itself."""

_FETCHED = (".tif", ".csv", MARKER)


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
        size: Side of the slices in pixels, as stored.
        synthetic: Whether the dataset was generated.
        slices: Slices in natural order of their paths.
        notes: Sentences to print.
        channels: Names of the channels of an image.
    """

    folder: Path
    root: Path
    source: Location
    fingerprint: str
    size: int
    synthetic: bool
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = CHANNELS

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (N, S, S, 4), read-only: pre-contrast, FLAIR, post-contrast, mask (0 or 1)."""
        return np.load(self.folder / _PIXELS, mmap_mode="r")  # type: ignore[no-any-return]

    @property
    def patients(self) -> list[str]:
        """Patients in order of appearance."""
        return list(dict.fromkeys(item.patient for item in self.slices))

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of a slice, uint8 (S, S, 3)."""
        return np.ascontiguousarray(self.pixels[index, :, :, :3])

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of a slice, uint8 (S, S), 1 for tumour."""
        return np.ascontiguousarray(self.pixels[index, :, :, 3])

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "pixels"}


class _Table(BaseModel):
    """What is stored beside the pixels."""

    fingerprint: str
    size: int
    bytes: int
    slices: tuple[Slice, ...]


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
    root, notes = find_root(_fetch(str(path)) if is_url(path) else path)
    files = find_slices(root)
    folder = cache_folder("slices") / _signature(root, files)
    with FileLock(f"{folder}.lock"):
        table = _read_table(folder) or _build(folder, files)
    return SliceStore(
        folder=folder,
        root=root,
        source=path if is_url(path) else root,
        fingerprint=table.fingerprint,
        size=table.size,
        synthetic=(root / MARKER).exists(),
        slices=table.slices,
        notes=tuple(notes),
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


def _signature(root: Path, files: list[SliceFile]) -> str:
    """A hash of the dataset's state, without decoding it: a changed file gives another store."""
    digest = hashlib.sha256(f"{_FORMAT} {root}".encode())
    for item in files:
        for file in (item.image, item.mask):
            stat = file.stat()
            digest.update(f"\n{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _read_table(folder: Path) -> _Table | None:
    """The table of a store, or None if there is no store or it is damaged."""
    try:
        table = _Table.model_validate_json((folder / _TABLE).read_bytes())
        return table if (folder / _PIXELS).stat().st_size == table.bytes else None
    except (OSError, ValidationError):
        return None


def _build(folder: Path, files: list[SliceFile]) -> _Table:
    size = _first_size(files)
    # The lock is held, so these are of processes that died.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover)
    with write_folder(folder) as aside:
        _check_space(aside, len(files) * size * size * 4)
        shape = (len(files), size, size, 4)
        pixels = np.lib.format.open_memmap(aside / _PIXELS, mode="w+", dtype=np.uint8, shape=shape)
        slices, hashes = _decode_all(files, pixels)
        pixels.flush()
        _check_shared(slices, hashes)
        lines = "".join(f"{item.name} {h}\n" for item, h in zip(slices, hashes, strict=True))
        table = _Table(
            fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
            size=size,
            bytes=(aside / _PIXELS).stat().st_size,
            slices=tuple(slices),
        )
        write_text(aside / _TABLE, table.model_dump_json())
        shutil.rmtree(folder, ignore_errors=True)
    return table


def _first_size(files: list[SliceFile]) -> int:
    """Side of the first slice that can be read; all others must have it."""
    for item in files:
        try:
            return int(read_slice(item)[0].shape[0])
        except DataError:
            continue
    raise DataError(f"none of the {len(files)} slices can be read; the first is {files[0].image}")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the slice store needs {needed / 1e9:.1f} GB in {folder.parent}, "
            f"which has {free / 1e9:.1f} GB free; set BRAINSEG_CACHE to a larger disk"
        )


def _decode_all(
    files: list[SliceFile], pixels: NDArray[np.uint8]
) -> tuple[list[Slice], list[str]]:
    """Fill `pixels`; return the slices and the hashes of their pixels.

    All files are read before the problems of all are raised together.
    """

    def decode(index: int) -> tuple[Slice, str] | str:
        item = files[index]
        try:
            image, mask = read_slice(item)
        except DataError as error:
            return f"{item.image.parent.name}/{error}"
        if image.shape[:2] != pixels.shape[1:3]:
            side = pixels.shape[1]
            return f"{item.name}: {image.shape[0]} pixels wide, the first slice is {side}"
        pixels[index, :, :, :3], pixels[index, :, :, 3] = image, mask
        digest = hashlib.blake2b(pixels[index].tobytes(), digest_size=16).hexdigest()
        return Slice(item.name, item.patient, int(mask.sum())), digest

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        decoded = pool.map(decode, range(len(files)))
        rows = list(
            tqdm(decoded, total=len(files), desc="checking slices", unit="slice", disable=None)
        )
    problems = [row for row in rows if isinstance(row, str)]
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} slices cannot be used", problems)
    slices, hashes = zip(*rows, strict=True)
    return list(slices), list(hashes)


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
