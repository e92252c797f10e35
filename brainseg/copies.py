"""Copies of what lies behind URLs: fetched as far as they differ.

A copy of a file carries the time that the store gives it, so that size and time tell whether it is
current, without a list of what was fetched. S3 counts whole seconds: two writes of one size in one
look the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brainseg.remote import Entry, RemoteFolder


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
        is_leftover = name.endswith(".part") and Path(name).name.startswith(".")
        if is_leftover or (is_wanted(name) and name not in wanted):
            (target / name).unlink(missing_ok=True)
    new = {name: e for name, e in wanted.items() if not is_current(target / name, e)}
    remote.fetch(new, target, what)
    return listing


def local_files(folder: Path, below: str = "") -> list[str]:
    """Return the paths, relative to a folder, of all files in a part of it."""
    files = (path for path in (folder / below).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)
