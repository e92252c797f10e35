"""Runs trials and candidates with Ray Tune over a cluster.

A study does not continue from Tune's own state: trials keep theirs in their own folders. Each
start hands Tune the trials that have no result yet, and needs none of Tune's earlier files. Tune
writes below `<study>/tune/`, into a new folder for each start.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from brainseg.errors import StorageError
from study.spec.resources import TrialResources
from study.spec.study_spec import METRIC, MODE, SCORE
from study.spec.trial_job import TrialJob
from study.storage.schema import FAILURES, UNFINISHED
from study.storage.sync import StudySync
from study.storage.trial_folder import TrialFolder
from study.tune.failures import Failures
from study.tune.progress import Progress
from study.tune.trainable import JOB, run_job
from study.tune.waiting import WaitNotice

_LOW_MEMORY = ("low on memory", "OutOfMemoryError")  # Ray ended the process to save its node
# Ray's last lines if a process cannot begin, as on a node without this package, or is killed.
_SAYS_LITTLE = ("An unexpected internal error", "Refer to the documentation")
Trainable = Callable[[dict[str, Any]], None]


class Reporter(tune.Callback):  # type: ignore[misc]
    """Prints what Tune reports; halves the batches of a trial that was killed for its memory.

    Args:
        sync: The study.
        progress: Prints it.
        failures: Knows how trials failed.

    Attributes:
        failed: Tune's trials that are not run again.
    """

    def __init__(self, sync: StudySync, progress: Progress, failures: Failures) -> None:
        self._sync, self._progress, self._failures = sync, progress, failures
        self.failed: list[Any] = []
        self._waiting = WaitNotice(progress.note)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into a file that nothing here reads back

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Print why trials wait, if it is time; called ten times a second."""
        self._waiting.notify(trials)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that the trial starts."""
        self._waiting.started()
        self._progress.started(str(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Print an epoch, and the notes of the process that trained it."""
        self._waiting.reported()
        if "val_dice" in result:
            for note in result["notes"]:
                self._progress.note(f"{trial}: {note}")
            self._progress.epoch(str(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print why the trial is run again; halve its batches if memory ran out."""
        self._waiting.reported()
        if lost := self._failures.lost_nodes(trial):
            failure = f"its node was lost, {lost} so far; this is not one of its retries"
        else:
            failure = _last_failure(trial)
        self._progress.note(f"{trial} continues after a failure: {_reason(failure)}")
        folder = self._folder(trial)
        if folder.status in FAILURES:
            # It says that the trial failed. If this process dies now, the next one runs it again.
            folder.remove_result()
            folder.commit()
        if any(phrase in failure for phrase in _LOW_MEMORY):
            folder.halve_batches(_reason(failure))

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Print the status and score of a candidate that has ended."""
        if trial.config[JOB]["candidate"] is None:
            return
        row = self._folder(trial).read()
        if row is not None:
            score = f", best val Dice {row[SCORE]:.3f}" if SCORE in row else f": {row['error']}"
            how = f"{row['status']} after {row['epochs']} epochs{score}"
            self._progress.ended(str(trial), how)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print why the trial is not run again; remember it."""
        self.failed.append(trial)
        self._progress.note(f"{trial} failed: {_reason(_last_failure(trial))}")

    def _folder(self, trial: Any) -> TrialFolder:
        return self._sync.trial(Path(trial.config[JOB]["path"]))


def run_trials(
    jobs: Sequence[TrialJob],
    resources: TrialResources,
    sync: StudySync,
    progress: Progress,
    retries: int,
    node_losses: int | None = None,
) -> None:
    """Run trials to their ends; each leaves its result in its own folder.

    Args:
        jobs: The trials without a result.
        resources: What each of them asks for.
        sync: The study.
        progress: Prints every epoch.
        retries: How often a trial that crashes is run again, from its last completed epoch. A
            deterministic error ends the trial without a retry, see `trainable.workspace`.
        node_losses: How many nodes each trial may lose besides; None for any number.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    records = [to_config(job.placed(sync.location, resources))[JOB] for job in jobs]
    space = {JOB: tune.grid_search(records)}
    options: dict[str, Any] = {"metric": METRIC, "mode": MODE, "reuse_actors": True}
    options |= {"param_space": space, "node_losses": node_losses}
    fit(run_job, resources, sync, progress, retries, **options)


def fit(
    trainable: Trainable,
    resources: TrialResources,
    sync: StudySync,
    progress: Progress,
    retries: int,
    *,
    param_space: Mapping[str, Any],
    node_losses: int | None = None,
    **options: Any,
) -> None:
    """Run everything there is to run under Tune.

    Args:
        trainable: Runs one configuration.
        resources: What each trial asks for.
        sync: The study.
        progress: Prints every epoch.
        retries: How often a trial that crashes is run again.
        param_space: Configurations, unless a searcher among the options suggests them.
        node_losses: How many nodes each trial may lose besides; None for any number.
        options: Of `tune.TuneConfig`.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
        StorageError: If Tune cannot write its own files, such as on a full disk.
    """
    runs = sync.folder / "tune"
    runs.mkdir(exist_ok=True)
    index = 1 + sum(1 for _ in runs.iterdir())
    failures = Failures(node_losses)
    reporter = Reporter(sync, progress, failures)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space=dict(param_space),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.limit(searching="search_alg" in options),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **options,
        ),
        run_config=tune.RunConfig(
            name=f"start-{index}",
            storage_path=str(runs.resolve()),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[reporter],
            verbose=0,
        ),
    )
    with stop_signals() as stopped, failures.handled(), hidden_errors_named(runs):
        tuner.fit()
    if lost := failures.num_lost_nodes:
        times = f"{lost} time" + "s" * (lost != 1)
        progress.note(f"{times} a trial lost its node, which used up no retry")
    if stopped:
        raise KeyboardInterrupt
    # Not Tune's results: they lack the configuration of a trial that died before its first epoch.
    for trial in reporter.failed:
        # A trial that ended because storage failed has not failed: it continues next time.
        if not isinstance(failures.latest(trial), OSError):
            job = TrialJob.model_validate(trial.config[JOB])
            folder = sync.trial(job.path)
            if folder.status == UNFINISHED:  # its process died
                folder.write_failure(job, "failed", _reason(_last_failure(trial)))


def to_config(job: TrialJob) -> dict[str, Any]:
    """Return Tune's configuration of a job; it carries the job's name and path."""
    return {JOB: job.model_dump(mode="json")}


@contextmanager
def hidden_errors_named(folder: Path) -> Iterator[None]:
    """Name what Tune hides: it raises what its callbacks raise as the text of a traceback.

    Raises:
        StorageError: If Tune could not write below the folder, or a callback met a known error.
        BrokenPipeError: If nothing reads the progress any more.
    """
    try:
        yield
    except tune.TuneError as error:
        if str(error).strip().rpartition("\n")[2].startswith("BrokenPipeError"):
            raise BrokenPipeError from error
        reason = _hidden_reason(str(error), folder)
        if reason is None:
            raise
        raise StorageError(f"{reason}; the same command continues the study") from error


def _hidden_reason(text: str, folder: Path) -> str | None:
    """Return what a traceback says of storage or of a study; None if it is of another error."""
    if known := re.findall(r"^brainseg\.errors\.\w+: (.+)", text, re.MULTILINE):
        return str(known[-1])
    refused = re.findall(r"^(?:OSError: |\w+Error: (?=\[Errno ))(.+)", text, re.MULTILINE)
    return f"Tune cannot write below {folder}: {refused[-1]}" if refused else None


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """End Tune in good order on the first SIGINT or SIGTERM, immediately on a second one.

    Yields:
        The signal that came, or nothing.
    """
    stopped: list[int] = []
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in (*watched, signal.SIGUSR1)}

    def restore(*numbers: int) -> None:
        for number in numbers:
            signal.signal(number, before[signal.Signals(number)])

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        restore(*watched)
        if len(stopped) > 1:  # Tune puts this handler back
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # the signal that Tune itself listens to

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    for number in watched:
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, end)  # until Tune listens to it, after some milliseconds
    try:
        yield stopped
    finally:
        restore(*before)


def _name(trial: Any) -> str:
    return str(trial.config[JOB]["name"])


def _last_failure(trial: Any) -> str:
    """Return Tune's text of the latest failure of a trial."""
    path = Path(trial.error_file) if trial.error_file else None
    found = path is not None and path.is_file()
    text = path.read_text(encoding="utf-8", errors="replace") if path and found else "unknown"
    return text.rpartition("Failure # ")[2]


def _reason(failure: str) -> str:
    """Return the line of a failure that says most: its last one, or the last error it names."""
    last = failure.strip().rpartition("\n")[2]
    named = re.findall(r"^(?:\w+Error: .+|.*running low on memory.*)", failure, re.MULTILINE)
    return str(named[-1]) if named and last.startswith(_SAYS_LITTLE) else last
