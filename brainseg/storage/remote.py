"""Folders behind URLs: S3 and the other stores that pyarrow opens.

A file that was fetched or sent has the time that the store gave it. A local file is thus current
if its size and time are the store's, and is not transferred again. Credentials are never part of a
URL, since URLs are written into files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tqdm import tqdm

from brainseg.errors import ConfigError, StorageError
from brainseg.storage.files import write_atomically
from brainseg.storage.urls import Location, check_url, is_url

_NUM_THREADS = 16
_BLOCK = 8 * 2**20
_PART = ".part"
_CONNECT_SECONDS, _SILENT_SECONDS, _ATTEMPTS = 3, 5, 2
_REASONS = (
    (r"NO_SUCH_BUCKET", "there is no such bucket: create it first, or correct the URL"),
    (
        r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CLIENT_ID",
        "access is denied: give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in "
        "~/.aws/credentials, or to this machine's role, that may list, read, write and delete",
    ),
    (r"curlCode: 6", "its host has no address: correct the URL, or connect this machine"),
    (r"curlCode: 7", "nothing answers there: start the server, or correct the URL"),
    (r"curlCode: 28", "it does not answer: start the server, or correct the URL"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file behind a URL: its size in bytes, its time in nanoseconds."""

    size: int
    time: int


class RemoteFolder:
    """A folder behind a URL; the store is contacted when it is first needed.

    Every method raises StorageError if the store does not answer or denies access.

    Args:
        url: Such as `s3://bucket/prefix`, with `?region=`, `&endpoint_override=HOST:PORT` and
            `&scheme=http` if the store is not Amazon's.

    Raises:
        ConfigError: If the URL holds a user, a password or a secret, or is malformed.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self.url = url

    def list(self, below: str = "") -> dict[str, Entry]:
        """Return all files in a subfolder, by path relative to the folder itself.

        Args:
            below: The subfolder; empty for the whole folder.
        """
        from pyarrow import fs

        selector = fs.FileSelector(self._path(below), recursive=True, allow_not_found=True)
        with translate_errors(self.url):
            infos = self._fs.get_file_info(selector)
        found = {}
        for info in infos:
            name = info.path[len(self._path("")) :].lstrip("/")
            if info.type != fs.FileType.File:
                continue
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise StorageError(f"{self.url} holds {name!r}, which is not a path: remove it")
            found[name] = Entry(info.size, info.mtime_ns or 0)
        return found

    def entry(self, name: str) -> Entry | None:
        """Return the size and time of a file, or None if there is no such file."""
        from pyarrow import fs

        with translate_errors(self.url):
            info = self._fs.get_file_info(self._path(name))
        is_file = info.type == fs.FileType.File
        return Entry(info.size, info.mtime_ns or 0) if is_file else None

    def require(self) -> None:
        """Check, within seconds, that the store answers and that its bucket exists."""
        from pyarrow import fs

        with translate_errors(self.url):
            if self._fs.type_name == "s3":
                # Only the bucket must exist: a prefix may be new.
                bucket = self._path("").partition("/")[0]
                self._fs.get_file_info(fs.FileSelector(bucket, allow_not_found=False))
            else:
                self._fs.get_file_info(self._path(""))

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file."""
        with translate_errors(self.url):
            try:
                with self._fs.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole or not at all."""
        with translate_errors(self.url):
            stream = self._open_output(name)
            stream.write(content)
            stream.close()

    def fetch(self, entries: Mapping[str, Entry], target: Path, what: str = "") -> None:
        """Fetch files in parallel, each whole or not at all.

        Args:
            entries: Path -> size and time, as `list` returns them.
            target: Local folder; the files get the same paths below it.
            what: Label of the progress bar; empty for none.
        """

        def fetch(name: str) -> None:
            path, entry = target / name, entries[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path, _PART, flush=False) as aside:
                with self._fs.open_input_stream(self._path(name)) as stream, aside.open("wb") as f:
                    while block := stream.read(_BLOCK):
                        f.write(block)
                if aside.stat().st_size != entry.size:
                    raise OSError(f"{name} changed while it was fetched")
                os.utime(aside, ns=(entry.time, entry.time))

        self._for_each(fetch, entries, what)

    def fetch_file(self, name: str, target: Path) -> bool:
        """Fetch one file if the local one is not current; return whether the store has it.

        Args:
            name: Path of the file.
            target: Local folder; the file gets the same path below it.
        """
        entry = self.entry(name)
        if entry is not None and not is_current(target / name, entry):
            self.fetch({name: entry}, target)
        return entry is not None

    def send(self, source: Path, names: Collection[str]) -> dict[str, Entry]:
        """Send files in parallel; files that no longer exist are left out.

        Args:
            source: Local folder. A file sent gets the time that the store gave it.
            names: Paths below it; the files get the same paths in the store.

        Returns:
            Path -> size and time in the store, of the files sent.
        """
        sent: dict[str, Entry] = {}

        def send(name: str) -> None:
            with suppress(FileNotFoundError):
                sent[name] = self._send(source / name, name)

        self._for_each(send, names)
        return sent

    def delete(self, names: Collection[str]) -> None:
        """Delete files in parallel; files that do not exist are no error."""

        def delete(name: str) -> None:
            with suppress(FileNotFoundError):
                self._fs.delete_file(self._path(name))

        self._for_each(delete, names)
        # S3 keeps an empty folder as a file of its own, which would slow down each list.
        for folder in {name.rpartition("/")[0] for name in names} - {""}:
            with suppress(OSError):
                if not self.list(folder):
                    self._fs.delete_dir(self._path(folder))

    def copy(self, names: Collection[str], target: RemoteFolder) -> None:
        """Copy files in parallel to another folder of the same store."""

        def copy(name: str) -> None:
            target._make_parent(name)
            self._fs.copy_file(self._path(name), target._path(name))

        self._for_each(copy, names)

    def _for_each(
        self, work: Callable[[str], None], names: Collection[str], what: str = ""
    ) -> None:
        hidden = None if what else True  # None: shown on a terminal
        # After a first failure, map cancels what has not begun.
        with translate_errors(self.url), ThreadPoolExecutor(_NUM_THREADS) as pool:
            done = pool.map(work, names)
            list(tqdm(done, total=len(names), desc=what, unit="file", disable=hidden))

    def _send(self, source: Path, name: str) -> Entry:
        with source.open("rb") as file:
            stream, size = self._open_output(name), 0
            while block := file.read(_BLOCK):
                size += stream.write(block)
            stream.close()
            entry = self.entry(name)
            if entry is None or entry.size != size:
                raise OSError(f"{name}: {size} bytes were sent, {entry} is there")
            # By descriptor: a file that replaced this one meanwhile has yet to be sent.
            os.utime(file.fileno(), ns=(entry.time, entry.time))
        return entry

    def _open_output(self, name: str) -> Any:
        self._make_parent(name)
        return self._fs.open_output_stream(self._path(name))

    def _make_parent(self, name: str) -> None:
        if self._fs.type_name != "s3":  # which has no folders
            self._fs.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _path(self, name: str) -> str:
        root: str = self._store[1]
        return f"{root}/{name}" if name else root

    @property
    def _fs(self) -> Any:
        return self._store[0]

    @cached_property
    def _store(self) -> tuple[Any, str]:
        with translate_errors(self.url):
            return _open(self.url)


def require_store(location: Location) -> None:
    """Check, within seconds, that a location can be reached if it is a URL.

    A study that runs waits for a store that is gone for a moment; a command that starts does not.

    Raises:
        StorageError: If nothing answers, the bucket is missing, or access is denied.
    """
    if is_url(location):
        RemoteFolder(str(location)).require()


def is_current(path: Path, entry: Entry) -> bool:
    """Return whether a local file is the same as one behind a URL, by size and time."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.time)


def pull(
    remote: RemoteFolder,
    target: Path,
    is_wanted: Callable[[str], bool],
    is_copy: Callable[[str], bool] = lambda name: True,
    *,
    below: str = "",
    what: str = "",
) -> dict[str, Entry]:
    """Make a local folder equal to a remote one; files that are current are not fetched.

    Args:
        remote: The folder to copy.
        target: The local folder.
        is_wanted: Whether a path is compared at all.
        is_copy: Whether a wanted file that is no longer remote was fetched once, and may go.
        below: Subfolder of both that is compared; empty for all.
        what: Label of the progress bar; empty for none.

    Returns:
        All remote files below the subfolder, wanted or not.
    """
    listing = remote.list(below)
    wanted = {name: entry for name, entry in listing.items() if is_wanted(name)}
    for name in local_files(target, below):
        is_leftover = name.endswith(_PART) and Path(name).name.startswith(".")
        if is_leftover or (is_wanted(name) and is_copy(name) and name not in wanted):
            (target / name).unlink(missing_ok=True)
    new = {name: e for name, e in wanted.items() if not is_current(target / name, e)}
    remote.fetch(new, target, what)
    return listing


def local_files(folder: Path, below: str = "") -> list[str]:
    """Return the sorted paths, relative to a folder, of all files in a subfolder."""
    files = (path for path in (folder / below).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn an OSError of pyarrow into a StorageError that says what is wrong with the URL."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        text = _first_line(error)
        reasons = (reason for pattern, reason in _REASONS if re.search(pattern, text))
        raise StorageError(f"{url}: {next(reasons, text)}") from error


def _open(url: str) -> tuple[Any, str]:
    """Return pyarrow's file system for a URL, and the path in it."""
    from pyarrow import fs  # slow to import, and most commands never meet a URL

    parts = urlsplit(url)
    if parts.scheme == "s3":
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        if not {"region", "endpoint_override"} & options.keys():
            options["region"] = fs.resolve_s3_region(parts.netloc)
        try:
            store = fs.S3FileSystem(
                **options,
                connect_timeout=_CONNECT_SECONDS,
                request_timeout=_SILENT_SECONDS,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
            )
        except ValueError as error:  # such as a scheme that is none
            raise ConfigError(f"{url} cannot be opened: {_first_line(error)}") from error
        return store, f"{parts.netloc}{parts.path}".rstrip("/")
    bounded = url
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        # Google's client would otherwise block for many minutes.
        bounded = f"{url}{'&' if parts.query else '?'}retry_limit_seconds={_SILENT_SECONDS}"
    try:
        store, path = fs.FileSystem.from_uri(bounded)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"{url} cannot be opened: {_first_line(error)}") from error
    return store, path.rstrip("/")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
