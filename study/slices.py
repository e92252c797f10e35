"""slices.csv as arrays: one entry per variant, seed and test slice.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainseg.metrics import Counts, dice
from study.results import Row
from study.scores import Floats

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
