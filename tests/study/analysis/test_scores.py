from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from brainseg.errors import StudyError
from brainseg.metrics import volume_similarity
from study.analysis.scores import read_matrix, read_slices, sum_by_patient


def _row(variant: str, fold: int, seed: int, patient: str, **more: Any) -> dict[str, Any]:
    row = {"variant": variant, "fold": str(fold), "seed": str(seed), "patient": patient}
    return row | {"TP": "3", "FP": "1", "FN": "2", "TN": "94", "Dice": "0.66"} | more


def test_rows_are_arranged_by_variant_seed_and_patient() -> None:
    matrix = read_matrix([_row("b", 3, 45, "q", Dice="0.5"), _row("a", 0, 44, "p", TP="7")])
    assert (matrix.variants, matrix.seeds, matrix.patients) == (("b", "a"), (44, 45), ("p", "q"))
    assert matrix.dice[0, 1, 1] == 0.5
    assert matrix.counts[1, 0, 0].tolist() == [7, 1, 2, 94]
    assert matrix.folds.tolist() == [[0, -1], [-1, 3]]
    assert matrix.tested.sum() == 2


def test_a_trial_without_scores_is_listed_as_missing() -> None:
    trials = [{"variant": v, "fold": 0, "seed": 44} for v in ("a", "b")]
    matrix = read_matrix([_row("a", 0, 44, "p")], trials)
    assert matrix.variants == ("a", "b")
    assert matrix.missing == ("b-fold0-seed44",)
    assert matrix.num_trials == 2
    assert not matrix.tested[1].any()


def test_a_study_without_any_score_is_an_empty_matrix() -> None:
    matrix = read_matrix([], [{"variant": "a", "fold": 0, "seed": 44}])
    assert matrix.dice.shape == (1, 1, 0)
    assert read_matrix([]).dice.shape == (0, 0, 0)


@pytest.mark.parametrize(("text", "expected"), [("12.5", 12.5), ("", np.nan), (None, np.nan)])
def test_a_distance_may_be_undefined(text: str | None, expected: float) -> None:
    matrix = read_matrix([_row("a", 0, 44, "p", hd95=text)])
    np.testing.assert_equal(matrix.measures["hd95"][0, 0, 0], expected)


def test_a_distance_may_be_unmeasured() -> None:
    matrix = read_matrix([_row("a", 0, 44, "p")])
    assert np.isnan(matrix.measures["nsd"]).all()
    assert (
        matrix.measures["volume_similarity"].tolist() == volume_similarity(matrix.counts).tolist()
    )


def test_two_rows_of_one_cell_are_refused() -> None:
    with pytest.raises(StudyError, match="two rows for variant a, seed 44, patient p"):
        read_matrix([_row("a", 0, 44, "p"), _row("a", 0, 44, "p")])


def test_a_patient_in_two_folds_of_one_seed_is_refused() -> None:
    with pytest.raises(StudyError, match="folds 0 and 1"):
        read_matrix([_row("a", 0, 44, "p"), _row("b", 1, 44, "p")])
    matrix = read_matrix([_row("a", 0, 44, "p"), _row("a", 1, 45, "p")])
    assert matrix.folds.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("column", "text"), [("TP", "many"), ("Dice", ""), ("Dice", "nan"), ("hd95", "far")]
)
def test_a_value_that_is_not_a_number_is_refused(column: str, text: str) -> None:
    with pytest.raises(StudyError, match="patient p"):
        read_matrix([_row("a", 0, 44, "p", **{column: text})])


def test_slices_are_typed_and_summed_by_variant_seed_and_patient() -> None:
    more = {"tumour_pixels": "9", "missing": ""}
    slices = read_slices(
        [
            _row("b", 0, 45, "q", slice="q_1", **more),
            _row("b", 0, 45, "q", slice="q_2", **more | {"TP": "5"}),
            _row("a", 0, 44, "p", slice="p_1", **more),
        ]
    )
    assert slices["variant"].cat.categories.tolist() == ["b", "a"]  # as in the file
    assert slices["seed"].cat.categories.tolist() == [44, 45]
    assert slices["Dice"].tolist() == pytest.approx([6 / 9, 10 / 13, 6 / 9])
    sums = sum_by_patient(slices, "TP")
    np.testing.assert_equal(sums[0], [[np.nan, np.nan], [np.nan, 8]])
    np.testing.assert_equal(sums[1], [[3, np.nan], [np.nan, np.nan]])


def test_a_study_without_slices_is_an_empty_table() -> None:
    slices = read_slices([])
    assert slices.empty
    assert sum_by_patient(slices, "TP").shape == (0, 0, 0)
