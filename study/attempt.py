"""What all that trains under Tune shares: its task, and how it meets full memory and disks."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch

from brainseg.compute import Compute
from brainseg.config import Experiment
from brainseg.encoders import find_encoder_weights
from brainseg.errors import (
    BrainsegError,
    CheckpointError,
    CheckpointWarning,
    DataError,
    DivergedError,
    StorageError,
    WeightsError,
)
from brainseg.place import Place, is_url, to_place
from brainseg.storage import hash_file, patiently
from brainseg.store import SliceStore, open_dataset
from study.board import run_name
from study.candidates import Candidate
from study.mirror import Mirror
from study.plan import Trial, TrialResources
from study.results import TrialFolder

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIBIBYTE = 2**30
_T = TypeVar("_T")
Notes = list[warnings.WarningMessage]


@dataclass(frozen=True)
class Task:
    """A trial or a candidate and its surroundings, as it travels to a worker process."""

    trial: Trial
    place: Place
    data: Place
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
            to_place(config["place"]),
            to_place(config["data"]),
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
        patiently(folder.begin, f"the trial's folder {folder.path}")
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
