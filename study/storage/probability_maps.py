"""The probabilities of every val and test slice, stored compactly; ensembles over seeds.

Networks of one fold were trained on the same patients, so their mean may be tested on that fold's
test patients. A mean over folds could not: each of them trained on most others' test patients.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainseg.metrics import count_pixels, dice, sum_by_patient
from brainseg.storage.files import write_bytes, write_csv
from study.spec.trial_job import TrialJob
from study.storage.trial_folder import TABLES, Row, TrialFolder

if TYPE_CHECKING:
    from brainseg.inference.evaluation import Evaluation

LEVELS = 64
"""Steps of the probability that are kept, a power of 2 so that 0.5 is one; few, to pack well."""

ENSEMBLE = "ensemble"
_PARTS = ("val", "test")


@dataclass(frozen=True)
class PartMaps:
    """The probabilities of one part of the split, N slices of H x W pixels each.

    Attributes:
        slices: N names.
        patients: N names.
        levels: N times uint8 (H, W), the whole part of 64 p; 32 is p = 0.5.
        true: N times bool (H, W).
    """

    slices: list[str]
    patients: list[str]
    levels: list[NDArray[np.uint8]]
    true: list[NDArray[np.bool_]]


def save_probabilities(path: Path, evaluation: Evaluation) -> None:
    """Write the probabilities of both parts; equal ones give equal bytes."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in _PARTS:
        part = getattr(evaluation, name)
        arrays[f"{name}_slices"] = np.array([item.name for item in part.slices])
        arrays[f"{name}_patients"] = np.array(part.patients)
        arrays[f"{name}_shapes"] = np.array([mask.shape for mask in part.true], np.int32)
        levels = np.concatenate([one.ravel() for one in part.levels])
        arrays[f"{name}_levels"] = levels // (256 // LEVELS)
        arrays[f"{name}_true"] = np.packbits(np.concatenate([one.ravel() for one in part.true]))
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    write_bytes(path, packed.getvalue())


def load_probabilities(path: Path, part: str) -> PartMaps:
    """Read the probabilities of `val` or `test`."""
    with np.load(path, allow_pickle=False) as file:
        levels, shapes = file[f"{part}_levels"], file[f"{part}_shapes"]
        bits = np.unpackbits(file[f"{part}_true"], count=levels.size).astype(bool)
        ends = np.cumsum(shapes.prod(axis=1))[:-1]
        return PartMaps(
            file[f"{part}_slices"].tolist(),
            file[f"{part}_patients"].tolist(),
            *(
                [
                    one.reshape(shape)
                    for one, shape in zip(np.split(flat, ends), shapes, strict=True)
                ]
                for flat in (levels, bits)
            ),
        )


def collect_ensembles(study: Path, jobs: Sequence[TrialJob]) -> None:
    """Write ensemble.csv, with the columns of stages.csv; without rows where there is one seed.

    A variant's networks of one fold vote by the mean of their probabilities, in steps of 1/64.
    """
    groups: dict[tuple[str, int], list[TrialJob]] = {}
    for job in jobs:
        folder = TrialFolder(study / job.path)
        if folder.is_finished() and folder.probabilities.exists():
            groups.setdefault((job.variant, job.fold), []).append(job)
    rows: list[Row] = []
    for (variant, fold), members in groups.items():
        if len(members) > 1:
            head = {"variant": variant, "fold": fold, "seed": "all", "stage": ENSEMBLE}
            head["setting"] = f"{len(members)} seeds"
            rows += [head | row for row in _vote(study, members)]
    write_csv(study / "ensemble.csv", rows, TABLES["stages"])


def _vote(study: Path, members: Sequence[TrialJob]) -> list[Row]:
    rows = []
    threshold = members[0].experiment.threshold
    for part in _PARTS:
        first = _maps_of(study, members[0], part)
        totals = [levels.astype(np.uint16) for levels in first.levels]
        for job in members[1:]:
            for total, levels in zip(totals, _maps_of(study, job, part).levels, strict=True):
                total += levels
        # A level stands for the middle of its step.
        lowest = (threshold * LEVELS - 0.5) * len(members)
        counts = np.concatenate(
            [
                count_pixels(total[None] >= lowest, true[None])
                for total, true in zip(totals, first.true, strict=True)
            ]
        )
        for patient, sums in sum_by_patient(counts, first.patients).items():
            cells: Row = dict(zip(("TP", "FP", "FN", "TN"), sums.tolist(), strict=True))
            cells["Dice"] = f"{float(dice(sums)):.6f}"
            rows.append({"part": part, "patient": patient, **cells})
    return rows


def _maps_of(study: Path, job: TrialJob, part: str) -> PartMaps:
    return load_probabilities(TrialFolder(study / job.path).probabilities, part)
