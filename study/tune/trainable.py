"""The Tune trainable: trains one trial or candidate, and turns its errors into results."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import torch
from ray import tune

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
from brainseg.inference.evaluation import evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.metrics import summarise
from brainseg.model.device import Compute
from brainseg.model.encoders import describe_weights, find_encoder_weights
from brainseg.storage.files import hash_file, retry_storage
from brainseg.storage.urls import to_location
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import Training, TrainResult
from study.spec.resources import TrialResources
from study.spec.study_spec import SCORE
from study.spec.trial_job import TrialJob
from study.storage.probability_maps import save_probabilities
from study.storage.schema import Row
from study.storage.sync import StudySync
from study.storage.trial_folder import TrialFolder
from study.tune.tensorboard import LiveCurves

JOB = "job"
"""The key of Tune's configuration that holds a job."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GIBIBYTE = 2**30
History = list[dict[str, float]]


def run_job(config: Mapping[str, Any]) -> None:
    """Train a job, test it if it is a trial, write its folder: the function that Tune runs."""
    job = TrialJob.model_validate(config[JOB])
    with workspace(job) as folder:
        if not folder.is_complete:  # such as by an earlier process whose last message was lost
            retry_with_half_batches(folder, lambda: _run(job, folder))


@contextmanager
def workspace(job: TrialJob) -> Iterator[TrialFolder]:
    """Fetch a job's folder, and write there how the job ended if it raised an error.

    A deterministic error (a diverged loss, bad data, a bad value) ends the job, with its result
    written. Any other error is written and raised again, so that Tune may retry. If storage fails,
    the error is raised and no result is written: the job has not ended and can continue later.

    Yields:
        The folder, whose `commit` sends what was written to the study.

    Raises:
        StorageError: If the folder cannot be fetched, written or sent.
    """
    folder = StudySync(to_location(job.study)).workspace(job.path, job.run_name)
    try:
        retry_storage(folder.begin, f"the trial's folder {folder.path}")
        folder.commit()
        limit_threads(job.resources)
        yield folder
    except DivergedError as error:
        folder.write_failure(job, "diverged", str(error))
    except StorageError:
        raise
    except BrainsegError as error:
        folder.write_failure(job, "failed", str(error))
    except OSError as error:
        raise StorageError(f"{job.name}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        folder.write_failure(job, "failed", reason, traceback.format_exc())
        raise
    finally:
        _free_memory()  # the process may run another trial


def report_epochs(
    job: TrialJob,
    folder: TrialFolder,
    begin: Callable[[], Iterable[Sequence[EpochReport]]],
) -> History:
    """Train from the newest checkpoints, reporting each epoch to Tune and to TensorBoard.

    Checkpoints that do not belong to the job are renamed, and the training starts again.

    Args:
        job: The trial or candidate.
        folder: Its folder; committed after each epoch that was not replayed.
        begin: Begins or resumes the training; yields the reports of each epoch, one per training
            of the job.

    Returns:
        A row per epoch.
    """
    study = StudySync(to_location(job.study)).folder
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        with LiveCurves(study / "tensorboard", job) as curves:
            try:
                return _report(job, folder, curves, begin(), caught)
            except CheckpointError as error:
                aside = folder.set_checkpoints_aside()
                message = f"{error}; it was renamed to {aside}, and the training starts again"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            return _report(job, folder, curves, begin(), caught)


def average(reports: Sequence[EpochReport], best: float) -> EpochReport:
    """Return the mean of an epoch over a candidate's trainings.

    Args:
        reports: Of one epoch, one per inner fold and seed.
        best: The highest mean val Dice of the epochs before.

    Returns:
        A report whose `best_val_dice` is the highest mean so far, not the mean of each
        training's highest, which would choose an epoch per training; `seconds` are the sum.
    """
    first = reports[0]
    row = {key: fmean(report.row[key] for report in reports) for key in first.row}
    row[SCORE] = max(best, row["val_dice"])
    row["is_best"] = float(row[SCORE] > best)
    row["seconds"] = sum(report.row["seconds"] for report in reports)
    return replace(first, row=row, replayed=all(report.replayed for report in reports))


def write_candidate(job: TrialJob, folder: TrialFolder, history: History) -> None:
    """Write the result of a candidate that ran in full; candidates are never tested."""
    best = max(history, key=lambda row: row["val_dice"])
    facts = _facts(job, folder, history)
    folder.write_success(job, {**facts, "best_epoch": best["step"], SCORE: best["val_dice"]}, {})


def _run(job: TrialJob, folder: TrialFolder) -> None:
    started = time.time()
    data = _open_data(job)
    device = "cuda" if job.resources.gpus else "cpu"
    compute = Compute(device, job.resources.workers, folder.batch_parts)
    trainings: list[Training] = []

    def begin() -> Iterator[Sequence[EpochReport]]:
        trainings[:] = [
            Training(experiment, data, compute=compute, checkpoints=path)
            for experiment, path in zip(job.experiments, _checkpoints(job, folder), strict=True)
        ]
        # With several trainings, an epoch of each comes before the next epoch of any.
        return zip(*(training.epochs() for training in trainings), strict=True)

    history = report_epochs(job, folder, begin)
    if job.candidate is None:
        result = trainings.pop().result()  # frees the gradients and the loaders before the test
        _test(job, folder, result, data, compute, started)
    else:
        write_candidate(job, folder, history)


def _checkpoints(job: TrialJob, folder: TrialFolder) -> list[Path]:
    """Return the folder of checkpoints of each of a job's trainings."""
    if job.candidate is None:
        return [folder.checkpoints]
    retry_storage(lambda: folder.checkpoints.mkdir(exist_ok=True), f"{folder.checkpoints}")
    names = [f"inner{item.inner_fold}" for item in job.experiments]
    if job.num_search_seeds > 1:
        names = [f"{n}-seed{e.seed}" for n, e in zip(names, job.experiments, strict=True)]
    return [folder.checkpoints / name for name in names]


def _report(
    job: TrialJob,
    folder: TrialFolder,
    curves: LiveCurves,
    epochs: Iterable[Sequence[EpochReport]],
    caught: list[warnings.WarningMessage],
) -> History:
    history: History = []
    known = folder.count_history()
    for reports in epochs:
        report = reports[0]
        if job.candidate is not None:
            report = average(reports, max((row["val_dice"] for row in history), default=-1.0))
        history.append(report.row)
        # What is replayed is there already: cut short, it would be of fewer epochs until the end.
        if not report.replayed or len(history) > known:
            retry_storage(lambda: folder.write_history(history), "history.csv")
        curves.write(report)
        if not report.replayed:
            folder.commit()
        notes = [str(n.message) for n in caught if issubclass(n.category, CheckpointWarning)]
        caught.clear()
        seen = {"epochs": report.epochs, "replayed": report.replayed, "notes": notes}
        tune.report({**report.row, **seen, "epoch": int(report.row["step"])})
    if len(history) <= known:  # all was replayed
        retry_storage(lambda: folder.write_history(history), "history.csv")
    return history


def _facts(job: TrialJob, folder: TrialFolder, history: History) -> Row:
    return {
        "batch_parts": folder.batch_parts,
        "weights": describe_weights(job.experiment.model),
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
    }


def _test(
    job: TrialJob,
    folder: TrialFolder,
    result: TrainResult,
    data: SliceStore,
    compute: Compute,
    started: float,
) -> None:
    """Evaluate on the test part, for the only time, with the weights that validation chose."""
    judged = evaluate_model(Predictor.of(result, compute), data)
    summary = summarise(judged.test.plain, judged.test.patients)
    scores = {f"test_{key}": value for key, value in summary.items()}
    header = result.header.model_copy(update={"metrics": result.header.metrics | scores})
    TrainResult(result.weights, result.history, header).save(folder.model)
    save_probabilities(folder.probabilities, judged)
    values = {
        **_facts(job, folder, result.history),
        "best_stage": header.best["stage"],
        "best_epoch": header.best["epoch"],
        "wall_seconds": time.time() - started,
        "val_loss": header.best["val_loss"],
        **header.metrics,
    }
    folder.write_success(job, values, judged.tables(data))


def _open_data(job: TrialJob) -> SliceStore:
    """Open the dataset, and check that data and weights are still the study's.

    Raises:
        DataError: If the dataset is another one.
        WeightsError: If the file of the encoder's weights is missing or another one.
    """
    data = open_dataset(to_location(job.data))
    if data.fingerprint != job.fingerprint:
        raise DataError(
            f"{job.data} is not the dataset of this study: fingerprint "
            f"{data.fingerprint[:12]}, expected {job.fingerprint[:12]}"
        )
    model = job.experiment.model
    if job.weights_hash:
        path = find_encoder_weights(model)
        assert path is not None
        found = hash_file(path)
        if found != job.weights_hash:
            raise WeightsError(
                f"{model.weights_location} does not hold the weights of this study: SHA-256 "
                f"{found[:12]}, expected {job.weights_hash[:12]}"
            )
    return data


def retry_with_half_batches(folder: TrialFolder, run: Callable[[], None]) -> None:
    """Run; if memory runs out, run once more with half batches, from the last epoch on."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or folder.batch_parts > 1:
            raise
        folder.halve_batches(" ".join(str(error).split()))
    # Outside the handler: the exception holds on to the tensors of its frames.
    _free_memory()
    return run()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU's or the machine's memory ran out; torch has no type for the latter."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _free_memory() -> None:
    """Return a trial's memory to the system, for the next trial in the same process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def limit_threads(resources: TrialResources) -> None:
    """Set the number of threads, and make glibc keep freed memory for the next step.

    By default, glibc returns large blocks to the kernel, and each step pays for page faults.
    """
    torch.set_num_threads(resources.threads)
    cv2.setNumThreads(0)
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _GIBIBYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _GIBIBYTE - 1)


def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
