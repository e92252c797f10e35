from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from generated import generate_study

from brainseg.storage.files import read_csv
from study.report.build import write_report
from study.report.report_json import UNITS
from study.report.results import read_results
from study.report.sections import ranked_rows


def _numbers(study: Path) -> Any:
    return json.loads((study / "report.json").read_text())


def test_the_ranked_table_is_in_the_numbers(generated: Path) -> None:
    numbers, results = _numbers(generated), read_results(generated)
    assert numbers["conclusion"] == results.conclusion.sentence
    assert numbers["protocol"][0]["protocol"]["seeds"] == results.about["seeds"]
    for row, item in zip(ranked_rows(results), numbers["variants"], strict=True):
        assert row["variant"] == item["variant"]
        assert set(item["scores"]) == {name for name in UNITS if not name.endswith(", mm")}
        for name in ("Dice/patient", "IoU", "Dice/slice"):
            score = item["scores"][name]
            text = f"{score['point']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
            assert row[name] == text
    assert len(numbers["differences"]) == len(results.comparison.pairs)
    assert len(numbers["rankings"]) > 10


def test_the_table_of_scores_is_the_same(generated: Path) -> None:
    rows = read_csv(generated / "table.csv")
    found = {(row["variant"], row["score"]): float(row["point"]) for row in rows}
    for item in _numbers(generated)["variants"]:
        for name, score in item["scores"].items():
            assert found[item["variant"], name] == score["point"]


@pytest.mark.usefixtures("undrawn")
def test_millimetres_stand_beside_pixels_where_the_spacing_is_known(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", spacing=0.5)
    write_report(study)
    for item in _numbers(study)["variants"]:
        scores = item["scores"]
        assert set(scores) == set(UNITS)
        for name in ("HD95", "HD95, worst case"):
            assert scores[f"{name}, mm"]["point"] == pytest.approx(scores[name]["point"] / 2)
            assert scores[f"{name}, mm"]["unit"] == "mm"
    units = {row["score"]: row["unit"] for row in read_csv(study / "table.csv")}
    assert (units["HD95"], units["HD95, mm"]) == ("pixels of the slice", "mm")
    page = (study / "report.md").read_text()
    assert "data.spacing_mm gives 0.5 mm between rows and 0.5 mm between columns" in page
    assert "| HD95 | HD95, mm |" in page
    assert "HD95 in pixels and millimetres" in (study / "table.tex").read_text()


def test_without_a_spacing_nothing_is_said_of_millimetres(generated: Path) -> None:
    for name in ("report.md", "table.csv", "table.tex", "report.json", "scores.csv", "slices.csv"):
        text = (generated / name).read_text(encoding="utf-8")
        assert not re.search(r"[\d, ]mm\b|(hd95|worst|nsd)_mm|millimetre", text), name


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_defined_is_null(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=2, patients=10)
    write_report(study)  # of one test patient
    score = _numbers(study)["variants"][0]["scores"]["Dice/patient"]
    assert score["low"] is None
    assert math.isfinite(score["point"])
