"""A study's folder of generated numbers, written by what writes real ones: for tests of reports.

python -m tests.generated FOLDER      4 variants x 10 folds x 3 seeds x 110 patients
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.metrics import dice
from brainseg.storage.files import write_bytes, write_csv, write_text
from study.analysis.protocol import register
from study.spec.grid import load_grid
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.schema import ENSEMBLE, EXAMPLES, Row
from study.storage.study_folder import write_study
from study.storage.tables import collect
from study.storage.trial_folder import TrialFolder

SITES = ("CS", "DU", "FG", "HT", "EZ")
STAGES = {"plain": 0.0, "flips": 0.01, "threshold": 0.005, "largest component": -0.01}
EPOCHS = (2, 4)
FACTS = {
    "first_seed": 44,
    "weights": "no pretrained weights",
    "cpus_per_trial": 1,
    "gpus_per_trial": 0,
    "versions": {"python": "3.11", "torch": "2.13.0"},
}
QUALITIES = (0.85, 0.847, 0.83, 0.8)


class _Patient:
    """One patient's truth: the tumour's area in each slice, and how hard it is."""

    def __init__(self, number: int, slices: int, rng: np.random.Generator) -> None:
        self.name = f"TCGA_{SITES[number % len(SITES)]}_{number:04d}"
        self.fold = number % 10
        self.hardness = float(rng.normal(0, 0.12))
        shape = np.sin(np.linspace(0, np.pi, slices)) - rng.uniform(0.2, 0.7)
        self.areas = np.maximum(shape * rng.uniform(200, 2500), 0).astype(int)
        self.missing = ("", "", "", "pre-contrast", "post-contrast")[number % 5]
        self.grade, self.histology = str(1 + number % 2), str(1 + number % 3)
        self.age, self.sex = 30 + number % 40, ("female", "male")[number // 2 % 2]

    def row(self) -> Row:
        return {
            "patient": self.name,
            "site": self.name.split("_")[1],
            "slices": len(self.areas),
            "tumour_slices": int((self.areas > 0).sum()),
            "tumour_pixels": int(self.areas.sum()),
            "missing": self.missing,
            "grade": self.grade,
            "histology": self.histology,
            "age": self.age,
            "sex": self.sex,
        }


def generate_study(
    folder: Path,
    *,
    grid: str = "baseline",
    folds: int = 2,
    seeds: int = 2,
    patients: int = 20,
    slices: int = 10,
    failed: Collection[int] = (),
    synthetic: bool = True,
    spacing: float | None = None,
) -> Path:
    """Write a study as if it had been run.

    Args:
        folder: Where; made if need be.
        grid: Of the variants; each is worse than the one before; the first two nearly equal.
        folds: Rotations.
        seeds: Per variant and fold.
        patients: At least 10.
        slices: Of each patient.
        failed: Positions, in the plan, of trials that diverged.
        synthetic: What study.json says of the data.
        spacing: Of the pixels, in millimetres, if it is known.
    """
    rng = np.random.default_rng(0)
    cohort = [_Patient(number, slices, rng) for number in range(patients)]
    spec = _ask(grid, cohort, folds, seeds, synthetic, spacing)
    jobs, variants = spec.jobs(), list(spec.variants)
    (folder / "trials").mkdir(parents=True)
    ensemble: list[Row] = []
    for position, job in enumerate(jobs):
        quality = QUALITIES[variants.index(job.variant)]
        target = TrialFolder(folder / job.path)
        target.begin()
        target.write_history(_history(quality, rng))
        if position in failed:
            target.write_failure(job, "diverged", "the loss is nan in stage 2, epoch 1")
            continue
        tested = [p for p in cohort if p.fold == (9 + job.fold) % 10]
        validated = [p for p in cohort if (p.fold - job.fold) % 10 in (7, 8)]
        tables = _tables(tested, validated, quality, rng)
        if spacing:
            for row in (*tables["scores"], *tables["slices"]):
                row |= _in_mm(row, spacing)
        write_text(target.model, job.name)
        target.write_success(job, _scores(tables), tables)
        if seeds > 1 and job.seed == jobs[0].seed:
            ensemble += _ensemble(job, seeds, tables["stages"])
    write_csv(folder / "patients.csv", [p.row() for p in cohort])
    _write_split(folder, cohort, folds)
    write_study(folder, spec, {**FACTS, "protocol": register([], spec, 0)})
    collect(folder, jobs)
    write_csv(folder / "ensemble.csv", ensemble, ENSEMBLE.names)
    _draw(folder, [patient.name for patient in cohort], rng)
    return folder


def _history(quality: float, rng: np.random.Generator) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for stage, epochs in enumerate(EPOCHS, start=1):
        for epoch in range(1, epochs + 1):
            step = len(rows) + 1
            score = quality * (1 - np.exp(-0.6 * step)) + rng.normal(0, 0.01)
            loss = {"train_loss": 0.9 - score, "val_loss": 1 - score, "val_dice": score}
            place = {"stage": stage, "epoch": epoch, "step": step, "seconds": 40.0}
            rows.append({**place, **{key: float(value) for key, value in loss.items()}})
    return rows


def _tables(
    tested: list[_Patient], validated: list[_Patient], quality: float, rng: np.random.Generator
) -> dict[str, list[Row]]:
    slices: list[Row] = []
    scores: list[Row] = []
    stages: list[Row] = []
    for patient in tested:
        counts = _counts(patient, quality, rng)
        slices += _slice_rows(patient, counts, rng)
        known = [float(row["hd95"]) for row in slices[-len(counts) :] if row["hd95"]]
        hd95 = float(np.mean(known)) if known else ""
        worst = [float(row["hd95_worst"]) for row in slices[-len(counts) :] if row["hd95_worst"]]
        outlines = {"hd95": hd95, "hd95_worst": float(np.mean(worst)) if worst else 0.0}
        cells = _cells(counts.sum(axis=0))
        lesions = {"lesions_found": 1, "lesions_missed": 0, "lesions_invented": len(known) % 2}
        nsd = {"nsd": f"{0.9 * float(cells['Dice']):.6f}"}
        scores.append({"patient": patient.name, **cells, **outlines, **nsd, **lesions})
    for part, cohort in (("val", validated), ("test", tested)):
        for stage, gain in STAGES.items():
            for patient in cohort:
                counts = _counts(patient, quality + gain, rng).sum(axis=0)
                setting = "0.65" if stage == "threshold" else ""
                head = {"stage": stage, "setting": setting, "part": part}
                stages.append({**head, "patient": patient.name, **_cells(counts)})
    return {
        "scores": scores,
        "slices": slices,
        "stages": stages,
        "calibration": _calibration(rng),
    }


def _in_mm(row: Row, spacing: float) -> Row:
    """The distances of a row in millimetres; NSD as if nearly all pixels were within 2 mm."""
    cells: Row = {
        f"{name}_mm": row[name] if row[name] == "" else float(row[name]) * spacing
        for name in ("hd95", "hd95_worst")
    }
    return cells | {"nsd_mm": row["nsd"] if row["nsd"] == "" else 0.99 * float(row["nsd"])}


def _counts(patient: _Patient, quality: float, rng: np.random.Generator) -> NDArray[np.int64]:
    found = np.clip(quality - patient.hardness + rng.normal(0, 0.03), 0.05, 0.99)
    tp = (patient.areas * found).astype(np.int64)
    invented = rng.random(len(patient.areas)) < 0.1
    fp = (patient.areas * 0.3 * (1 - found) + 40 * invented).astype(np.int64)
    fn = patient.areas - tp
    return np.stack([tp, fp, fn, 256 * 256 - tp - fp - fn], axis=1)


def _slice_rows(
    patient: _Patient, counts: NDArray[np.int64], rng: np.random.Generator
) -> list[Row]:
    rows = []
    for number, row in enumerate(counts, start=1):
        has_both = row[0] + row[2] > 0 and row[0] + row[1] > 0
        has_one = row[:3].sum() > 0
        distance = f"{rng.gamma(2, 4):.3f}" if has_both else ""
        rows.append(
            {
                "patient": patient.name,
                "slice": f"{patient.name}_19990101_{number}",
                **_cells(row),
                "hd95": distance,
                "hd95_worst": distance if has_both or not has_one else f"{256 * 2**0.5:.3f}",
                "nsd": f"{0.9 * float(dice(row)):.6f}" if has_one else "",
                "tumour_pixels": int(row[0] + row[2]),
                "missing": patient.missing,
            }
        )
    return rows


def _cells(counts: NDArray[np.int64]) -> Row:
    cells: Row = dict(zip(("TP", "FP", "FN", "TN"), counts.tolist(), strict=True))
    return cells | {"Dice": f"{float(dice(counts)):.6f}"}


def _calibration(rng: np.random.Generator) -> list[Row]:
    rows = []
    for step in range(20):
        pixels = 2_000_000 if step == 0 else int(rng.integers(500, 5000))
        middle = 0.01 if step == 0 else (step + 0.5) / 20
        rows.append(
            {
                "from": f"{step / 20:.2f}",
                "to": f"{(step + 1) / 20:.2f}",
                "pixels": pixels,
                "probability_sum": f"{pixels * middle:.3f}",
                "tumour_pixels": int(pixels * middle**1.3),
            }
        )
    return rows


def _scores(tables: dict[str, list[Row]]) -> Row:
    value = float(np.mean([float(row["Dice"]) for row in tables["scores"]]))
    keys = ["dice_global", "iou", "accuracy", "precision", "recall", "dice_patient", "dice_slice"]
    return {
        **{f"test_{key}": value for key in keys},
        "val_loss": 1 - value,
        "val_dice": value,
        "seconds": 40.0 * sum(EPOCHS),
        "epochs": sum(EPOCHS),
        "best_stage": 2.0,
        "best_epoch": float(EPOCHS[1]),
        "weights": "no pretrained weights",
    }


def _ensemble(job: TrialJob, seeds: int, stages: list[Row]) -> list[Row]:
    head = {"variant": job.variant, "fold": job.fold, "seed": "all"}
    vote = {"stage": "ensemble", "setting": f"{seeds} seeds"}
    return [{**head, **row, **vote} for row in stages if row["stage"] == "flips"]


def _write_split(folder: Path, cohort: list[_Patient], folds: int) -> None:
    def part(rotation: int, positions: Collection[int]) -> list[str]:
        return [p.name for p in cohort if (p.fold - rotation) % 10 in positions]

    rotations = [
        {
            "rotation": rotation,
            "split_seed": 44,
            "train": part(rotation, range(7)),
            "val": part(rotation, (7, 8)),
            "test": part(rotation, (9,)),
        }
        for rotation in range(folds)
    ]
    record = {
        "fingerprint": "f" * 64,
        "split_seed": 44,
        "patients": [p.name for p in cohort],
        "rotations": rotations,
    }
    write_text(folder / "split.json", json.dumps(record))


def _ask(
    grid: str,
    cohort: list[_Patient],
    folds: int,
    seeds: int,
    synthetic: bool,
    spacing: float | None,
) -> StudySpec:
    rows = [patient.row() for patient in cohort]
    return StudySpec.of(
        load_grid(grid),
        folds=folds,
        seeds=seeds,
        fingerprint="f" * 64,
        patients=len(rows),
        slices=sum(row["slices"] for row in rows),
        tumour_slices=sum(row["tumour_slices"] for row in rows),
        experiment=Experiment().replaced({"data.spacing_mm": spacing}),
        data="generated",
        synthetic=synthetic,
    )


def _draw(folder: Path, patients: list[str], rng: np.random.Generator) -> None:
    """Pictures of noise in place of slices, as many as a study has."""
    with (folder / "trials.csv").open() as file:
        variants = list(dict.fromkeys(line.split(",")[0] for line in file.readlines()[1:]))
    places = [(kind, 1) for kind in ("best", "median", "worst")]
    places += [(kind, n) for kind in ("worst patient", "worst slice") for n in range(1, 11)]
    rows: list[Row] = []
    for kind, place in places:
        for variant in variants:
            noise = np.kron(rng.integers(0, 64, (64, 64, 1)), np.ones((4, 4, 3), int)) * 4
            name = f"examples/{variant}/{kind.replace(' ', '_')}_{place}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, cv2.imencode(".png", noise.astype(np.uint8))[1].tobytes())
            patient = patients[-place]
            cell = {"variant": variant, "fold": 0, "seed": 44, "patient": patient}
            picture = {"slice": f"{patient}_19990101_3", "Dice": "0.5", "picture": name}
            rows.append({"kind": kind, "place": place, **cell, **picture})
    write_csv(folder / "examples.csv", rows, EXAMPLES.names)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    generate_study(target, folds=10, seeds=3, patients=110, slices=36)
