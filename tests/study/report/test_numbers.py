from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from brainseg.storage.files import read_csv
from study.report.build import write_report
from study.report.numbers import UNITS
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
        assert set(item["scores"]) == set(UNITS)
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
def test_what_is_not_defined_is_null(small: Path) -> None:
    rows = read_csv(small / "scores.csv")
    one = rows[0]["patient"]
    kept = [row for row in rows if row["patient"] == one]
    text = (small / "scores.csv").read_text().splitlines()[0]
    lines = [",".join(row[c] for c in text.split(",")) for row in kept]
    (small / "scores.csv").write_text("\n".join([text, *lines]) + "\n")
    write_report(small)
    scores = _numbers(small)["variants"][0]["scores"]
    assert scores["Dice/patient"]["low"] is None
    assert math.isfinite(scores["Dice/patient"]["point"])
