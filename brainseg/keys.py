"""Dotted keys such as `stages.0.epochs`: names for the values in a tree of mappings and lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def assign(tree: dict[str, Any], key: str, value: object) -> None:
    """Give the value of a dotted key another one, in place.

    Raises:
        KeyError: If the tree has no such key.
    """
    *parents, last = key.split(".")
    node: Any = tree
    try:
        for part in parents:
            node = node[_position(part)] if isinstance(node, list) else node[part]
        if isinstance(node, list):
            node[_position(last)] = value
        elif last in node:
            node[last] = value
        else:
            raise KeyError(last)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise KeyError(key) from error


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their dotted keys, in its order."""
    if isinstance(node, dict):
        items: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _position(text: str) -> int:
    if not text.isdigit():
        raise ValueError(text)  # int() would take -1 for the last stage
    return int(text)
