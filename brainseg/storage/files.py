"""Writes that are whole or not at all, and that wait out a short outage of the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import platformdirs

from brainseg.errors import ConfigError, StorageError

_T = TypeVar("_T")

# A network disk that is remounted, a disk that somebody is clearing: 20 seconds in all.
_WAITS = (1.0, 4.0, 15.0)
FAR_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)
"""Of a store behind a network, in seconds: a server that is restarted, 90 seconds in all."""


def cache_folder(name: str) -> Path:
    """Return a folder of this machine's cache, made if need be; `BRAINSEG_CACHE` moves it."""
    base = os.environ.get("BRAINSEG_CACHE") or platformdirs.user_cache_dir("brainseg")
    folder = Path(base).expanduser().resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def retry_storage(write: Callable[[], _T], what: str, waits: Sequence[float] = _WAITS) -> _T:
    """Try a write again for a while if the disk refuses it.

    Args:
        write: Leaves nothing behind when it fails.
        what: For the message: what is written.
        waits: Seconds between the tries.

    Raises:
        StorageError: If the disk still refuses.
    """
    for wait in (*waits, None):
        try:
            return write()
        except OSError as error:
            if wait is None:
                raise StorageError(f"cannot write {what}: {error}") from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: aside, flushed to disk, renamed.

    Its folder is made, but not the folder above: where that is gone, the storage is.
    """
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder aside and rename it at the end: it is there as a whole or not at all.

    Raises:
        ConfigError: If the folder holds something already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is there already: name another folder, or remove it")
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            path.rmdir()
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries, renamed ones too, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
