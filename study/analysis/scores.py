"""scores.csv -> the score matrix: variants x seeds x patients, NaN where a trial is missing.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from brainseg.errors import StudyError
from brainseg.metrics import Counts, dice
from study.spec.grid import WINNER
from study.storage.tables import Row

Floats = NDArray[np.float64]

_COUNTS = ("TP", "FP", "FN", "TN")


@dataclass(frozen=True)
class ScoreMatrix:
    """The test scores of a study. A cell is one variant, trained with one seed, on one patient.

    Attributes:
        variants: V names in the order of the plan, those without any score included.
        seeds: S seeds, ascending.
        patients: P names, in alphabetical order.
        folds: int64 (S, P): the fold in which a patient was tested with a seed, -1 if in none.
        counts: float64 (V, S, P, 4): TP, FP, FN, TN in pixels, summed over a patient's slices.
        dice: float64 (V, S, P): each patient's Dice, in [0, 1].
        hd95: float64 (V, S, P): 95th percentile of the Hausdorff distance in pixels; NaN also
            where it is undefined or was not measured.
        num_trials: Trials that were asked for.
        missing: Names of those of them that have no scores.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    folds: NDArray[np.int64]
    counts: Floats
    dice: Floats
    hd95: Floats
    num_trials: int = 0
    missing: tuple[str, ...] = ()

    @property
    def tested(self) -> NDArray[np.bool_]:
        """Bool (V, S, P): the cells that have scores."""
        return ~np.isnan(self.dice)

    def index(self, variant: str) -> int:
        """Return a variant's position."""
        return self.variants.index(variant)


def read_matrix(scores: Sequence[Row], trials: Sequence[Row] = ()) -> ScoreMatrix:
    """Arrange the rows of scores.csv.

    Args:
        scores: Rows of scores.csv, values as text or numbers; the column hd95 may be absent, or
            empty where a distance is undefined.
        trials: Rows of trials.csv, so that trials without scores are known.

    Raises:
        StudyError: If a cell has two rows, a patient was tested in two folds with one seed, or a
            value is not a number.
    """
    variants = tuple(dict.fromkeys(str(row["variant"]) for row in chain(trials, scores)))
    seeds = tuple(sorted({int(row["seed"]) for row in chain(trials, scores)}))
    patients = tuple(sorted({str(row["patient"]) for row in scores}))
    shape = (len(variants), len(seeds), len(patients))
    numbers = np.full((*shape, 6), np.nan)
    folds = np.full(shape[1:], -1, dtype=np.int64)
    position = {name: p for p, name in enumerate(patients)}
    for row in scores:
        v, s = variants.index(str(row["variant"])), seeds.index(int(row["seed"]))
        p = position[str(row["patient"])]
        if not np.isnan(numbers[v, s, p, 4]):
            raise StudyError(f"scores.csv has two rows for {_cell(row)}; keep one")
        if folds[s, p] not in (-1, int(row["fold"])):
            raise StudyError(
                f"scores.csv tests {_cell(row)} in folds {folds[s, p]} and {row['fold']}; "
                "a patient belongs to one fold"
            )
        folds[s, p] = int(row["fold"])
        numbers[v, s, p] = _numbers(row)
    asked, missing = _missing(scores, trials)
    counts, dice, hd95 = numbers[..., :4], numbers[..., 4], numbers[..., 5]
    return ScoreMatrix(variants, seeds, patients, folds, counts, dice, hd95, asked, missing)


def read_factors(trials: Sequence[Row]) -> dict[str, tuple[str, bool]]:
    """Return variant -> its encoder, and whether its slices are preprocessed.

    A search's winner is left out: it differs from the others in more than these two.

    Args:
        trials: Rows of trials.csv, values as text or as they are.
    """
    return {
        str(row["variant"]): (str(row["encoder"]), str(row["preprocessed"]) == "True")
        for row in trials
        if not str(row["variant"]).startswith(WINNER)
    }


def _numbers(row: Row) -> list[float]:
    try:
        values = [float(row[column]) for column in (*_COUNTS, "Dice")]
        distance = row.get("hd95")
        values.append(np.nan if distance in ("", None) else float(distance))
    except ValueError as error:
        raise StudyError(f"scores.csv, row of {_cell(row)}: {error}") from error
    if not np.isfinite(values[:5]).all():
        raise StudyError(f"scores.csv, row of {_cell(row)}: a value is not finite")
    return values


def _missing(scores: Sequence[Row], trials: Sequence[Row]) -> tuple[int, tuple[str, ...]]:
    def name(row: Row) -> str:
        return f"{row['variant']}-fold{row['fold']}-seed{row['seed']}"

    scored = dict.fromkeys(map(name, scores))
    asked = dict.fromkeys(map(name, chain(trials, scores)))
    return len(asked), tuple(trial for trial in asked if trial not in scored)


def _cell(row: Row) -> str:
    return f"variant {row['variant']}, seed {row['seed']}, patient {row['patient']}"


# --- slices ---

Indices = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class SliceScores:
    """N entries, one per variant, seed and test slice.

    Attributes:
        variants: V names, in the order of the file.
        seeds: S seeds, ascending.
        patients: P names, in alphabetical order.
        names: L slices, in the order of the file.
        variant: int64 (N,), positions in `variants`; likewise `seed`, `patient` and `name`.
        fold: int64 (N,).
        counts: int64 (N, 4), TP, FP, FN, TN.
        tumour_pixels: int64 (N,), of the slice as stored.
        missing: Text (N,), the sequences that the slice lacks.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    names: tuple[str, ...]
    variant: Indices
    seed: Indices
    patient: Indices
    name: Indices
    fold: Indices
    counts: Counts
    tumour_pixels: Indices
    missing: NDArray[np.str_]

    @property
    def is_first(self) -> Chosen:
        """Bool (N,): of its variant and slice no entry has a lower seed."""
        order = np.lexsort((self.seed, self.name, self.variant))
        same = [values[order][1:] == values[order][:-1] for values in (self.variant, self.name)]
        first = np.ones(len(order), bool)
        first[order[1:]] = ~np.logical_and(*same)
        return first

    @property
    def has_tumour(self) -> Chosen:
        """Bool (N,): the slice holds tumour at the network's own size."""
        return np.asarray(self.counts[:, 0] + self.counts[:, 2] > 0)

    def dice_by_patient(self, chosen: Chosen) -> Floats:
        """Return Dice (V, S, P) of some entries' summed counts, NaN where there is no entry."""
        counts = self.sum_by_patient(chosen)
        return np.where(np.isnan(counts[..., 0]), np.nan, dice(counts))

    def sum_by_patient(self, chosen: Chosen) -> Floats:
        """Sum the counts of some entries over each variant's, seed's and patient's slices.

        Args:
            chosen: bool (N,).

        Returns:
            (V, S, P, 4), NaN where there is no such slice.
        """
        shape = (len(self.variants), len(self.seeds), len(self.patients))
        cell = np.ravel_multi_index((self.variant, self.seed, self.patient), shape)[chosen]
        size = int(np.prod(shape))
        counts = self.counts[chosen].astype(np.float64)
        columns = [np.bincount(cell, counts[:, c], size) for c in range(4)]
        sums: Floats = np.stack(columns, axis=-1).astype(np.float64)
        sums[np.bincount(cell, minlength=size) == 0] = np.nan
        return sums.reshape(*shape, 4)


def read_slices(rows: Sequence[Row]) -> SliceScores:
    """Arrange the rows of slices.csv, values as text."""

    def positions(key: str, values: tuple[object, ...], kind: Callable[[str], object]) -> Indices:
        place = {value: position for position, value in enumerate(values)}
        return np.array([place[kind(row[key])] for row in rows], np.int64)

    variants = tuple(dict.fromkeys(row["variant"] for row in rows))
    seeds = tuple(sorted({int(row["seed"]) for row in rows}))
    patients = tuple(sorted({row["patient"] for row in rows}))
    names = tuple(dict.fromkeys(row["slice"] for row in rows))
    counts = [[int(row[key]) for key in ("TP", "FP", "FN", "TN")] for row in rows]
    return SliceScores(
        variants,
        seeds,
        patients,
        names,
        positions("variant", variants, str),
        positions("seed", seeds, int),
        positions("patient", patients, str),
        positions("slice", names, str),
        np.array([int(row["fold"]) for row in rows], np.int64),
        np.array(counts, np.int64).reshape(-1, 4),
        np.array([int(row["tumour_pixels"]) for row in rows], np.int64),
        np.array([row["missing"] for row in rows], np.str_),
    )
