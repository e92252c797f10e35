"""One trial under Ray Tune: a configuration in, epochs reported, its folder of results written.

A trial's folder `trials/<name>/` is the truth about it: `checkpoints/` while it trains, and once
it has ended `result.json`, `history.csv`, `experiment.yaml`, `model.safetensors`, and of its test
`scores.csv`, `slices.csv`, `stages.csv`, `calibration.csv` and `probabilities.npz`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from ray import tune

from brainseg.config import Experiment
from brainseg.encoders import describe_weights
from brainseg.epoch import EpochReport
from brainseg.errors import (
    BrainsegError,
    CheckpointError,
    CheckpointWarning,
    DataError,
    DivergedError,
    StorageError,
)
from brainseg.evaluation import PLAIN, evaluate_model
from brainseg.metrics import summarise
from brainseg.predict import Predictor
from brainseg.storage import patiently
from brainseg.store import SliceStore, open_dataset
from brainseg.training import Compute, TrainResult, train_two_stage
from study.board import Board
from study.plan import Trial, TrialResources
from study.probabilities import save_probabilities
from study.results import TrialFolder

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIBIBYTE = 2**30


@dataclass(frozen=True)
class Task:
    """A trial and its surroundings, as it travels to a worker process."""

    trial: Trial
    study: Path
    data: Path
    fingerprint: str
    resources: TrialResources

    def to_config(self) -> dict[str, Any]:
        """Return the plain dictionary that Tune stores beside its own results."""
        return {
            "variant": self.trial.variant,
            "fold": self.trial.fold,
            "seed": self.trial.seed,
            "experiment": self.trial.experiment.model_dump(mode="json"),
            "study": str(self.study),
            "data": str(self.data),
            "fingerprint": self.fingerprint,
            "resources": vars(self.resources),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Task:
        """Rebuild the task in the worker process."""
        experiment = Experiment.model_validate(config["experiment"])
        return cls(
            Trial(config["variant"], config["fold"], config["seed"], experiment),
            Path(config["study"]),
            Path(config["data"]),
            config["fingerprint"],
            TrialResources(**config["resources"]),
        )


def run_trial(config: dict[str, Any]) -> None:
    """Train, test once, write the trial's folder: the function that Tune schedules.

    A failure that repeating cannot cure (a diverged loss, bad data, a bad value) ends the trial
    with its row written. Any other one is written too, then raised, so that Tune may try again.
    Of a disk that refuses nothing is written: the trial has not failed, it can go on later.
    """
    task = Task.from_config(config["task"])
    folder = TrialFolder(task.study / "trials" / task.trial.name)
    try:
        patiently(folder.begin, f"the trial's folder {folder.path}")
        _run_in_memory(task, folder)
    except DivergedError as error:
        folder.write_failure(task.trial, "diverged", str(error))
    except StorageError:
        raise
    except BrainsegError as error:
        folder.write_failure(task.trial, "failed", str(error))
    except OSError as error:
        raise StorageError(f"{task.trial.name}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        folder.write_failure(task.trial, "failed", reason, traceback.format_exc())
        raise


def _run_in_memory(task: Task, folder: TrialFolder) -> None:
    """Run a trial; if memory runs out, go on after its last epoch with batches halved, once."""
    try:
        return _run(task, folder)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or folder.batch_parts > 1:
            raise
        folder.halve_batches(" ".join(str(error).split()))
    # Outside the handler: the exception held on to the tensors of its frames.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _run(task, folder)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU's or the machine's memory ran out; torch has no type for the latter."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _run(task: Task, folder: TrialFolder) -> None:
    started = time.time()
    _limit_threads(task.resources)
    data = _open_data(task)
    board = Board(task.study / "tensorboard", task.trial, data.synthetic)
    try:
        result = _train(task, folder, data, board)
    finally:
        board.close()
    _test(task, folder, data, result, started)


def _train(task: Task, folder: TrialFolder, data: SliceStore, board: Board) -> TrainResult:
    """Train from the trial's newest checkpoint; from the beginning if it is another trial's."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", CheckpointWarning)
        try:
            return _train_from_checkpoint(task, folder, data, board, notes)
        except CheckpointError as error:
            aside = folder.set_checkpoints_aside()
            message = f"{error}; it is now {aside}, and the training begins anew"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return _train_from_checkpoint(task, folder, data, board, notes)


def _train_from_checkpoint(
    task: Task,
    folder: TrialFolder,
    data: SliceStore,
    board: Board,
    notes: list[warnings.WarningMessage],
) -> TrainResult:
    def on_epoch(report: EpochReport) -> None:
        patiently(lambda: folder.write_history([*history, report.row]), "history.csv")
        history.append(report.row)
        board.write(report)
        step = report.row["step"]
        seen = {"epoch": step, "epochs": report.epochs, "replayed": report.replayed}
        said = [str(n.message) for n in notes if issubclass(n.category, CheckpointWarning)]
        notes.clear()
        tune.report({**report.row, **seen, "notes": said})

    history: list[dict[str, float]] = []
    return train_two_stage(
        task.trial.experiment,
        data,
        on_epoch,
        compute=_compute(task, folder.batch_parts),
        checkpoints=folder.checkpoints,
    )


def _test(
    task: Task, folder: TrialFolder, data: SliceStore, result: TrainResult, started: float
) -> None:
    """Open the test part, for the only time: the weights are chosen and nothing depends on it."""
    judged = evaluate_model(Predictor.of(result, _compute(task)), data)
    summary = summarise(judged.test.counts[PLAIN], judged.test.patients)
    scores = {f"test_{key}": value for key, value in summary.items()}
    header = result.header.model_copy(update={"metrics": result.header.metrics | scores})
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


def _compute(task: Task, batch_parts: int = 1) -> Compute:
    device = "cuda" if task.resources.gpus else "cpu"
    return Compute(device, task.resources.workers, batch_parts)


def _open_data(task: Task) -> SliceStore:
    data = open_dataset(task.data)
    if data.fingerprint != task.fingerprint:
        raise DataError(
            f"{task.data} is not the dataset of this study: fingerprint "
            f"{data.fingerprint[:12]}, expected {task.fingerprint[:12]}"
        )
    return data


def _limit_threads(resources: TrialResources) -> None:
    """Use the CPUs that were asked for, no more; keep freed memory, which training asks for again.

    glibc returns large blocks to the kernel at once and pays for the page faults at every step.
    """
    torch.set_num_threads(resources.threads)
    cv2.setNumThreads(0)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, _GIBIBYTE)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * _GIBIBYTE - 1)
