"""Where a user keeps things: paths of this machine, and URLs."""

from __future__ import annotations

from pathlib import Path

Location = Path | str
"""A path of this machine, or as text the URL of a folder or file."""


def is_url(place: Location) -> bool:
    """Return whether a place is a URL."""
    return "://" in str(place) and not isinstance(place, Path)


def to_location(text: str) -> Location:
    """Return what a user gave as a place: for flags, whose paths and URLs look alike."""
    return text if is_url(text) else Path(text)


def join_location(place: Location, *parts: str) -> Location:
    """Return what lies below a place; a URL keeps its query behind the path."""
    if isinstance(place, Path):
        return place.joinpath(*parts)
    path, mark, query = place.partition("?")
    return "/".join([path.rstrip("/"), *parts]) + mark + query


def name_of(place: Location) -> str:
    """Return the last part of a place, without a query."""
    return Path(str(place).partition("?")[0] if is_url(place) else place).name
