"""Writes that are whole or not at all, and that wait out a short outage of the disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from brainseg.errors import ConfigError, StorageError

_T = TypeVar("_T")

# A network disk that is remounted, a disk that somebody is clearing: 20 seconds in all.
_WAITS = (1.0, 4.0, 15.0)


def patiently(write: Callable[[], _T], what: str) -> _T:
    """Try a write again for a while if the disk refuses it.

    Args:
        write: Leaves nothing behind when it fails.
        what: For the message: what is written.

    Raises:
        StorageError: If the disk still refuses.
    """
    for wait in (*_WAITS, None):
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
