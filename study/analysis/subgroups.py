"""Scores by group: of patients and of slices.

A group's Dice/patient sums each patient's slices of the group and averages patients. Its interval
is that of `study/resample.py`, over the group's own patients. Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg.metrics import dice
from study.analysis.bootstrap import (
    Draws,
    Estimate,
    Statistic,
    divide,
    draw,
    estimate,
    mean_over_patients,
    weigh,
)
from study.analysis.scores import Chosen, Floats, SliceScores
from study.storage.tables import Row

_THIRDS = ("smallest third", "middle third", "largest third")


@dataclass(frozen=True)
class Group:
    """Some slices, and each variant's Dice/patient on them.

    Attributes:
        name: Of the group.
        num_patients: Patients with at least one of the slices.
        num_slices: How many there are.
        dice: Variant -> estimate; one without such slices is left out.
    """

    name: str
    num_patients: int
    num_slices: int
    dice: Mapping[str, Estimate]


@dataclass(frozen=True)
class Breakdown:
    """One way to part patients or slices into groups."""

    title: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Alarms:
    """Slices on which one variant is wrong as a whole; each a mean over patients.

    Attributes:
        variant: Its name.
        false_alarms: Share of a patient's tumour-free slices on which tumour is predicted.
        false_pixels: Predicted pixels per tumour-free slice.
        missed: Share of a patient's tumour slices on which no tumour pixel is found.
    """

    variant: str
    false_alarms: Estimate
    false_pixels: Estimate
    missed: Estimate


class Estimator:
    """Estimates means over patients from arrays (S, P); equal calls give equal numbers."""

    def __init__(self, seed: int = 44) -> None:
        """Draw nothing yet."""
        self._seed = seed
        self._draws: dict[tuple[int, int], Draws] = {}

    def __call__(
        self,
        values: Floats,
        bounds: tuple[float, float] = (0, 1),
        sizes: Floats | None = None,
    ) -> Estimate:
        """Return the mean over patients who have a value, each one's mean over seeds.

        Args:
            values: (S, P), NaN where there is none; at least one is there.
            bounds: Of the values.
            sizes: (P,), how much each patient counts; all alike if left out.
        """
        has_value = ~np.isnan(values).all(axis=0)
        own = values[:, has_value]
        num_seeds, num_patients = own.shape
        key = (num_patients, num_seeds)
        if key not in self._draws:
            self._draws[key] = draw(*key, np.random.default_rng([self._seed, *key]))
        statistic = mean_over_patients(own)
        if sizes is not None:
            statistic = _weighted_mean(own, sizes[has_value])
        return estimate(statistic, self._draws[key], num_patients, bounds)


def _weighted_mean(values: Floats, sizes: Floats) -> Statistic:
    weights = weigh(values) * sizes
    weighted = np.nan_to_num(values) * weights
    return lambda draws: divide(draws.total(weighted), draws.total(weights))


def break_down(scores: SliceScores, patients: Mapping[str, Row]) -> list[Breakdown]:
    """Part the test slices in every way that the data allow.

    Args:
        scores: slices.csv.
        patients: Patient -> its row of patients.csv.

    Returns:
        By the patient's tumour, the slice's tumour, site, missing sequences, grade and histology;
        a way that gives fewer than two groups is left out.
    """
    estimator = Estimator()
    found = []
    for title, chosen_of in _ways(scores, patients):
        groups = [_group(scores, name, chosen, estimator) for name, chosen in chosen_of.items()]
        if len(groups) > 1:
            found.append(Breakdown(title, tuple(groups)))
    return found


def average_slices(scores: SliceScores) -> dict[str, Estimate]:
    """Return, per variant, Dice/slice: the mean Dice of single slices that hold tumour.

    Its interval redraws patients with all of their slices: slices of one patient are alike.
    """
    estimator = Estimator()
    means = _share(scores, scores.has_tumour, dice(scores.counts))
    holders = scores.patient[scores.has_tumour]
    slices = scores.name[scores.has_tumour]
    of_patient = np.unique(np.stack([holders, slices]), axis=1)[0]
    sizes = np.bincount(of_patient, minlength=len(scores.patients)).astype(np.float64)
    return {
        variant: estimator(means[v], sizes=sizes)
        for v, variant in enumerate(scores.variants)
        if not np.isnan(means[v]).all()
    }


def count_alarms(scores: SliceScores) -> list[Alarms]:
    """Return, per variant, how often slices are wrong as a whole."""
    estimator = Estimator()
    tumour, empty = scores.has_tumour, ~scores.has_tumour
    predicted = scores.counts[:, :2].sum(axis=1)
    false_alarms = _share(scores, empty, predicted > 0)
    false_pixels = _share(scores, empty, predicted)
    missed = _share(scores, tumour, scores.counts[:, 0] == 0)
    return [
        Alarms(
            variant,
            _or_nan(estimator, false_alarms[v], (0, 1)),
            _or_nan(estimator, false_pixels[v], (0, np.inf)),
            _or_nan(estimator, missed[v], (0, 1)),
        )
        for v, variant in enumerate(scores.variants)
    ]


def _or_nan(estimator: Estimator, values: Floats, bounds: tuple[float, float]) -> Estimate:
    if np.isnan(values).all():
        return Estimate(np.nan, np.nan, np.nan)
    return estimator(values, bounds)


def _share(scores: SliceScores, chosen: Chosen, values: NDArray[np.generic]) -> Floats:
    """Mean of the values over each variant's, seed's and patient's chosen entries, (V, S, P)."""
    shape = (len(scores.variants), len(scores.seeds), len(scores.patients))
    cell = np.ravel_multi_index((scores.variant, scores.seed, scores.patient), shape)[chosen]
    size = int(np.prod(shape))
    total = np.bincount(cell, values[chosen].astype(np.float64), size)
    times = np.bincount(cell, minlength=size)
    means: Floats = np.divide(total, times, out=np.full(size, np.nan), where=times > 0)
    return means.reshape(shape)


def _group(scores: SliceScores, name: str, chosen: Chosen, estimator: Estimator) -> Group:
    by_patient = scores.dice_by_patient(chosen)
    return Group(
        name,
        len(np.unique(scores.patient[chosen])),
        len(np.unique(scores.name[chosen])),
        {
            variant: estimator(values)
            for variant, values in zip(scores.variants, by_patient, strict=True)
            if not np.isnan(values).all()
        },
    )


def _ways(
    scores: SliceScores, patients: Mapping[str, Row]
) -> Iterator[tuple[str, dict[str, Chosen]]]:
    """Yield the name of a way, and its groups' names with their entries."""
    rows = [patients.get(name, {}) for name in scores.patients]
    if all(row.get("tumour_pixels") for row in rows):
        area = np.array([int(row["tumour_pixels"]) for row in rows])
        yield "Tumour of the patient, all slices together", _thirds(area[scores.patient], area)
    areas = np.zeros(len(scores.names), np.int64)
    areas[scores.name] = scores.tumour_pixels
    with_tumour = areas[areas > 0]
    if len(with_tumour):
        thirds = _thirds(scores.tumour_pixels, with_tumour)
        yield "Tumour in the slice", {n: c & (scores.tumour_pixels > 0) for n, c in thirds.items()}
    yield "Site", _by_label(scores, rows, lambda row: row.get("site", ""))
    names = np.where(scores.missing == "", "none", scores.missing)
    yield "Missing sequence", {str(n): np.asarray(names == n) for n in np.unique(names)}
    for title, key in (("Grade", "grade"), ("Histology", "histology")):
        groups = _by_label(scores, rows, lambda row, key=key: _code(row, key))  # type: ignore[misc]
        yield f"{title}, as coded in data.csv", groups


def _thirds(values: NDArray[np.int64], population: NDArray[np.int64]) -> dict[str, Chosen]:
    """Part entries at the thirds of a population of areas in pixels."""
    low, high = np.quantile(population, [1 / 3, 2 / 3])
    names = (f"up to {low:,.0f} px", f"up to {high:,.0f} px", f"above {high:,.0f} px")
    parts = (values <= low, (values > low) & (values <= high), values > high)
    return {
        f"{third}, {name}": part
        for third, name, part in zip(_THIRDS, names, parts, strict=True)
        if part.any()
    }


def _code(row: Row, key: str) -> str:
    return f"code {row[key]}" if row.get(key) else ""


def _by_label(
    scores: SliceScores, rows: list[Row], label_of: Callable[[Row], str]
) -> dict[str, Chosen]:
    labels = np.array([label_of(row) or "not known" for row in rows])
    if not len(labels) or set(labels) == {"not known"}:
        return {}
    return {str(n): np.asarray(labels[scores.patient] == n) for n in np.unique(labels)}
