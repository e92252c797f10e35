"""The input store: prepared slices, computed once per machine and setting, in a mapped array.

Filters, crop and resizing are the same in each epoch, trial, fold and seed; only augmentation is
not. All processes of a machine map one file in the user's cache folder. `StoreInputs` gives the
same bytes with the store and without it.
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from filelock import FileLock

from brainseg.config import EDGES, Experiment
from brainseg.data import inputs, preprocess
from brainseg.data.inputs import Image, StoreInputs
from brainseg.data.slice_store import SliceStore
from brainseg.storage.files import (
    cache_folder,
    damage_checksum,
    hash_file,
    write_atomically,
    write_text,
)

_KEPT = 8
"""Stores besides the newest: as many as the largest grid has inputs."""

_AHEAD = 64


def open_inputs(store: SliceStore, experiment: Experiment) -> StoreInputs:
    """Return the inputs of a dataset, from the input store, which is built if there is none.

    Nothing is stored where nothing is to be prepared, where a filter is the user's own code,
    which may change, and where the disk of the cache is nearly full.
    """
    direct = StoreInputs(store, experiment)
    if not _is_worth_it(store, experiment):
        return direct
    size, config = experiment.data.size, experiment.preprocess
    depth = len(experiment.data.channels or store.channels) + (EDGES in config.filters) + 1
    shape = (len(store.slices), size, size, depth)
    path = cache_folder("inputs") / f"{_signature(store, experiment)}.bin"
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path, int(np.prod(shape))):
            if shutil.disk_usage(path.parent).free < 2 * np.prod(shape):
                return direct
            _build(path, direct, len(store.slices))
            _drop_old(path)
        path.touch()  # the stores that were used last are kept
        prepared: Image = np.memmap(path, np.uint8, mode="r", shape=shape)
    return StoreInputs(store, experiment, prepared)


def _is_worth_it(store: SliceStore, experiment: Experiment) -> bool:
    config, size = experiment.preprocess, experiment.data.size
    is_plain = not config.filters and config.intensities == "none" and config.crop == "none"
    has_size = all(shape == (size, size) for shape in store.shapes)
    return not config.own_filters and not (is_plain and has_size)


def _signature(store: SliceStore, experiment: Experiment) -> str:
    """Return a hash of all that determines the bytes, this program's own code included."""
    data, digest = experiment.data, hashlib.sha256()
    digest.update(f"{store.fingerprint} {store.channels} {data.size} {data.channels}".encode())
    digest.update(experiment.preprocess.model_dump_json().encode())
    for module in (preprocess, inputs):
        digest.update(hash_file(Path(str(module.__file__))).encode())
    digest.update(f"{cv2.__version__} {np.__version__}".encode())
    return digest.hexdigest()[:24]


def _is_whole(path: Path, size: int) -> bool:
    """Whether a store is there, of its size and with the checksum beside it."""
    try:
        known = _sum_of(path).read_bytes()
        return path.stat().st_size == size and damage_checksum(path).encode() == known
    except OSError:
        return False


def _sum_of(path: Path) -> Path:
    return path.with_suffix(".sum")


def _build(path: Path, direct: StoreInputs, count: int) -> None:
    for leftover in path.parent.glob(f".{path.name}.*"):  # of processes that died: this one locks
        leftover.unlink(missing_ok=True)
    with (
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        write_atomically(path) as aside,
        aside.open("wb") as file,
    ):
        for start in range(0, count, _AHEAD):
            chunk = range(start, min(start + _AHEAD, count))
            file.writelines(image.tobytes() for image in pool.map(direct.prepare, chunk))
    write_text(_sum_of(path), damage_checksum(path))


def _drop_old(newest: Path) -> None:
    """Remove the stores that were not used for longest; a process that maps one keeps it."""
    others = [path for path in newest.parent.glob("*.bin") if path != newest]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        path.unlink(missing_ok=True)
        _sum_of(path).unlink(missing_ok=True)
