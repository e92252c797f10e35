"""Comparison of a study's variants: scores with intervals, ranks, paired differences and tests.

`compare` returns all of it. What two variants differ by is computed on the patients and seeds that
both were tested on. Intervals come from `bootstrap`; p-values from flipping the signs of patients'
differences (`sign_flip_test`), corrected for the number of pairs (`correct_by_holm`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainseg import metrics
from study.analysis.bootstrap import (
    Draws,
    Estimate,
    average_seeds,
    draw,
    estimate,
    estimate_mean,
    mean_over_patients,
    of_summed_counts,
)
from study.analysis.scores import Floats, ScoreMatrix
from study.analysis.variance import decompose

POOLED = {
    "global Dice": metrics.dice,
    "IoU": metrics.iou,
    "precision": metrics.precision,
    "recall": metrics.recall,
}
"""Name -> score of the counts of all patients together, in which large tumours weigh most."""

MEASURED = {
    "HD95": "hd95",
    "HD95, worst case": "hd95_worst",
    "NSD": "nsd",
    "volume similarity": "volume_similarity",
    "HD95, mm": "hd95_mm",
    "HD95, worst case, mm": "hd95_worst_mm",
    "NSD, mm": "nsd_mm",
}
"""Name -> measure of each patient, averaged over patients."""

LEVEL = 0.05
"""Level of significance, two-sided."""

Cell = frozenset[tuple[str, str]]
"""The factors of a variant, each with its level."""

_POWER = 0.8
_QUANTILES = (np.arange(2_000) + 0.5) / 2_000
_MIN_SHARE = 0.5
_NUM_FLIPS, _MOST_FLIPS = 9_999, 399_999
_FLIPS_AT_ONCE = 1_000
_EXACT = 13
"""Patients up to which all sign flips are tried."""


@dataclass(frozen=True)
class VariantScores:
    """One variant's test scores, over the patients that it was tested on.

    Attributes:
        variant: Name of the variant.
        num_patients: Patients tested with at least one seed.
        scores: Name of a score -> estimate: Dice/patient (the score that is compared), global
            Dice, IoU, precision, recall and, where measured, those of `MEASURED` (HD95 in pixels
            and, where the spacing is known, in millimetres; lower is better). Empty if the variant
            has no scores.
        ranks: Probability of each rank, first to last: the share of widened resamples; ties share
            their ranks. Empty if the variant is not ranked, because it lacks more than half of the
            cells or because the ranked variants share fewer than 2 patients.
        shared: Dice/patient on the cells that all ranked variants have, which ranks them: that of
            `scores` unless trainings have no scores. None if the variant is not ranked.
    """

    variant: str
    num_patients: int
    scores: Mapping[str, Estimate]
    ranks: tuple[float, ...]
    shared: Estimate | None = None


@dataclass(frozen=True)
class Pair:
    """The paired comparison of two variants by Dice/patient, on the cells that both have.

    Attributes:
        first: The variant that is higher in the order of the comparison.
        second: The other variant.
        num_patients: Patients tested with both.
        difference: first - second; NaN if they share no patient.
        share_better: Probability that first has the higher mean: the share of widened resamples,
            ties counting half; NaN with fewer than 2 patients.
        improvement: Probability that first has the higher Dice on one patient with one seed, ties
            counting half: the probability of improvement of Agarwal et al. 2021, paired by seed.
        p: Two-sided p-value of `sign_flip_test`.
        p_holm: The same, corrected for the number of pairs.
        patients_needed: Number of patients at which a paired t-test finds this difference with
            power 0.8 at level 0.05 / number of pairs; inf if the difference is 0, NaN with fewer
            than 2 patients. It may be at most `num_patients`: the difference is uncertain.
    """

    first: str
    second: str
    num_patients: int
    difference: Estimate
    share_better: float
    improvement: float
    p: float
    p_holm: float
    patients_needed: float

    def seen_from(self, variant: str) -> Pair:
        """Return the comparison of one of the two variants, as the first, with the other one."""
        if variant == self.first:
            return self
        found = self.difference
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=Estimate(-found.point, -found.high, -found.low),
            share_better=1 - self.share_better,
            improvement=1 - self.improvement,
        )


@dataclass(frozen=True)
class Effect:
    """The effect on Dice/patient of a level of a factor, or the interaction of two levels.

    A main effect is the difference to the factor's first level, averaged over the combinations of
    the other factors. An interaction is how much the effect of one level depends on another
    factor's level: the difference of two such differences, averaged over what is left. Both are
    computed on the cells that all variants have which enter it, and are NaN if there is none.

    Attributes:
        name: Such as `encoder: resnet50 -> efficientnet-b0`, or
            `encoder efficientnet-b0 x preprocessing preprocessed`.
        is_interaction: Whether it is the latter.
        difference: The effect with its interval.
        p: Two-sided p-value of `sign_flip_test`; not corrected for the number of effects.
    """

    name: str
    is_interaction: bool
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of all variants of a study.

    Attributes:
        variants: The ranked variants by Dice/patient on the cells that all of them have, best
            first; then variants with too few scores to be ranked; then those without scores.
        num_shared: Patients tested with all ranked variants; the ranks are about them.
        pairs: Every pair of variants with scores, in that order.
        effects: Main effects of the grid's factors, then their two-way interactions; those that
            need a combination which the study lacks are left out.
        variance: Component -> share of the variance of Dice/patient (see `variance.decompose`).
    """

    variants: tuple[VariantScores, ...]
    num_shared: int
    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]
    variance: Mapping[str, float]


def compare(
    matrix: ScoreMatrix,
    factors: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 44,
    external: Collection[str] = (),
    diagonal: float = np.inf,
) -> Comparison:
    """Compare the variants of a study by Dice/patient.

    All intervals and ranks are computed from the same resamples.

    Args:
        matrix: Test scores.
        factors: Variant -> factor -> its level; variants without factors have no effects.
        seed: Seed of the resamples and sign flips; equal seeds give equal numbers.
        external: Variants that were not trained here. They do not count in the variance
            components, because their training runs are not known.
        diagonal: Of a slice, in pixels: the highest possible distance.
    """
    if not matrix.patients:
        nothing = tuple(VariantScores(variant, 0, {}, ()) for variant in matrix.variants)
        return Comparison(nothing, 0, (), (), decompose(matrix.without(external)))
    rng = np.random.default_rng(seed)
    draws = draw(len(matrix.patients), len(matrix.seeds), rng)
    ranked, shared = _rankable(matrix, external)
    order = _order(matrix, ranked, shared)
    ranks = _rank_probabilities(matrix, ranked, shared, draws)
    scored = [matrix.variants[v] for v in order if matrix.tested[v].any()]
    couples = list(itertools.combinations(scored, 2))
    values = [matrix.dice[matrix.index(a)] - matrix.dice[matrix.index(b)] for a, b in couples]
    p_values = sign_flip_tests([average_seeds(own) for own in values], rng)
    level = LEVEL / max(int(np.count_nonzero(~np.isnan(p_values))), 1)
    pairs = [
        _pair(*couple, own, p, draws, level)
        for couple, own, p in zip(couples, values, p_values, strict=True)
    ]
    corrected = correct_by_holm(p_values)
    highest = {name: _highest(matrix, name, diagonal) for name in MEASURED.values()}
    variants = [_variant(matrix, v, draws, ranks.get(v, ()), highest) for v in order]
    variants = [
        _on_shared(item, matrix, shared, draws) if matrix.index(item.variant) in ranked else item
        for item in variants
    ]
    return Comparison(
        variants=tuple(variants),
        num_shared=int(shared.any(axis=0).sum()),
        pairs=tuple(replace(q, p_holm=float(p)) for q, p in zip(pairs, corrected, strict=True)),
        effects=_effects(matrix, factors or {}, draws, rng),
        variance=decompose(matrix.without(external)),
    )


def _rankable(
    matrix: ScoreMatrix, external: Collection[str]
) -> tuple[list[int], NDArray[np.bool_]]:
    """Return the variants with at least half of all tested cells, and the cells they share.

    External variants have all cells, whatever failed here, and so do not say which there are.
    """
    tested = matrix.tested
    trained = matrix.without(external).tested
    cells = (trained if trained.any() else tested).any(axis=0).sum()
    ranked = [v for v, own in enumerate(tested) if own.sum() >= _MIN_SHARE * cells]
    return ranked, np.asarray(tested[ranked].all(axis=0) & bool(ranked))


def _order(matrix: ScoreMatrix, ranked: list[int], shared: NDArray[np.bool_]) -> list[int]:
    """Sort all variants: ranked ones by their mean, then others, then those without scores."""

    def key(v: int) -> tuple[bool, bool, float]:
        own = matrix.tested[v]
        cells = shared if v in ranked and shared.any() else own
        values = np.where(cells, matrix.dice[v], np.nan)
        return v not in ranked, not own.any(), -_mean(values) if own.any() else 0.0

    return sorted(range(len(matrix.variants)), key=key)


def _rank_probabilities(
    matrix: ScoreMatrix, ranked: list[int], shared: NDArray[np.bool_], draws: Draws
) -> dict[int, tuple[float, ...]]:
    """Return variant -> share of resamples in which it has each rank; empty if none is ranked."""
    num_patients = int(shared.any(axis=0).sum())
    if num_patients < 2:
        return {}
    means = mean_over_patients(np.where(shared, matrix.dice[ranked], np.nan))
    widened = draws.widen(means(draws), means(draws.observed())[0], num_patients)
    # Equal means can differ in their last bits; rounding makes them ties.
    widened = widened[~np.isnan(widened).any(axis=1)].round(12)
    found = {}
    rank = np.arange(len(ranked))[:, None]
    for k, v in enumerate(ranked):  # one at a time: all together would fill the memory
        better = (widened > widened[:, k : k + 1]).sum(axis=1)
        equal = (widened == widened[:, k : k + 1]).sum(axis=1)
        shares = (((rank >= better) & (rank < better + equal)) / equal).mean(axis=1)
        found[v] = tuple(map(float, shares))
    return found


def _highest(matrix: ScoreMatrix, measure: str, diagonal: float) -> float:
    """Return the highest possible value of a measure; inf if it is not known."""
    if not measure.startswith("hd95"):
        return 1.0
    values = matrix.measures.get(measure)
    if values is None or np.isnan(values).all():
        return diagonal
    if measure.endswith("_mm"):
        pixels = matrix.measures[measure.removesuffix("_mm")]
        per_pixel = np.divide(values, pixels, out=np.zeros_like(values), where=pixels > 0)
        diagonal *= float(np.nanmax(per_pixel, initial=0)) or np.inf
    # A slice that is not square has a longer diagonal than a square one of its area.
    return max(diagonal, float(np.nanmax(values)))


def _variant(
    matrix: ScoreMatrix,
    v: int,
    draws: Draws,
    ranks: tuple[float, ...],
    highest: Mapping[str, float],
) -> VariantScores:
    name, num_patients = matrix.variants[v], int(matrix.tested[v].any(axis=0).sum())
    if not num_patients:
        return VariantScores(name, 0, {}, ())
    scores = {"Dice/patient": estimate_mean(matrix.dice[v], draws)}
    for label, score in POOLED.items():
        scores[label] = estimate(of_summed_counts(matrix.counts[v], score), draws, num_patients)
    for label, measure in MEASURED.items():
        values = matrix.measures.get(measure, np.full(1, np.nan))
        if not np.isnan(values[v : v + 1]).all():
            scores[label] = estimate_mean(values[v], draws, (0, highest[measure]))
    return VariantScores(name, num_patients, scores, ranks)


def _on_shared(
    item: VariantScores, matrix: ScoreMatrix, shared: NDArray[np.bool_], draws: Draws
) -> VariantScores:
    """Add a ranked variant's Dice/patient on the cells that all ranked variants have."""
    v = matrix.index(item.variant)
    if not shared.any():
        return item
    if (matrix.tested[v] == shared).all():
        return replace(item, shared=item.scores["Dice/patient"])
    return replace(item, shared=estimate_mean(np.where(shared, matrix.dice[v], np.nan), draws))


def _pair(first: str, second: str, values: Floats, p: float, draws: Draws, level: float) -> Pair:
    """Describe the differences of two variants' Dice, (S, P), whose p-value is known."""
    differences = average_seeds(values)
    return Pair(
        first=first,
        second=second,
        num_patients=len(differences),
        difference=estimate_mean(values, draws, (-1, 1)),
        share_better=_share_better(values, draws),
        improvement=_mean((np.sign(values) + 1) / 2) if len(differences) else np.nan,
        p=p,
        p_holm=np.nan,
        patients_needed=patients_needed(differences, level),
    )


def _share_better(values: Floats, draws: Draws) -> float:
    means = average_seeds(values)
    if len(means) < 2:
        return np.nan
    replicates = mean_over_patients(values)(draws)
    widened = draws.widen(replicates, np.array(means.mean()), len(means))
    return float((np.sign(widened[~np.isnan(widened)]) + 1).mean() / 2)


def _effects(
    matrix: ScoreMatrix,
    factors: Mapping[str, Mapping[str, str]],
    draws: Draws,
    rng: np.random.Generator,
) -> tuple[Effect, ...]:
    return tuple(
        Effect(
            name,
            is_interaction,
            estimate_mean(values, draws, (-2, 2)),
            sign_flip_test(average_seeds(values), rng),
        )
        for name, is_interaction, values in _contrasts(matrix, factors)
    )


def _contrasts(
    matrix: ScoreMatrix, factors: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, bool, Floats]]:
    """Yield name, whether it is an interaction, and values (S, P); interactions come last."""
    for names, group in _products(matrix, factors).items():
        levels = {
            factor: list(dict.fromkeys(dict(cell)[factor] for cell in group)) for factor in names
        }
        steps = {
            factor: [{first: -1, level: 1} for level in rest]
            for factor, (first, *rest) in levels.items()
        }
        for factor in steps:
            for step in steps[factor]:
                first, level = step
                values = _contrast(matrix, group, {factor: step})
                if values is not None:
                    yield f"{factor}: {first} -> {level}", False, values
        for one, other in itertools.combinations(steps, 2):
            for step, second in itertools.product(steps[one], steps[other]):
                values = _contrast(matrix, group, {one: step, other: second})
                if values is not None:
                    yield f"{one} {list(step)[1]} x {other} {list(second)[1]}", True, values


def _products(
    matrix: ScoreMatrix, factors: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, ...], dict[Cell, str]]:
    """Return factors -> levels -> variant; variants of other factors are apart."""
    groups: dict[tuple[str, ...], dict[Cell, str]] = {}
    for variant in matrix.variants:
        if variant in factors:
            levels = factors[variant]
            groups.setdefault(tuple(levels), {})[frozenset(levels.items())] = variant
    return groups


def _contrast(
    matrix: ScoreMatrix, group: Mapping[Cell, str], weights: Mapping[str, Mapping[str, int]]
) -> Floats | None:
    """Return a contrast averaged over the combinations of the factors without weights, (S, P).

    Args:
        matrix: Test scores.
        group: Levels -> variant, for variants that have the same factors.
        weights: Factor -> its two levels -> -1 or 1.

    Returns:
        None if a combination that enters the mean is missing.
    """
    rests = {
        frozenset((factor, level) for factor, level in cell if factor not in weights)
        for cell in group
    }
    terms = []
    for rest in sorted(rests, key=sorted):
        for choice in itertools.product(*(pair.items() for pair in weights.values())):
            levels = [(factor, level) for factor, (level, _) in zip(weights, choice, strict=True)]
            variant = group.get(rest | frozenset(levels))
            if variant is None:
                return None
            sign = int(np.prod([weight for _, weight in choice]))
            terms.append(sign * matrix.dice[matrix.index(variant)])
    return np.asarray(np.sum(terms, axis=0) / len(rests))


def _mean(values: Floats) -> float:
    return float(average_seeds(values).mean())


def sign_flip_tests(differences: Sequence[Floats], rng: np.random.Generator) -> list[float]:
    """Return the p-value of each of several paired comparisons, see `sign_flip_test`.

    Their correction multiplies p-values by up to their number. For more than 100 of them there are
    100 random flips for each, up to 399,999, so that a corrected p-value can be below 0.05; one
    set of flips serves all that have more than 13 patients.

    Args:
        differences: (P,) each.
        rng: Generator of the random flips.
    """
    num_flips = _num_flips(len(differences))
    many = [n for n, own in enumerate(differences) if len(own) > _EXACT]
    if num_flips == _NUM_FLIPS or not many:
        return [sign_flip_test(own, rng) for own in differences]
    padded = np.zeros((max(len(differences[n]) for n in many), len(many)))
    for column, n in enumerate(many):
        padded[: len(differences[n]), column] = differences[n]
    observed, slack = padded.sum(axis=0), 1e-12 * np.abs(padded).sum(axis=0)
    above, below = np.zeros(len(many), np.int64), np.zeros(len(many), np.int64)
    for start in range(0, num_flips, _FLIPS_AT_ONCE):
        shape = (min(_FLIPS_AT_ONCE, num_flips - start), len(padded))
        sums = rng.choice([-1.0, 1.0], shape) @ padded
        above += (sums >= observed - slack).sum(axis=0)
        below += (sums <= observed + slack).sum(axis=0)
    p = np.minimum(2 * (np.minimum(above, below) + 1) / (num_flips + 1), 1)
    found = dict(zip(many, p.tolist(), strict=True))
    return [
        found[n] if n in found else sign_flip_test(own, rng) for n, own in enumerate(differences)
    ]


def sign_flip_test(differences: Floats, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of the hypothesis that the mean difference is 0 (Fisher 1935).

    Under it each patient's difference is as likely to have the other sign. All 2^n flips are tried
    for up to 13 patients, else 9,999 random ones.

    Args:
        differences: (P,), each patient's difference averaged over seeds.
        rng: Generator of the random flips.

    Returns:
        The p-value; 1 with one patient, NaN without patients.
    """
    if len(differences) < 2:
        return 1.0 if len(differences) else np.nan
    test = stats.permutation_test(
        (differences,),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_NUM_FLIPS,
        batch=1_000,
        rng=rng,
    )
    return float(test.pvalue)


def smallest_p(num_patients: int, num_tests: int = 1) -> float:
    """Return the smallest p-value that `sign_flip_tests` can give with this many patients."""
    return max(2.0 ** (1 - num_patients), 2 / (_num_flips(num_tests) + 1))


def _num_flips(num_tests: int) -> int:
    return min(max(_NUM_FLIPS, 100 * num_tests - 1), _MOST_FLIPS)


def correct_by_holm(p_values: Sequence[float]) -> Floats:
    """Return p-values corrected for their number (Holm 1979); NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    steps = np.arange(len(order), 0, -1)
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(steps * p[order]), 1)
    return corrected


def patients_needed(differences: Floats, level: float = LEVEL) -> float:
    """Return how many patients a paired t-test needs to find the observed mean difference.

    The smallest n at which Student's t with n - 1 degrees of freedom and noncentrality
    |mean| / sd * sqrt(n) exceeds the two-sided critical value with power 0.8 (Cohen 1988, section
    2.3). The observed difference is itself uncertain, and so is this number.

    Args:
        differences: (P,), each patient's difference averaged over seeds.
        level: Level of significance. For several pairs it is divided by their number, since
            Holm's method compares the smallest p-value with that.

    Returns:
        A whole number from 2; inf if the mean is 0; NaN with fewer than 2 patients.
    """
    if len(differences) < 2:
        return np.nan
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1))
    if mean <= 1e-12:
        return np.inf
    effect = mean / max(spread, 1e-12)
    normal = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(_POWER)
    patients = max(2, int((normal / effect) ** 2))
    while _power(effect, patients, level) < _POWER:
        patients += 1
    return float(patients)


def _power(effect: float, patients: int, level: float) -> float:
    """Return the mean power over the estimates of the spread; scipy's nct gives NaN far out."""
    df, shift = patients - 1, effect * np.sqrt(patients)
    spreads = np.sqrt(stats.chi2.ppf(_QUANTILES, df) / df)
    critical = stats.t.ppf(1 - level / 2, df) * spreads
    return float(np.mean(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)))
