from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matrices import matrix_of
from scipy import stats

from study.analysis.comparison import compare
from study.analysis.conclusion import conclude
from study.analysis.rankings import (
    OWN_RANKING,
    Ranking,
    other_winners,
    rank_by_other_metrics,
    signed_rank_tests,
)
from study.analysis.scores import ScoreMatrix

NAN = np.nan


def _rankings(matrix: ScoreMatrix, **slices: float) -> dict[tuple[str, str], Ranking]:
    found = rank_by_other_metrics(matrix, compare(matrix), slices)
    return {(ranking.metric, ranking.way): ranking for ranking in found}


def _skewed() -> ScoreMatrix:
    """`a` is a little better on four of five patients, and fails on the first."""
    b = np.array([0.7, 0.72, 0.74, 0.76, 0.78])
    a = b + 0.02
    a[0] = 0.1
    return matrix_of(np.stack([a, b])[:, None])


def test_the_studys_own_ranking_comes_first_and_agrees_with_itself() -> None:
    first = rank_by_other_metrics(_skewed(), compare(_skewed()), {})[0]
    assert (first.metric, first.way) == OWN_RANKING
    assert first.ranks == (1, 2)
    assert first.tau == 1


def test_medians_and_mean_ranks_can_name_another_winner() -> None:
    matrix = _skewed()
    found = _rankings(matrix, a=0.5, b=0.6)
    # The order of the comparison is b, a: by mean Dice b is first.
    assert found["Dice/patient", "mean"].ranks == (1, 2)
    for way in ("median", "mean rank"):
        assert found["Dice/patient", way].ranks == (2, 1)
        assert found["Dice/patient", way].tau == -1
    assert found["Dice/slice", "mean"].ranks == (1, 2)
    assert found["Dice/patient", "significant wins"].ranks == (1, 1)
    rankings = list(found.values())
    assert {ranking.way for ranking in other_winners(rankings)} == {"median", "mean rank"}
    caveats = conclude(matrix, compare(matrix), rankings=rankings).caveats
    assert any(
        "another winner in 2 of 6 rankings. By Dice/patient (median) and" in c for c in caveats
    )


def test_a_clear_winner_is_one_by_every_choice() -> None:
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.4, 0.8, (3, 2, 20)) + np.array([0.0, 0.19, 0.1])[:, None, None]
    matrix = matrix_of(dice)
    measures = {"nsd": dice * 0.9, "hd95_worst": 100 * (1 - dice)}
    rankings = rank_by_other_metrics(replace(matrix, measures=measures), compare(matrix), {})
    assert {ranking.metric for ranking in rankings} == {
        *("Dice/patient", "NSD", "HD95, worst case", "global Dice")
    }
    assert other_winners(rankings) == []
    wins = next(r for r in rankings if r.way == "significant wins" and r.metric == "NSD")
    pairs = dice.mean(axis=1)
    assert stats.wilcoxon(pairs[1] - pairs[0], alternative="greater").pvalue < 0.01
    assert wins.ranks[0] == 1


def test_only_cells_that_all_ranked_variants_have_count() -> None:
    dice = np.array([[[0.9, 0.5, 0.5]], [[0.8, 0.6, 0.6]], [[NAN, 0.1, 0.1]]])
    found = _rankings(matrix_of(dice))
    assert found["Dice/patient", "mean"].ranks == (1, 2, 3)
    assert found["Dice/patient", "median"].ranks == (1, 2, 3)


def test_slices_that_not_all_variants_tested_rank_nothing() -> None:
    dice = np.array([[[0.9, 0.5, NAN]], [[0.8, 0.6, 0.6]]])
    assert ("Dice/slice", "mean") not in _rankings(matrix_of(dice), a=0.5, b=0.6)


def test_a_patient_with_fewer_seeds_weighs_as_much_in_global_dice() -> None:
    """By sums over seeds the second patient, on whom b is better, would weigh half."""
    found = _rankings(matrix_of([[[0.8, 0.5], [0.8, NAN]], [[0.74, 0.6], [0.74, NAN]]]))
    assert found["global Dice", "mean"].ranks == found[OWN_RANKING].ranks == (1, 2)


@pytest.mark.parametrize("dice", [[[[0.5, 0.6]]], [[[0.5]], [[0.6]]]])
def test_what_is_not_ranked_is_not_ranked_otherwise(dice: list[list[list[float]]]) -> None:
    matrix = matrix_of(dice)
    assert rank_by_other_metrics(matrix, compare(matrix), {}) == []


def test_equal_variants_tie_and_have_no_tau() -> None:
    ranking = _rankings(matrix_of(np.full((2, 1, 4), 0.5)))["Dice/patient", "mean"]
    assert ranking.ranks == (1, 1)
    assert np.isnan(ranking.tau)


@pytest.mark.parametrize("size", [3, 9, 12])
def test_signed_ranks_with_ties_and_zeros_are_those_of_all_sign_flips(size: int) -> None:
    differences = np.random.default_rng(size).integers(-4, 6, size).astype(float)
    left = differences[differences != 0]
    ranks = stats.rankdata(np.abs(left))
    sums = np.array(list(itertools.product([0, 1], repeat=len(left)))) @ ranks
    observed = ranks[left > 0].sum()
    expected = ((sums >= observed).mean(), (sums <= observed).mean())
    assert signed_rank_tests(differences) == pytest.approx(expected)


@pytest.mark.parametrize("size", [5, 50, 51, 200])
def test_signed_ranks_without_ties_are_those_of_scipy(size: int) -> None:
    differences = np.random.default_rng(size).normal(0.1, 1, size)
    expected = [
        stats.wilcoxon(differences, alternative=side).pvalue for side in ("greater", "less")
    ]
    assert signed_rank_tests(differences) == pytest.approx(expected)


def test_signed_ranks_of_many_ties_are_those_of_scipy_and_of_zeros_show_nothing() -> None:
    differences = np.random.default_rng(0).integers(-3, 6, 80).astype(float)
    expected = stats.wilcoxon(differences, alternative="greater", method="asymptotic").pvalue
    assert signed_rank_tests(differences)[0] == pytest.approx(expected)
    assert signed_rank_tests(np.zeros(5)) == (1, 1)
