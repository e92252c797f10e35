"""What the spread of Dice/patient is made of: patient, variant, fold, seed and the rest.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from study.analysis.scores import Floats, ScoreMatrix

COMPONENTS = (
    *("variant", "patient", "fold", "variant x patient", "variant x fold", "seed"),
    "residual",
)

Levels = NDArray[np.int64]
"""int64 (N,): the level of a factor that each of N cells has, 0 to K - 1."""


def decompose(matrix: ScoreMatrix) -> dict[str, float]:
    """Return the share of each random component of Dice/patient.

    Variance components by the analysis of variance of unbalanced data, all of them random
    (Henderson 1953, method 1; Searle, Casella and McCulloch 1992, chapter 5): on balanced data the
    classical estimates, with failed trials still unbiased. Negative estimates count as 0.

    Returns:
        Shares that sum to 1 of:

        - variant: between variants, whoever is tested;
        - patient: between patients, whoever is asked;
        - fold: between training sets, over all variants;
        - variant x patient: which patients suit which variant;
        - variant x fold: which training sets suit which variant;
        - seed: between training runs of one variant on one training set;
        - residual: what is left.

        NaN where the study cannot tell a component from another: there it is part of another one's
        share. Only NaN if no cell differs from another.
    """
    v, s, p = np.nonzero(matrix.tested)
    fold = matrix.folds[s, p]
    if not len(v):
        return dict.fromkeys(COMPONENTS, np.nan)
    # A factor that parts the cells as an earlier one does cannot be told from it.
    factors = {
        "variant": _levels(v),
        "patient": _levels(p),
        "fold": _levels(fold),
        "variant x patient": _levels(v, p),
        "variant x fold": _levels(v, fold),
        "seed": _levels(v, fold, s),
    }
    everything, each = np.zeros_like(v), np.arange(len(v))
    told_apart: dict[str, Levels] = {}
    for name, levels in factors.items():
        if not any(_equal(levels, other) for other in (everything, each, *told_apart.values())):
            told_apart[name] = levels
    components = _solve(matrix.dice[v, s, p], [everything, *told_apart.values(), each])
    variances = dict(zip(told_apart, components[1:-1], strict=True))
    variances["residual"] = components[-1]
    total = sum(max(value, 0.0) for value in variances.values())
    if not total > 0:
        return dict.fromkeys(COMPONENTS, np.nan)
    return {name: max(variances.get(name, np.nan), 0.0) / total for name in COMPONENTS}


def _levels(*labels: Levels) -> Levels:
    return np.unique(np.stack(labels), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def _equal(left: Levels, right: Levels) -> bool:
    """Return whether two factors part the cells into the same groups."""
    pairs = np.unique(np.stack([left, right]), axis=1).shape[1]
    return bool(pairs == left.max() + 1 == right.max() + 1)


def _solve(values: Floats, factors: list[Levels]) -> list[float]:
    """Return the variance of each factor, in the scores' unit squared.

    Each factor's sum over groups of (sum of the group)^2 / size is set equal to its expectation,
    which is linear in the variances; the first factor, one group of all cells, is the mean's.
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
