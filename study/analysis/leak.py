"""What a leaky split is worth: the same variant under slice-wise and under patient-wise folds.

Over all rotations both kinds of folds test each slice once. A patient's counts, summed over the
rotations, are then about the same slices, and the difference can be paired by patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brainseg.metrics import COUNT_NAMES, dice
from study.analysis.bootstrap import Estimate
from study.analysis.comparison import Pair, VariantScores, compare
from study.analysis.scores import Floats, ScoreMatrix
from study.spec.grid import LEAKY, Changes
from study.storage.schema import Row

_KEY = "data.split"


@dataclass(frozen=True)
class Leak:
    """A leaky variant beside the honest one that differs from it in the split alone.

    Attributes:
        leaky: Name of the leaky variant.
        honest: Name of the honest variant; empty if the study has none.
        scores: Leaky and honest scores, on the patients all of whose slices both tested.
        difference: Leaky minus honest by Dice/patient on them; None if there is no such patient.
        num_left: Patients that were left out because a part of their slices was tested.
    """

    leaky: str
    honest: str
    scores: tuple[VariantScores, ...]
    difference: Pair | None
    num_left: int


def measure_leaks(scores: Sequence[Row], variants: Mapping[str, Changes]) -> list[Leak]:
    """Return what each leaky variant gains over the honest one.

    Args:
        scores: Rows of scores.csv.
        variants: Name -> the keys in which it differs from the base experiment.
    """
    found = []
    for leaky, changes in variants.items():
        if leaky.startswith(LEAKY):
            same = [name for name in variants if _without(variants[name]) == _without(changes)]
            honest = next((name for name in same if not name.startswith(LEAKY)), "")
            found.append(_measure(scores, leaky, honest))
    return found


def _without(changes: Changes) -> Changes:
    return {key: value for key, value in changes.items() if key != _KEY}


def _measure(scores: Sequence[Row], leaky: str, honest: str) -> Leak:
    sums = {name: _sum_over_rotations(scores, name) for name in (leaky, honest)}
    shared = sums[leaky].keys() & sums[honest].keys()
    # Equal numbers of pixels: all slices of the patient were tested by both.
    whole = [cell for cell in shared if sums[leaky][cell].sum() == sums[honest][cell].sum()]
    left = {patient for _, patient in sums[leaky].keys() - set(whole)}
    left -= {patient for _, patient in whole}
    if not whole:
        return Leak(leaky, honest, (), None, len(left))
    seeds = tuple(sorted({seed for seed, _ in whole}))
    patients = tuple(sorted({patient for _, patient in whole}))
    counts = np.full((2, len(seeds), len(patients), 4), np.nan)
    for seed, patient in whole:
        for v, name in enumerate((leaky, honest)):
            counts[v, seeds.index(seed), patients.index(patient)] = sums[name][seed, patient]
    tested = ~np.isnan(counts[..., 0])
    values = np.where(tested, dice(np.nan_to_num(counts)), np.nan)
    folds = np.where(tested[0], 0, -1)
    matrix = ScoreMatrix((leaky, honest), seeds, patients, folds, counts, values)
    comparison = compare(matrix)
    (pair,) = comparison.pairs
    scores_of = {item.variant: item for item in comparison.variants}
    return Leak(
        leaky, honest, (scores_of[leaky], scores_of[honest]), _leaky_first(pair, leaky), len(left)
    )


def _leaky_first(pair: Pair, leaky: str) -> Pair:
    """Return the pair as leaky minus honest, also where the honest one scored better."""
    if pair.first == leaky:
        return pair
    point, low, high = (getattr(pair.difference, name) for name in ("point", "low", "high"))
    return replace(
        pair,
        first=leaky,
        second=pair.first,
        difference=Estimate(-point, -high, -low),
        share_better=1 - pair.share_better,
        improvement=1 - pair.improvement,
    )


def _sum_over_rotations(scores: Sequence[Row], variant: str) -> dict[tuple[int, str], Floats]:
    """Return (seed, patient) -> float64 (4,): TP, FP, FN, TN of all rotations."""
    sums: dict[tuple[int, str], Floats] = defaultdict(lambda: np.zeros(4))
    for row in scores:
        if row["variant"] == variant:
            counts = [float(row[name]) for name in COUNT_NAMES]
            sums[int(row["seed"]), str(row["patient"])] += counts
    return dict(sums)
