"""Candidates that really train, in this process: validated in turn, never tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import train_two_stage
from study.spec.grid import TrialResources
from study.storage.candidates import SCORE, Candidate
from study.tune.trainable import Task, average, run_candidate, train_folds

RESOURCES = TrialResources(cpus=1, gpus=0, workers=0, concurrent=1)


@pytest.fixture
def task(data: SliceStore, tiny: Experiment, tmp_path: Path) -> Task:
    short = tiny.replaced({"stages.1.epochs": 1})
    candidate = Candidate("raw", 0, 44, short, 3, inner_folds=2)
    (tmp_path / candidate.path).mkdir(parents=True)
    return Task(candidate, tmp_path, data.root, data.fingerprint, True, RESOURCES)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Tune would be told."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    return told


def test_a_task_survives_the_way_to_a_worker(task: Task) -> None:
    assert Task.from_config(task.to_config()) == task
    assert isinstance(Task.from_config(task.to_config()).trial, Candidate)


def test_inner_folds_train_in_turn_as_they_would_alone(
    task: Task, data: SliceStore, reported: list[dict[str, Any]]
) -> None:
    run_candidate({"task": task.to_config()})
    assert isinstance(task.trial, Candidate)
    alone = [train_two_stage(e, data, compute=Compute("cpu")) for e in task.trial.experiments]
    curves = [[row["val_dice"] for row in result.history] for result in alone]
    assert curves[0] != curves[1]
    assert [row["val_dice"] for row in reported] == [fmean(p) for p in zip(*curves, strict=True)]
    assert [row["epoch"] for row in reported] == [1, 2]
    row = task.folder.read()
    assert row is not None
    assert (row["status"], row["epochs"]) == ("finished", 2)
    assert row[SCORE] == max(epoch["val_dice"] for epoch in reported) == reported[-1][SCORE]
    assert not task.folder.checkpoints.exists()
    assert not task.folder.model.exists()


@pytest.mark.slow
def test_a_candidate_goes_on_after_its_last_epoch_with_the_same_numbers(
    task: Task, reported: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_candidate({"task": task.to_config()})
    quiet = [row["val_loss"] for row in reported]
    reported.clear()
    other = replace(task, place=tmp_path / "other")
    (other.study / other.trial.path).mkdir(parents=True)
    epochs = train_folds(other)
    next(epochs)
    reported.clear()
    run_candidate({"task": other.to_config()})
    assert [row["replayed"] for row in reported] == [True, False]
    assert [row["val_loss"] for row in reported] == quiet


def test_the_test_part_is_never_opened(
    task: Task, data: SliceStore, reported: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[int] = set()
    for name in ("image", "mask"):
        read = getattr(SliceStore, name)

        def watched(self: SliceStore, number: int, read: Any = read) -> Any:
            opened.add(int(number))
            return read(self, number)

        monkeypatch.setattr(SliceStore, name, watched)
    short = task.trial.experiment.replaced({"stages.1.epochs": 0})
    everyone = Candidate("raw", 0, 44, short, 3, inner_folds=2)
    run_candidate({"task": replace(task, trial=everyone).to_config()})
    split = split_by_patient(data.slices, 0, 44)
    test = set(split.indices(data.slices, "test").tolist())
    assert opened == set(range(len(data.slices))) - test
    result = train_two_stage(short, data, compute=Compute("cpu"))
    Predictor.of(result, Compute("cpu")).evaluate(data, "test")
    assert test <= opened  # what opens it is noticed


def test_a_mean_over_folds_takes_one_epoch_for_all() -> None:
    rows = [{"val_dice": dice, SCORE: 0.9, "seconds": 2.0} for dice in (0.4, 0.6)]
    reports = [
        EpochReport(row, 3, replayed=replayed)
        for row, replayed in zip(rows, (True, False), strict=True)
    ]
    mean = average(reports, best=0.45)
    assert mean.row["val_dice"] == 0.5
    assert mean.row[SCORE] == 0.5  # not 0.9, each fold's own best
    assert mean.row["is_best"] == 1
    assert mean.row["seconds"] == 4
    assert not mean.replayed
    assert average(reports, best=0.7).row[SCORE] == 0.7


def test_a_diverged_candidate_has_a_row_and_no_score(
    task: Task, reported: list[dict[str, Any]]
) -> None:
    wild = task.trial.experiment.replaced({"stages.0.learning_rate": 1e30})
    run_candidate({"task": replace(task, trial=replace(task.trial, experiment=wild)).to_config()})
    row = task.folder.read()
    assert row is not None
    assert row["status"] == "diverged"
    assert SCORE not in row
    assert reported == []
