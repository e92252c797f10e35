from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.analysis.scores import read_slices
from study.analysis.subgroups import Breakdown, average_slices, break_down, count_slice_errors

COLUMNS = ("variant", "seed", "patient", "slice", "TP", "FP", "FN", "tumour_pixels", "missing")
ROWS = [
    # Patient p1: a large tumour over two slices, and a tumour-free slice with a false alarm.
    ("a", 44, "p1", "p1_1", 80, 20, 20, 400, ""),
    ("a", 44, "p1", "p1_2", 40, 0, 10, 200, ""),
    ("a", 44, "p1", "p1_3", 0, 6, 0, 0, ""),
    # Patient p2: a small tumour that is missed, and a tumour-free slice; post-contrast missing.
    ("a", 44, "p2", "p2_1", 0, 0, 10, 40, "post-contrast"),
    ("a", 44, "p2", "p2_2", 0, 0, 0, 0, "post-contrast"),
    # Another seed finds half of it.
    ("a", 45, "p2", "p2_1", 5, 0, 5, 40, "post-contrast"),
    ("a", 45, "p2", "p2_2", 0, 0, 0, 0, "post-contrast"),
]
PATIENTS = {
    "p1": {"patient": "p1", "site": "CS", "tumour_pixels": "600", "grade": "1", "histology": ""},
    "p2": {"patient": "p2", "site": "DU", "tumour_pixels": "40", "grade": "2", "histology": ""},
}


@pytest.fixture
def slices() -> pd.DataFrame:
    rows = [dict(zip(COLUMNS, map(str, row), strict=True)) for row in ROWS]
    return read_slices([{**row, "fold": "0", "TN": "900"} for row in rows])


def _find(slices: pd.DataFrame, title: str) -> Breakdown:
    return next(found for found in break_down(slices, PATIENTS) if found.title.startswith(title))


def test_dice_by_site_by_hand(slices: pd.DataFrame) -> None:
    groups = {group.name: group for group in _find(slices, "Site").groups}
    assert groups["CS"].dice["a"].point == pytest.approx(240 / (240 + 26 + 30))
    assert groups["DU"].dice["a"].point == pytest.approx((0 + 10 / 15) / 2)  # two seeds
    assert (groups["DU"].num_patients, groups["DU"].num_slices) == (1, 2)
    assert np.isnan(groups["DU"].dice["a"].low)  # one patient has no interval


def test_slices_of_one_name_are_counted_per_patient(slices: pd.DataFrame) -> None:
    renamed = slices.assign(slice=[name[-1] for name in slices["slice"]])
    found, expected = (_find(rows, "Missing sequence").groups for rows in (renamed, slices))
    assert [group.num_slices for group in found] == [group.num_slices for group in expected]
    thirds, before = (_find(rows, "Tumour in the slice").groups for rows in (renamed, slices))
    assert [group.name for group in thirds] == [group.name for group in before]


def test_dice_by_the_tumour_in_the_slice_leaves_tumour_free_slices_out(
    slices: pd.DataFrame,
) -> None:
    groups = _find(slices, "Tumour in the slice").groups
    assert [group.num_slices for group in groups] == [1, 1, 1]
    assert groups[2].dice["a"].point == pytest.approx(160 / (160 + 20 + 20))
    assert groups[1].dice["a"].point == pytest.approx(80 / 90)


def test_dice_by_missing_sequence_and_grade(slices: pd.DataFrame) -> None:
    names = [group.name for group in _find(slices, "Missing sequence").groups]
    assert names == ["none", "post-contrast"]
    assert [group.name for group in _find(slices, "Grade").groups] == ["code 1", "code 2"]


def test_a_property_that_no_patient_has_is_left_out(slices: pd.DataFrame) -> None:
    titles = [found.title for found in break_down(slices, PATIENTS)]
    assert not any(title.startswith("Histology") for title in titles)
    assert [t.split()[0] for t in titles] == ["Tumour", "Tumour", "Site", "Missing", "Grade,"]
    alone = [found.title for found in break_down(slices, {})]
    assert alone == ["Tumour in the slice", "Missing sequence"]


def test_dice_per_slice_by_hand(slices: pd.DataFrame) -> None:
    # Three slices hold tumour; p2's has two seeds.
    expected = np.mean([160 / 200, 80 / 90, (0 + 10 / 15) / 2])
    assert average_slices(slices)["a"].point == pytest.approx(expected)


def test_slice_errors_by_hand(slices: pd.DataFrame) -> None:
    (found,) = count_slice_errors(slices)
    assert found.false_alarms.point == pytest.approx((1 + 0) / 2)  # p1 yes, p2 no
    assert found.false_pixels.point == pytest.approx((6 + 0) / 2)
    assert found.missed.point == pytest.approx((0 + (1 + 0) / 2) / 2)  # p2 with one of two seeds
