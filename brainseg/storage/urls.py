"""Locations that a user gives: paths of this machine and URLs; what of them may be shown."""

from __future__ import annotations

import re
from pathlib import Path

Location = Path | str
"""A path of this machine, or the URL of a folder or file as text."""

PUBLIC_KEYS = (
    *("region", "scheme", "endpoint_override", "retry_limit_seconds", "project_id"),
    *("replication", "buffer_size", "default_block_size"),
)
"""The keys of a URL's query that hold no secret; no other key is allowed."""

_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z0-9+.-]*)(:/{1,2})(\S+)")  # a Path has one /
_PLAIN = re.compile(r"[\w.:/,'\"()\[\]-]*")
_HIDDEN = "***"


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


def escape(text: str) -> str:
    """Return a text in which what no terminal shows, such as a control character, is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def redact(text: str) -> str:
    """Return a text in which each URL, well formed or not, is without user, password and secrets.

    Of a query only the values of `PUBLIC_KEYS` stay. `gs://anonymous@...` stays, and so does the
    container in `abfs://CONTAINER@ACCOUNT...`.
    """
    return _URL.sub(lambda url: url[1] + url[2] + _without_user(url[1].lower(), url[3]), text)


def _without_user(scheme: str, address: str) -> str:
    user, at, rest = address.rpartition("@")
    # A password may hold / and ?, which should have been escaped; a path may hold @.
    is_password = ":" in user
    is_user = bool(at) and not re.search(r"[/?#]", user)
    is_public = scheme in ("abfs", "abfss") or (scheme in ("gs", "gcs") and user == "anonymous")
    if is_password or (is_user and not is_public):
        return f"{_HIDDEN}@{_without_secrets(rest)}"
    return _without_secrets(address)


def _without_secrets(address: str) -> str:
    address, hash_, fragment = address.partition("#")
    path, mark, query = address.partition("?")
    shown = "".join(_public(part) for part in re.split(r"([&;])", query))
    return path + mark + shown + hash_ + (fragment and _HIDDEN)


def _public(part: str) -> str:
    key, _, value = part.partition("=")
    if part in ("", "&", ";") or (key in PUBLIC_KEYS and _PLAIN.fullmatch(value)):
        return part
    return f"{key}={_HIDDEN}" if key.isidentifier() and key != part else _HIDDEN
