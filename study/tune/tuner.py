"""Tune scheduling trials over a cluster.

Tune's own state is not what a study continues from: trials keep theirs in their own folders
(`study/trial.py`), so each start hands Tune just the trials that have no result yet, and a damaged
Tune file loses nothing. Tune writes below `<study>/tune/`, a new folder for each start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Ray reads these when it is imported. Trials stay in the user's working directory, so that
# relative paths mean what they say; TensorBoard files are written by study/board.py.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours takes SIGTERM too
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # or Tune prints tables beside our progress
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from brainseg.errors import StorageError
from study.spec.grid import TrialResources
from study.storage.study_folder import METRIC, MODE
from study.tune.progress import Progress
from study.tune.trainable import Task, run_trial
from study.tune.waiting import Patience

_LOW_MEMORY = ("low on memory", "OutOfMemoryError")  # Ray ended the process to save its node


class Reporter(tune.Callback):  # type: ignore[misc]
    """Hands what Tune hears to the console.

    Args:
        progress: Prints it.
    """

    def __init__(self, progress: Progress) -> None:
        """Remember who prints."""
        self.progress = progress
        self._patience = Patience(progress.note)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks into a file that nothing here reads back."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say why trials wait; Tune comes here ten times a second, whatever happens."""
        self._patience.look(trials)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say so."""
        self._patience.started()
        self.progress.started(str(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Print the epoch, and what its process noted."""
        self._patience.reported()
        if "val_dice" in result:
            for note in result["notes"]:
                self.progress.note(f"{trial}: {note}")
            self.progress.epoch(str(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say why; if memory was low, let the trial go on with smaller batches."""
        self._patience.reported()
        reason = _last_failure(trial)
        self.progress.note(f"{trial} goes on after a failure: {_last_line(reason)}")
        if any(phrase in reason for phrase in _LOW_MEMORY):
            task = Task.from_config(trial.config["task"])
            task.mirror.pull_trial(task.trial.path)
            task.folder.halve_batches(_last_line(reason))
            task.mirror.push_result(task.trial.path)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say why."""
        self.progress.note(f"{trial} ended: {_last_line(_last_failure(trial))}")


def run_trials(
    tasks: Sequence[Task],
    resources: TrialResources,
    study: Path,
    progress: Progress,
    retries: int,
) -> None:
    """Run trials to their ends; each leaves its result in its own folder.

    Args:
        tasks: The trials without a result.
        resources: What each of them asks for.
        study: The study's folder.
        progress: Told of every epoch.
        retries: Of a trial whose process dies, say; it goes on after its last epoch. An error
            that would come again ends the trial at once, see `run_trial`.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    configs = tune.grid_search([task.to_config() for task in tasks])
    fit(
        run_trial,
        resources,
        study,
        Reporter(progress),
        retries,
        {"task": configs},
        metric=METRIC,
        mode=MODE,
        reuse_actors=True,
        scheduler=Reuse(),
    )


def fit(
    trainable: Callable[[dict[str, Any]], None],
    resources: TrialResources,
    study: Path,
    reporter: Reporter,
    retries: int,
    param_space: dict[str, Any],
    **options: Any,
) -> None:
    """Let Tune run what there is to run, to its end.

    Args:
        trainable: What runs each configuration, whose `task` is a `Task`.
        resources: What each of them asks for.
        study: The study's folder.
        reporter: Hears of every epoch.
        retries: Of a process that dies.
        param_space: Configurations, unless a searcher among the options proposes them.
        options: Of `tune.TuneConfig`.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    runs = study / "tune"
    runs.mkdir(exist_ok=True)
    number = 1 + sum(1 for _ in runs.iterdir())
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.limit(searching="search_alg" in options),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **options,
        ),
        run_config=tune.RunConfig(
            name=f"start-{number}",
            storage_path=str(runs.resolve()),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[reporter],
            verbose=0,
        ),
    )
    with _stop_signals() as stopped:
        results = tuner.fit()
    if stopped:
        raise KeyboardInterrupt
    for result in results:
        if result.error is not None:
            _record_error(Task.from_config(result.config["task"]), result.error)


class Reuse(FIFOScheduler):  # type: ignore[misc]
    """Lets a process run trial after trial, until one of them did not end as it should.

    Starting Python and importing torch costs more than all else that surrounds a short trial. A
    trial that failed, diverged or ran out of memory takes its process with it.
    """

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Decide; Tune keeps or ends the process right after this."""
        task = Task.from_config(trial.config["task"])
        with suppress(StorageError):  # not known then: another process
            task.mirror.pull_trial(task.trial.path)
        row = task.folder.read() or {}
        went_well = row.get("status") == "finished" and row.get("batch_parts") == 1
        tune_controller._reuse_actors = went_well


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """End Tune in good order on the first SIGINT or SIGTERM, at once on a second one.

    Yields:
        The signal that came, or nothing.
    """
    stopped: list[int] = []
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        restore()
        signal.raise_signal(signal.SIGUSR1)  # the one that Tune itself listens to

    for number in watched:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()


def _record_error(task: Task, error: Exception) -> None:
    """Write the row of a trial that could not write its own: its process died, say.

    One that ended because its disk refused has not failed: it goes on when the study does.
    """
    if isinstance(error, OSError):
        return
    task.mirror.pull_trial(task.trial.path)
    if task.folder.read() is None:
        task.folder.write_failure(task.trial, "failed", _last_line(error))
        task.mirror.push_result(task.trial.path)


def _last_failure(trial: Any) -> str:
    """Return Tune's text of the latest failure of a trial."""
    path = Path(trial.error_file) if trial.error_file else None
    text = path.read_text(encoding="utf-8") if path and path.exists() else "unknown"
    return text.rpartition("Failure # ")[2]


def _last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _name(trial: Any) -> str:
    return Task.from_config(trial.config["task"]).trial.name
