"""What trials left in their folders -> the study's CSV files and models/, failed trials included.

Reads and writes files only: neither Ray nor torch is needed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainseg.storage.files import read_csv, write_atomically, write_csv, write_text
from study.spec.grid import Trial

Row = dict[str, Any]

TRIAL_COLUMNS = (
    *("variant", "fold", "seed", "status", "error"),
    *("encoder", "preprocessed", "weights", "size", "epochs", "best_stage", "best_epoch"),
    "batch_parts",
    *("val_loss", "val_dice", "val_dice_patient", "val_dice_slice"),
    *("test_dice_global", "test_iou", "test_accuracy", "test_precision", "test_recall"),
    *("test_dice_patient", "test_dice_slice", "seconds", "wall_seconds"),
)
_CELL, _COUNTS = ("variant", "fold", "seed"), ("TP", "FP", "FN", "TN", "Dice")
TABLES = {
    "scores": (*_CELL, "patient", *_COUNTS, "hd95"),
    "slices": (*_CELL, "patient", "slice", *_COUNTS, "hd95", "tumour_pixels", "missing"),
    "stages": (*_CELL, "stage", "setting", "part", "patient", *_COUNTS),
    "calibration": (*_CELL, "from", "to", "pixels", "probability_sum", "tumour_pixels"),
}
"""Name of a CSV file -> its columns; each finished trial writes one, the study has them joined."""


FAILURES = ("failed", "diverged")
"""How a trial can end without a score; `unfinished` ones have not ended."""

ELSEWHERE = ".elsewhere"
"""In a trial's folder: names of its files that were left behind the study's URL."""

_MEMORY = "memory.json"


class TrialFolder:
    """The folder in which one trial leaves everything.

    Args:
        path: `<study>/trials/<trial>`.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing yet."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.safetensors"
        self.probabilities = path / "probabilities.npz"

    def read(self) -> Row | None:
        """Return the trial's result, or None if it has not ended."""
        try:
            row: Row = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return row

    def is_finished(self) -> bool:
        """Return whether the trial was trained and tested."""
        row = self.read()
        return row is not None and row["status"] == "finished" and self._has_model()

    def _has_model(self) -> bool:
        elsewhere = self.path / ELSEWHERE
        return self.model.exists() or elsewhere.exists()

    def has_failed(self) -> bool:
        """Return whether the trial ended without a score, for a reason of its own."""
        row = self.read()
        return row is not None and row["status"] in FAILURES

    def begin(self) -> None:
        """Make the folder and forget what an earlier attempt ended with.

        Raises:
            OSError: If the study's folder is gone or cannot be written.
        """
        self.path.mkdir(exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)

    def set_checkpoints_aside(self) -> Path:
        """Rename the folder of checkpoints and return its new path."""
        aside = self.path / f"checkpoints.{time.strftime('%Y%m%d-%H%M%S')}"
        self.checkpoints.rename(aside)
        return aside

    @property
    def batch_parts(self) -> int:
        """In how many parts batches are taken: 2 after memory ran out, for the trial's rest."""
        return 2 if (self.path / _MEMORY).exists() else 1

    def halve_batches(self, reason: str) -> None:
        """Remember that memory ran out, so that every later attempt takes batches in halves."""
        record = {"batch_parts": 2, "after_epochs": len(self.read_history()), "reason": reason}
        write_text(self.path / _MEMORY, json.dumps(record, indent=1) + "\n")

    def read_history(self) -> list[dict[str, float]]:
        """Return one row per epoch that was reported."""
        return [{k: float(v) for k, v in row.items()} for row in read_csv(self._history)]

    def read_table(self, name: str) -> list[Row]:
        """Return the rows of one of `TABLES`; none if the trial left no such file."""
        return read_csv(self.path / f"{name}.csv")

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write one row per epoch."""
        write_csv(self._history, history)

    def write_success(
        self, trial: Trial, values: Row, tables: Mapping[str, Sequence[Row]]
    ) -> None:
        """Write tables and experiment, then the result, which says that all is there.

        Args:
            trial: Whose results.
            values: Columns of trials.csv, and what else is worth keeping.
            tables: Name in `TABLES` -> rows, without variant, fold and seed.
        """
        cell = {"variant": trial.variant, "fold": trial.fold, "seed": trial.seed}
        for name, rows in tables.items():
            path = self.path / f"{name}.csv"
            write_csv(path, [cell | row for row in rows], TABLES[name])
        write_text(self.path / "experiment.yaml", trial.experiment.to_yaml())
        self._write_result(trial, {"status": "finished", "error": "", **values})
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_failure(self, trial: Trial, status: str, error: str, trace: str = "") -> None:
        """Write why the trial ended early; its checkpoints stay."""
        write_text(self.path / "experiment.yaml", trial.experiment.to_yaml())
        if trace:
            write_text(self.path / "traceback.txt", trace)
        history = self.read_history()
        values = {"epochs": len(history), "seconds": sum(row["seconds"] for row in history)}
        one_line = " ".join(error.split())
        self._write_result(trial, {"status": status, "error": one_line, **values})

    def write_stopped(self, trial: Trial, values: Row) -> None:
        """Write the result of a trial that need not go on; its checkpoints go."""
        write_text(self.path / "experiment.yaml", trial.experiment.to_yaml())
        seconds = sum(row["seconds"] for row in self.read_history())
        self._write_result(trial, {"status": "stopped", "error": "", "seconds": seconds, **values})
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _write_result(self, trial: Trial, values: Row) -> None:
        row = describe_trial(trial) | values
        write_text(self.path / "result.json", json.dumps(row, indent=1) + "\n")

    @property
    def _history(self) -> Path:
        return self.path / "history.csv"


def describe_trial(trial: Trial) -> Row:
    """Return the columns of trials.csv that are known before a trial starts."""
    experiment = trial.experiment
    return {
        "variant": trial.variant,
        "fold": trial.fold,
        "seed": trial.seed,
        "encoder": experiment.model.encoder,
        "preprocessed": experiment.preprocess.enabled,
        "size": experiment.data.size,
    }


def collect(study: Path, trials: Sequence[Trial]) -> list[Row]:
    """Write trials.csv, the joined tables and models/ from the trials' folders.

    Returns:
        A row per requested trial, in the order variant, fold, seed of the plan; one without a
        result has the status `unfinished`.
    """
    ordered = _in_order(trials)
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for trial in ordered:
        folder = TrialFolder(study / "trials" / trial.name)
        unfinished = {"status": "unfinished", "error": "stopped before its end"}
        row = folder.read() or describe_trial(trial) | unfinished
        rows.append(row)
        if row["status"] == "finished":
            for name, joined in tables.items():
                joined += folder.read_table(name)
    write_csv(study / "trials.csv", rows, TRIAL_COLUMNS)
    for name, joined in tables.items():
        write_csv(study / f"{name}.csv", joined, TABLES[name])
    _export_models(study, ordered, rows)
    return rows


def trials_to_export(study: Path, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials whose models `collect` copies: of each variant the best."""
    ordered = _in_order(trials)
    rows = [TrialFolder(study / trial.path).read() for trial in ordered]
    kept = kept_models(row for row in rows if row is not None)
    return [trial for trial, row in zip(ordered, rows, strict=True) if row in kept.values()]


def _in_order(trials: Sequence[Trial]) -> list[Trial]:
    variants = list(dict.fromkeys(trial.variant for trial in trials))
    return sorted(trials, key=lambda t: (variants.index(t.variant), t.fold, t.seed))


def kept_models(rows: Iterable[Row]) -> dict[str, Row]:
    """Return, per variant, the row of the finished trial with the lowest val loss."""
    kept: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "finished":
            best = kept.setdefault(row["variant"], row)
            if float(row["val_loss"]) < float(best["val_loss"]):
                kept[row["variant"]] = row
    return kept


def _export_models(study: Path, trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    """Copy each variant's model."""
    kept = kept_models(rows)
    for trial in trials:
        variant = trial.variant
        cell = kept.get(variant, {})
        if (trial.fold, trial.seed) != (cell.get("fold"), cell.get("seed")):
            continue
        source = TrialFolder(study / "trials" / trial.name).model
        target = study / "models" / f"{variant}.safetensors"
        target.parent.mkdir(exist_ok=True)
        with write_atomically(target) as aside:
            shutil.copyfile(source, aside)
