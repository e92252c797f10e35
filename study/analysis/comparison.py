"""What can be read from the score matrix: intervals, paired differences, ranks, factors.

Pure functions over arrays; needs neither Ray nor torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brainseg import metrics
from study.analysis.bootstrap import (
    Draws,
    Estimate,
    correct_by_holm,
    divide,
    draw,
    each_once,
    estimate,
    mean_over_patients,
    of_summed_counts,
    patients_needed,
    sign_flip_test,
    weigh,
)
from study.analysis.scores import Floats, ScoreMatrix
from study.analysis.variance import decompose

POOLED = {
    "global Dice": metrics.dice,
    "IoU": metrics.iou,
    "precision": metrics.precision,
    "recall": metrics.recall,
}
"""Name -> score of the counts of all patients together; large tumours decide it."""

_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class VariantScores:
    """One variant's test scores, each over the patients that it was tested on.

    Attributes:
        variant: Its name.
        num_patients: Patients it was tested on, with at least one seed.
        scores: Name of a score -> estimate: Dice/patient (the one that is compared), global Dice,
            IoU, precision, recall and, where measured, HD95 (pixels, lower is better); empty if it
            has no scores.
        ranks: Probability of each rank, first to last: share of widened resamples, ties share
            theirs. Empty if it is not ranked: it lacks more than half of all cells, or the ranked
            ones share fewer than 2 patients.
    """

    variant: str
    num_patients: int
    scores: Mapping[str, Estimate]
    ranks: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """The paired comparison of two variants by Dice/patient, on the cells that both have.

    Attributes:
        first: The variant that stands higher in the order of the comparison.
        second: The other.
        num_patients: Patients tested with both.
        num_dropped: Patients tested with one of them only.
        difference: first - second; NaN if they share no patient.
        share_better: Probability that first has the higher mean: share of widened resamples,
            ties count half; NaN with fewer than 2 patients.
        improvement: Probability that first has the higher Dice on one patient with one seed, ties
            counting half: the probability of improvement of Agarwal et al. 2021, paired by seed.
        p: Two-sided, by sign flips of the patients' differences.
        p_holm: The same, corrected for the number of pairs.
        patients_needed: Patients with whom a paired t-test would find this difference with power
            0.8 at level 0.05; inf if there is none, NaN with fewer than 2 patients.
    """

    first: str
    second: str
    num_patients: int
    num_dropped: int
    difference: Estimate
    share_better: float
    improvement: float
    p: float
    p_holm: float
    patients_needed: float


@dataclass(frozen=True)
class Effect:
    """What one factor changes in Dice/patient, or by how much one changes the other's effect.

    On the cells that all four variants have; NaN if there is none.

    Attributes:
        name: As `encoder: resnet50 -> efficientnet-b0`, `preprocessing: raw -> preprocessed`, or
            `interaction`.
        difference: With its interval.
        p: Two-sided, by sign flips; not corrected for their number.
    """

    name: str
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Comparison:
    """All that the test scores of a study say about its variants.

    Attributes:
        variants: By Dice/patient on the cells that all ranked ones share, best first; then those
            with too few scores to be ranked; then those with none.
        num_shared: Patients whom all ranked variants were tested on: those of the ranks.
        pairs: Every two variants, in that order.
        effects: Main effects and interaction of encoder and preprocessing, where the variants are
            the 2 x 2 of them; else empty.
        variance: Component -> share of the variance of Dice/patient (see `decompose`).
    """

    variants: tuple[VariantScores, ...]
    num_shared: int
    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]
    variance: Mapping[str, float]


def compare(
    matrix: ScoreMatrix, factors: Mapping[str, tuple[str, bool]] | None = None, seed: int = 44
) -> Comparison:
    """Compare the variants of a study by Dice/patient.

    All intervals and ranks come from the same resamples.

    Args:
        matrix: Its test scores.
        factors: Variant -> its encoder, and whether its slices are preprocessed
            (`study.scores.read_factors`).
        seed: Of resamples and sign flips: the same seed, the same numbers.
    """
    if not matrix.patients:
        nothing = tuple(VariantScores(variant, 0, {}, ()) for variant in matrix.variants)
        return Comparison(nothing, 0, (), (), decompose(matrix))
    rng = np.random.default_rng(seed)
    draws = draw(len(matrix.patients), len(matrix.seeds), rng)
    ranked, shared = _rankable(matrix)
    order = _order(matrix, ranked, shared)
    ranks = _rank_probabilities(matrix, ranked, shared, draws)
    scored = [matrix.variants[v] for v in order if matrix.tested[v].any()]
    pairs = [_pair(matrix, a, b, draws, rng) for a, b in itertools.combinations(scored, 2)]
    corrected = correct_by_holm([pair.p for pair in pairs])
    return Comparison(
        variants=tuple(_variant(matrix, v, draws, ranks.get(v, ())) for v in order),
        num_shared=int(shared.any(axis=0).sum()),
        pairs=tuple(replace(q, p_holm=float(p)) for q, p in zip(pairs, corrected, strict=True)),
        effects=_effects(matrix, factors or {}, draws, rng),
        variance=decompose(matrix),
    )


def _rankable(matrix: ScoreMatrix) -> tuple[list[int], NDArray[np.bool_]]:
    """Return the variants that have half of the cells that any has, and the cells they share."""
    tested = matrix.tested
    cells = tested.any(axis=0).sum()
    ranked = [v for v, own in enumerate(tested) if own.sum() >= _LEAST_SHARE * cells]
    return ranked, np.asarray(tested[ranked].all(axis=0) & bool(ranked))


def _order(matrix: ScoreMatrix, ranked: list[int], shared: NDArray[np.bool_]) -> list[int]:
    """Return all variants: the ranked ones by their mean, then others, then those without any."""

    def place(v: int) -> tuple[bool, bool, float]:
        own = matrix.tested[v]
        cells = shared if v in ranked and shared.any() else own
        values = np.where(cells, matrix.dice[v], np.nan)
        return v not in ranked, not own.any(), -_mean(values) if own.any() else 0.0

    return sorted(range(len(matrix.variants)), key=place)


def _rank_probabilities(
    matrix: ScoreMatrix, ranked: list[int], shared: NDArray[np.bool_], draws: Draws
) -> dict[int, tuple[float, ...]]:
    """Return variant -> share of resamples in which it has each rank; empty if none can be."""
    values = np.where(shared, matrix.dice[ranked], np.nan)
    num_patients = int(shared.any(axis=0).sum())
    if num_patients < 2:
        return {}
    weighted, weights = np.nan_to_num(values) * weigh(values), weigh(values)

    def means(draws: Draws) -> Floats:
        return divide(draws.total(weighted), draws.total(weights))

    widened = draws.widen(means(draws), means(each_once(draws))[0], num_patients)
    # Sums of the same numbers differ in their last bits; a tie is one all the same.
    widened = widened[~np.isnan(widened).any(axis=1)].round(12)
    better = (widened[:, None, :] > widened[:, :, None]).sum(axis=2)
    equal = (widened[:, None, :] == widened[:, :, None]).sum(axis=2)
    rank = np.arange(len(ranked))[:, None, None]
    shares = (((rank >= better) & (rank < better + equal)) / equal).mean(axis=1)
    return {v: tuple(map(float, shares[:, k])) for k, v in enumerate(ranked)}


def _variant(matrix: ScoreMatrix, v: int, draws: Draws, ranks: tuple[float, ...]) -> VariantScores:
    num_patients = _num_patients(matrix.dice[v])
    name = matrix.variants[v]
    if not num_patients:
        return VariantScores(name, 0, {}, ())
    scores = {"Dice/patient": estimate(mean_over_patients(matrix.dice[v]), draws, num_patients)}
    for label, score in POOLED.items():
        statistic = of_summed_counts(matrix.counts[v], score)
        scores[label] = estimate(statistic, draws, num_patients)
    measured = _num_patients(matrix.hd95[v])
    if measured:
        statistic = mean_over_patients(matrix.hd95[v])
        scores["HD95"] = estimate(statistic, draws, measured, bounds=(0, np.inf))
    return VariantScores(name, num_patients, scores, ranks)


def _pair(
    matrix: ScoreMatrix, first: str, second: str, draws: Draws, rng: np.random.Generator
) -> Pair:
    a, b = matrix.index(first), matrix.index(second)
    values = matrix.dice[a] - matrix.dice[b]
    num_patients = _num_patients(values)
    either = (matrix.tested[a] | matrix.tested[b]).any(axis=0).sum()
    per_patient = _by_patient(values)
    return Pair(
        first=first,
        second=second,
        num_patients=num_patients,
        num_dropped=int(either) - num_patients,
        difference=estimate(mean_over_patients(values), draws, num_patients, bounds=(-1, 1)),
        share_better=_share_better(values, draws),
        improvement=_mean((np.sign(values) + 1) / 2) if num_patients else np.nan,
        p=sign_flip_test(per_patient, rng),
        p_holm=np.nan,
        patients_needed=patients_needed(per_patient),
    )


def _effects(
    matrix: ScoreMatrix,
    factors: Mapping[str, tuple[str, bool]],
    draws: Draws,
    rng: np.random.Generator,
) -> tuple[Effect, ...]:
    cell = {factors[v]: matrix.dice[matrix.index(v)] for v in matrix.variants if v in factors}
    encoders = list(dict.fromkeys(encoder for encoder, _ in cell))
    if not sum(v in factors for v in matrix.variants) == len(cell) == 4 or len(encoders) != 2:
        return ()
    one, other = encoders
    means = [(cell[e, False] + cell[e, True]) / 2 for e in encoders]
    gains = [cell[e, True] - cell[e, False] for e in encoders]
    contrasts = {
        f"encoder: {one} -> {other}": means[1] - means[0],
        "preprocessing: raw -> preprocessed": (gains[0] + gains[1]) / 2,
        "interaction": gains[1] - gains[0],
    }
    return tuple(
        Effect(
            name,
            estimate(mean_over_patients(values), draws, _num_patients(values), bounds=(-2, 2)),
            sign_flip_test(_by_patient(values), rng),
        )
        for name, values in contrasts.items()
    )


def _by_patient(values: Floats) -> Floats:
    """Return (P',): the mean over seeds of each patient who has one, from (S, P)."""
    weights = weigh(values)
    means: Floats = (np.nan_to_num(values) * weights).sum(axis=0)
    return means[weights.any(axis=0)]


def _mean(values: Floats) -> float:
    return float(_by_patient(values).mean())


def _num_patients(values: Floats) -> int:
    return int((~np.isnan(values)).any(axis=0).sum())


def _share_better(values: Floats, draws: Draws) -> float:
    num_patients = _num_patients(values)
    if num_patients < 2:
        return np.nan
    replicates = mean_over_patients(values)(draws)
    widened = draws.widen(replicates, np.array(_mean(values)), num_patients)
    return float((np.sign(widened[~np.isnan(widened)]) + 1).mean() / 2)
