"""The checklists of guidelines: filled from what the report holds, and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from brainseg.data.about import LGG, About
from study.report.build import write_report
from study.report.checklist import AUTHOR, NOT_APPLICABLE, REPORTED, find_facts, read_guidelines
from study.report.patients import describe_study_patients
from study.report.results import read_results

PARTS = {"3": 3, "5": 2, "6": 3, "8": 3, "9": 3, "12": 7, "18": 6, "20": 3, "23": 2, "27": 3}
"""Item of TRIPOD+AI -> how many parts it has, if more than one."""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def _answers(study: Path) -> dict[str, dict[str, str]]:
    """Guideline -> number of the item -> its answer in checklist.md."""
    text = (study / "checklist.md").read_text(encoding="utf-8")
    return {
        name: {cells[0]: cells[2] for cells in map(_cells, body.splitlines()) if len(cells) == 4}
        for name, body in re.findall(r"\*The items of (.+?) \(.*\n\n((?:\|.*\n)+)", text)
    }


def test_the_items_have_the_numbers_of_the_guidelines() -> None:
    claim, tripod = read_guidelines().values()
    assert list(claim.items) == [str(n) for n in range(1, 45)]
    expected = [
        f"{n}{letter}"
        for n in map(str, range(1, 28))
        for letter in ("abcdefg"[: PARTS[n]] if n in PARTS else [""])
    ]
    assert list(tripod.items) == expected
    assert len(expected) == 52


def test_an_item_is_answered_in_one_way_and_in_short_sentences() -> None:
    for guideline in read_guidelines().values():
        for number, item in guideline.items.items():
            assert not (item.at and item.na), number
            assert bool(item.at) == bool(item.says), number
            assert item.at or not item.needs, number
            assert set(re.findall(r"{(\w+)}", item.says)) <= set(item.needs), number
            assert all(len(text.split()) <= 25 for text in (item.asks, item.says, item.na))


def test_whatever_an_item_needs_can_be_there(generated: Path) -> None:
    results = read_results(generated)
    page = (generated / "report.html").read_text(encoding="utf-8")
    facts = find_facts(results, describe_study_patients(results)) | set(About.model_fields)
    anchors = set(re.findall(r'id="([\w-]+)"', page)) | {"reference"}
    for guideline in read_guidelines().values():
        for number, item in guideline.items.items():
            assert set(item.needs) <= facts, number
            assert not item.at or item.at in anchors, number


@pytest.mark.usefixtures("undrawn")
def test_every_link_leads_to_a_section_of_the_page(small: Path) -> None:
    about = json.loads((small / "study.json").read_text()) | {"synthetic": False}
    (small / "study.json").write_text(json.dumps(about))
    write_report(small)
    page = (small / "report.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="([\w-]+)"', page))
    links = re.findall(r"\]\(report\.html#([\w-]+)\)", (small / "checklist.md").read_text())
    assert len(links) > 40
    assert {"conclusion", "people", "reference", "calibration"} <= set(links) <= anchors
    text = (small / "checklist.md").read_text(encoding="utf-8")
    assert f"| {LGG.eligibility} | [" in text
    assert re.findall(r'<td[^>]*><a href="#([\w-]+)">', page) == links


def test_the_counts_on_top_are_those_of_the_items(generated: Path) -> None:
    text = (generated / "checklist.md").read_text(encoding="utf-8")
    for name, answers in _answers(generated).items():
        del answers["item"], answers["---"]
        (line,) = re.findall(rf"^\| {re.escape(name)} \|.*", text, re.MULTILINE)
        items, *counts = map(int, _cells(line)[1:])
        left = sum(answer == AUTHOR for answer in answers.values())
        ruled_out = sum(answer.startswith(NOT_APPLICABLE) for answer in answers.values())
        assert items == len(answers) == sum(counts)
        assert counts == [items - left - ruled_out, ruled_out, left]
        assert min(counts) > 0
    assert text.index(REPORTED) < text.index("The items of")


@pytest.mark.usefixtures("undrawn")
def test_what_a_study_lacks_is_left_to_the_author(generated: Path, small: Path) -> None:
    before = _answers(generated)
    for name in ("calibration", "patients", "ensemble", "examples"):
        (small / f"{name}.csv").unlink()
    for name in ("split.json", "experiment.yaml"):
        (small / name).unlink()
    write_report(small)
    after = _answers(small)
    lost = {
        name: {number for number, answer in after[name].items() if answer == AUTHOR}
        - {number for number, answer in before[name].items() if answer == AUTHOR}
        for name in after
    }
    assert lost == {
        "CLAIM 2024": {"9", "12", "19", "20", "22", "24", "25", "27", "36", "39", "42"},
        "TRIPOD+AI": {
            *("7", "11", "12a", "12b", "12c", "12d", "12e", "12g"),
            *("16", "20b", "20c", "22", "23b"),
        },
    }
    assert {before["CLAIM 2024"][n] for n in ("7", "8", "14", "18")} == {AUTHOR}  # synthetic
