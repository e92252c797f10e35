"""The folder of one trial or candidate: the only record of its state.

`params.json` describes a candidate from the moment it is drawn, `history.csv` and `checkpoints/`
grow while a trial trains, and `result.json` exists once it has ended.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from brainseg.config import Experiment, load_experiment
from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import check_record, read_json, write_csv, write_text
from study.spec.grid import Changes
from study.spec.study_spec import SCORE
from study.spec.trial_job import TrialJob, candidate_path, search_path
from study.storage.schema import (
    FINISHED,
    HISTORY,
    STOPPED,
    TRIAL_TABLES,
    UNFINISHED,
    Row,
    read_table,
)

ELSEWHERE = ".elsewhere"
"""In a trial's folder: names of its files that exist only at the study's URL."""

_MEMORY = "memory.json"


class _Result(BaseModel):
    """What result.json must hold; the facts of the trial's end follow."""

    model_config = ConfigDict(strict=True)

    variant: str
    fold: int = Field(ge=0)
    seed: int = Field(ge=0)
    status: Literal["finished", "stopped", "failed", "diverged"]
    error: str
    epochs: int = Field(default=0, ge=0)
    seconds: float = Field(default=0, ge=0)
    wall_seconds: float = 0
    val_loss: float | None = None
    best_val_dice: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _has_scores(self) -> _Result:
        if self.status == FINISHED and self.val_loss is None and self.best_val_dice is None:
            raise ValueError("a finished trial has val_loss, a finished candidate best_val_dice")
        return self


class _Params(BaseModel):
    """What params.json holds: the variant, and the value of each dotted key that was drawn."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str | int | float | bool | list[str] | None]

    variant: str


class TrialFolder:
    """The folder in which one trial leaves everything.

    Args:
        path: `<study>/trials/<trial>` or `<study>/search/[<group>/]candidates/<index>`.
        commit: Sends what was written to the study's location; does nothing if that is here.
    """

    def __init__(self, path: Path, commit: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.commit = commit
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.safetensors"
        self.probabilities = path / "probabilities.npz"
        self._history = path / "history.csv"

    def read(self) -> Row | None:
        """Return the trial's result, or None if it has not ended.

        A file that is no JSON is no result: the trial runs again.

        Raises:
            DataError: If the file holds something else than a result.
        """
        path = self.path / "result.json"
        try:
            record = read_json(path)
        except DataError:
            return None
        check_record(path, record, _Result)
        return record

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed`, `diverged` or `unfinished`."""
        return str((self.read() or {"status": UNFINISHED})["status"])

    def is_finished(self) -> bool:
        """Return whether the trial was trained and tested, and its model exists."""
        has_model = self.model.exists() or (self.path / ELSEWHERE).exists()
        return self.status == FINISHED and has_model

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do: a trial was tested, a candidate has its score."""
        is_candidate = self.path.parent.name == "candidates"
        return self.status in (FINISHED, STOPPED) if is_candidate else self.is_finished()

    def begin(self) -> None:
        """Make the folder, and remove the result of an earlier start that failed.

        Raises:
            OSError: If the study's folder is gone or cannot be written.
        """
        self.path.mkdir(exist_ok=True)
        if not self.is_complete:
            self.remove_result()

    def remove_result(self) -> None:
        """Remove the result, if there is one: the trial has yet to end."""
        (self.path / "result.json").unlink(missing_ok=True)

    def set_checkpoints_aside(self) -> Path:
        """Rename the folder of checkpoints and return its new path."""
        aside = self.path / f"checkpoints.{time.strftime('%Y%m%d-%H%M%S')}"
        self.checkpoints.rename(aside)
        return aside

    @property
    def batch_parts(self) -> int:
        """Parts in which each batch is computed: 2 from the moment when memory ran out."""
        return 2 if (self.path / _MEMORY).exists() else 1

    def halve_batches(self, reason: str) -> None:
        """Record that memory ran out, so that the trial computes each batch in two halves."""
        record = {"batch_parts": 2, "after_epochs": len(self.read_history()), "reason": reason}
        write_text(self.path / _MEMORY, json.dumps(record, indent=1) + "\n")
        self.commit()

    def read_experiment(self) -> Experiment:
        """Return the experiment that the trial ran.

        Raises:
            DataError: If its file is missing, or holds something else.
        """
        try:
            return load_experiment(self.path / "experiment.yaml")
        except (ConfigError, DataError) as error:
            raise DataError(
                f"{error}. The trial's folder was changed: put the file back, or remove the "
                "folder, so that the trial runs again"
            ) from error

    def read_history(self) -> list[dict[str, float]]:
        """Return one row per epoch that was reported."""
        rows = read_table(self._history, HISTORY)
        return [{k: float(v) for k, v in row.items()} for row in rows]

    def count_history(self) -> int:
        """Return the epochs in history.csv; 0 if there is none, or it is damaged."""
        try:
            return len(self.read_history())
        except DataError:
            return 0

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write one row per epoch; it is committed together with the epoch's checkpoint."""
        write_csv(self._history, history)

    def read_table(self, name: str) -> list[Row]:
        """Return the rows of one of `TRIAL_TABLES`; none if the trial left no such file."""
        return read_table(self.path / f"{name}.csv", TRIAL_TABLES[name])

    def write_params(self, params: Changes) -> None:
        """Make a candidate's folder, with its parameters in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "params.json", json.dumps(params, indent=1) + "\n")
        self.commit()

    def write_success(
        self, job: TrialJob, values: Row, tables: Mapping[str, Sequence[Row]]
    ) -> None:
        """Write tables and experiment, then the result, whose presence says that all is there.

        Args:
            job: The trial.
            values: Columns of trials.csv, and further facts for result.json.
            tables: Name in `TRIAL_TABLES` -> rows, without variant, fold and seed.
        """
        cell = {"variant": job.variant, "fold": job.fold, "seed": job.seed}
        for name, rows in tables.items():
            path = self.path / f"{name}.csv"
            write_csv(path, [cell | row for row in rows], TRIAL_TABLES[name].names_in(rows))
        self._write_result(job, {"status": FINISHED, "error": "", **values})
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.commit()

    def write_failure(self, job: TrialJob, status: str, error: str, trace: str = "") -> None:
        """Write why the trial ended early; its checkpoints stay."""
        if trace:
            write_text(self.path / "traceback.txt", trace)
        history = self.read_history()
        values = {"epochs": len(history), "seconds": sum(row["seconds"] for row in history)}
        one_line = " ".join(error.split())
        self._write_result(job, {"status": status, "error": one_line, **values})
        self.commit()

    def write_stopped(self, job: TrialJob) -> None:
        """Write the result of a candidate that the scheduler stopped; its checkpoints go.

        Raises:
            DataError: If its history is gone.
        """
        history = self.read_history()
        if not history:
            raise DataError(
                f"{self._history} has no epoch, but the search stopped this candidate after some: "
                "put the file back, or begin again with --fresh"
            )
        last, seconds = history[-1], sum(row["seconds"] for row in history)
        values = {"epochs": int(last["step"]), SCORE: last[SCORE]}
        self._write_result(job, {"status": STOPPED, "error": "", "seconds": seconds, **values})
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.commit()

    def _write_result(self, job: TrialJob, values: Row) -> None:
        write_text(self.path / "experiment.yaml", job.experiment.to_yaml())
        row = describe_job(job) | values
        write_text(self.path / "result.json", json.dumps(row, indent=1) + "\n")


def describe_job(job: TrialJob) -> Row:
    """Return the columns of trials.csv that are known before a trial starts."""
    return {
        "variant": job.variant,
        "fold": job.fold,
        "seed": job.seed,
        "network": job.experiment.network,
        "filters": job.experiment.filters,
        "size": job.experiment.data.size,
    }


def candidate_folder(study: Path, index: int, group: str = "") -> TrialFolder:
    """Return the folder of a candidate."""
    return TrialFolder(study / candidate_path(index, group))


def read_params(study: Path, group: str = "") -> list[Changes]:
    """Return the parameters of all candidates of a search that were drawn, in order.

    Raises:
        DataError: If a file is missing between others, or holds something else than parameters.
    """
    paths = sorted((study / search_path(group) / "candidates").glob("*/params.json"))
    for index, path in enumerate(paths):
        expected = candidate_folder(study, index, group).path / path.name
        if path != expected:
            raise DataError(f"there is no {expected}, but {path}; candidates count up from 0")
    return [check_record(path, read_json(path), _Params).model_dump() for path in paths]
