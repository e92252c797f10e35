"""Scores by group: Dice/patient by tumour size, site and so on; slices that are wholly wrong.

Dice/patient of a group sums the counts of each patient's slices in the group, then averages
patients. Its interval resamples the group's own patients (`bootstrap.estimate_group_mean`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.bootstrap import Estimate, estimate_group_mean
from study.analysis.scores import Floats, dice_by_patient, sum_by_patient
from study.storage.schema import Row


@dataclass(frozen=True)
class Group:
    """A group of test slices and each variant's Dice/patient on them.

    Attributes:
        name: Name of the group.
        num_patients: Patients with at least one slice in the group.
        num_slices: Slices in the group.
        dice: Variant -> Dice/patient; variants without a score in the group are left out.
    """

    name: str
    num_patients: int
    num_slices: int
    dice: Mapping[str, Estimate]


@dataclass(frozen=True)
class Breakdown:
    """The test slices divided into groups by one property, such as the site."""

    title: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class SliceErrors:
    """How often a variant is wrong about a slice as a whole; each a mean over patients.

    Attributes:
        variant: Name of the variant.
        false_alarms: Share of a patient's tumour-free slices with predicted tumour.
        false_pixels: Predicted pixels per tumour-free slice.
        missed: Share of a patient's tumour slices without a true positive pixel.
    """

    variant: str
    false_alarms: Estimate
    false_pixels: Estimate
    missed: Estimate


def break_down(slices: pd.DataFrame, patients: Mapping[str, Row]) -> list[Breakdown]:
    """Divide the test slices into groups by each property that is known.

    Args:
        slices: The table of `scores.read_slices`.
        patients: Patient -> its row of patients.csv.

    Returns:
        By the patient's tumour, the slice's tumour, site, missing sequences, sex, grade and
        histology.
        A property with fewer than two groups is left out.
    """
    return [
        Breakdown(title, tuple(_group(name, own) for name, own in groups.items()))
        for title, groups in _divide(slices, patients)
        if len(groups) > 1
    ]


def average_slices(slices: pd.DataFrame) -> dict[str, Estimate]:
    """Return each variant's Dice/slice: the mean Dice over slices with tumour.

    The interval resamples patients with all of their slices, because slices of one patient are
    correlated.

    Args:
        slices: The table of `scores.read_slices`.
    """
    tumour = slices[_has_tumour(slices)]
    sizes = tumour.groupby("patient", observed=False)["slice"].nunique().to_numpy(np.float64)
    return _estimate_variants(tumour, _mean_by_patient(tumour, "Dice"), sizes)


def count_slice_errors(slices: pd.DataFrame) -> list[SliceErrors]:
    """Return how often each variant is wrong about a slice as a whole.

    Args:
        slices: The table of `scores.read_slices`.
    """
    predicted = slices["TP"] + slices["FP"]
    slices = slices.assign(predicted=predicted, alarm=predicted > 0, missed=slices["TP"] == 0)
    tumour = _has_tumour(slices)
    false_alarms = _mean_by_patient(slices[~tumour], "alarm")
    false_pixels = _mean_by_patient(slices[~tumour], "predicted")
    missed = _mean_by_patient(slices[tumour], "missed")
    return [
        SliceErrors(
            variant,
            estimate_group_mean(false_alarms[v]),
            estimate_group_mean(false_pixels[v], (0, np.inf)),
            estimate_group_mean(missed[v]),
        )
        for v, variant in enumerate(slices["variant"].cat.categories)
    ]


def _has_tumour(slices: pd.DataFrame) -> pd.Series:
    return slices["TP"] + slices["FN"] > 0


def _mean_by_patient(slices: pd.DataFrame, column: str) -> Floats:
    """Return (V, S, P): the mean of a column over slices, NaN where there is none."""
    return sum_by_patient(slices, column) / sum_by_patient(slices.assign(one=1), "one")


def _estimate_variants(
    slices: pd.DataFrame, values: Floats, sizes: Floats | None = None
) -> dict[str, Estimate]:
    """Return variant -> mean of its values (S, P); variants without a value are left out."""
    return {
        variant: estimate_group_mean(own, sizes=sizes)
        for variant, own in zip(slices["variant"].cat.categories, values, strict=True)
        if not np.isnan(own).all()
    }


def _group(name: str, slices: pd.DataFrame) -> Group:
    dice = _estimate_variants(slices, dice_by_patient(slices))
    count = len(slices.drop_duplicates(["patient", "slice"]))
    return Group(name, slices["patient"].nunique(), count, dice)


def _divide(
    slices: pd.DataFrame, patients: Mapping[str, Row]
) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Yield the title of each property, and the slices of each of its groups by name."""
    names = slices["patient"].cat.categories
    columns = ["tumour_pixels", "site", "sex", "grade", "histology"]
    rows = [patients.get(name, {}) for name in names]
    about = pd.DataFrame(rows, index=names, columns=columns).fillna("")
    own = about.loc[slices["patient"]].set_index(slices.index)
    if (about["tumour_pixels"] != "").all():
        areas = own["tumour_pixels"].astype(np.int64)
        population = about["tumour_pixels"].astype(np.int64)
        yield "Tumour of the patient, all slices together", _thirds(slices, areas, population)
    tumour = slices[slices["tumour_pixels"] > 0]
    if len(tumour):
        population = tumour.drop_duplicates(["patient", "slice"], keep="last")["tumour_pixels"]
        yield "Tumour in the slice", _thirds(tumour, tumour["tumour_pixels"], population)
    yield "Site", _by_label(slices, own["site"])
    yield "Missing sequence", _by_label(slices, slices["missing"], "none")
    yield "Sex", _by_label(slices, own["sex"])
    for title, key in (("Grade", "grade"), ("Histology", "histology")):
        codes = own[key].where(own[key] == "", "code " + own[key])
        yield f"{title}, as coded in data.csv", _by_label(slices, codes)


def _thirds(
    slices: pd.DataFrame, areas: pd.Series, population: pd.Series
) -> dict[str, pd.DataFrame]:
    """Divide slices at the thirds of a population of tumour areas in pixels."""
    low, high = np.quantile(population, [1 / 3, 2 / 3])
    thirds = {
        f"smallest third, up to {low:,.0f} px": areas <= low,
        f"middle third, up to {high:,.0f} px": (areas > low) & (areas <= high),
        f"largest third, above {high:,.0f} px": areas > high,
    }
    return {name: slices[third] for name, third in thirds.items() if third.any()}


def _by_label(
    slices: pd.DataFrame, labels: pd.Series, unlabelled: str = "not known"
) -> dict[str, pd.DataFrame]:
    return {str(name): own for name, own in slices.groupby(labels.replace("", unlabelled))}
