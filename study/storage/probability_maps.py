"""The probabilities of every val and test slice, stored compactly; ensembles over seeds.

Networks of one fold were trained on the same patients, so their mean may be tested on that fold's
test patients. A mean over folds could not: each of them trained on most others' test patients.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainseg.errors import DataError
from brainseg.inference.mask_metrics import keep_components
from brainseg.metrics import COUNT_NAMES, count_pixels, dice, sum_by_patient
from brainseg.storage.files import regular_file, write_bytes, write_csv
from study.spec.trial_job import TrialJob
from study.storage.schema import ALL_SEEDS, ENSEMBLE, ENSEMBLE_STEP, Row
from study.storage.trial_folder import TrialFolder

if TYPE_CHECKING:
    from brainseg.inference.evaluation import Evaluation

LEVELS = 64
"""Steps of the probability that are kept, a power of 2 so that 0.5 is one; few, to pack well."""

_DAMAGES = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
"""What reading an archive of arrays can raise that was changed or cut."""

_PARTS = ("val", "test")


@dataclass(frozen=True)
class PartMaps:
    """The probabilities of one part of the split, N slices of H x W pixels each.

    Attributes:
        slices: N names.
        patients: N names.
        volumes: N names of the scans that the slices are of, which largest components look at.
        levels: N times uint8 (H, W), the whole part of 64 p; 32 is p = 0.5.
        true: N times bool (H, W).
    """

    slices: list[str]
    patients: list[str]
    volumes: list[str]
    levels: list[NDArray[np.uint8]]
    true: list[NDArray[np.bool_]]


def save_probabilities(path: Path, evaluation: Evaluation) -> None:
    """Write the probabilities of both parts; equal ones give equal bytes."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in _PARTS:
        part = getattr(evaluation, name)
        arrays[f"{name}_slices"] = np.array([item.name for item in part.slices])
        arrays[f"{name}_patients"] = np.array(part.patients)
        arrays[f"{name}_volumes"] = np.array(["/".join(item.volume) for item in part.slices])
        arrays[f"{name}_shapes"] = np.array([mask.shape for mask in part.true], np.int32)
        levels = np.concatenate([one.ravel() for one in part.levels])
        arrays[f"{name}_levels"] = levels // (256 // LEVELS)
        arrays[f"{name}_true"] = np.packbits(np.concatenate([one.ravel() for one in part.true]))
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    write_bytes(path, packed.getvalue())


def load_probabilities(path: Path, part: str) -> PartMaps:
    """Read the probabilities of `val` or `test`.

    Raises:
        DataError: Naming the file, if it cannot be read.
    """
    try:
        with np.load(regular_file(path), allow_pickle=False) as file:
            levels, shapes = file[f"{part}_levels"], file[f"{part}_shapes"]
            names = [file[f"{part}_{key}"].tolist() for key in ("slices", "patients")]
            # Studies before 2026-11-28 took a patient's scans for one volume.
            has_volumes = f"{part}_volumes" in file
            names.append(file[f"{part}_volumes"].tolist() if has_volumes else names[1])
            bits = np.unpackbits(file[f"{part}_true"], count=levels.size).astype(bool)
        ends = np.cumsum(shapes.prod(axis=1))[:-1]
        maps = [
            [one.reshape(shape) for one, shape in zip(np.split(flat, ends), shapes, strict=True)]
            for flat in (levels, bits)
        ]
        if {len(own) for own in names} != {len(shapes)}:
            raise ValueError(f"{len(names[0])} names of {len(shapes)} slices")
    except _DAMAGES as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is damaged ({reason}): remove the trial's folder, so that it runs again"
        ) from error
    return PartMaps(*names, *maps)


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
            head = {"variant": variant, "fold": fold, "seed": ALL_SEEDS, "stage": ENSEMBLE_STEP}
            head["setting"] = f"{len(members)} seeds"
            rows += [head | row for row in _vote(study, members)]
    write_csv(study / "ensemble.csv", rows, ENSEMBLE.names)


def _vote(study: Path, members: Sequence[TrialJob]) -> list[Row]:
    rows = []
    experiment = members[0].experiment
    for part in _PARTS:
        first = _maps_of(study, members[0], part)
        totals = [levels.astype(np.uint16) for levels in first.levels]
        for job in members[1:]:
            maps = _maps_of(study, job, part)
            shapes = [[one.shape for one in each.levels] for each in (first, maps)]
            if maps.slices != first.slices or shapes[0] != shapes[1]:
                raise DataError(
                    f"{study}/{job.path}/probabilities.npz has other slices in {part} than "
                    f"{members[0].name}: remove the folder of the wrong one, so that it runs again"
                )
            for total, levels in zip(totals, maps.levels, strict=True):
                total += levels
        # A level stands for the middle of its step.
        lowest = (experiment.threshold * LEVELS - 0.5) * len(members)
        found = [np.asarray(total >= lowest) for total in totals]
        masks = keep_components(found, first.volumes, experiment.largest_component)
        counts = np.concatenate(
            [count_pixels(m[None], t[None]) for m, t in zip(masks, first.true, strict=True)]
        )
        for patient, sums in sum_by_patient(counts, first.patients).items():
            cells: Row = dict(zip(COUNT_NAMES, sums.tolist(), strict=True))
            cells["Dice"] = f"{float(dice(sums)):.6f}"
            rows.append({"part": part, "patient": patient, **cells})
    return rows


def _maps_of(study: Path, job: TrialJob, part: str) -> PartMaps:
    return load_probabilities(TrialFolder(study / job.path).probabilities, part)
