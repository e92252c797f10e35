"""Folders behind URLs: object stores such as S3, and whatever else pyarrow opens.

Credentials are never part of a URL, since URLs are written into files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from brainseg.storage.urls import Location, is_url

_AT_ONCE = 16
_BLOCK = 8 * 2**20
_PART = ".part"
_CONNECT_SECONDS, _SILENT_SECONDS, _ATTEMPTS = 3, 5, 2
_S3_KEYS = ("region", "scheme", "endpoint_override")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file behind a URL: its size in bytes, its time in nanoseconds."""

    size: int
    time: int


class RemoteFolder:
    """A folder behind a URL.

    Args:
        url: Such as `s3://bucket/prefix`, with `?region=`, `&endpoint_override=HOST:PORT` and
            `&scheme=http` where the store is not Amazon's.

    Raises:
        ConfigError: If pyarrow cannot open such a URL, or it holds a password.
    """

    def __init__(self, url: str) -> None:
        """Connect to nothing yet."""
        self.url = url
        parts = urlsplit(url)
        secret = parts.password or any("key" in name for name, _ in parse_qsl(parts.query))
        if secret or (parts.username and parts.scheme == "s3"):
            hidden = f"{parts.scheme}://...{parts.path}"
            raise ConfigError(f"{hidden} holds a password, which would be written into files")
        if "#" in url or url.count("?") > 1:
            raise ConfigError(f"{url} has a # or a second ?: choose a name without them")
        if parts.scheme == "s3":
            self._base = f"{parts.netloc}{parts.path}".rstrip("/")
            self._bucket, self._options = parts.netloc, _read_query(url, parts.query)

    def list(self, below: str = "") -> dict[str, Entry]:
        """Return all files below a part of it, by path relative to the folder itself.

        Raises:
            StorageError: If the store does not answer, or has no such bucket.
        """
        from pyarrow import fs

        base = self._path(below)
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        with sentences(self.url):
            infos = self._fs.get_file_info(selector)
        found = {}
        for info in infos:
            name = info.path[len(self._root) :].lstrip("/")
            if info.type != fs.FileType.File:
                continue
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise StorageError(f"{self.url} holds {name!r}, which is no path: remove it")
            found[name] = Entry(info.size, info.mtime_ns or 0)
        return found

    def entry(self, name: str) -> Entry | None:
        """Return what there is of a file, or None if there is no such file."""
        from pyarrow import fs

        with sentences(self.url):
            info = self._fs.get_file_info(self._path(name))
        is_file = info.type == fs.FileType.File
        return Entry(info.size, info.mtime_ns or 0) if is_file else None

    def require(self) -> None:
        """Make sure, within seconds, that the store answers and the bucket is there.

        Raises:
            StorageError: With what is wrong.
        """
        from pyarrow import fs

        with sentences(self.url):
            if self._fs.type_name == "s3":
                # Strictly, where nothing is missing but the bucket: a prefix may be new.
                self._fs.get_file_info(fs.FileSelector(self._bucket, allow_not_found=False))
            else:
                self._fs.get_file_info(self._root)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file."""
        with sentences(self.url):
            try:
                with self._fs.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole or not at all."""
        with sentences(self.url):
            stream = self._open_output(name)
            stream.write(content)
            stream.close()

    def fetch(self, entries: Mapping[str, Entry], target: Path, what: str) -> None:
        """Fetch files, many at once; each is there whole, with its time, or not at all.

        Args:
            entries: Of `list`: path -> size and time.
            target: Folder below which they lie as they do here.
            what: Stands beside the progress bar.
        """

        def fetch(name: str) -> None:
            self._fetch(name, entries[name], target / name)

        self._all(fetch, entries, what)

    def send(self, source: Path, names: Collection[str]) -> dict[str, Entry]:
        """Send files, many at once; a file that is gone by now is left out.

        Args:
            source: Folder below which they lie as they will here. A file sent gets the time that
                the store gave it.
            names: Paths below it.

        Returns:
            Path -> what the store has now.
        """
        sent: dict[str, Entry] = {}

        def send(name: str) -> None:
            with suppress(FileNotFoundError):
                sent[name] = self._send(source / name, name)

        self._all(send, names, "")
        return sent

    def delete(self, names: Collection[str]) -> None:
        """Delete files, many at once; one that is gone already is no error."""

        def delete(name: str) -> None:
            with suppress(FileNotFoundError):
                self._fs.delete_file(self._path(name))

        self._all(delete, names, "")
        # S3 keeps an empty folder as a file of its own, which would slow down each list.
        for folder in {name.rpartition("/")[0] for name in names} - {""}:
            with suppress(OSError):
                if not self.list(folder):
                    self._fs.delete_dir(self._path(folder))

    def copy(self, names: Collection[str], target: RemoteFolder) -> None:
        """Copy files to another folder of the same store."""

        def copy(name: str) -> None:
            target._make_folder(name)
            self._fs.copy_file(self._path(name), target._path(name))

        self._all(copy, names, "")

    def _all(self, work: Callable[[str], None], names: Iterable[str], what: str) -> None:
        names = list(names)
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            with sentences(self.url):
                done = pool.map(work, names)
                hide = None if what else True
                for _ in tqdm(done, total=len(names), desc=what, unit="file", disable=hide):
                    pass
        finally:
            # After the first failure the others would only wait for a server that is gone.
            pool.shutdown(cancel_futures=True)

    def _fetch(self, name: str, entry: Entry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(target, _PART) as aside:
            with self._fs.open_input_stream(self._path(name)) as stream, aside.open("wb") as file:
                while block := stream.read(_BLOCK):
                    file.write(block)
            if aside.stat().st_size != entry.size:
                raise OSError(f"{name} changed while it was fetched")
            os.utime(aside, ns=(entry.time, entry.time))

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
        self._make_folder(name)
        return self._fs.open_output_stream(self._path(name))

    def _make_folder(self, name: str) -> None:
        if self._fs.type_name != "s3":  # which has no folders
            self._fs.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @property
    def _root(self) -> str:
        _ = self._fs
        return self._base

    @cached_property
    def _fs(self) -> Any:
        # Imported here: most commands never meet a URL.
        from pyarrow import ArrowInvalid, fs

        if self.url.startswith("s3://"):
            with sentences(self.url):
                options = dict(self._options)
                if not {"region", "endpoint_override"} & options.keys():
                    options["region"] = fs.resolve_s3_region(self._bucket)
                return fs.S3FileSystem(
                    **options,
                    connect_timeout=_CONNECT_SECONDS,
                    request_timeout=_SILENT_SECONDS,
                    retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
                )
        try:
            with sentences(self.url):
                found, base = fs.FileSystem.from_uri(_with_patience(self.url))
        except (ArrowInvalid, ValueError, NotImplementedError, ImportError) as error:
            raise ConfigError(f"{self.url} cannot be opened: {first_line(error)}") from error
        self._base = base.rstrip("/")
        return found


def require_store(place: Location) -> None:
    """Make sure, within seconds, that a place can be reached if it is a URL.

    What comes after may wait for a store that is gone for a moment; a command that begins should
    rather say so.

    Raises:
        StorageError: If nothing answers, the bucket is missing, or access is denied.
    """
    if is_url(place):
        RemoteFolder(str(place)).require()


def _with_patience(url: str) -> str:
    """Bound how long Google's client tries: left alone it blocks for many minutes."""
    if not url.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}retry_limit_seconds={_SILENT_SECONDS}"


def _read_query(url: str, query: str) -> dict[str, str]:
    pairs = dict(parse_qsl(query))
    unknown = [key for key in pairs if key not in _S3_KEYS]
    if unknown:
        raise ConfigError(f"{url}: {unknown[0]} is unknown; valid: {', '.join(_S3_KEYS)}")
    return pairs


# --- refusals ---

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


@contextmanager
def sentences(url: str) -> Iterator[None]:
    """Turn what pyarrow raises into a StorageError of one sentence about the URL."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        text = first_line(error)
        found = (words for pattern, words in _REASONS if re.search(pattern, text))
        raise StorageError(f"{url}: {next(found, text)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its type's name if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- copies ---


def is_current(path: Path, entry: Entry) -> bool:
    """Return whether a file is the copy of one behind a URL."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.time)


def pull(
    remote: RemoteFolder,
    target: Path,
    is_wanted: Callable[[str], bool],
    *,
    below: str = "",
    what: str = "",
) -> dict[str, Entry]:
    """Make a folder's files equal to those behind a URL; what is equal already is not fetched.

    Args:
        remote: What they shall be.
        target: The folder; files in it that are wanted, but not behind the URL, are removed.
        is_wanted: Says of a path whether it is compared at all.
        below: Part of both that is compared.
        what: Stands beside the progress bar.

    Returns:
        All that is behind the URL there, wanted or not.
    """
    listing = remote.list(below)
    wanted = {name: entry for name, entry in listing.items() if is_wanted(name)}
    for name in local_files(target, below):
        is_leftover = name.endswith(_PART) and Path(name).name.startswith(".")
        if is_leftover or (is_wanted(name) and name not in wanted):
            (target / name).unlink(missing_ok=True)
    new = {name: e for name, e in wanted.items() if not is_current(target / name, e)}
    remote.fetch(new, target, what)
    return listing


def local_files(folder: Path, below: str = "") -> list[str]:
    """Return the paths, relative to a folder, of all files in a part of it."""
    files = (path for path in (folder / below).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)
