"""The split of patients into training, validation and test.

Patients are assigned to ten folds by scikit-learn's `StratifiedGroupKFold(10, shuffle=True)` over
the slices in natural order, stratified by has-tumour and grouped by patient. Rotation r tests fold
(9+r) mod 10 and validates on folds (7+r) and (8+r) mod 10: rotation 0 is the published split, and
all ten together test each patient once. Within a rotation, nine inner rotations choose another
pair of the nine remaining folds for validation.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from sklearn.model_selection import StratifiedGroupKFold

from brainseg.config import NUM_FOLDS, NUM_INNER_FOLDS, Experiment
from brainseg.data.slice_store import Slice
from brainseg.errors import DataError

PARTS = ("train", "val", "test")


class Split(BaseModel):
    """The patients of the three parts; a split in which two parts share a patient is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: int
    inner: int = 0
    split_seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @model_validator(mode="after")
    def _no_patient_twice(self) -> Split:
        for left, right in itertools.combinations(PARTS, 2):
            shared = sorted(set(getattr(self, left)) & set(getattr(self, right)))
            if shared:
                raise ValueError(f"{', '.join(shared)} would be in both {left} and {right}")
        for part in PARTS:
            if not getattr(self, part):
                raise ValueError(f"no patient would be in {part}")
        return self

    def indices(self, slices: tuple[Slice, ...], part: str) -> NDArray[np.int64]:
        """Return the indices of a part's slices, int64 (N,), ascending."""
        patients = set(getattr(self, part))
        return np.flatnonzero([item.patient in patients for item in slices]).astype(np.int64)


def split_of(experiment: Experiment, slices: tuple[Slice, ...]) -> Split:
    """Return the split of an experiment, see `split_by_patient`."""
    return split_by_patient(
        slices, experiment.fold, experiment.data.split_seed, experiment.inner_fold
    )


def split_by_patient(
    slices: tuple[Slice, ...], rotation: int, split_seed: int, inner: int = 0
) -> Split:
    """Assign every patient to train, val or test.

    Args:
        slices: All slices, in natural order.
        rotation: Rotation, 0 to 9, that chooses the tested fold; 0 is the published split.
        split_seed: Seed of the folds.
        inner: Rotation, 0 to 8, that chooses the folds that validate; 0 is the published split.

    Raises:
        DataError: If there are fewer patients than folds, or a part has no tumour.
    """
    folds = assign_folds(slices, split_seed)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for patient, fold in folds.items():
        parts[_part_of(fold, rotation, inner)].append(patient)
    try:
        split = Split(
            rotation=rotation,
            inner=inner,
            split_seed=split_seed,
            **parts,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise DataError(f"rotation {rotation}: {_reason(error)}") from error
    for part in PARTS:
        if not any(slices[index].tumour_pixels for index in split.indices(slices, part)):
            raise DataError(f"rotation {rotation}: no slice of {part} holds tumour")
    return split


def assign_folds(slices: tuple[Slice, ...], split_seed: int) -> dict[str, int]:
    """Return the fold, 0 to 9, of each patient.

    Raises:
        DataError: If there are fewer patients than folds.
    """
    groups = np.array([item.patient for item in slices])
    num_patients = len(set(groups.tolist()))
    if num_patients < NUM_FOLDS:
        raise DataError(f"{num_patients} patients; the {NUM_FOLDS} folds need at least as many")
    has_tumour = np.array([item.tumour_pixels > 0 for item in slices]).astype(int)
    folder = StratifiedGroupKFold(n_splits=NUM_FOLDS, shuffle=True, random_state=split_seed)
    fold_of: dict[str, int] = {}
    for fold, (_, members) in enumerate(folder.split(groups, has_tumour, groups)):
        fold_of |= {str(groups[member]): fold for member in members}
    order = dict.fromkeys(item.patient for item in slices)
    return {patient: fold_of[patient] for patient in order}


def _part_of(fold: int, rotation: int, inner: int) -> str:
    position = (fold - rotation) % NUM_FOLDS
    if position == NUM_INNER_FOLDS:
        return "test"
    return "val" if (position - inner) % NUM_INNER_FOLDS >= 7 else "train"


def _reason(error: ValidationError) -> str:
    return "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
