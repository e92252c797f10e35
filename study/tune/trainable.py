"""What all that trains under Tune shares: its task, and how it meets full memory and disks."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import cv2
import torch
from ray import tune

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import (
    BrainsegError,
    CheckpointError,
    CheckpointWarning,
    DataError,
    DivergedError,
    StorageError,
    WeightsError,
)
from brainseg.inference.evaluation import PLAIN, evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.metrics import summarise
from brainseg.model.device import Compute
from brainseg.model.encoders import describe_weights, find_encoder_weights
from brainseg.storage.files import hash_file, retry_storage
from brainseg.storage.urls import Location, is_url, to_location
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import Training, TrainResult, train_two_stage
from study.spec.grid import Trial, TrialResources
from study.storage.candidates import SCORE, Candidate
from study.storage.probability_maps import save_probabilities
from study.storage.sync import Mirror
from study.storage.tables import TrialFolder
from study.tune.tensorboard import Board, run_name

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIBIBYTE = 2**30
_T = TypeVar("_T")
Notes = list[warnings.WarningMessage]


@dataclass(frozen=True)
class Task:
    """A trial or a candidate and its surroundings, as it travels to a worker process."""

    trial: Trial
    place: Location
    data: Location
    fingerprint: str
    synthetic: bool
    resources: TrialResources
    weights_hash: str = ""

    @cached_property
    def mirror(self) -> Mirror:
        """The study, as the machine sees it on which this is asked."""
        return Mirror(self.place)

    @property
    def study(self) -> Path:
        """The study's folder on this machine."""
        return self.mirror.folder

    @property
    def folder(self) -> TrialFolder:
        """Where it leaves everything."""
        return TrialFolder(self.study / self.trial.path)

    def to_config(self) -> dict[str, Any]:
        """Return the plain dictionary that Tune stores beside its own results."""
        candidate = self.trial if isinstance(self.trial, Candidate) else None
        return {
            "variant": self.trial.variant,
            "fold": self.trial.fold,
            "seed": self.trial.seed,
            "experiment": self.trial.experiment.model_dump(mode="json"),
            "candidate": candidate and (candidate.number, candidate.inner_folds),
            "place": str(self.place),
            "data": str(self.data),
            "fingerprint": self.fingerprint,
            "synthetic": self.synthetic,
            "weights_hash": self.weights_hash,
            "resources": vars(self.resources),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Task:
        """Rebuild the task in the worker process."""
        experiment = Experiment.model_validate(config["experiment"])
        trial = Trial(config["variant"], config["fold"], config["seed"], experiment)
        if config["candidate"] is not None:
            number, inner_folds = config["candidate"]
            trial = Candidate(**vars(trial), number=number, inner_folds=inner_folds)
        return cls(
            trial,
            to_location(config["place"]),
            to_location(config["data"]),
            config["fingerprint"],
            config["synthetic"],
            TrialResources(**config["resources"]),
            config["weights_hash"],
        )

    def send(self) -> None:
        """Send what was written to where the study is, if that is not here."""
        self.mirror.push_trial(self.trial.path, run_name(self.trial, self.synthetic))

    def compute(self) -> Compute:
        """Return where to train; in smaller parts once memory ran out."""
        device = "cuda" if self.resources.gpus else "cpu"
        return Compute(device, self.resources.workers, self.folder.batch_parts)

    def open_data(self) -> SliceStore:
        """Open the dataset, and make sure of the encoder's weights if they are behind a URL.

        Raises:
            DataError: If it is not the study's any more.
            WeightsError: If the weights are not.
        """
        data = open_dataset(self.data)
        if data.fingerprint != self.fingerprint:
            raise DataError(
                f"{self.data} is not the dataset of this study: fingerprint "
                f"{data.fingerprint[:12]}, expected {self.fingerprint[:12]}"
            )
        self._check_weights()
        return data

    def _check_weights(self) -> None:
        model = self.trial.experiment.model
        if is_url(model.encoder_weights):
            path = find_encoder_weights(model)
            assert path is not None
            found = hash_file(path)
            if found != self.weights_hash:
                raise WeightsError(
                    f"{model.encoder_weights} does not hold the weights of this study: SHA-256 "
                    f"{found[:12]}, expected {self.weights_hash[:12]}"
                )


def attempt(task: Task, run: Callable[[], None]) -> None:
    """Run a task in its folder; what goes wrong is written there.

    A failure that repeating cannot cure (a diverged loss, bad data, a bad value) ends the task
    with its row written. Any other one is written too, then raised, so that Tune may try again.
    Of a disk that refuses nothing is written: the task has not failed, it can go on later.
    """
    folder = task.folder
    try:
        task.mirror.pull_trial(task.trial.path, whole=True)
        retry_storage(folder.begin, f"the trial's folder {folder.path}")
        task.send()
        _limit_threads(task.resources)
        _run_in_memory(folder, run)
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
        task.send()
        raise
    finally:
        _free_memory()  # the process may run another trial
    task.send()


def train_from_checkpoints(folder: TrialFolder, train: Callable[[Notes], _T]) -> _T:
    """Train from a folder's newest checkpoints; from the beginning if they are another's.

    Args:
        folder: Whose checkpoints.
        train: Told of a list of warnings that grows while it trains.
    """
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", CheckpointWarning)
        try:
            return train(notes)
        except CheckpointError as error:
            aside = folder.set_checkpoints_aside()
            message = f"{error}; it is now {aside}, and the training begins anew"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return train(notes)


def take_notes(notes: Notes) -> list[str]:
    """Return what was warned of about checkpoints, and forget it."""
    said = [str(n.message) for n in notes if issubclass(n.category, CheckpointWarning)]
    notes.clear()
    return said


def _run_in_memory(folder: TrialFolder, run: Callable[[], None]) -> None:
    """Run; if memory runs out, go on after the last epoch with batches halved, once."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or folder.batch_parts > 1:
            raise
        folder.halve_batches(" ".join(str(error).split()))
    # Outside the handler: the exception held on to the tensors of its frames.
    _free_memory()
    return run()


def _free_memory() -> None:
    """Give back what a trial held; its freed blocks would stay with the thread it ran in."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _libc() -> Any:
    """Return the C library, where its allocator is known."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU's or the machine's memory ran out; torch has no type for the latter."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _limit_threads(resources: TrialResources) -> None:
    """Use the CPUs that were asked for, no more; keep freed memory, which training asks for again.

    glibc returns large blocks to the kernel at once and pays for the page faults at every step.
    """
    torch.set_num_threads(resources.threads)
    cv2.setNumThreads(0)
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _GIBIBYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _GIBIBYTE - 1)


# --- trial ---


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
        retry_storage(lambda: folder.write_history([*history, report.row]), "history.csv")
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


# --- objective ---

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
    attempt(task, lambda: _run_objective(task, epochs))


def train_folds(task: Task) -> Iterator[Sequence[EpochReport]]:
    """Train on all inner folds in turn, an epoch of each before the next of any."""
    assert isinstance(task.trial, Candidate)
    data, checkpoints = task.open_data(), task.folder.checkpoints
    retry_storage(lambda: checkpoints.mkdir(exist_ok=True), f"the folder {checkpoints}")
    folds = [
        Training(
            experiment,
            data,
            compute=task.compute(),
            checkpoints=checkpoints / f"inner{experiment.inner_fold}",
        ).epochs()
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


def _run_objective(task: Task, epochs: Epochs) -> None:
    board = Board(task.study / "tensorboard", task.trial, task.synthetic)
    try:
        history = train_from_checkpoints(
            task.folder, lambda n: _train_objective(task, epochs, board, n)
        )
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


def _train_objective(
    task: Task, epochs: Epochs, board: Board, notes: Notes
) -> list[dict[str, float]]:
    folder = task.folder
    history: list[dict[str, float]] = []
    for reports in epochs(task):
        report = average(reports, max((row["val_dice"] for row in history), default=-1.0))
        history.append(report.row)
        retry_storage(lambda: folder.write_history(history), "history.csv")
        board.write(report)
        if not report.replayed:
            task.send()
        seen = {"epochs": report.epochs, "replayed": report.replayed, "notes": take_notes(notes)}
        tune.report({**report.row, **seen, "epoch": int(report.row["step"])})
    return history
