from __future__ import annotations

from typing import Any

import pytest

from study.analysis.leak import measure_leaks
from study.storage.schema import Row

VARIANTS: dict[str, dict[str, Any]] = {
    "raw": {"data.split": "patient"},
    "LEAKY-raw": {"data.split": "slice"},
    "LEAKY-alone": {"data.split": "slice", "threshold": 0.4},
}


def _row(variant: str, fold: int, patient: str, tp: int, errors: int, pixels: int = 1000) -> Row:
    cells = {"TP": tp, "FP": errors, "FN": errors, "TN": pixels - tp - 2 * errors}
    return {"variant": variant, "fold": fold, "seed": 44, "patient": patient, **cells}


def _scores() -> list[Row]:
    """Ten patients: honest 0.5, leaky 0.8 in two rotations; an eleventh was tested by half."""
    rows = []
    for number in range(10):
        rows.append(_row("raw", number % 3, f"p{number}", 100, 100))
        rows += [_row("LEAKY-raw", fold, f"p{number}", 100, 25, 500) for fold in (0, 1)]
    return [*rows, _row("raw", 0, "q", 100, 100), _row("LEAKY-raw", 0, "q", 100, 0, 500)]


def test_the_leak_is_paired_on_patients_tested_with_all_slices() -> None:
    leak, alone = measure_leaks(_scores(), VARIANTS)
    assert (leak.leaky, leak.honest, leak.num_left) == ("LEAKY-raw", "raw", 1)
    assert leak.difference is not None
    assert leak.difference.num_patients == 10
    assert leak.difference.difference.point == pytest.approx(0.3)
    assert [item.variant for item in leak.scores] == ["LEAKY-raw", "raw"]
    assert (alone.honest, alone.difference) == ("", None)


def test_a_leak_that_costs_is_negative() -> None:
    rows = [
        row | {"variant": {"raw": "LEAKY-raw", "LEAKY-raw": "raw"}[row["variant"]]}
        for row in _scores()
    ]
    leak, _ = measure_leaks(rows, VARIANTS)
    assert leak.difference is not None
    assert leak.difference.difference.point == pytest.approx(-0.3)
    assert leak.difference.first == "LEAKY-raw"


def test_nothing_is_measured_without_leaky_variants() -> None:
    assert measure_leaks(_scores(), {"raw": {}}) == []
