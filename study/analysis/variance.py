"""Variance components: which share of the spread of Dice/patient patients, seeds etc. cause."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from study.analysis.scores import Floats, ScoreMatrix

MEANINGS = {
    "variant": "differences between variants",
    "patient": "differences between patients, the same for all variants",
    "fold": "differences between training sets, the same for all variants",
    "variant x patient": "patients on which some variants do better than others",
    "variant x fold": "training sets with which some variants do better than others",
    "seed": "differences between training runs of one variant on one training set",
    "residual": "the rest",
}
"""Component -> what it is."""

COMPONENTS = tuple(MEANINGS)

Levels = NDArray[np.int64]
"""int64 (N,): the level of a factor in each of N cells, 0 to K - 1."""


def decompose(matrix: ScoreMatrix) -> dict[str, float]:
    """Return the share of each random component in the variance of Dice/patient.

    Variance components by the analysis of variance of unbalanced data, with all factors random
    (Henderson 1953, method 1; Searle, Casella and McCulloch 1992, chapter 5). On balanced data
    these are the classical estimates; failed trials leave them unbiased. Negative estimates are
    set to 0.

    Returns:
        Component, see `MEANINGS` -> share; the shares sum to 1.

        A component that the study cannot separate from another one is NaN and is part of the other
        one's share. All are NaN if all cells are equal.
    """
    v, s, p = np.nonzero(matrix.tested)
    fold = matrix.folds[s, p]
    if not len(v):
        return dict.fromkeys(COMPONENTS, np.nan)
    # A factor that groups the cells as an earlier one does cannot be separated from it.
    factors = {
        "variant": _levels(v),
        "patient": _levels(p),
        "fold": _levels(fold),
        "variant x patient": _levels(v, p),
        "variant x fold": _levels(v, fold),
        "seed": _levels(v, fold, s),
    }
    everything, each = np.zeros_like(v), np.arange(len(v))
    separable: dict[str, Levels] = {}
    for name, levels in factors.items():
        if not any(_equal(levels, other) for other in (everything, each, *separable.values())):
            separable[name] = levels
    components = _solve(matrix.dice[v, s, p], [everything, *separable.values(), each])
    variances = dict(zip(separable, components[1:-1], strict=True))
    variances["residual"] = components[-1]
    total = sum(max(value, 0.0) for value in variances.values())
    if not total > 0:
        return dict.fromkeys(COMPONENTS, np.nan)
    return {name: max(variances.get(name, np.nan), 0.0) / total for name in COMPONENTS}


def _levels(*labels: Levels) -> Levels:
    return np.unique(np.stack(labels), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def _equal(left: Levels, right: Levels) -> bool:
    """Return whether two factors group the cells in the same way."""
    pairs = np.unique(np.stack([left, right]), axis=1).shape[1]
    return bool(pairs == left.max() + 1 == right.max() + 1)


def _solve(values: Floats, factors: list[Levels]) -> list[float]:
    """Return the variance of each factor, in the scores' unit squared.

    Each factor's sum over groups of (sum of the group)^2 / size is set equal to its expectation,
    which is linear in the variances. The first factor, one group of all cells, is the mean.
    """
    sums = [_between(values - values.mean(), levels) for levels in factors]
    expected = np.array([[_coefficient(a, b) for b in factors] for a in factors])
    if np.linalg.matrix_rank(expected) < len(factors):
        return [np.nan] * len(factors)
    return [float(value) for value in np.linalg.solve(expected, np.array(sums))]


def _between(values: Floats, levels: Levels) -> float:
    return float((np.bincount(levels, values) ** 2 / np.bincount(levels)).sum())


def _coefficient(groups: Levels, others: Levels) -> float:
    pairs, counts = np.unique(np.stack([groups, others]), axis=1, return_counts=True)
    return float((counts**2 / np.bincount(groups)[pairs[0]]).sum())
