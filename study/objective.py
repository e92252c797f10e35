"""One candidate of a search under Ray Tune: trained and validated, never tested.

The test part is not opened here: a candidate is judged by validation alone, and leaves no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ray import tune

from brainseg.encoders import describe_weights
from brainseg.epoch import EpochReport
from brainseg.storage import patiently
from brainseg.training import train_epochs
from study.attempt import Notes, Task, attempt, take_notes, train_from_checkpoints
from study.board import Board
from study.candidates import SCORE, Candidate

Epochs = Callable[[Task], Iterator[Sequence[EpochReport]]]


def run_candidate(config: dict[str, Any]) -> None:
    """Train a candidate: the function that Tune schedules."""
    follow(Task.from_config(config["task"]), train_folds)


def follow(task: Task, epochs: Epochs) -> None:
    """Report each epoch of a candidate to Tune, and write its folder.

    Args:
        task: The candidate.
        epochs: Begins, or goes on with, its training; yields the reports of its inner folds.
    """
    attempt(task, lambda: _run(task, epochs))


def train_folds(task: Task) -> Iterator[Sequence[EpochReport]]:
    """Train on all inner folds in turn, an epoch of each before the next of any."""
    assert isinstance(task.trial, Candidate)
    data, checkpoints = task.open_data(), task.folder.checkpoints
    patiently(lambda: checkpoints.mkdir(exist_ok=True), f"the folder {checkpoints}")
    folds = [
        train_epochs(
            experiment,
            data,
            compute=task.compute(),
            checkpoints=checkpoints / f"inner{experiment.inner_fold}",
        )
        for experiment in task.trial.experiments
    ]
    return zip(*folds, strict=True)


def average(reports: Sequence[EpochReport], best: float) -> EpochReport:
    """Return the mean of an epoch over inner folds.

    Args:
        reports: Of one epoch, one per inner fold.
        best: The highest mean val Dice of the epochs before.

    Returns:
        A report whose `best_val_dice` is the highest mean so far, not the mean of each fold's
        highest, which would choose an epoch per fold; `seconds` are those of all folds.
    """
    first = reports[0]
    row = {key: fmean(report.row[key] for report in reports) for key in first.row}
    row[SCORE] = max(best, row["val_dice"])
    row["is_best"] = float(row[SCORE] > best)
    row["seconds"] = sum(report.row["seconds"] for report in reports)
    return replace(first, row=row, replayed=all(report.replayed for report in reports))


def _run(task: Task, epochs: Epochs) -> None:
    board = Board(task.study / "tensorboard", task.trial, task.synthetic)
    try:
        history = train_from_checkpoints(task.folder, lambda n: _train(task, epochs, board, n))
    finally:
        board.close()
    best = max(history, key=lambda row: row["val_dice"])
    task.folder.write_success(
        task.trial,
        {
            "batch_parts": task.folder.batch_parts,
            "weights": describe_weights(task.trial.experiment.model),
            "epochs": len(history),
            "seconds": sum(row["seconds"] for row in history),
            "best_epoch": best["step"],
            SCORE: best["val_dice"],
        },
        tables={},
    )


def _train(task: Task, epochs: Epochs, board: Board, notes: Notes) -> list[dict[str, float]]:
    folder = task.folder
    history: list[dict[str, float]] = []
    for reports in epochs(task):
        report = average(reports, max((row["val_dice"] for row in history), default=-1.0))
        history.append(report.row)
        patiently(lambda: folder.write_history(history), "history.csv")
        board.write(report)
        if not report.replayed:
            task.send()
        seen = {"epochs": report.epochs, "replayed": report.replayed, "notes": take_notes(notes)}
        tune.report({**report.row, **seen, "epoch": int(report.row["step"])})
    return history
