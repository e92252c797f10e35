"""What a report is made of, whatever it is written as: sections of text, tables and pictures.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from study.analysis.bootstrap import Estimate

NONE = "-"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, which are its columns; values as text.

    Attributes:
        caption: What it shows.
        rows: At least one.
        is_result: False for what is not a result of this study: facts, others' numbers.
    """

    caption: str
    rows: Sequence[Mapping[str, str]]
    is_result: bool = True


@dataclass(frozen=True)
class Figure:
    """A drawing below the study's folder.

    Attributes:
        path: Relative, without suffix: there is a .svg and a .png.
        alt: What it shows, for those who cannot see it.
        caption: What to look at.
    """

    path: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Tile:
    """One slice of a gallery: its PNG below the study's folder, what it shows, what it is."""

    path: str
    alt: str
    label: str


@dataclass(frozen=True)
class Gallery:
    """Slices side by side."""

    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Listing:
    """Text to copy, as it is; long ones are folded."""

    caption: str
    text: str
    is_folded: bool = False


Block = Text | Table | Figure | Gallery | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; the name is its address in the page."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: Of the study.
        facts: What a reader must know beside any score, in one line.
        labels: What must stand beside every number, `SYNTHETIC` say; may be empty.
        sentence: What the study says.
        caveats: What limits it.
        sections: The rest.
    """

    title: str
    facts: str
    labels: tuple[str, ...]
    sentence: str
    caveats: tuple[str, ...]
    sections: Sequence[Section]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table whose columns are the keys of its rows."""
    columns = list(rows[0])
    cells = [[row[column].replace("|", "\\|") for column in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_markdown(document: Document) -> str:
    """Return the document as Markdown; pictures are links into the study's folder."""
    label = " · ".join(document.labels)
    blocks = [f"# {document.title}", document.facts, f"**{document.sentence}**"]
    if document.caveats:
        blocks.append("\n".join(f"- {caveat}" for caveat in document.caveats))
    for section in document.sections:
        blocks.append(f"## {section.title}")
        if label and any(isinstance(block, Table | Gallery | Figure) for block in section.blocks):
            blocks.append(f"**{label}**")
        blocks += [_markdown(block) for block in section.blocks]
    return "\n\n".join(blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text):
            return text
        case Table(caption, rows):
            return f"*{caption}*\n\n{markdown_table(rows)}"
        case Figure(path, alt, caption):
            return f"![{alt}]({path}.png)\n\n*{caption}*"
        case Gallery(caption, tiles):
            pictures = " ".join(f"![{tile.alt}]({tile.path})" for tile in tiles)
            return f"*{caption}*\n\n{pictures}"
        case Listing(caption, text):
            return f"{caption}\n\n```\n{text.rstrip()}\n```"


def spell(value: float, decimals: int = 3) -> str:
    """Return a number with its decimals, or a dash where there is none."""
    return NONE if math.isnan(value) else f"{value:.{decimals}f}"


def format_estimate(estimate: Estimate | None, decimals: int = 3) -> str:
    """Return `0.812 (0.790 to 0.831)`; the point alone where there is no interval."""
    if estimate is None:
        return NONE
    point = spell(estimate.point, decimals)
    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return point
    return f"{point} ({estimate.low:.{decimals}f} to {estimate.high:.{decimals}f})"


def format_change(estimate: Estimate) -> str:
    """Return a difference with its sign: `+0.014 (+0.009 to +0.020)`."""
    if math.isnan(estimate.point):
        return NONE
    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return f"{estimate.point:+.3f}"
    return f"{estimate.point:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def format_p(p: float) -> str:
    """Return a p-value; very small ones as a bound."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- page ---

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


# --- latex ---

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"\textperiodcentered{}",
}


def to_latex(rows: Sequence[Mapping[str, str]], caption: str, labels: Sequence[str]) -> str:
    """Return a table environment that needs the package booktabs.

    Args:
        rows: At least one; the first column is a name.
        caption: What it shows.
        labels: Stand in the caption, `SYNTHETIC` say.
    """
    columns = list(rows[0])
    lines = [_line(columns), r"\midrule", *(_line(row.values()) for row in rows)]
    note = f"\\textbf{{{_escape(' · '.join(labels))}}}. " if labels else ""
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{note}{_escape(caption)}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _line(cells: Iterable[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
