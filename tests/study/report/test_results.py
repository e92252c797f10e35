"""Results are read from whatever files a study has."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from generated import EPOCHS

from brainseg.errors import DataError
from study.analysis.bootstrap import Estimate
from study.report.build import write_report
from study.report.results import format_estimate, read_results


def test_results_hold_every_file(generated: Path) -> None:
    results = read_results(generated)
    assert len(results.trials) == 16
    assert len(results.history) == 16 * sum(EPOCHS)
    assert len(results.patients) == 20
    assert len(results.examples) == (10 + 10 + 3) * 4
    assert set(results.variants) == set(results.matrix.variants)
    assert results.labels == ("SYNTHETIC", "no pretrained weights")
    assert len(results.trials_of("raw-resnet50")) == 4
    assert [row["status"] for row in results.trials if row["error"]] == ["diverged"]


def test_missing_files_are_empty(small: Path) -> None:
    for name in ("slices.csv", "stages.csv", "ensemble.csv", "calibration.csv", "split.json"):
        (small / name).unlink()
    results = read_results(small)
    assert results.split == results.slice_dice == {}
    assert not results.breakdowns
    assert not results.slice_errors
    assert not results.calibrations
    assert not results.effects_of_postprocessing
    assert results.comparison.pairs


def test_an_example_without_its_picture_is_left_out(small: Path) -> None:
    before = read_results(small).examples
    (small / before[0]["picture"]).unlink()
    after = read_results(small).examples
    assert after == [row for row in before if row["picture"] != before[0]["picture"]]


@pytest.mark.parametrize(
    ("table", "old", "new", "said"),
    [
        (
            "trials",
            "\nraw-lite0,",
            "\n../../../pwn,",
            "line 2, column variant: found '../../",
        ),
        ("scores", "\nraw-lite0,", "\n/tmp/pwn,", "line 2, column variant: found '/tmp/pwn'"),
        ("examples", "examples/", "../../secret/", "column picture: found '../../secret/"),
    ],
)
def test_a_strangers_study_neither_writes_nor_reads_outside_its_folder(
    small: Path, table: str, old: str, new: str, said: str
) -> None:
    path = small / f"{table}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    before = sorted(small.parent.rglob("*"))
    with pytest.raises(DataError, match=re.escape(said)):
        write_report(small)
    assert sorted(small.parent.rglob("*")) == before


def test_estimates_are_formatted_with_their_intervals() -> None:
    nan = math.nan
    assert format_estimate(Estimate(0.5, 0.25, 0.75), ".2f") == "0.50 (0.25 to 0.75)"
    assert format_estimate(Estimate(0.5, nan, nan)) == "0.500"
    assert format_estimate(Estimate(0.5, 0.5, 0.5)) == "0.500"
    assert format_estimate(Estimate(nan, nan, nan)) == format_estimate(None) == "-"
    for found in (Estimate(0.5, 0.01, 0.99), Estimate(0.1, -0.6, 0.7), Estimate(9, 0.1, 800)):
        assert format_estimate(found) == f"{found.point:.3f} (wide)"
    for known in (Estimate(0.5, 0.03, 0.99), Estimate(0.1, -0.4, 0.7), Estimate(9, 0.9, 80)):
        assert "wide" not in format_estimate(known)
    change = Estimate(0.014, -0.009, 0.02)
    assert format_estimate(change, "+.3f") == "+0.014 (-0.009 to +0.020)"
