"""Locations that a user gives, local paths or URLs.

Secrets are removed from URLs before these are printed or stored.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from brainseg.errors import ConfigError

Location = Path | str
"""A path of this machine, or the URL of a folder or file as text."""

PUBLIC_KEYS = (
    *("region", "scheme", "endpoint_override", "retry_limit_seconds", "project_id"),
    *("replication", "buffer_size", "default_block_size"),
)
"""The keys of a URL's query that hold no secret; no other key is allowed."""

_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z0-9+.-]*)(:/{1,2})(\S+)")  # a Path has one /
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
_S3_KEYS = ("region", "scheme", "endpoint_override")
_PLAIN = re.compile(r"[\w.:/,'\"()\[\]-]*")
_HIDDEN = "***"


def is_url(location: Location) -> bool:
    """Return whether a location is a URL."""
    return "://" in str(location) and not isinstance(location, Path)


def check_url(url: str) -> None:
    """Check a URL without contacting its store.

    Raises:
        ConfigError: If it holds a user, a password or a secret, or is malformed.
    """
    shown = redact(re.sub(r"\s", "_", url))
    if "#" in url or url.count("?") > 1:
        raise ConfigError(f"{shown} has a # or a second ?: choose a name without them")
    if shown != re.sub(r"\s", "_", url):
        raise ConfigError(
            f"{shown} holds a user, a password or a key of its query that is none of "
            f"{', '.join(PUBLIC_KEYS)}; a URL is written into files: give credentials in the "
            "environment, in ~/.aws or to this machine's role"
        )
    if not url.isprintable():
        raise ConfigError(f"{shown!r} holds a control character: correct the URL")
    if not _is_sound(url):
        raise ConfigError(f"{shown} cannot be opened: expected such as s3://BUCKET/PREFIX")
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not url.startswith(parts.scheme):
        raise ConfigError(f"{shown} cannot be opened: it must begin with {', '.join(_SCHEMES)}")
    if any(part in (".", "..") for part in parts.path.split("/")):
        raise ConfigError(f"{shown} has a part . or .., which a store does not follow")
    unknown = [key for key, _ in parse_qsl(parts.query) if key not in _S3_KEYS]
    if parts.scheme == "s3" and unknown:
        raise ConfigError(f"{shown}: {unknown[0]} is unknown; valid: {', '.join(_S3_KEYS)}")


def _is_sound(url: str) -> bool:
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        ports = (parts.port, urlsplit("//" + options.get("endpoint_override", "")).port)
    except ValueError:  # a bracket that is not closed, a port that is none
        return False
    is_file = parts.scheme == "file"
    has_host = not parts.netloc and parts.path[:1] == "/" if is_file else bool(parts.netloc)
    return has_host and 0 not in ports and options.get("scheme", "https") in ("http", "https")


def to_location(text: str) -> Location:
    """Return a text as a location."""
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
