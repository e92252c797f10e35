"""One trial under Ray Tune: a configuration in, epochs reported, its folder of results written.

A trial's folder `trials/<name>/` is the truth about it: `checkpoints/` while it trains, and once
it has ended `result.json`, `history.csv`, `experiment.yaml`, `model.safetensors`, and of its test
`scores.csv`, `slices.csv`, `stages.csv`, `calibration.csv` and `probabilities.npz`.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from brainseg.encoders import describe_weights
from brainseg.epoch import EpochReport
from brainseg.evaluation import PLAIN, evaluate_model
from brainseg.metrics import summarise
from brainseg.predictor import Predictor
from brainseg.storage import patiently
from brainseg.store import SliceStore
from brainseg.training import TrainResult, train_two_stage
from study.attempt import Notes, Task, attempt, take_notes, train_from_checkpoints
from study.board import Board
from study.probabilities import save_probabilities


def run_trial(config: dict[str, Any]) -> None:
    """Train, test once, write the trial's folder: the function that Tune schedules."""
    task = Task.from_config(config["task"])
    attempt(task, lambda: _run(task))


def _run(task: Task) -> None:
    started = time.time()
    data = task.open_data()
    board = Board(task.study / "tensorboard", task.trial, task.synthetic)
    try:
        result = train_from_checkpoints(
            task.folder, lambda notes: _train(task, data, board, notes)
        )
    finally:
        board.close()
    _test(task, data, result, started)


def _train(task: Task, data: SliceStore, board: Board, notes: Notes) -> TrainResult:
    folder = task.folder

    def on_epoch(report: EpochReport) -> None:
        patiently(lambda: folder.write_history([*history, report.row]), "history.csv")
        history.append(report.row)
        board.write(report)
        if not report.replayed:
            task.send()
        step = report.row["step"]
        seen = {"epoch": step, "epochs": report.epochs, "replayed": report.replayed}
        tune.report({**report.row, **seen, "notes": take_notes(notes)})

    history: list[dict[str, float]] = []
    return train_two_stage(
        task.trial.experiment,
        data,
        on_epoch,
        compute=task.compute(),
        checkpoints=folder.checkpoints,
    )


def _test(task: Task, data: SliceStore, result: TrainResult, started: float) -> None:
    """Open the test part, for the only time: the weights are chosen and nothing depends on it."""
    header, folder = result.header, task.folder
    judged = evaluate_model(Predictor.of(result, task.compute()), data)
    summary = summarise(judged.test.counts[PLAIN], judged.test.patients)
    scores = {f"test_{key}": value for key, value in summary.items()}
    header = header.model_copy(update={"metrics": header.metrics | scores})
    TrainResult(result.weights, result.history, header).save(folder.model)
    save_probabilities(folder.probabilities, judged)
    folder.write_success(
        task.trial,
        {
            "batch_parts": folder.batch_parts,
            "weights": describe_weights(task.trial.experiment.model),
            "best_stage": header.best["stage"],
            "best_epoch": header.best["epoch"],
            "epochs": len(result.history),
            "seconds": sum(row["seconds"] for row in result.history),
            "wall_seconds": time.time() - started,
            "val_loss": header.best["val_loss"],
            **header.metrics,
        },
        judged.tables(data),
    )
