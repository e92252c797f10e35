"""The slice store: a dataset decoded once per machine into one memory-mapped uint8 array.

All trials and loader workers of a machine map the same file, so they share one copy in memory. It
lives in the user's cache folder (`BRAINSEG_CACHE` moves it), never beside the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from brainseg.data.layouts import SliceFile, find_default_root, find_root, find_slices, read_slice
from brainseg.data.phantom import MARKER, VERSION, generate_phantom
from brainseg.errors import DataError
from brainseg.storage.files import FAR_WAITS, cache_folder, retry_storage, write_folder, write_text
from brainseg.storage.remote import RemoteFolder, pull, require_store
from brainseg.storage.urls import Location, is_url

_FORMAT = 1
_PIXELS, _TABLE = "slices.npy", "table.json"
PHANTOM = "phantom://"
"""Stands for the generated dataset, which every machine makes for itself."""

_FETCHED = (".tif", ".csv", MARKER)


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of the store: its name, its patient, how many of its pixels are tumour."""

    name: str
    patient: str
    tumour_pixels: int


@dataclass(frozen=True)
class SliceStore:
    """A checked dataset. Pickles as its path, so that processes share pages, not copies.

    Attributes:
        folder: Where the decoded array lies.
        root: The dataset folder that it was decoded from.
        source: What another machine opens to get the same: that folder, or a URL.
        fingerprint: SHA-256 over the names and pixels of all slices, in order.
        size: Side of the slices in pixels, as stored.
        synthetic: True for a generated dataset.
        slices: In natural order.
        notes: Sentences worth telling the user.
    """

    folder: Path
    root: Path
    source: Location
    fingerprint: str
    size: int
    synthetic: bool
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (N, S, S, 4), read-only: pre-contrast, FLAIR, post-contrast, mask (0 or 1)."""
        return np.load(self.folder / _PIXELS, mmap_mode="r")  # type: ignore[no-any-return]

    @property
    def patients(self) -> list[str]:
        """Patient names in order of appearance."""
        return list(dict.fromkeys(item.patient for item in self.slices))

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the image of a slice, uint8 (S, S, 3)."""
        return np.ascontiguousarray(self.pixels[number, :, :, :3])

    def mask(self, number: int) -> NDArray[np.uint8]:
        """Return the mask of a slice, uint8 (S, S), 1 where tumour."""
        return np.ascontiguousarray(self.pixels[number, :, :, 3])

    def __getstate__(self) -> dict[str, object]:
        """Leave the mapped array out: the receiving process maps the file itself."""
        return {key: value for key, value in self.__dict__.items() if key != "pixels"}


def open_dataset(path: Location) -> SliceStore:
    """Check a dataset and open its slice store, which is built first where there is none.

    Args:
        path: The kaggle_3m folder, its parent, or the Kaggle archive's root; or the URL of one,
            which is fetched into this machine's cache as far as it is not there already.

    Raises:
        DataError: If the folder or any file cannot be used; `problems` lists every one.
        StorageError: If a URL cannot be read.
    """
    root, notes = find_root(_fetch(str(path)) if is_url(path) else path)
    files = find_slices(root)
    folder = cache_folder("slices") / _signature(root, files)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder):
            _build(folder, root, files)
    return _open(folder, root, path if is_url(path) else root, tuple(notes))


def open_default(path: Location | None) -> SliceStore:
    """Open the dataset that a command was given; without one the default, else phantoms.

    Raises:
        DataError: If it cannot be used.
        StorageError: If it is behind a URL that does not answer.
    """
    source = path or find_default_root()
    require_store(source or Path())
    return open_dataset(source or PHANTOM)


def _fetch(url: str) -> Path:
    """Make this machine's copy of a dataset equal to the one behind a URL.

    Processes that ask at once wait for one; what a killed one fetched is not fetched again.
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
    """Names the dataset's state without decoding it: a changed file gives another store."""
    digest = hashlib.sha256(f"{_FORMAT} {root}".encode())
    for item in files:
        for file in (item.image, item.mask):
            stat = file.stat()
            digest.update(f"\n{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _is_whole(folder: Path) -> bool:
    try:
        table = json.loads((folder / _TABLE).read_text(encoding="utf-8"))
        return (folder / _PIXELS).stat().st_size == int(table["bytes"])
    except (OSError, ValueError, KeyError):
        return False  # not built yet, or damaged: built anew


def _open(folder: Path, root: Path, source: Location, notes: tuple[str, ...]) -> SliceStore:
    table = json.loads((folder / _TABLE).read_text(encoding="utf-8"))
    return SliceStore(
        folder=folder,
        root=root,
        source=source,
        fingerprint=table["fingerprint"],
        size=table["size"],
        synthetic=(root / MARKER).exists(),
        slices=tuple(Slice(**row) for row in table["slices"]),
        notes=notes,
    )


def _build(folder: Path, root: Path, files: list[SliceFile]) -> None:
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
        _refuse_shared_slices(slices, hashes)
        lines = "".join(f"{item.name} {h}\n" for item, h in zip(slices, hashes, strict=True))
        table = {
            "fingerprint": hashlib.sha256(lines.encode()).hexdigest(),
            "size": size,
            "bytes": (aside / _PIXELS).stat().st_size,
            "root": str(root),
            "slices": [asdict(item) for item in slices],
        }
        write_text(aside / _TABLE, json.dumps(table))
        shutil.rmtree(folder, ignore_errors=True)


def _first_size(files: list[SliceFile]) -> int:
    """Side of the first readable slice; whether the others share it is checked as they come."""
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
    """Fill `pixels`; every file is looked at before the problems of all are raised together."""

    def decode(number: int) -> tuple[Slice, str] | str:
        item = files[number]
        try:
            image, mask = read_slice(item)
        except DataError as error:
            return f"{item.image.parent.name}/{error}"
        if image.shape[:2] != pixels.shape[1:3]:
            side = pixels.shape[1]
            return f"{item.name}: {image.shape[0]} pixels wide, the first slice is {side}"
        pixels[number, :, :, :3], pixels[number, :, :, 3] = image, mask
        digest = hashlib.blake2b(pixels[number].tobytes(), digest_size=16).hexdigest()
        return Slice(item.name, item.patient, int(mask.sum())), digest

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[tuple[Slice, str] | str] = pool.map(decode, range(len(files)))
        bar = tqdm(results, total=len(files), desc="checking slices", unit="slice", disable=None)
        rows = list(bar)
    problems = [row for row in rows if isinstance(row, str)]
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} slices cannot be used", problems)
    good = [row for row in rows if not isinstance(row, str)]
    return [item for item, _ in good], [digest for _, digest in good]


def _refuse_shared_slices(slices: list[Slice], hashes: list[str]) -> None:
    """A tumour slice that two patients share would sit in training and test at once."""
    owner: dict[str, Slice] = {}
    problems = []
    for item, digest in zip(slices, hashes, strict=True):
        first = owner.setdefault(digest, item)
        if item.tumour_pixels and first.patient != item.patient:
            problems.append(f"{item.name}: the same pixels as {first.name}, of another patient")
    if problems:
        raise DataError(f"{len(problems)} slices belong to two patients", problems)
