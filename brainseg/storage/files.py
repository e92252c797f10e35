"""Files and folders that are written whole or not at all; CSV and JSON; the cache folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from pydantic import BaseModel, ValidationError

from brainseg.errors import ConfigError, DataError, StorageError
from brainseg.storage.urls import is_url, redact

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)

# A network disk that is remounted, a full disk on which space is freed: 20 seconds in all.
_WAITS = (1.0, 4.0, 15.0)
FAR_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)
"""Seconds between tries for an object store, 90 in all: a server that is restarted."""

_LARGEST = 2**28
"""Bytes of a text or record: a wrong or hostile file must not fill the memory."""
LARGEST_TABLE = 2**30
"""Bytes of a study's table, which may have a line for each slice of each training: the slices.csv
of 1,000 patients, 50 variants and 2 seeds has 0.3 GB. To read it takes 13 times as much memory."""
_BLOCK, _SUMMED = 2**20, 2**32  # bytes of `damage_checksum`


def cache_root() -> Path:
    """Return the folder of this machine's cache; `BRAINSEG_CACHE` moves it."""
    base = os.environ.get("BRAINSEG_CACHE") or platformdirs.user_cache_dir("brainseg")
    return Path(base).expanduser().resolve()


def cache_folder(name: str) -> Path:
    """Return a folder of this machine's cache, made if need be."""
    folder = cache_root() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hide_home(text: str) -> str:
    """Return a text in which `~` stands for the home folder, as in a path that begins with it."""
    try:
        homes = {Path.home(), Path.home().resolve()}
    except RuntimeError:  # a user without one
        return text
    for home in homes - {Path("/")}:
        text = re.sub(rf"(?<![\w./~-]){re.escape(str(home))}(?![\w.-])", "~", text)
    return text


def retry_storage(work: Callable[[], _T], what: str, waits: Sequence[float] = _WAITS) -> _T:
    """Do some work on a disk or store; wait and try again while it raises OSError.

    Args:
        work: Leaves nothing behind when it fails.
        what: What is written, for the message.
        waits: Seconds between the tries.

    Raises:
        StorageError: If the last try fails too.
    """
    for wait in waits:
        try:
            return work()
        except OSError:
            time.sleep(wait)
    try:
        return work()
    except OSError as error:
        raise StorageError(f"cannot write {what}: {error}") from error


@contextmanager
def write_atomically(path: Path, suffix: str = "", *, flush: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` is as it was.

    Args:
        path: The file to write. Its folder must exist.
        suffix: Added to the temporary file's name, which is hidden and holds the process id.
        flush: Wait until the file is on the disk before it is renamed; not needed for a copy that
            can be fetched again.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield aside
        if flush:
            _sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Its folder is created, but not the folder above it: a missing one means a lost storage.
    """
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as aside:
        aside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def regular_file(path: Path) -> Path:
    """Return the path of a file that can be read to its end; links are followed.

    Raises:
        DataError: If there is none, or it is a folder, a pipe or a device, which could block
            for ever.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise DataError(f"cannot read {str(path)!r}: {error}") from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise DataError(f"{path} is a {kind}; expected a file")
    return path


def read_text(path: Path, largest: int = _LARGEST) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Raises:
        DataError: Naming the file and the line, if it is no file, too large or no text.
    """
    try:
        size = regular_file(path).stat().st_size
        if size > largest:
            raise DataError(
                f"{path} has {size / 1e6:,.0f} MB; at most {largest / 1e6:,.0f} are read"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    end = content.find(b"\0")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        end = error.start if end < 0 else min(end, error.start)
    if end >= 0:
        line = content.count(b"\n", 0, end) + 1
        raise DataError(
            f"{path}, line {line}: the byte 0x{content[end]:02x} is not UTF-8 text: the file is "
            "damaged, or must be saved as UTF-8"
        )
    return text


def read_cells(
    path: Path, largest: int = _LARGEST
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a CSV file, and its rows with their line numbers; cells as text.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Raises:
        DataError: Naming the file and the line, if it is no table: a row has other than the
            header's number of cells, two columns have one name, a quote is not closed.
    """
    text = read_text(path, largest)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; expected a CSV row") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a line with the names of its columns")
    (_, header), *rows = rows
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: two columns are named {twice[0]!r}; keep one")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} cells; expected {len(header)}, as in the header"
            )
    return header, rows


def user_path(text: Path | str, key: str = "") -> Path:
    """Return a path that a user wrote; a leading `~` or `~USER` becomes the home folder.

    Args:
        text: The path. Whether something is there is not looked at.
        key: The key or flag that holds it, for errors.

    Raises:
        ConfigError: If nothing can have this path: it is empty or a URL, there is no such user, it
            holds a NUL, or a name in it is longer than the system allows.
    """
    # Redacted first: a cut URL no longer shows that a part of it is a password.
    shown = redact(str(text))[:100]
    where = f"{key}: {shown}" if key else shown
    if is_url(text):
        raise ConfigError(f"{where} is a URL; expected a path of this machine")
    if not str(text):
        raise ConfigError(f"{key or 'the path'} is empty; expected a path of this machine")
    try:
        path = Path(text).expanduser()
        path.lstat()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{where} is not a path: {str(error).lower()}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{where} ... is longer than a path can be") from error
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, cells as text; an empty list if there is no such file.

    Raises:
        DataError: As `read_cells` does.
    """
    if not path.exists():
        return []
    header, rows = read_cells(path)
    return [dict(zip(header, row, strict=True)) for _, row in rows]


def read_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Return the object of a JSON file.

    Args:
        path: The file.
        finite: Refuse NaN and infinite numbers.

    Raises:
        DataError: Naming the file, and the line if it is known: no file, no JSON, no object, a key
            that is there twice.
    """

    def number(text: str) -> float:
        if finite and not math.isfinite(float(text)):
            raise ValueError(f"{text[:20]} is not a finite number")
        return float(text)

    text = read_text(path)
    try:
        found = json.loads(
            text, object_pairs_hook=_unique, parse_float=number, parse_constant=number
        )
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON: {error.msg}") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: a text in it is not Unicode: {error.reason}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be read") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {_kind(found)}; expected an object, {{...}}")
    return found


def check_record(path: Path, record: dict[str, Any], model: type[_Model]) -> _Model:
    """Return the object of a JSON file as a model.

    Args:
        path: The file, for the message.
        record: Its object, see `read_json`.
        model: Says which keys must be there, and what their values may be.

    Raises:
        DataError: Naming the file and the key.
    """
    try:
        return model.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "its values"
        found = f"found {problem['input']!r:.80}; {problem['msg']}"
        if problem["type"] == "missing":
            found = "the key is missing"
        raise DataError(f"{path}, {key}: {found}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice; keep one")
    return found


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"{value!r:.40}"


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as a CSV file, as `write_bytes` does.

    Args:
        path: The file to write.
        rows: Column -> value. A column that a row lacks stays empty.
        columns: The columns in order, others are left out; by default those of the first row.
    """
    rows = list(rows)
    names = list(rows[0]) if columns is None else columns
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # Python leaves a lone carriage return without quotes, where it would end the row.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for cells in (list(names), *([row.get(name, "") for name in names] for row in rows)):
        has_return = any("\r" in cell for cell in cells if isinstance(cell, str))
        (quoted if has_return else plain).writerow(cells)
    write_text(path, text.getvalue())


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` at the end of the block.

    If the block raises, the temporary folder is removed.

    Args:
        path: The folder to write. It must not exist, or be empty, when the block ends.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_new(path: Path) -> None:
    """Check that the folder that a user names for results, with --out, can be a new one.

    Raises:
        ConfigError: If the folder holds something already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--out: {path} is there already: name another folder, or remove it")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Write a folder as `write_folder` does; for the folder that a user names for results.

    Raises:
        ConfigError: If the folder holds something already.
    """
    check_new(path)
    with write_folder(path) as aside:
        yield aside


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_checksum(path: Path) -> str:
    """Return a hash of the sums of a file's blocks of 1 MiB, which takes 0.04 s for 1 GiB.

    Each changed bit and each missing block changes it, up to 4 GiB; of a larger file every second,
    third, ... block is read. It finds damage, not malice.
    """
    import numpy as np  # here, so that `--help` does not load it

    raw = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    whole = raw.size // 8 * 8
    words, length = raw[:whole].view(np.uint64), _BLOCK // 8
    step = length * max(1, -(-raw.size // _SUMMED))
    starts = range(0, len(words), step)
    sums = np.array([words[start : start + length].sum() for start in starts], np.uint64)
    content = f"{raw.size} ".encode() + sums.tobytes() + raw[whole:].tobytes()
    return hashlib.sha256(content).hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
