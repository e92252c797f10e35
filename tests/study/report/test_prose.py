"""Sentences of the report: at most 25 words each, in all sections and in all that code may say."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from generated import generate_study

from study.report.build import write_report

MOST_WORDS = 25
_ROOT = Path(__file__).parents[3]
_SOURCES = (
    *sorted((_ROOT / "study" / "report").glob("*.py")),
    *sorted((_ROOT / "study" / "analysis").glob("*.py")),
    _ROOT / "brainseg" / "data" / "about.py",
)
_PROSE = re.compile(r"<(p|li|dd|dt|figcaption|summary|h2|h3)\b([^>]*)>(.*?)</\1>", re.DOTALL)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+", text.strip())


def _too_long(texts: Iterator[str]) -> list[str]:
    return [s for text in texts for s in _sentences(text) if len(s.split()) > MOST_WORDS]


def _prose(page: str) -> Iterator[str]:
    """Yield paragraphs, items, captions and headings of a page, without the line of facts."""
    for _, attributes, content in _PROSE.findall(page):
        if "facts" not in attributes:
            yield html.unescape(re.sub(r"<[^>]*>", " ", content))
    yield from map(html.unescape, re.findall(r'alt="([^"]*)"', page))


def test_all_sentences_of_a_report_are_short(generated: Path) -> None:
    texts = list(_prose((generated / "report.html").read_text(encoding="utf-8")))
    assert len(texts) > 200
    assert _too_long(iter(texts)) == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "options",
    [
        {"grid": "lite", "folds": 1, "seeds": 1, "patients": 10},
        {"grid": "lite", "folds": 1, "seeds": 1, "failed": (0, 1)},
        {"grid": "lite", "folds": 10, "spacing": 0.5, "synthetic": False},
    ],
    ids=["one patient", "no result", "real data with a spacing"],
)
def test_all_sentences_of_other_reports_are_short(
    options: dict[str, object], tmp_path: Path
) -> None:
    study = generate_study(tmp_path / "s", **options)  # type: ignore[arg-type]
    write_report(study)
    page = (study / "report.html").read_text(encoding="utf-8")
    assert _too_long(_prose(page)) == []


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: path.name)
def test_all_sentences_in_the_code_of_the_report_are_short(path: Path) -> None:
    """Those too that no study of these tests has; what is filled in counts as one word."""
    assert _too_long(_texts(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_a_long_sentence_is_found() -> None:
    words = " ".join(["word"] * 13)
    tree = ast.parse(f"def f(x):\n    return 'One. {words} ' f'{{x}} {words}.'")
    assert len(_too_long(_texts(tree))) == 1
    assert len(_too_long(_prose(f'<p class="a">{words} <b>{words}</b></p>'))) == 1


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of code, without docstrings."""
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            parts = (str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and id(node) not in inner:
            yield str(node.value)
