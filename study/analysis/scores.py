"""Test scores from a study's CSV files: scores.csv as arrays, slices.csv as a pandas table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainseg.errors import StudyError
from brainseg.metrics import COUNT_NAMES, dice, volume_similarity
from study.spec.trial_job import trial_name
from study.storage.schema import EXTERNAL, UNFINISHED, Row

Floats = NDArray[np.float64]

MEASURES = (
    "hd95",
    "hd95_worst",
    "nsd",
    "lesions_found",
    "lesions_missed",
    "lesions_invented",
    *("hd95_mm", "hd95_worst_mm", "nsd_mm"),
)
"""Columns of scores.csv beside the pixel counts; older studies lack some, or all.

Those in millimetres are there only if the spacing of the pixels is known."""

_CELL = ("variant", "seed", "patient")


@dataclass(frozen=True)
class ScoreMatrix:
    """The test scores of a study; a cell is one variant, trained with one seed, on one patient.

    Attributes:
        variants: V names in the order of the plan, those without scores included.
        seeds: S seeds, ascending.
        patients: P names, in alphabetical order.
        folds: int64 (S, P): the fold in which a patient was tested with a seed, -1 if in none.
        counts: float64 (V, S, P, 4): TP, FP, FN, TN in pixels, summed over a patient's slices.
        dice: float64 (V, S, P): each patient's Dice, in [0, 1].
        measures: Name -> float64 (V, S, P): those of `MEASURES` and `volume_similarity`; NaN also
            where one is undefined or was not measured.
        num_trials: Trials in the plan.
        missing: Names of the planned trials that have no scores.
        ends: Variant -> status -> number of its planned trials that ended so.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    folds: NDArray[np.int64]
    counts: Floats
    dice: Floats
    measures: Mapping[str, Floats] = field(default_factory=dict)
    num_trials: int = 0
    missing: tuple[str, ...] = ()
    ends: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def tested(self) -> NDArray[np.bool_]:
        """Cells that have scores, bool (V, S, P)."""
        return ~np.isnan(self.dice)

    def without(self, variants: Collection[str]) -> ScoreMatrix:
        """Return the scores of all other variants."""
        kept = [v for v, variant in enumerate(self.variants) if variant not in variants]
        chosen = self.mapped(lambda values: values[kept])
        return replace(chosen, variants=tuple(self.variants[v] for v in kept))

    def mapped(self, change: Callable[[Floats], Floats]) -> ScoreMatrix:
        """Return the matrix with all its scores changed; axes V, S and P come first."""
        measures = {name: change(values) for name, values in self.measures.items()}
        return replace(self, counts=change(self.counts), dice=change(self.dice), measures=measures)

    def of_patients(self, patients: Collection[str]) -> ScoreMatrix:
        """Return the scores of some of the patients."""
        kept = np.array([patient in patients for patient in self.patients], bool)
        return replace(
            self.mapped(lambda values: values[:, :, kept]),
            patients=tuple(patient for patient in self.patients if patient in patients),
            folds=self.folds[:, kept],
        )

    def scored_seeds(self, external: Collection[str] = ()) -> tuple[int, ...]:
        """Return the seeds with which a training has scores.

        Args:
            external: Variants that were not trained here, whose scores stand for every seed.
        """
        trained = self.without(external).tested
        tested = np.asarray((trained if trained.any() else self.tested).any(axis=(0, 2)))
        return tuple(seed for seed, has in zip(self.seeds, tested, strict=True) if has)

    def index(self, variant: str) -> int:
        """Return the index of a variant."""
        return self.variants.index(variant)


def read_matrix(scores: Sequence[Row], trials: Sequence[Row] = ()) -> ScoreMatrix:
    """Arrange the rows of scores.csv as a matrix.

    Args:
        scores: Rows of scores.csv, values as text or numbers. The columns of `MEASURES` may be
            absent, or empty where one is undefined.
        trials: Rows of trials.csv, which name the trials without scores too.

    Raises:
        StudyError: If a cell has two rows, a patient was tested in two folds with one seed, or a
            value is not a number.
    """
    variants = tuple(dict.fromkeys(str(row["variant"]) for row in chain(trials, scores)))
    seeds = tuple(sorted({int(row["seed"]) for row in chain(trials, scores)}))
    patients = tuple(sorted({str(row["patient"]) for row in scores}))
    shape = (len(variants), len(seeds), len(patients))
    values = np.full((*shape, 5 + len(MEASURES)), np.nan)
    folds = np.full(shape[1:], -1, dtype=np.int64)
    index_of = {name: index for index, name in enumerate(patients)}
    for row in scores:
        v, s = variants.index(str(row["variant"])), seeds.index(int(row["seed"]))
        p = index_of[str(row["patient"])]
        if not np.isnan(values[v, s, p, 4]):
            raise StudyError(f"scores.csv has two rows for {_cell(row)}; keep one")
        if folds[s, p] not in (-1, int(row["fold"])):
            raise StudyError(
                f"scores.csv tests {_cell(row)} in folds {folds[s, p]} and {row['fold']}; "
                "a patient belongs to one fold"
            )
        folds[s, p] = int(row["fold"])
        values[v, s, p] = _values(row)
    scored, planned = (
        dict.fromkeys(trial_name(r["variant"], r["fold"], r["seed"]) for r in rows)
        for rows in (scores, chain(trials, scores))
    )
    missing = tuple(trial for trial in planned if trial not in scored)
    num_trials = len(planned) - sum(row.get("status") == EXTERNAL for row in trials)
    counts = values[..., :4]
    measures = {name: values[..., 5 + n] for n, name in enumerate(MEASURES)}
    tested = ~np.isnan(counts[..., 0])
    # Trials of an older version, or begun before headers gave the spacing, have no millimetres.
    partly = (tested & np.isnan(measures["nsd_mm"])).any(axis=(1, 2))
    for name in ("hd95_mm", "hd95_worst_mm", "nsd_mm"):
        measures[name][partly] = np.nan
    measures["volume_similarity"] = np.where(tested, volume_similarity(counts), np.nan)
    return ScoreMatrix(
        variants,
        seeds,
        patients,
        folds,
        counts,
        values[..., 4],
        measures,
        num_trials,
        missing,
        count_ends(trials),
    )


def count_ends(trials: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Return variant -> status -> number of rows of trials.csv."""
    ends: dict[str, dict[str, int]] = {}
    for row in trials:
        own = ends.setdefault(str(row["variant"]), {})
        status = str(row.get("status", UNFINISHED))
        own[status] = own.get(status, 0) + 1
    return ends


def _values(row: Row) -> list[float]:
    """Return TP, FP, FN, TN, Dice and the measures of a row of scores.csv."""
    try:
        values = [float(row[column]) for column in (*COUNT_NAMES, "Dice")]
        cells = [row.get(name) for name in MEASURES]
        measures = [np.nan if cell in ("", None) else float(cell) for cell in cells]
    except ValueError as error:
        raise StudyError(f"scores.csv, row of {_cell(row)}: {error}; write a number") from error
    if not np.isfinite(values).all():
        raise StudyError(f"scores.csv, row of {_cell(row)}: {values} must be finite numbers")
    return [*values, *measures]


def _cell(row: Row) -> str:
    return f"variant {row['variant']}, seed {row['seed']}, patient {row['patient']}"


def read_slices(rows: Sequence[Row]) -> pd.DataFrame:
    """Return slices.csv as a table with a row per variant, seed and test slice.

    Args:
        rows: Rows of slices.csv, values as text.

    Returns:
        The columns variant (categories in the order of the file), seed and patient (categories in
        ascending order), slice (name), fold, TP, FP, FN, TN (int64, in pixels), Dice (float64, of
        these counts), tumour_pixels (int64, of the slice as stored) and missing (text, the
        sequences that the slice lacks).
    """
    columns = (*_CELL, "slice", "fold", *COUNT_NAMES, "tumour_pixels", "missing")
    slices = pd.DataFrame(list(rows), columns=columns)
    whole = ("seed", "fold", *COUNT_NAMES, "tumour_pixels")
    slices = slices.astype(dict.fromkeys(whole, np.int64))
    slices = slices.astype({"seed": "category", "patient": "category"})
    slices["variant"] = pd.Categorical(slices["variant"], slices["variant"].unique())
    slices["Dice"] = dice(slices[list(COUNT_NAMES)].to_numpy())
    return slices


def sum_by_patient(slices: pd.DataFrame, column: str) -> Floats:
    """Sum a column over the slices of each variant, seed and patient.

    Args:
        slices: Some rows of the table of `read_slices`.
        column: Name of a numeric column.

    Returns:
        (V, S, P), a cell per category of each column; NaN where there is no slice.
    """
    keys = [slices[key].cat for key in _CELL]
    shape = [len(key.categories) for key in keys]
    cell = np.ravel_multi_index([key.codes for key in keys], shape)
    size = int(np.prod(shape))
    # groupby.sum would compensate for rounding, and so change last digits.
    sums = np.bincount(cell, slices[column], size)
    return np.where(np.bincount(cell, minlength=size) > 0, sums, np.nan).reshape(shape)


def dice_by_patient(slices: pd.DataFrame) -> Floats:
    """Return the Dice (V, S, P) of the counts summed over each patient's slices, or NaN."""
    counts = np.stack([sum_by_patient(slices, column) for column in COUNT_NAMES], axis=-1)
    return np.where(np.isnan(counts[..., 0]), np.nan, dice(counts))
