"""The split of patients into training, validation and test.

Patients are assigned to ten folds by scikit-learn's `StratifiedGroupKFold(10, shuffle=True)` over
the slices in natural order, stratified by has-tumour and grouped by patient. Rotation r tests fold
(9+r) mod 10 and validates on folds (7+r) and (8+r) mod 10: rotation 0 is the published split, and
all ten together test each patient once. Within a rotation, nine inner rotations choose another
pair of the nine remaining folds for validation.

`data.split` names other ways: each site left out in turn, a file of patients, or, to measure what
it is worth, the leaky folds of slices that copied notebooks use.
"""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from brainseg.config import LEAKY_SPLIT, NUM_FOLDS, NUM_INNER_FOLDS, DataConfig, Experiment
from brainseg.data.patients import site_of
from brainseg.data.store_builder import Slice
from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import user_path
from brainseg.storage.values import Checked, Line, read_yaml, validated

PARTS = ("train", "val", "test")
Patient = Annotated[Line, Field(max_length=200)]
_MIN_OF_SITE = 3


class Split(BaseModel):
    """The members of the three parts; a split in which two parts share one is refused.

    Attributes:
        rotation: Index of the rotation, from 0.
        inner: Index of the inner rotation, from 0.
        split_seed: Seed of the folds.
        by: Members are patients, or slices in a LEAKY split.
        tested: What is tested, in words, such as a site; empty for folds.
        train: Names of the members.
        val: Names of the members.
        test: Names of the members.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: int
    inner: int = 0
    split_seed: int
    by: Literal["patient", "slice"] = "patient"
    tested: str = ""
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
        members = set(getattr(self, part))
        if self.by == "slice":
            return np.flatnonzero([name in members for name in _names(slices)]).astype(np.int64)
        return np.flatnonzero([item.patient in members for item in slices]).astype(np.int64)


def split_of(experiment: Experiment, slices: tuple[Slice, ...]) -> Split:
    """Return the split of an experiment.

    Raises:
        ConfigError: If its file says what does not fit, or there is no such rotation.
        DataError: If its file is missing, there are too few patients, or a part has no tumour.
    """
    data, rotation, inner = experiment.data, experiment.fold, experiment.inner_fold
    if data.split == "patient":
        return split_by_patient(slices, rotation, data.split_seed, inner)
    count = count_rotations(data, slices)
    if rotation >= count:
        raise ConfigError(
            f"data.split {data.split} has {count} rotations, and no rotation {rotation}"
        )
    if data.split == LEAKY_SPLIT:
        return _split_by_slice(slices, rotation, data.split_seed, inner)
    if data.split == "site":
        return _split_by_site(slices, rotation, data.split_seed, inner)
    if inner:
        raise ConfigError(
            f"data.split {data.split} has no inner rotation {inner}: it names its own val"
        )
    return _split_by_file(Path(data.split), slices, rotation, data.split_seed)


def check_share(experiment: Experiment, slices: tuple[Slice, ...], split: Split) -> None:
    """Refuse a share of slices with tumour where every training slice has tumour.

    Raises:
        DataError: With the rotation.
    """
    share = experiment.data.tumour_share
    if share is not None and all(slices[n].tumour_pixels for n in split.indices(slices, "train")):
        raise DataError(
            f"rotation {split.rotation}: data.tumour_share is {share:g}, but every slice of train "
            "holds tumour: leave the key out"
        )


def count_rotations(data: DataConfig, slices: tuple[Slice, ...]) -> int:
    """Return how many rotations a split has.

    Raises:
        ConfigError: If its file cannot be used.
    """
    if data.split in ("patient", LEAKY_SPLIT):
        return NUM_FOLDS
    if data.split == "site":
        return len(group_sites(slices))
    return len(_read_file(Path(data.split)))


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
    return _checked(slices, parts, rotation=rotation, inner=inner, split_seed=split_seed)


def group_sites(slices: tuple[Slice, ...]) -> dict[str, list[str]]:
    """Return site -> its patients, sites in alphabetical order.

    A patient's site is the second part of a TCGA name. Sites with fewer than three patients are
    one group, `others`.

    Raises:
        DataError: If the names tell fewer than two sites.
    """
    sites: dict[str, list[str]] = {}
    for patient in dict.fromkeys(item.patient for item in slices):
        sites.setdefault(site_of(patient) or "unknown", []).append(patient)
    groups: dict[str, list[str]] = {}
    for site in sorted(sites):
        name = site if len(sites[site]) >= _MIN_OF_SITE else "others"
        groups.setdefault(name, []).extend(sites[site])
    if len(groups) < 2 or "unknown" in sites:
        raise DataError(
            "data.split is site, but the names of the patients do not tell two sites: name them "
            "as TCGA does (TCGA_SITE_PATIENT), or give a split file"
        )
    return dict(list(groups.items())[:NUM_FOLDS])


def _split_by_site(slices: tuple[Slice, ...], rotation: int, seed: int, inner: int) -> Split:
    groups = group_sites(slices)
    site = list(groups)[rotation]
    rest = tuple(item for item in slices if item.patient not in set(groups[site]))
    folds = _fold_patients(rest, NUM_INNER_FOLDS, seed)
    parts: dict[str, list[str]] = {part: [] for part in PARTS} | {"test": groups[site]}
    for patient, fold in folds.items():
        parts["val" if (fold - inner) % NUM_INNER_FOLDS >= 7 else "train"].append(patient)
    about = {"rotation": rotation, "inner": inner, "split_seed": seed, "tested": f"site {site}"}
    return _checked(slices, parts, **about)


def _split_by_slice(slices: tuple[Slice, ...], rotation: int, seed: int, inner: int) -> Split:
    """The split of copied notebooks: slices are dealt out whatever patient they belong to."""
    has_tumour = _has_tumour(slices, NUM_FOLDS)
    folder = StratifiedKFold(n_splits=NUM_FOLDS, shuffle=True, random_state=seed)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    names = _names(slices)
    for fold, (_, members) in enumerate(folder.split(has_tumour, has_tumour)):
        parts[_part_of(fold, rotation, inner)] += [names[index] for index in members]
    about = {"rotation": rotation, "inner": inner, "split_seed": seed, "by": "slice"}
    return _checked(slices, parts, **about)


def _names(slices: Sequence[Slice]) -> list[str]:
    """Return the names of slices, with their patients' where two patients share a name."""
    names = [item.name for item in slices]
    if len(set(names)) == len(names):
        return names
    return [f"{item.patient}/{item.name}" for item in slices]


class _FileRotation(Checked):
    train: tuple[Patient, ...]
    val: tuple[Patient, ...]
    test: tuple[Patient, ...]
    unused: tuple[Patient, ...] = ()


def _split_by_file(path: Path, slices: tuple[Slice, ...], rotation: int, seed: int) -> Split:
    rotations = _read_file(path)
    patients = list(dict.fromkeys(item.patient for item in slices))
    problems = []
    tested: dict[str, int] = {}
    for number, parts in enumerate(rotations):
        named = [name for part in (*PARTS, "unused") for name in getattr(parts, part)]
        for name in sorted(set(named) - set(patients)):
            near = difflib.get_close_matches(name, patients, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"rotation {number}: the dataset has no patient {name}{hint}")
        for name in sorted(name for name, count in Counter(named).items() if count > 1):
            problems.append(f"rotation {number}: {name} is there twice")
        if left := sorted(set(patients) - set(named)):
            problems.append(
                f"rotation {number}: {', '.join(left[:5])}{' ...' if left[5:] else ''} "
                f"({len(left)} patients) are in no part: add them, or list them as unused"
            )
        for name in parts.test:
            if tested.setdefault(name, number) != number:
                problems.append(f"{name} is tested in rotations {tested[name]} and {number}")
    if problems:
        raise ConfigError(f"the split {path} does not fit the dataset", problems)
    chosen = {part: list(getattr(rotations[rotation], part)) for part in PARTS}
    return _checked(slices, chosen, rotation=rotation, split_seed=seed)


def _read_file(path: Path) -> list[_FileRotation]:
    tree = read_yaml(user_path(path, "data.split"))
    rotations = tree if isinstance(tree, list) else [tree]
    if not 1 <= len(rotations) <= NUM_FOLDS:
        raise ConfigError(f"{path} holds {len(rotations)} rotations; expected 1 to {NUM_FOLDS}")
    return [
        validated(_FileRotation, rotation, f"{path}: rotation {number}")
        for number, rotation in enumerate(rotations)
    ]


def _checked(slices: tuple[Slice, ...], parts: Mapping[str, list[str]], **about: Any) -> Split:
    rotation = about["rotation"]
    try:
        split = Split.model_validate({**about, **parts})
    except ValidationError as error:
        raise DataError(f"rotation {rotation}: {_reason(error)}") from error
    for part in PARTS:
        indices = split.indices(slices, part)
        if not any(slices[index].tumour_pixels for index in indices):
            raise DataError(f"rotation {rotation}: no slice of {part} holds tumour")
        if part == "train" and len(indices) < 2:
            raise DataError(f"rotation {rotation}: train has one slice; it needs two at least")
    return split


def assign_folds(slices: tuple[Slice, ...], split_seed: int) -> dict[str, int]:
    """Return the fold, 0 to 9, of each patient.

    Raises:
        DataError: If there are fewer patients than folds.
    """
    return _fold_patients(slices, NUM_FOLDS, split_seed)


def _fold_patients(slices: tuple[Slice, ...], count: int, seed: int) -> dict[str, int]:
    groups = np.array([item.patient for item in slices])
    num_patients = len(set(groups.tolist()))
    if num_patients < count:
        raise DataError(f"{num_patients} patients; the {count} folds need at least as many")
    has_tumour = _has_tumour(slices, count)
    folder = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    fold_of: dict[str, int] = {}
    for fold, (_, members) in enumerate(folder.split(groups, has_tumour, groups)):
        fold_of |= {str(groups[member]): fold for member in members}
    order = dict.fromkeys(item.patient for item in slices)
    return {patient: fold_of[patient] for patient in order}


def _has_tumour(slices: tuple[Slice, ...], count: int) -> NDArray[np.int64]:
    """Return 1 for each slice with tumour and 0 for the others, as scikit-learn can stratify.

    Raises:
        DataError: If there are fewer slices than folds both with tumour and without.
    """
    found = np.array([item.tumour_pixels > 0 for item in slices]).astype(np.int64)
    if max(np.bincount(found)) < count:
        raise DataError(
            f"{found.sum()} slices with tumour and {(found == 0).sum()} without; the {count} "
            "folds need as many of one kind at least"
        )
    return found


def _part_of(fold: int, rotation: int, inner: int) -> str:
    position = (fold - rotation) % NUM_FOLDS
    if position == NUM_INNER_FOLDS:
        return "test"
    return "val" if (position - inner) % NUM_INNER_FOLDS >= 7 else "train"


def _reason(error: ValidationError) -> str:
    return "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
