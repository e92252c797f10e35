"""Documents of headed sections, written as Markdown, as one HTML page or as LaTeX tables.

A document is built from blocks: paragraphs, bullets, tables, figures, galleries and listings.
Values in tables are text, or links to sections.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

NONE = "-"
"""A cell without a value."""


class Link(str):
    """A cell of a table that leads to a section of the page report.html.

    Attributes:
        anchor: The name of the section, or `conclusion`, the sentence on top of the page.
    """

    anchor: str

    def __new__(cls, text: str, anchor: str) -> Link:
        """Return a text that leads to an anchor."""
        link = super().__new__(cls, text)
        link.anchor = anchor
        return link


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What the table shows.
        rows: At least one; all have the same keys, which are the columns. Values are text.
        is_result: Whether the numbers are results of this document. Results carry its labels and
            can be sorted; facts and published numbers do not.
    """

    caption: str
    rows: Sequence[Mapping[str, str]]
    is_result: bool = True


@dataclass(frozen=True)
class Figure:
    """A figure from a file.

    Attributes:
        path: A PNG file, relative to the document's folder. HTML pages embed the SVG file of the
            same name instead, if there is one.
        alt: A description for readers who cannot see the figure.
        caption: What to look at.
    """

    path: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Tile:
    """A picture of a gallery: a PNG file in the document's folder, a description and a label."""

    path: str
    alt: str
    label: str


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Listing:
    """Preformatted text to copy; a folded one opens on a click."""

    caption: str
    text: str
    is_folded: bool = False


Block = Paragraph | Bullets | Table | Figure | Gallery | Listing


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it.

    Attributes:
        name: The anchor of the section in the page.
        title: The heading.
        blocks: The content, in order.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        title: The title.
        facts: One line below the title: data, size, weights.
        labels: Warnings that stand beside every result, such as `SYNTHETIC`; may be empty.
        sentence: The main message, in full.
        points: Sentences that explain or limit the message; may be empty.
        sections: The content.
        answers: Questions with short answers, the first thing to read; may be empty.
        footer: Text at the end of the page.
    """

    title: str
    facts: str
    labels: Sequence[str]
    sentence: str
    points: Sequence[str]
    sections: Sequence[Section]
    answers: Sequence[tuple[str, str]] = ()
    footer: str = "Research only. Not for clinical use."


def facts_table(caption: str, facts: Mapping[str, str]) -> Table:
    """Return a table of names and their values, which are no results."""
    return Table(caption, [{"": key, "value": value} for key, value in facts.items()], False)


def format_number(value: float, decimals: int = 3) -> str:
    """Return a number with fixed decimals; NaN as a dash."""
    return NONE if math.isnan(value) else f"{value:.{decimals}f}"


def plain(name: str) -> str:
    """Return a name as matplotlib draws it: between two dollars it would read a formula."""
    return name.replace("$", r"\$")


def format_p(p: float) -> str:
    """Return a p-value; `< 0.001` for smaller ones and a dash for NaN.

    Close to 0.05 it has more decimals, so that a reader sees on which side it lies.
    """
    decimals = 3
    while decimals < 6 and p != 0.05 == round(p, decimals):
        decimals += 1
    return "< 0.001" if p < 0.001 else format_number(p, decimals)


def to_markdown(document: Document) -> str:
    """Return the document as Markdown; figures are links relative to the document's folder."""
    label = " · ".join(document.labels)
    title, sentence = map(escape_markdown, (document.title, document.sentence))
    blocks = [f"# {title}", _line(document.facts)]
    if document.answers:
        blocks.append(_bullets(f"{ask} {answer}" for ask, answer in document.answers))
    blocks.append(f"**{sentence}**")
    if document.points:
        blocks.append(_bullets(document.points))
    for section in document.sections:
        blocks.append(f"## {escape_markdown(section.title)}")
        if label and any(isinstance(block, Table | Gallery | Figure) for block in section.blocks):
            blocks.append(f"**{label}**")
        blocks += [_markdown(block) for block in section.blocks]
    return "\n\n".join(blocks) + "\n"


_ENTITIES = {"&": "&amp;", "<": "&lt;"}


def escape_markdown(text: str) -> str:
    """Return a text as one line of Markdown in which no name can become HTML, a link or a row.

    Code between backticks stays code.
    """
    line = " ".join(text.split())
    line = re.sub(r"&(?=[#\w]+;)|<(?=[A-Za-z/!?])", lambda m: _ENTITIES[m[0]], line)
    return line.replace("\\", "&#92;").replace("[", "\\[").replace("|", "\\|")


def _line(text: str) -> str:
    """Return a text that may begin a line: as such it must not begin a heading, list or fence."""
    line = re.sub(r"^(?=[#>~=]|```|[-+*](?:\s|$)|[-*_]{2})", r"\\", escape_markdown(text))
    return re.sub(r"^(\d+)(?=[.)](?:\s|$))", r"\1\\", line)


def _markdown(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _line(text)
        case Bullets(items):
            return _bullets(items)
        case Table(caption, rows):
            return f"*{escape_markdown(caption)}*\n\n{_markdown_table(rows)}"
        case Figure(path, alt, caption):
            return f"{_picture(path, alt)}\n\n*{escape_markdown(caption)}*"
        case Gallery(caption, tiles):
            pictures = " ".join(_picture(tile.path, tile.alt) for tile in tiles)
            return f"*{escape_markdown(caption)}*\n\n{pictures}"
        case Listing(caption, text):
            longest = max(map(len, re.findall(r"`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{_line(caption)}\n\n{fence}\n{text.rstrip()}\n{fence}"


def _picture(path: str, alt: str) -> str:
    return f"![{escape_markdown(alt).replace(']', '&#93;')}]({quote(path)})"


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(rows[0])
    cells = [[_markdown_cell(row[column]) for column in columns] for row in rows]
    lines = [[escape_markdown(column) for column in columns], ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(value: str) -> str:
    text = escape_markdown(value)
    return f"[{text}](report.html#{value.anchor})" if isinstance(value, Link) else text


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_line(item)}" for item in items)


_INTERVAL = re.compile(r"(.+?) (\(.+ to .+\)|\(wide\))")
_NUMBER = re.compile(r"[<>+-]?\s*\d[\d.,]*(e[+-]?\d+)?%?(\s*\(.*\)|/\d+| of \d+)?")


def to_html(document: Document, folder: Path) -> str:
    """Return the document as one HTML page that loads nothing: figures are embedded.

    Args:
        document: The document.
        folder: The folder that the paths of figures and tiles are relative to.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("document.html.j2").render(
        document=document,
        label=" · ".join(document.labels),
        kind_of=lambda block: type(block).__name__,
        is_number=_is_number,
        split=_split,
        embed=lambda path: _embed(folder / path),
    )


def _is_number(rows: Sequence[Mapping[str, str]], column: str) -> bool:
    """Return whether all values of a column are numbers, with or without intervals."""
    values = [row[column] for row in rows if row[column] != NONE]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _split(value: str) -> tuple[str, str]:
    """Return a number and its interval, which the page shows below the number."""
    match = _INTERVAL.fullmatch(value)
    return (match[1], match[2]) if match else (value, "")


def _embed(path: Path) -> str:
    """Return a picture as a data URI."""
    vector = path.with_suffix(".svg")
    kind, path = ("svg+xml", vector) if vector.exists() else ("png", path)
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


_ESCAPES = str.maketrans(
    {
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
)


def to_latex(table: Table, labels: Sequence[str]) -> str:
    """Return a table as a LaTeX table environment that needs the package booktabs.

    Args:
        table: The table; its first column holds names.
        labels: Warnings that precede the caption, such as `SYNTHETIC`.
    """
    columns = list(table.rows[0])
    label = " · ".join(labels).translate(_ESCAPES)
    note = f"\\textbf{{{label}}}. " if labels else ""
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{note}{table.caption.translate(_ESCAPES)}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            _latex_row(columns),
            r"\midrule",
            *(_latex_row(row.values()) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(_ESCAPES) for cell in cells) + r" \\"
