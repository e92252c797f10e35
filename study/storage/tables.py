"""The study's CSV files and models/, gathered from the trials' folders.

trials.csv has a row for every trial, also for failed ones; the other tables have finished trials.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from brainseg.errors import StudyError
from brainseg.storage.files import read_csv, write_atomically, write_csv
from study.spec.trial_job import TrialJob
from study.storage.trial_folder import (
    EXTERNAL,
    FINISHED,
    TABLES,
    UNFINISHED,
    Row,
    TrialFolder,
    describe_job,
)

TRIAL_COLUMNS = (
    *("variant", "fold", "seed", "status", "error"),
    *("network", "filters", "weights", "size", "epochs", "best_stage", "best_epoch"),
    "batch_parts",
    *("val_loss", "val_dice", "val_dice_patient", "val_dice_slice"),
    *("test_dice_global", "test_iou", "test_accuracy", "test_precision", "test_recall"),
    *("test_dice_patient", "test_dice_slice", "seconds", "wall_seconds"),
)
EXTERNAL_TABLES = {
    "trials": ("fold", *(column for column in TRIAL_COLUMNS if column.startswith("test_"))),
    **{
        name: tuple(c for c in TABLES[name] if c not in ("variant", "seed"))
        for name in ("scores", "slices")
    },
}
"""Tables of the predictions of another tool -> their columns; see `study.external`."""

_NOT_ENDED = {"status": UNFINISHED, "error": "stopped before its end"}


def collect(study: Path, jobs: Sequence[TrialJob], external: Iterable[str] = ()) -> list[Row]:
    """Write trials.csv, the joined tables and models/ from the trials' folders.

    Args:
        study: The study's folder.
        jobs: The trials.
        external: Variants that were not trained here. Each has a row for every fold and seed of
            the study, with the same scores for all seeds, so that it pairs with trained variants.

    Returns:
        A row per trial of the study, ordered by variant, fold and seed; one without a result has
        the status `unfinished`. Rows of external variants come last.
    """
    ordered = _in_order(jobs)
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for job in ordered:
        folder = TrialFolder(study / job.path)
        row = folder.read() or describe_job(job) | _NOT_ENDED
        rows.append(row)
        if row["status"] == FINISHED:
            for name, joined in tables.items():
                joined += folder.read_table(name)
    others = [row for name in external for row in _read_external(study, name, jobs, tables)]
    write_csv(study / "trials.csv", [*rows, *others], TRIAL_COLUMNS)
    for name, joined in tables.items():
        write_csv(study / f"{name}.csv", joined, TABLES[name])
    for job in _best_of_each(ordered, rows):
        _export_model(TrialFolder(study / job.path).model, study / "models", job.variant)
    return [*rows, *others]


def _read_external(
    study: Path, variant: str, jobs: Sequence[TrialJob], tables: Mapping[str, list[Row]]
) -> list[Row]:
    """Add the scores of an external variant to the tables; return its rows of trials.csv."""
    seeds, folder = sorted({job.seed for job in jobs}), external_folder(study, variant)

    def read(name: str) -> list[Row]:
        rows = read_csv(folder / f"{name}.csv")
        if not rows:
            raise StudyError(
                f"{folder / name}.csv has no rows: give --predictions {variant}=DIR again"
            )
        return [{**row, "variant": variant, "seed": seed} for seed in seeds for row in rows]

    for name in EXTERNAL_TABLES.keys() & TABLES.keys():
        tables[name].extend(read(name))
    about = {"status": EXTERNAL, "error": "", "network": "not trained here"}
    return [row | about for row in read("trials")]


def external_folder(study: Path, variant: str) -> Path:
    """Return the folder of a variant that was not trained here."""
    return study / "external" / variant


def jobs_to_export(study: Path, jobs: Sequence[TrialJob]) -> list[TrialJob]:
    """Return the trials whose models `collect` copies: the best of each variant."""
    ordered = _in_order(jobs)
    rows = [TrialFolder(study / job.path).read() or _NOT_ENDED for job in ordered]
    return _best_of_each(ordered, rows)


def kept_models(rows: Iterable[Row]) -> dict[str, Row]:
    """Return, per variant, the row of the finished trial with the lowest val loss."""
    kept: dict[str, Row] = {}
    for row in rows:
        if row["status"] == FINISHED:
            best = kept.setdefault(row["variant"], row)
            if float(row["val_loss"]) < float(best["val_loss"]):
                kept[row["variant"]] = row
    return kept


def _best_of_each(jobs: Sequence[TrialJob], rows: Sequence[Row]) -> list[TrialJob]:
    kept = kept_models(rows)
    return [job for job, row in zip(jobs, rows, strict=True) if row in kept.values()]


def _in_order(jobs: Sequence[TrialJob]) -> list[TrialJob]:
    variants = list(dict.fromkeys(job.variant for job in jobs))
    return sorted(jobs, key=lambda job: (variants.index(job.variant), job.fold, job.seed))


def _export_model(source: Path, folder: Path, variant: str) -> None:
    folder.mkdir(exist_ok=True)
    target = folder / f"{variant}.safetensors"
    with write_atomically(target) as aside:
        shutil.copyfile(source, aside)
