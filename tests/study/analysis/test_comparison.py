from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matrices import DiceModel, draw_dice, matrix_of

from study.analysis.bootstrap import Estimate, draw, estimate_mean
from study.analysis.comparison import (
    Comparison,
    Effect,
    Pair,
    compare,
    correct_by_holm,
    patients_needed,
    sign_flip_test,
    sign_flip_tests,
    smallest_p,
)
from study.analysis.scores import Floats

NAN = np.nan
FACTORS = {
    "a": {"encoder": "small", "preprocessing": "raw"},
    "b": {"encoder": "small", "preprocessing": "filtered"},
    "c": {"encoder": "large", "preprocessing": "raw"},
    "d": {"encoder": "large", "preprocessing": "filtered"},
}
INTERACTION = "encoder large x preprocessing filtered"


def _rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def _pair(comparison: Comparison, first: str, second: str) -> Pair:
    (pair,) = [q for q in comparison.pairs if (q.first, q.second) == (first, second)]
    return pair


def test_a_pair_by_hand() -> None:
    (pair,) = compare(matrix_of([[[0.6, 0.8, 0.9]], [[0.7, 0.5, 0.7]]])).pairs
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.num_patients == 3
    assert pair.difference.point == pytest.approx((-0.1 + 0.3 + 0.2) / 3)
    assert pair.improvement == pytest.approx(2 / 3)
    assert pair.p == pair.p_holm == 4 / 8  # of sums 6 4 2 0 and their negatives 4 are as far as 4
    assert 0.5 < pair.share_better < 1


def test_scores_by_hand() -> None:
    matrix = matrix_of([[[0.5, 1.0], [0.7, 1.0]]])
    counts = np.array([[[2, 1, 3, 4], [5, 0, 0, 5]], [[4, 1, 1, 4], [5, 0, 0, 5]]])
    scores = compare(replace(matrix, counts=counts[None].astype(float))).variants[0].scores
    points = {name: found.point for name, found in scores.items()}
    # Means over seeds are 3 1 2 4 and 5 0 0 5.
    assert points == pytest.approx(
        {
            "Dice/patient": 0.8,
            "global Dice": 16 / 19,
            "IoU": 8 / 11,
            "precision": 8 / 9,
            "recall": 8 / 10,
        }
    )


def test_empty_masks_by_hand() -> None:
    # p0: nothing there, nothing predicted; p1: only predicted; p2: only there.
    counts = np.array([[[[0, 0, 0, 9], [0, 3, 0, 6], [0, 0, 3, 6]]]], dtype=float)
    matrix = replace(matrix_of([[[1.0, 0.0, 0.0]]]), counts=counts)
    scores = compare(matrix).variants[0].scores
    assert scores["Dice/patient"].point == pytest.approx(1 / 3)
    for name in ("global Dice", "IoU", "precision", "recall"):
        assert scores[name].point == 0
    nothing = replace(matrix_of([[[1.0, 1.0]]]), counts=np.zeros((1, 1, 2, 4)))
    for found in compare(nothing).variants[0].scores.values():
        assert found.point == 1
        assert np.isnan([found.low, found.high]).all()  # at a bound


def test_distances_are_averaged_where_they_are_defined() -> None:
    matrix = matrix_of(draw_dice(2, 2, 4))
    assert "HD95" not in compare(matrix).variants[0].scores
    hd95 = np.full((2, 2, 4), NAN)
    hd95[0] = [[4, 6, NAN, NAN], [8, NAN, NAN, 3]]
    measured = replace(matrix, measures={"hd95": hd95})
    by_name = {v.variant: v.scores for v in compare(measured).variants}
    distance = by_name["a"]["HD95"]
    assert distance.point == pytest.approx((6 + 6 + 3) / 3)
    assert 0 < distance.low < distance.point < distance.high
    assert "HD95" not in by_name["b"]


def test_points_lie_in_their_intervals() -> None:
    for variant in compare(matrix_of(draw_dice(3, 2, 12))).variants:
        for found in variant.scores.values():
            assert 0 <= found.low < found.point < found.high <= 1


def test_variants_are_ordered_and_ranks_are_probabilities() -> None:
    dice = np.clip(draw_dice(4, 3, 40) + np.array([0, -0.2, 0.1, -0.3])[:, None, None], 0, 1)
    comparison = compare(matrix_of(dice))
    assert [variant.variant for variant in comparison.variants] == ["c", "a", "b", "d"]
    ranks = np.array([variant.ranks for variant in comparison.variants])
    np.testing.assert_allclose(ranks.sum(axis=0), 1)
    np.testing.assert_allclose(ranks.sum(axis=1), 1)
    assert (np.diag(ranks) > 0.9).all()
    assert all(q.difference.point > 0 and q.share_better > 0.5 for q in comparison.pairs)


def test_identical_variants_do_not_differ() -> None:
    dice = np.repeat(draw_dice(1, 2, 9), 3, axis=0)
    comparison = compare(matrix_of(dice))
    for pair in comparison.pairs:
        assert pair.difference == Estimate(0, 0, 0)
        assert (pair.p, pair.p_holm, pair.improvement, pair.share_better) == (1, 1, 0.5, 0.5)
        assert pair.patients_needed == np.inf
    for variant in comparison.variants:
        assert variant.ranks == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_variants_with_equal_means_share_their_ranks() -> None:
    # The same numbers on other patients; each resample differs, but a beats b as often.
    dice = np.array([[[0.1, 0.9, 0.5, 0.3]], [[0.9, 0.1, 0.3, 0.5]]])
    comparison = compare(matrix_of(dice))
    assert comparison.pairs[0].difference.point == pytest.approx(0)
    assert comparison.variants[0].ranks == pytest.approx((0.5, 0.5), abs=0.02)


def test_a_constant_gain_is_certain() -> None:
    base = 0.8 * draw_dice(1, 3, 14)
    pair = _pair(compare(matrix_of(np.concatenate([base, base + 0.1]))), "b", "a")
    difference = pair.difference
    assert (difference.point, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert pair.share_better == pair.improvement == 1
    assert pair.p < 0.001
    assert pair.patients_needed == 2


def test_the_same_seed_gives_the_same_numbers() -> None:
    matrix = matrix_of(draw_dice(3, 2, 15, num_folds=3), 3)
    assert repr(compare(matrix)) == repr(compare(matrix))
    assert repr(compare(matrix, seed=45)) != repr(compare(matrix))


def test_one_patient_has_points_only() -> None:
    comparison = compare(matrix_of(draw_dice(2, 3, 1)), FACTORS)
    for variant in comparison.variants:
        assert variant.num_patients == 1
        assert variant.ranks == ()
        for found in variant.scores.values():
            assert 0 < found.point < 1
            assert np.isnan([found.low, found.high]).all()
    (pair,) = comparison.pairs
    assert pair.difference.point > 0
    assert pair.p == 1
    assert np.isnan([pair.share_better, pair.patients_needed, pair.difference.low]).all()


def test_one_seed_has_intervals() -> None:
    comparison = compare(matrix_of(draw_dice(2, 1, 20)))
    assert np.isnan(comparison.variance["seed"])
    assert comparison.pairs[0].difference.low < comparison.pairs[0].difference.high


def test_one_variant_has_no_pair() -> None:
    comparison = compare(matrix_of(draw_dice(1, 2, 6)))
    assert comparison.pairs == ()
    assert comparison.variants[0].ranks == (1.0,)


def test_a_study_without_variants_or_scores_is_compared() -> None:
    assert compare(matrix_of(np.empty((0, 0, 0)))).variants == ()
    (variant,) = compare(matrix_of(np.empty((1, 1, 0)))).variants
    assert (variant.num_patients, variant.scores, variant.ranks) == (0, {}, ())


def test_a_variant_without_its_hard_fold_does_not_win() -> None:
    # a lacks the fold of hard patients; b is better on every patient.
    easy, hard = np.linspace(0.8, 0.9, 5), np.linspace(0.1, 0.2, 5)
    patients = np.ravel(np.stack([easy, hard], axis=1))
    a, b = patients.copy(), patients + np.linspace(0.01, 0.03, 10)
    a[1::2] = NAN
    matrix = matrix_of(np.stack([a, b])[:, None], num_folds=2)
    assert matrix.missing == ("a-fold1-seed44",)
    comparison = compare(matrix)
    points = {v.variant: v.scores["Dice/patient"].point for v in comparison.variants}
    assert points["a"] > points["b"]
    assert [variant.variant for variant in comparison.variants] == ["b", "a"]
    assert comparison.num_shared == 5
    pair = _pair(comparison, "b", "a")
    assert pair.num_patients == 5
    assert pair.difference.low > 0
    assert pair.improvement == 1


def test_a_patient_is_compared_on_the_seeds_that_both_have() -> None:
    dice = np.array([[[0.5, 0.5, 0.5], [0.9, 0.9, 0.9]], [[0.4, 0.3, 0.2], [NAN, NAN, NAN]]])
    pair = _pair(compare(matrix_of(dice)), "a", "b")
    assert pair.difference.point == pytest.approx(0.2)
    assert pair.num_patients == 3


def test_seeds_may_be_tested_on_different_patients() -> None:
    dice = np.full((2, 2, 6), NAN)
    dice[:, 0, :3], dice[:, 1, 3:] = draw_dice(2, 1, 3)[:, 0], draw_dice(2, 1, 3, seed=2)[:, 0]
    comparison = compare(matrix_of(dice))
    assert comparison.num_shared == comparison.pairs[0].num_patients == 6
    assert np.isfinite(comparison.pairs[0].difference.low)


def test_a_variant_without_scores_is_last_and_in_no_pair() -> None:
    dice = draw_dice(3, 1, 8)
    dice[0] = NAN
    comparison = compare(matrix_of(dice), FACTORS)
    assert comparison.variants[-1].variant == "a"
    assert comparison.variants[-1].scores == {}
    assert len(comparison.pairs) == 1
    assert len(comparison.variants[0].ranks) == 2


def test_a_variant_with_few_scores_is_not_ranked_and_leaves_the_other_ranks_alone() -> None:
    dice = draw_dice(3, 1, 10)
    dice[1, :, 4:] = NAN
    comparison = compare(matrix_of(dice))
    assert comparison.variants[-1].variant == "b"
    assert comparison.variants[-1].ranks == ()
    assert comparison.num_shared == 10
    assert {pair.num_patients for pair in comparison.pairs} == {10, 4}


def test_nothing_is_ranked_where_all_have_few_scores() -> None:
    dice = np.full((3, 1, 6), NAN)
    for variant in range(3):
        dice[variant, :, 2 * variant : 2 * variant + 2] = 0.5
    comparison = compare(matrix_of(dice))
    assert comparison.num_shared == 0
    assert all(variant.ranks == () for variant in comparison.variants)


def test_variants_that_share_no_patient_are_not_compared() -> None:
    dice = draw_dice(2, 1, 6)
    dice[0, :, :3], dice[1, :, 3:] = NAN, NAN
    comparison = compare(matrix_of(dice))
    (pair,) = comparison.pairs
    assert pair.num_patients == 0
    assert np.isnan([pair.difference.point, pair.p, pair.p_holm, pair.share_better]).all()
    assert [variant.ranks for variant in comparison.variants] == [(), ()]


def _effects(dice: Floats) -> dict[str, Effect]:
    return {effect.name: effect for effect in compare(matrix_of(dice), FACTORS).effects}


def test_additive_factors_do_not_interact() -> None:
    base = 0.5 * draw_dice(1, 2, 12)
    gain = np.array([0.0, 0.1, 0.2, 0.3])[:, None, None]  # large +0.2, preprocessed +0.1
    effects = _effects(base + gain)
    expected = {
        "encoder: small -> large": 0.2,
        "preprocessing: raw -> filtered": 0.1,
        INTERACTION: 0.0,
    }
    for name, value in expected.items():
        difference = effects[name].difference
        assert (difference.point, difference.low, difference.high) == pytest.approx((value,) * 3)


def test_an_interaction_by_hand() -> None:
    dice = np.array([0.5, 0.6, 0.7, 0.5])[:, None, None] + 0.02 * draw_dice(4, 2, 12)
    effects = _effects(dice)
    # Preprocessing gives +0.1 to the small encoder, -0.2 to the large one.
    assert effects[INTERACTION].difference.point == pytest.approx(-0.3, abs=0.02)
    assert effects[INTERACTION].difference.high < 0
    assert effects["preprocessing: raw -> filtered"].difference.point == pytest.approx(
        -0.05, abs=0.02
    )
    assert effects[INTERACTION].p < 0.01


def test_effects_use_the_patients_that_all_four_have() -> None:
    dice = np.repeat(0.5 * draw_dice(1, 1, 10), 4, axis=0)
    dice[3, :, :5] = NAN
    dice[:3, :, :5] = np.array([0, 1, 0])[:, None, None]
    assert _effects(dice)[INTERACTION].difference == Estimate(0, 0, 0)


def test_an_effect_that_needs_a_missing_combination_is_left_out() -> None:
    assert compare(matrix_of(draw_dice(2, 1, 6)), FACTORS).effects[0].name == (
        "preprocessing: raw -> filtered"
    )
    assert compare(matrix_of(draw_dice(4, 1, 6))).effects == ()
    three = {name: FACTORS[name] for name in "abc"}
    assert compare(matrix_of(draw_dice(4, 1, 6)), three).effects == ()


def test_three_levels_of_three_factors_by_hand() -> None:
    gains = {"x": (0.0, 0.1, 0.3), "y": (0.0, -0.05), "z": (0.0, 0.02)}
    cells = list(itertools.product(range(3), range(2), range(2)))
    factors = {
        f"v{number:02d}": {name: str(level) for name, level in zip("xyz", cell, strict=True)}
        for number, cell in enumerate(cells)
    }
    dice = 0.4 + np.array(
        [sum(gains[n][i] for n, i in zip("xyz", cell, strict=True)) for cell in cells]
    )
    dice += [0.04 * (cell[0] == 2 and cell[2] == 1) for cell in cells]  # x and z interact
    matrix = replace(matrix_of(np.repeat(dice[:, None, None], 8, axis=2)), variants=tuple(factors))
    found = {e.name: e.difference.point for e in compare(matrix, factors).effects}
    assert found == pytest.approx(
        {
            "x: 0 -> 1": 0.1,
            "x: 0 -> 2": 0.32,
            "y: 0 -> 1": -0.05,
            "z: 0 -> 1": 0.02 + 0.04 / 3,
            "x 1 x y 1": 0.0,
            "x 2 x y 1": 0.0,
            "x 1 x z 1": 0.0,
            "x 2 x z 1": 0.04,
            "y 1 x z 1": 0.0,
        }
    )


def test_sign_flips_by_hand() -> None:
    assert sign_flip_test(np.array([0.1, 0.2, 0.3]), _rng()) == 2 / 8
    assert sign_flip_test(np.array([0.3, 0.2, -0.1]), _rng()) == 4 / 8  # sums 6, 4, 2, 0 and -
    assert sign_flip_test(np.zeros(6), _rng()) == 1
    assert sign_flip_test(np.array([0.5]), _rng()) == 1
    assert np.isnan(sign_flip_test(np.array([]), _rng()))


def test_many_pairs_get_as_many_flips_as_a_corrected_p_value_needs() -> None:
    shown = 1 + 0.01 * _rng().standard_normal(110)
    draws = np.random.default_rng(5).normal(0.1, 1, (3, 40))
    for num_pairs in (4, 276):
        rest = [shown] * (num_pairs - 5)
        p = sign_flip_tests([shown, *draws, np.ones(3), *rest][:num_pairs], _rng())
        assert p[0] == pytest.approx(smallest_p(110, num_pairs))
        assert num_pairs * p[0] < 0.05
        alone = [sign_flip_test(own, _rng(7)) for own in draws]
        assert p[1:4] == pytest.approx(alone, abs=0.02)
    assert p[4] == 2 / 8  # of three patients all flips are tried
    assert smallest_p(110, 100) == smallest_p(110)  # up to 100 pairs nothing changes
    assert sign_flip_tests([shown], _rng()) == [sign_flip_test(shown, _rng())]


@pytest.mark.parametrize("num_patients", [2, 5, 13, 14, 30])
def test_the_smallest_p_value(num_patients: int) -> None:
    same_sign = 1 + 0.01 * _rng().standard_normal(num_patients)
    p = sign_flip_test(same_sign, _rng())
    assert p == pytest.approx(smallest_p(num_patients)) or num_patients == 14
    # Of 9,999 random flips of 14 signs, one or two change none or all.
    assert smallest_p(num_patients) <= p * (1 + 1e-9) <= 5 * smallest_p(num_patients)


def test_sign_flips_keep_their_level() -> None:
    p = np.array([sign_flip_test(_rng(seed).normal(0, 1, 8), _rng()) for seed in range(1_000)])
    for level in (0.05, 0.2, 0.5):
        exact = np.floor(level * 128) / 128  # there are 128 p-values
        error = np.sqrt(exact * (1 - exact) / len(p))
        assert (p <= level).mean() == pytest.approx(exact, abs=3 * error)


def test_holm_by_hand() -> None:
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before it), 0.5 x 1
    assert correct_by_holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert correct_by_holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert correct_by_holm([0.9, 0.8]) == pytest.approx([1, 1])
    np.testing.assert_allclose(correct_by_holm([np.nan, 0.02, 0.03]), [np.nan, 0.04, 0.04])
    assert len(correct_by_holm([])) == 0


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_patients_needed_are_those_of_the_tables(effect: float, expected: int) -> None:
    differences = np.array([-1.0, 0.0, 1.0]) + effect  # standard deviation 1
    assert patients_needed(differences) == expected
    assert patients_needed(-differences) == expected


@pytest.mark.parametrize(
    ("effect", "pairs", "expected"), [(6.0, 28, 5), (3.0, 190, 8), (0.8, 435, 42), (1.0, 1225, 33)]
)
def test_more_pairs_need_more_patients(effect: float, pairs: int, expected: int) -> None:
    """Where scipy's noncentral t is NaN. Expected: the power by quadrature over the spread."""
    differences = effect + np.array([-1.0, 1.0]) / np.sqrt(2)
    assert patients_needed(differences, 0.05 / pairs) == expected
    needed = [patients_needed(differences, 0.05 / count) for count in (1, 10, 100, 1000)]
    assert needed == sorted(needed)


def test_patients_needed_at_the_edges() -> None:
    assert patients_needed(np.array([-0.1, 0.1])) == np.inf
    assert np.isnan(patients_needed(np.array([0.1])))
    assert np.isnan(patients_needed(np.array([])))
    assert patients_needed(np.array([0.1, 0.1, 0.1])) == 2
    many = ((1.95996 + 0.84162) * np.sqrt(2) / 1e-4) ** 2  # the normal approximation
    assert patients_needed(np.array([-0.9999, 1.0001])) == pytest.approx(many, rel=1e-3)


def test_needed_patients_find_the_difference_with_the_predicted_power() -> None:
    needed = int(patients_needed(np.array([-1.0, 0.0, 1.0]) + 1))
    assert needed == 10
    found = [sign_flip_test(_rng(s).normal(1, 1, needed), _rng()) < 0.05 for s in range(400)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.02, 0.04])
def test_differences_of_skewed_scores_are_found_with_the_predicted_power(gain: float) -> None:
    model, rng = DiceModel(), _rng()

    def differences(num_patients: int) -> Floats:
        a, b = model.dice(rng, (2, 3, num_patients), num_folds=num_patients).mean(axis=1)
        gains: Floats = a - b + gain
        return gains

    needed = int(patients_needed(differences(100_000)))
    found = np.mean([sign_flip_test(differences(needed), rng) < 0.05 for _ in range(500)])
    print(f"\ngain {gain}: {needed} patients needed, found with power {found:.1%}")
    assert found == pytest.approx(0.8, abs=0.07)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("num_seeds", "run", "most"),
    [(1, 0.0, 0.07), (3, 0.1, 0.09), (1, 0.1, 1.0)],
    ids=["1 seed, runs alike", "3 seeds, runs differ", "1 seed, runs differ"],
)
def test_equal_variants_are_seldom_shown_to_differ(
    num_seeds: int, run: float, most: float
) -> None:
    model, rng = DiceModel(run=run), _rng()
    draws = draw(40, num_seeds, rng, times=1_000)
    claims, rejections = [], []
    for _ in range(300):
        dice = model.dice(rng, (4, num_seeds, 40), num_folds=10)
        differences = [a - b for a, b in itertools.combinations(dice, 2)]
        p = correct_by_holm([sign_flip_test(d.mean(axis=0), rng) for d in differences])
        found = [estimate_mean(d, draws, (-1, 1)) for d in differences]
        claims.append(any(q < 0.05 and e.low * e.high > 0 for q, e in zip(p, found, strict=True)))
        rejections.append((p < 0.05).any())
    text = f"a difference shown {np.mean(claims):.1%}, by p alone {np.mean(rejections):.1%}"
    print(f"\n4 equal variants, 40 patients, {num_seeds} seeds, runs {run}: {text}")
    assert np.mean(claims) <= most


def test_an_external_variant_does_not_unrank_those_that_were_trained() -> None:
    """It has all seeds; two of three seeds failed for the others."""
    lost = [NAN] * 4
    trained = [[0.9, 0.8, 0.85, 0.9], lost, lost]
    external = [[0.6, 0.7, 0.5, 0.6]] * 3
    matrix = matrix_of([trained, external])
    assert not compare(matrix).variants[1].ranks
    found = compare(matrix, external=["b"])
    assert [item.variant for item in found.variants] == ["a", "b"]
    assert all(item.ranks for item in found.variants)
    assert np.isnan(found.variance["variant"])  # one trained variant is left


def test_an_interval_of_distances_ends_at_the_diagonal() -> None:
    dice = draw_dice(2, 1, 5)
    distances = np.array([20.0, 40.0, 90.0, 200.0, 362.0])
    measures = {"hd95_worst": np.stack([[distances], [distances / 2]])}
    measures["hd95_worst_mm"] = measures["hd95_worst"] / 2
    matrix = replace(matrix_of(dice), measures=measures)
    diagonal = 256 * np.sqrt(2)
    for highest, name in ((diagonal, "HD95, worst case"), (diagonal / 2, "HD95, worst case, mm")):
        bounded, free = (
            max(item.scores[name].high for item in compare(matrix, diagonal=end).variants)
            for end in (diagonal, np.inf)
        )
        assert bounded < highest < free
