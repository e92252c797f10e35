"""Who proposes candidates: Optuna, through Tune, with its history in the study's folder.

`search/journal.log` is Optuna's own journal storage: `optuna-dashboard` shows it, live too. A
start goes on from it: candidates that had not ended are handed out again, with the same parameters
and numbers; those that had ended while nobody listened are told. A proposal depends on the seed,
the candidate's number and what was told before it, never on restarts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch

from study.spec.grid import TrialResources
from study.spec.search_space import VARIANT
from study.storage.candidates import (
    FINISHED,
    SCORE,
    STOPPED,
    Candidate,
    Search,
    candidate_folder,
    read_params,
    write_params,
    write_stopped,
)
from study.storage.study_folder import MODE
from study.storage.sync import Mirror
from study.storage.tables import Row
from study.tune.progress import Progress
from study.tune.schedulers import Decisions, build_scheduler, drop_broken_line
from study.tune.trainable import Task, run_candidate
from study.tune.tuner import Reporter, fit

NAME = "search"
"""Of the only Optuna study in a journal."""


class Proposer(OptunaSearch):  # type: ignore[misc]
    """Optuna as Tune's searcher, with candidates that outlive the process.

    Args:
        search: What is asked.
        study: The study's folder.
        decisions: Of the scheduler: whom it has stopped.
        task_of: Gives a candidate its surroundings.
        mirror: Where the study is, if not in its folder.
    """

    def __init__(
        self,
        search: Search,
        study: Path,
        decisions: Decisions,
        task_of: Callable[[Candidate], Task],
        mirror: Mirror | None = None,
    ) -> None:
        """Open the journal, and bring it up to what the candidates' folders say."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search, self._folder = search, study
        self._decisions, self._task_of = decisions, task_of
        self._mirror = mirror or Mirror(study)
        self._journal = study / "search" / "journal.log"
        super().__init__(
            search.space.suggest,
            metric=SCORE,
            mode=MODE,
            sampler=Seeded(search.sampler, search.seed),
            study_name=NAME,
            storage=open_journal(self._journal),
        )
        self._restore_lost()
        for variant in search.space.variants:
            self._ot_study.enqueue_trial(search.space.baseline(variant), skip_if_exists=True)
        self.settle()
        self._waiting = self._running()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searchers into files that nothing here reads back."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file where Tune expects one: the journal is the state."""
        Path(checkpoint_path).touch()

    @property
    def num_left(self) -> int:
        """How many candidates have to be run yet, or go on, until there are as many as asked."""
        drawn = sum(trial.state != TrialState.WAITING for trial in self._trials())
        return len(self._running()) + max(0, self._search.candidates - drawn)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the configuration of a candidate that was interrupted, or of a new one."""
        if self._waiting:
            trial = optuna.Trial(self._ot_study, self._waiting.pop(0)._trial_id)
        else:
            trial = self._ot_study.ask()
        self._ot_trials[trial_id] = trial
        self._search.space.suggest(trial)
        candidate = self._search.candidate(trial.number, trial.params)
        write_params(self._folder, candidate, trial.params)
        self._mirror.push_result(candidate.path)
        self._mirror.push_file(self._journal)
        return {"task": self._task_of(candidate).to_config()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell Optuna of an epoch."""
        number = self._ot_trials[trial_id].number
        self._tell_epochs(self._trials()[number], [(int(result["epoch"]), result[SCORE])])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a candidate ended; nothing if it has not, and can go on later."""
        self._settle(self._trials()[self._ot_trials[trial_id].number])

    def settle(self) -> None:
        """Tell Optuna of all candidates that have ended."""
        for trial in self._running():
            self._settle(trial)

    def _settle(self, trial: FrozenTrial) -> None:
        if VARIANT not in trial.params:  # a driver ended before it was drawn: `suggest` does it
            return
        folder = candidate_folder(self._folder, trial.number)
        candidate = self._search.candidate(trial.number, trial.params)
        self._mirror.pull_trial(candidate.path)
        row = folder.read()
        if row is None and self._decisions.is_stopped(trial.number):
            row = write_stopped(self._folder, candidate)
            self._mirror.push_result(candidate.path)
            self._mirror.drop_checkpoints(candidate.path)
        if row is None or trial.state != TrialState.RUNNING:
            return
        epochs = [(int(epoch["step"]), epoch[SCORE]) for epoch in folder.read_history()]
        self._tell_epochs(trial, epochs)
        self._tell_end(trial.number, row)
        self._mirror.push_file(self._journal)

    def _tell_end(self, number: int, row: Row) -> None:
        """Tell a full score as one, a stopped candidate as pruned, a failed one as failed."""
        if row["status"] == FINISHED:
            self._ot_study.tell(number, row[SCORE])
        else:
            is_stopped = row["status"] == STOPPED
            state = TrialState.PRUNED if is_stopped else TrialState.FAIL
            self._ot_study.tell(number, state=state)

    def _tell_epochs(self, trial: FrozenTrial, epochs: list[tuple[int, float]]) -> None:
        for epoch, value in epochs:
            if epoch not in trial.intermediate_values:
                storage = self._ot_study._storage
                storage.set_trial_intermediate_value(trial._trial_id, epoch, value)

    def _restore_lost(self) -> None:
        """Add candidates that have a folder, but are not in the journal: it was lost."""
        for params in read_params(self._folder)[len(self._trials()) :]:
            fixed = FixedTrial(params)
            self._search.space.suggest(fixed)  # type: ignore[arg-type]
            trial = create_trial(
                state=TrialState.RUNNING, params=params, distributions=fixed.distributions
            )
            self._ot_study.add_trial(trial)

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._ot_study.get_trials(deepcopy=False)
        return trials

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state == TrialState.RUNNING]


class _SearchReporter(Reporter):
    """Says too how each candidate ended."""

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Print its status and its score."""
        task = Task.from_config(trial.config["task"])
        task.mirror.pull_trial(task.trial.path)
        row = task.folder.read()
        if row is not None:
            score = f", best val Dice {row[SCORE]:.3f}" if SCORE in row else f": {row['error']}"
            self.progress.ended(str(trial), f"{row['status']} after {row['epochs']} epochs{score}")


def run_search(
    search: Search,
    study: Path,
    task_of: Callable[[Candidate], Task],
    resources: TrialResources,
    progress: Progress,
    retries: int,
    trainable: Callable[[dict[str, Any]], None] = run_candidate,
    mirror: Mirror | None = None,
) -> int:
    """Run a search until it has as many candidates as asked, all of them ended.

    Args:
        search: What is asked.
        study: The study's folder, held by this process.
        task_of: Gives a candidate its surroundings.
        resources: What each of them asks for.
        progress: Told of every epoch.
        retries: Of a candidate whose process dies.
        trainable: Runs one candidate.
        mirror: Where the study is, if not in its folder.

    Returns:
        How many candidates have not ended after all, because the disk refused.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    (study / "search").mkdir(exist_ok=True)
    mirror = mirror or Mirror(study)
    decisions = Decisions(study / "search" / "decisions.csv", mirror.push_file)
    proposer = Proposer(search, study, decisions, task_of, mirror)
    if proposer.num_left:
        fit(
            trainable,
            resources,
            study,
            _SearchReporter(progress),
            retries,
            {},
            search_alg=proposer,
            scheduler=build_scheduler(search, decisions),
            num_samples=proposer.num_left,
        )
        proposer.settle()
    return proposer.num_left


def open_journal(path: Path) -> JournalStorage:
    """Open Optuna's journal; what an interrupted write left behind is cleared away.

    One that cannot be read is set aside: all that matters is in the candidates' folders too.
    """
    # Its owner is dead: this study is held by this process. Optuna itself would wait 30 s.
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    drop_broken_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, AssertionError) as error:
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        path.rename(aside)
        message = f"{path} is damaged ({error}); it is now {aside}, and written anew"
        warnings.warn(message, stacklevel=2)
        return JournalStorage(JournalFileBackend(str(path)))


# --- samplers ---


class Seeded(BaseSampler):
    """A sampler that begins anew for each candidate, so that it remembers nothing but the study.

    Args:
        name: One of `SAMPLERS`.
        seed: Of the search.
    """

    def __init__(self, name: str, seed: int) -> None:
        """Begin with the sampler of the first candidate."""
        self._name, self._seed = name, seed
        self._sampler = self._build(0, "")

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler of this candidate draws together."""
        self._sampler = self._build(trial.number, "")
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw that."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one value by itself."""
        # By name too: what was drawn before an interruption is not drawn again.
        sampler = self._build(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _build(self, number: int, key: str) -> BaseSampler:
        words = np.random.SeedSequence([self._seed, number, crc32(key.encode())])
        seed = int(words.generate_state(1)[0])
        match self._name:
            case "random":
                return RandomSampler(seed)
            case "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "gp":
                return GPSampler(seed=seed)
            case _:
                # Trials that run count as bad ones: no two at once go to the same place.
                return TPESampler(seed=seed, multivariate=True, constant_liar=True)
