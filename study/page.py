"""A document as report.html: one file that needs nothing else, neither a network nor a server.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.document import NONE, Block, Document

_INTERVAL = re.compile(r"(.+?) (\(.+ to .+\))")
_NUMBER = re.compile(r"[<>+-]?\s*\d[\d.,]*%?(\s*\(.*\)|/\d+| of \d+)?")
_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def to_html(document: Document, study: Path) -> str:
    """Return the page, its pictures inside.

    Args:
        document: The report.
        study: The folder below which its pictures are.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        document=document,
        label=" · ".join(document.labels),
        kind_of=_kind_of,
        is_number=_is_number,
        split=_split,
        embed=lambda path: _embed(study / path),
    )


def _kind_of(block: Block) -> str:
    return type(block).__name__


def _is_number(rows: Sequence[Mapping[str, str]], column: str) -> bool:
    """Return whether a column holds numbers, with or without intervals."""
    values = [row[column] for row in rows if row[column] != NONE]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _split(value: str) -> tuple[str, str]:
    """Return a number and its interval, which stands below it."""
    match = _INTERVAL.fullmatch(value)
    return (match[1], match[2]) if match else (value, "")


def _embed(path: Path) -> str:
    """Return a picture as a data URI."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_KINDS[path.suffix]};base64,{content}"
