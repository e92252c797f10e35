"""Locations that a user gives: paths of this machine and URLs."""

from __future__ import annotations

from pathlib import Path

Location = Path | str
"""A path of this machine, or the URL of a folder or file as text."""


def is_url(location: Location) -> bool:
    """Return whether a location is a URL."""
    return "://" in str(location) and not isinstance(location, Path)


def to_location(text: str) -> Location:
    """Return a text as a location; the type of flags that take a path or a URL."""
    return text if is_url(text) else Path(text)


def join_location(location: Location, *parts: str) -> Location:
    """Return a location below another; the query of a URL stays at the end."""
    if isinstance(location, Path):
        return location.joinpath(*parts)
    path, mark, query = location.partition("?")
    return "/".join([path.rstrip("/"), *parts]) + mark + query


def name_of(location: Location) -> str:
    """Return the last part of a location, without a query."""
    return Path(str(location).partition("?")[0] if is_url(location) else location).name
