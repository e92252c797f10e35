"""Plug-ins: a user's own networks, filters and layouts, from a Python file or a package.

`./mine.py:build` names the function `build` of a file, `NAME` an entry point of an installed
package. A reference in a configuration that the user wrote is trusted; one in a model file is not,
see `Predictor.load`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import hash_file, hide_home, user_path

NETWORK_GROUP = "brainseg.networks"
"""Group of entry points: `build(channels: int) -> torch.nn.Module`."""

FILTER_GROUP = "brainseg.filters"
"""Group of entry points: `filter(image) -> image`, both uint8 (H, W, C)."""

LAYOUT_GROUP = "brainseg.layouts"
"""Group of entry points: `find(root: Path) -> Iterable[dict]`, the rows of a manifest."""

_FILE_MARK = ".py:"


def is_path(reference: str) -> bool:
    """Return whether a reference names a file, such as `./mine.py:build`."""
    return _FILE_MARK in reference


def installed(group: str) -> list[str]:
    """Return the names of the entry points of a group, in alphabetical order."""
    return sorted({point.name for point in entry_points(group=group)})


def absolute_reference(reference: str) -> str:
    """Return a reference whose file, if it names one, has an absolute path or one from `~`.

    Raises:
        ConfigError: If it names no function.
        DataError: If there is no such file.
    """
    if not is_path(reference):
        return reference
    path, name = _parts(reference)
    return f"{hide_home(str(path.resolve()))}:{name}"


def fingerprint(reference: str) -> str:
    """Return the SHA-256 of a reference's file; of an entry point, its package and version.

    Raises:
        ConfigError: If there is no such entry point.
        DataError: If there is no such file.
    """
    if is_path(reference):
        return hash_file(_parts(reference)[0])
    for group in (NETWORK_GROUP, FILTER_GROUP):
        for point in entry_points(group=group, name=reference):
            return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    raise ConfigError(f"{reference} is not an entry point of an installed package")


def load_function(reference: str, group: str, key: str) -> Callable[..., Any]:
    """Import a user's function.

    Args:
        reference: A file and a function, such as `./mine.py:build`, or an entry point's name.
        group: The group of the entry point.
        key: The key that holds the reference, for errors.

    Raises:
        ConfigError: If the user's code fails on import or has no such function, or there is no
            such entry point.
        DataError: If there is no such file.
    """
    try:
        if is_path(reference):
            path, name = _parts(reference)
            found = getattr(_import_file(path), name)
        else:
            points = [*entry_points(group=group, name=reference)]
            if not points:
                known = ", ".join(installed(group)) or "none"
                raise ConfigError(
                    f"{key} is {reference}: expected FILE.py:FUNCTION, or an entry point of "
                    f"{group}; installed: {known}"
                )
            found = points[0].load()
    except (ConfigError, DataError):
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(f"{key} is {reference}, which fails: {describe_error(error)}") from error
    if not callable(found):
        raise ConfigError(f"{key} is {reference}, which is not a function")
    return found  # type: ignore[no-any-return]


def describe_error(error: BaseException) -> str:
    """Return an error of a user's code in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _parts(reference: str) -> tuple[Path, str]:
    stem, _, name = reference.rpartition(":")
    path = user_path(stem)
    if not name.isidentifier():
        raise ConfigError(f"{reference}: expected FILE.py:FUNCTION; {name!r} is not a name")
    if not path.is_file():
        raise DataError(f"{reference}: expected FILE.py:FUNCTION; {path} is not a file")
    return path, name


def _import_file(path: Path) -> Any:
    """Import a file once per process and content, under a name of its own."""
    digest = hashlib.sha256(f"{path.resolve()} {hash_file(path)}".encode()).hexdigest()[:16]
    name = f"brainseg_plugin_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
