"""The result of an exploration: key numbers, findings, splits and a summary in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from brainseg.config import NUM_FOLDS, DataConfig
from brainseg.data.about import CHANNELS
from brainseg.data.patients import describe_patients
from brainseg.data.slice_store import SliceStore
from brainseg.explore.covariates import Covariate, compare_covariates, read_patient_table
from brainseg.explore.measurements import AIR, Measurements, Row, measure_slices
from brainseg.explore.quality import check_quality, check_splits

PUBLIC_DATASET = {"patients": 110, "slices": 3929}
"""The whole public dataset; the table published with the protocol swaps its two classes."""

_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Exploration:
    """The result of an exploration, from which page and JSON are written.

    Attributes:
        data: The dataset.
        found: Measurements of its slices.
        patients: A row per patient, see `describe_patients`, with tumour_share, the share of the
            patient's pixels that is tumour.
        covariates: Columns of patients' data, tested against tumour_share.
        card: Key numbers.
        findings: Sentences on quality.
        splits: Rows of `check_splits`.
        summary: The main results in sentences.
        seed: The seed of the random samples.
    """

    data: SliceStore
    found: Measurements
    patients: pd.DataFrame
    covariates: list[Covariate]
    card: Row
    findings: list[str]
    splits: list[Row]
    summary: list[str]
    seed: int

    def to_json(self) -> str:
        """Return all numbers as JSON text."""
        covariates = [
            {
                "name": covariate.name,
                "test": covariate.test,
                "p_value": _or_none(covariate.p_value),
                "adjusted": _or_none(covariate.adjusted),
            }
            for covariate in self.covariates
        ]
        slices = self.found.slices[["name", "patient", "tumour_pixels"]].assign(
            mean=self.found.means.round(3).tolist(),
            spread=self.found.spreads.round(3).tolist(),
            missing=self.found.slices["missing"],
        )
        tree: Row = {
            "summary": self.summary,
            "dataset": self.card,
            "findings": self.findings,
            "patients": self.patients.to_dict("records"),
            "splits": self.splits,
            "covariates": covariates,
            "components": self.found.components.to_dict("records"),
            "slices": slices.to_dict("records"),
            "seed": self.seed,
        }
        return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def explore(data: SliceStore, seed: int) -> Exploration:
    """Measure a dataset and check its quality.

    Args:
        data: The dataset.
        seed: The seed of the random samples.

    Raises:
        DataError: If its data.csv cannot be used.
    """
    table = read_patient_table(data.root / "data.csv")
    found = measure_slices(data)
    patients = pd.DataFrame(describe_patients(data))
    owner = pd.Series([item.patient for item in data.slices])
    sizes = pd.Series([height * width for height, width in data.shapes]).groupby(owner).sum()
    pixels = patients["patient"].map(sizes)
    patients["tumour_share"] = patients["tumour_pixels"] / pixels
    by_patient = patients.set_index("patient")
    columns = by_patient[["site"]]
    if len(table):
        columns = columns.reindex(table.index, fill_value="").join(table, rsuffix=" of data.csv")
    covariates = compare_covariates(columns, by_patient["tumour_share"])
    card = describe_dataset(data, found, patients)
    splits = check_splits(data, DataConfig().split_seed)
    return Exploration(
        data=data,
        found=found,
        patients=patients,
        covariates=covariates,
        card=card,
        findings=check_quality(data, found, patients, table),
        splits=splits,
        summary=summarise_in_words(card, found, splits, covariates),
        seed=seed,
    )


def describe_dataset(data: SliceStore, found: Measurements, patients: pd.DataFrame) -> Row:
    """Return the key numbers of a dataset, by name."""
    num_slices, num_tumour = len(data.slices), int(found.has_tumour.sum())
    parts_per_slice = found.components["slice"].value_counts()
    sites = patients["site"].replace("", "unknown")
    return {
        "root": data.root.name,
        "fingerprint": data.fingerprint,
        "synthetic": data.synthetic,
        "side": data.size,
        "sizes": len(set(data.shapes)),
        "patients": len(patients),
        "slices": num_slices,
        "tumour_slices": num_tumour,
        "tumour_free_slices": num_slices - num_tumour,
        "tumour_slice_share": num_tumour / num_slices,
        "tumour_pixel_share": float(
            found.tumour_areas.sum() / sum(height * width for height, width in data.shapes)
        ),
        "slices_per_patient": _distribution(patients["slices"]),
        "sites": sites.value_counts().sort_index().to_dict(),
        "missing": patients["missing"].value_counts().sort_index().to_dict(),
        "area": _distribution(found.tumour_areas),
        "components": len(found.components),
        "component_area": _distribution(found.components["area"]),
        "slices_with_several_components": int((parts_per_slice > 1).sum()),
        "intensity": {
            name: {
                "mean": float(found.means[:, channel].mean()),
                "spread": float(found.spreads[:, channel].mean()),
            }
            for channel, name in enumerate(found.channels)
        },
    }


def summarise_in_words(
    card: Row, found: Measurements, splits: Sequence[Row], covariates: Sequence[Covariate]
) -> list[str]:
    """Return the main results in sentences, the number of slices first."""
    sentences = [*_on_classes(card), *_on_size(card)]
    if found.has_tumour.any():
        sentences += [_on_position(found), _on_contrast(found)]
    sentences += [_on_sequences(card)] if found.channels == CHANNELS else []
    sentences.append(_on_splits(splits))
    tested = [covariate for covariate in covariates if covariate.test]
    if tested:
        related = [c.name for c in tested if c.adjusted < _SIGNIFICANCE]
        columns = "column" if len(tested) == 1 else "columns"
        verb = "is" if len(related) == 1 else "are"
        sentences.append(
            f"Of {len(tested)} {columns} on patients (site, data.csv), {len(related) or 'none'} "
            f"{verb} related to tumour size (adjusted p below {_SIGNIFICANCE:g})"
            + (f": {', '.join(related)}." if related else ".")
        )
    return sentences


def _on_classes(card: Row) -> list[str]:
    sentences = [
        f"{card['slices']:,} slices of {card['patients']} patients. {card['tumour_slices']:,} "
        f"slices ({card['tumour_slice_share']:.1%}) hold tumour, {card['tumour_free_slices']:,} "
        f"({1 - card['tumour_slice_share']:.1%}) do not."
    ]
    if all(card[key] == value for key, value in PUBLIC_DATASET.items()) and not card["synthetic"]:
        sentences.append(
            "This is the whole public dataset. The table published with the protocol swaps these "
            "two numbers: tumour-free slices are the larger class."
        )
    sentences.append(
        f"Tumour is {card['tumour_pixel_share']:.2%} of all pixels. A network that predicts no "
        f"tumour at all has an accuracy of {1 - card['tumour_pixel_share']:.4f}, so accuracy "
        "cannot rank networks."
    )
    return sentences


def _on_size(card: Row) -> list[str]:
    area, slices = card["area"], card["slices_per_patient"]
    few, many = slices["min"], slices["max"]
    sentences = [
        f"Patients have {few:.0f} to {many:.0f} slices (median {slices['median']:.0f}): a mean "
        "over slices weights patients by their number of slices, a mean over patients does not."
        if few < many
        else f"Every patient has {few:.0f} slices."
    ]
    if area["count"]:
        sentences.append(
            f"Tumour areas range from {area['min']:,.0f} to {area['max']:,.0f} pixels with a "
            f"median of {area['median']:,.0f}. The smallest tenth is below {area['p10']:,.0f}, "
            "where a few pixels change a slice's Dice much. "
            f"{card['slices_with_several_components']:,} of {card['tumour_slices']:,} masks have "
            "more than one component."
        )
    return sentences


def _on_position(found: Measurements) -> str:
    left = float((found.slices["x"][found.has_tumour] < 0.5).mean())
    return (
        f"{left:.0%} of the tumour masks have their centre in the left half of the picture, "
        f"{1 - left:.0%} in the right half. The most frequent tumour pixel is in "
        f"{found.heat.max() / found.has_tumour.sum():.0%} of the masks."
    )


def _on_contrast(found: Measurements) -> str:
    levels = np.arange(256)
    ratios = []
    for channel, name in enumerate(found.channels):
        tumour = found.tumour_histogram[channel]
        tissue = np.where(levels >= AIR, found.tissue_histogram[channel], 0)
        inside = float(tumour @ levels / max(tumour.sum(), 1))
        around = float(tissue @ levels / max(tissue.sum(), 1))
        ratios.append(f"{inside / around if around else 0:.2f} in {name}")
    return (
        "In slices with tumour, the mean level of tumour pixels divided by that of the rest of "
        f"the head is {', '.join(ratios)}."
    )


def _on_sequences(card: Row) -> str:
    missing = {name: count for name, count in card["missing"].items() if name}
    if not missing:
        return "No patient lacks a sequence: in none is a channel a copy of FLAIR throughout."
    counts = ", ".join(f"{name} in {count}" for name, count in missing.items())
    return (
        f"{sum(missing.values())} of {card['patients']} patients lack a sequence and have a copy "
        f"of FLAIR instead: {counts}."
    )


def _on_splits(splits: Sequence[Row]) -> str:
    failed = [row for row in splits if "error" in row]
    if failed:
        return f"{len(failed)} of {NUM_FOLDS} rotations cannot be built: {failed[0]['error']}."
    shares = [row["tumour_share"] for row in splits if row["part"] == "test"]
    shared = sum(row["shared_patients"] for row in splits)
    return (
        f"In all {NUM_FOLDS} rotations, {shared or 'no'} patients are in two parts. The share of "
        f"test slices with tumour ranges from {min(shares):.1%} to {max(shares):.1%}."
    )


def _distribution(values: Any) -> dict[str, float]:
    """Return count, extremes, quantiles and mean; zeros if there are no values."""
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return dict.fromkeys(("count", "min", "p10", "median", "p90", "max", "mean"), 0.0)
    low, middle, high = np.percentile(numbers, [10, 50, 90]).tolist()
    return {
        "count": float(len(numbers)),
        "min": float(numbers.min()),
        "p10": low,
        "median": middle,
        "p90": high,
        "max": float(numbers.max()),
        "mean": float(numbers.mean()),
    }


def _or_none(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON lacks."""
    return None if np.isnan(value) else value
