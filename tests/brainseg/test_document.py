"""Documents: every block in every form, escaped where it must be."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from brainseg.document import (
    Block,
    Bullets,
    Document,
    Figure,
    Gallery,
    Link,
    Listing,
    Paragraph,
    Section,
    Table,
    Tile,
    facts_table,
    format_number,
    format_p,
    to_html,
    to_latex,
    to_markdown,
)

ROWS = [
    {"variant": "raw", "Dice": "0.812 (0.790 to 0.831)", "trials": "2/2"},
    {"variant": "a|b <i>", "Dice": "-", "trials": "1/2"},
]
BLOCKS: tuple[Block, ...] = (
    Paragraph("Ranked by <Dice>."),
    Bullets(["one & two", "three"]),
    Table("Test scores.", ROWS),
    Table("Published.", ROWS, is_result=False),
    Figure("figures/curve.png", "A curve that rises", "Look at its end."),
    Gallery("Slices", [Tile("slice.png", "A slice with an outline", "Dice 0.5")]),
    facts_table("The dataset.", {"patients": "20"}),
    Listing("The command:", "python -m study.run\n"),
    Listing("The configuration:", "seed: 44\n", is_folded=True),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures of the blocks; only the figure has an SVG."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curve.png").write_bytes(b"png")
    (tmp_path / "figures" / "curve.svg").write_text("<svg/>")
    (tmp_path / "slice.png").write_bytes(b"png")
    return tmp_path


def _document(labels: tuple[str, ...] = ("SYNTHETIC",)) -> Document:
    section = Section("scores", "Test scores", BLOCKS)
    return Document("A study", "20 patients", labels, "raw ranks first.", ["One seed."], [section])


def test_markdown_holds_every_block() -> None:
    text = to_markdown(_document())
    assert text.startswith("# A study\n\n20 patients\n\n**raw ranks first.**\n\n- One seed.\n")
    assert (
        "## Test scores\n\n**SYNTHETIC**\n\nRanked by &lt;Dice>.\n\n- one & two\n- three\n" in text
    )
    assert "*Test scores.*\n\n| variant | Dice | trials |\n| --- | --- | --- |\n| raw |" in text
    assert "| a\\|b &lt;i> | - | 1/2 |" in text
    assert "![A curve that rises](figures/curve.png)\n\n*Look at its end.*" in text
    assert "*Slices*\n\n![A slice with an outline](slice.png)" in text
    assert "The command:\n\n```\npython -m study.run\n```" in text


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden",
    "<?php ?>",
    "</td></table>",
    "<https://evil.example>",
    "&lt;script&gt;",
    "[x](https://evil.example)",
    "![x](https://evil.example/p.png)",
    "[x]: https://evil.example",
    "[x][y] [z]",
    "a\n\n# forged\n\n- b",
    "a | b |\n| c",
    "a\\| b \\[x](y)",
    "```\n# out\n```",
    "~~~",
    *("# a", "> a", "- a", "+ a", "* a", "1. a", "2) a", "---", "===", "***", "-"),
    "x](https://evil.example) ![y",
    "=2+3 @x -y",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_becomes_neither_html_nor_link_nor_block(name: str) -> None:
    blocks: tuple[Block, ...] = (
        Paragraph(f"Of {name}."),
        Bullets([name]),
        Table(name, [{"variant": name, name: "0.5"}, {"variant": "raw", name: "0.4"}]),
        Figure("a/b (1).png", name, name),
        Gallery(name, [Tile("slice.png", name, name)]),
        Listing(name, name),
    )
    section = Section("scores", name, blocks)
    text = to_markdown(Document(name, name, (), name, [name], [section]))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    inner = [child for token in tokens for child in token.children or ()]
    links = [child for child in inner if child.type in ("link_open", "image")]
    assert not {"html_block"} & set(kinds)
    assert "html_inline" not in {child.type for child in inner}
    assert [link.attrs["src"] for link in links] == ["a/b%20%281%29.png", "slice.png"]
    assert [kinds.count(kind) for kind in ("heading_open", "fence", "table_open")] == [2, 1, 1]
    assert [kinds.count(kind) for kind in ("th_open", "td_open", "list_item_open")] == [2, 4, 2]
    (fence,) = (token for token in tokens if token.type == "fence")
    assert fence.content == f"{name}\n"


def test_html_holds_every_block_and_escapes_text(folder: Path) -> None:
    page = to_html(_document(), folder)
    assert "<p>Ranked by &lt;Dice&gt;.</p>" in page
    assert "<li>one &amp; two</li>" in page
    assert "a|b &lt;i&gt;" in page
    assert '<a href="#scores">Test scores</a>' in page
    assert "<details><summary>The configuration:</summary><pre>seed: 44\n</pre>" in page
    assert "<p>The command:</p>" in page
    assert re.search(r'<td class="name">patients</td>\s*<td class="number">20</td>', page)


def test_html_embeds_the_svg_of_a_figure_where_there_is_one(folder: Path) -> None:
    kinds = re.findall(r'<img src="data:image/([a-z+]+);base64,', to_html(_document(), folder))
    assert kinds == ["svg+xml", "png"]


def test_html_shows_an_interval_below_its_number(folder: Path) -> None:
    page = to_html(_document(), folder)
    assert '<td class="number">0.812 <small>(0.790 to 0.831)</small></td>' in page
    assert '<td class="name">raw</td>' in page


@pytest.mark.parametrize(
    "value", ["-0.5", "1,234", "5.4e-05", "12.5%", "2/3", "1 of 4", "< 0.001"]
)
def test_columns_of_numbers_align_right(folder: Path, value: str) -> None:
    table = Table("Numbers.", [{"name": "x", "value": value}, {"name": "y", "value": "-"}])
    page = to_html(Document("T", "", (), "S", (), [Section("s", "S", [table])]), folder)
    assert f'<td class="number">{value.replace("<", "&lt;")}</td>' in page
    assert '<td class="name">x</td>' in page


def test_labels_stand_beside_results_only(folder: Path) -> None:
    captions = re.findall(r'<p class="caption"[^>]*>(.*)</p>', to_html(_document(), folder))
    assert ["SYNTHETIC" in caption for caption in captions] == [True, False, False]
    assert to_html(_document(), folder).count('class="sortable"') == 1
    assert 'class="label"' not in to_html(_document(()), folder)
    assert "SYNTHETIC" not in to_markdown(_document(()))


def test_latex_escapes_what_latex_reads_as_commands() -> None:
    rows = [{"variant": "raw_net", "share": "50 % {x} \\ ~ ^ & $ #"}]
    text = to_latex(Table("Scores · with 95 % intervals.", rows), ["SYNTHETIC"])
    assert r"\caption{\textbf{SYNTHETIC}. Scores \textperiodcentered{} with 95 \% interv" in text
    assert r"\begin{tabular}{lr}" in text
    row = (
        r"raw\_net & 50 \% \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \& \$ \# \\"
    )
    assert row in text.splitlines()
    assert r"\textbf" not in to_latex(Table("Scores.", rows), [])


def test_numbers_are_formatted() -> None:
    assert [format_number(0.81249), format_number(5.16, 1)] == ["0.812", "5.2"]
    assert format_number(math.nan) == "-"
    assert [format_p(p) for p in (0.0004, 0.04, math.nan)] == ["< 0.001", "0.040", "-"]


def test_a_linked_cell_leads_to_its_section(tmp_path: Path) -> None:
    rows = [{"item": "7", "where": Link("Test | scores", "scores")}]
    section = Section("scores", "Test scores", [Table("Items.", rows, is_result=False)])
    document = Document("A study", "facts", (), "It holds.", [], [section])
    assert '<td class="name"><a href="#scores">Test | scores</a></td>' in to_html(
        document, tmp_path
    )
    assert "| 7 | [Test \\| scores](report.html#scores) |" in to_markdown(document)
