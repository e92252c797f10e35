"""Rankings of a study's variants by other metrics and in other ways than the one that counts.

The study ranks by the mean Dice/patient. Another choice could have named another winner (Reinke et
al. 2018; Wiesenfarth et al. 2021, challengeR): these rankings show whether it would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainseg.metrics import dice
from study.analysis.comparison import LEVEL, Comparison, correct_by_holm
from study.analysis.scores import Floats, ScoreMatrix

MEAN, MEDIAN, MEAN_RANK, WINS = "mean", "median", "mean rank", "significant wins"
OWN_RANKING = ("Dice/patient", MEAN)
_DIGITS = 12  # equal means can differ in their last bits
_EXACT = 50  # differences up to which sign flips are counted, as in scipy without ties


@dataclass(frozen=True)
class Ranking:
    """The ranks of the variants by one metric and one way of ranking.

    Attributes:
        metric: Such as `NSD`.
        way: `mean` ranks the means over patients, `median` their medians, `mean rank` the means of
            the ranks on each patient, `significant wins` how many others a variant beats by a
            one-sided Wilcoxon test at 0.05, corrected by Holm's method.
        ranks: Of each ranked variant, in the order of the comparison; 1 is best, and variants that
            tie share the better rank.
        tau: Kendall's tau-b with the study's own ranking, in [-1, 1]; NaN if all tie.
    """

    metric: str
    way: str
    ranks: tuple[int, ...]
    tau: float

    @property
    def winners(self) -> tuple[int, ...]:
        """The positions of the variants that rank first."""
        return tuple(n for n, rank in enumerate(self.ranks) if rank == 1)


def rank_by_other_metrics(
    matrix: ScoreMatrix, comparison: Comparison, slice_dice: Mapping[str, float]
) -> list[Ranking]:
    """Rank the variants of a comparison by every metric and way; the study's own ranking is first.

    Args:
        matrix: The scores that were compared.
        comparison: Says which variants are ranked, and in which order.
        slice_dice: Variant -> mean Dice of all its slices with tumour; may be empty.

    Returns:
        Nothing if fewer than two variants are ranked. Each patient with every ranked variant
        counts, with the mean of the seeds that all of them have.
    """
    names = [item.variant for item in comparison.variants if item.ranks]
    if len(names) < 2:
        return []
    chosen = matrix.mapped(lambda values: values[[matrix.index(name) for name in names]])
    shared = np.asarray(chosen.tested.all(axis=0))
    metrics = {"Dice/patient": chosen.dice, "NSD": chosen.measures.get("nsd")}
    distances = chosen.measures.get("hd95_worst")
    metrics["HD95, worst case"] = None if distances is None else -distances
    found = []
    for metric, values in metrics.items():
        if values is None or np.isnan(values[:, shared]).any():
            continue
        by_patient = _average(values, shared)
        found += [(metric, way, merit) for way, merit in _merits(by_patient).items()]
    kinds = np.moveaxis(chosen.counts, -1, 0)
    counts = np.stack([_average(kind, shared) for kind in kinds], axis=-1)
    found.append(("global Dice", MEAN, dice(counts.sum(axis=1))))
    # Means over other slices than those that all of them tested would compare patients.
    if all(name in slice_dice for name in names) and (chosen.tested == shared).all():
        found.append(("Dice/slice", MEAN, np.array([slice_dice[name] for name in names])))
    primary = next(merit for *key, merit in found if tuple(key) == OWN_RANKING)
    return [
        Ranking(metric, way, _ranks(merit), _tau(primary, merit)) for metric, way, merit in found
    ]


def other_winners(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Return the rankings in which none of the study's own winners ranks first."""
    own = set(rankings[0].winners) if rankings else set()
    return [ranking for ranking in rankings if not own.intersection(ranking.winners)]


def _average(values: Floats, shared: NDArray[np.bool_]) -> Floats:
    """Return (V, P'): means of values (V, S, P) over shared cells, of patients that have one."""
    kept = shared.any(axis=0)
    cells = np.where(shared, values, 0)[:, :, kept].sum(axis=1)
    return np.asarray(cells / shared[:, kept].sum(axis=0))


def _merits(values: Floats) -> dict[str, Floats]:
    """Return way -> merit (V,) of values (V, P), both the higher the better."""
    ranks = stats.rankdata(-values.round(_DIGITS), axis=0)
    return {
        MEAN: values.mean(axis=1),
        MEDIAN: np.median(values, axis=1),
        MEAN_RANK: -ranks.mean(axis=1),
        WINS: _count_wins(values),
    }


def _count_wins(values: Floats) -> Floats:
    """Return how many of the others each variant beats, (V,), of values (V, P)."""
    pairs = list(itertools.permutations(range(len(values)), 2))
    found: dict[tuple[int, int], float] = {}
    for a, b in itertools.combinations(range(len(values)), 2):
        found[a, b], found[b, a] = signed_rank_tests(values[a] - values[b])
    p = correct_by_holm([found[pair] for pair in pairs])
    wins = np.zeros(len(values))
    for (a, _), value in zip(pairs, p, strict=True):
        wins[a] += value < LEVEL
    return wins


def signed_rank_tests(differences: Floats) -> tuple[float, float]:
    """Return the p-values of Wilcoxon's one-sided tests that differences are above, below 0.

    Zeros are dropped, ties share their mean rank. For up to 50 differences the p-values are exact
    with ties too: of each number of half ranks, the sign flips that give it as a sum are counted.
    For more, whose counting takes long, they are those of the normal approximation.

    Args:
        differences: (P,), each patient's difference.
    """
    differences = differences.round(_DIGITS)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0, 1.0
    ranks = stats.rankdata(np.abs(differences))
    if len(differences) > _EXACT:
        ties = np.unique(ranks, return_counts=True)[1]
        size = len(ranks)
        spread = size * (size + 1) * (2 * size + 1) / 24 - (ties**3 - ties).sum() / 48
        z = (ranks[differences > 0].sum() - ranks.sum() / 2) / math.sqrt(spread)
        return float(stats.norm.sf(z)), float(stats.norm.cdf(z))
    halves = np.rint(2 * ranks).astype(int)
    shares = np.zeros(halves.sum() + 1)
    shares[0] = 1
    for half in halves:
        shares[half:] += shares[:-half].copy()
        shares /= 2
    observed = halves[differences > 0].sum()
    return float(shares[observed:].sum()), float(shares[: observed + 1].sum())


def _ranks(merit: Floats) -> tuple[int, ...]:
    return tuple(int(rank) for rank in stats.rankdata(-merit.round(_DIGITS), method="min"))


def _tau(one: Floats, other: Floats) -> float:
    tau = float(stats.kendalltau(one.round(_DIGITS), other.round(_DIGITS)).statistic)
    return tau if math.isfinite(tau) else math.nan
