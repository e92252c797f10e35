"""The searcher: Optuna draws candidates for Tune, and its history lies in the study's folder.

`journal.log` in a search's folder is Optuna's own journal storage: `optuna-dashboard` shows it,
also while the search runs. A new start continues it: candidates that had not ended are suggested
again with the same parameters and index, and Optuna is told the results of those that ended in the
meantime. What is drawn depends on the seed, the candidate's index and the results told before,
never on restarts.
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
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from brainseg.storage.files import regular_file
from study.spec.resources import TrialResources
from study.spec.search_space import VARIANT
from study.spec.study_spec import MODE, SCORE, StudySpec
from study.spec.trial_job import candidate_path, search_path
from study.storage.leaderboard import read_candidates
from study.storage.schema import FINISHED, STOPPED, UNFINISHED
from study.storage.sync import StudySync
from study.storage.trial_folder import TrialFolder, candidate_folder
from study.tune.progress import Progress
from study.tune.schedulers import Decisions, build_scheduler, drop_broken_line
from study.tune.trainable import run_job
from study.tune.tuner import Trainable, fit, to_config

NAME = "search"
"""Name of the only Optuna study in a journal."""


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Optuna as Tune's searcher, with candidates that outlive the process.

    Args:
        spec: One of `StudySpec.searches`.
        sync: The study, held by this process.
        resources: What each candidate asks for.
        decisions: Of the scheduler: which candidates it has stopped.
    """

    def __init__(
        self, spec: StudySpec, sync: StudySync, resources: TrialResources, decisions: Decisions
    ) -> None:
        super().__init__(metric=SCORE, mode=MODE)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spec, self._space = spec, spec.search_space
        self._num_candidates = spec.own_search.candidates
        self._sync, self._resources, self._decisions = sync, resources, decisions
        self._group = spec.group
        self._journal = sync.folder / search_path(self._group) / "journal.log"
        self._open()
        if lost := self._lost_results():
            _set_aside(
                self._journal, f"says that candidate {lost[0]} ended, but its result is gone"
            )
            self._open()
        self._index_of: dict[str, int] = {}
        self._restore_lost()
        for variant in spec.variants:
            self._study.enqueue_trial(self._space.baseline(variant), skip_if_exists=True)
        for start in spec.own_search.starts:
            self._space.check(start)
            self._study.enqueue_trial(start, skip_if_exists=True)
        self.settle()
        self._interrupted = self._under_way()

    def _open(self) -> None:
        """Open the journal, or begin one."""
        self._storage = open_journal(self._journal)
        seed, sampler = self._spec.experiment.seed, self._spec.own_search.sampler
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=SeededSampler(sampler, seed, self._waits),
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(NAME)

    def _lost_results(self) -> list[int]:
        """Return the candidates that have ended as the journal says, but left no result."""
        ended = [trial.number for trial in self._trials() if trial.state.is_finished()]
        # Results are on this machine since the start or since they were told: nothing is fetched.
        folders = {n: candidate_folder(self._sync.folder, n, self._group) for n in ended}
        return [number for number, folder in folders.items() if folder.status == UNFINISHED]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searchers into files that nothing here reads back

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune expects; the journal is the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search continues from its journal."""
        raise NotImplementedError("a search continues from its journal, not from Tune's files")

    @property
    def num_left(self) -> int:
        """Number of candidates that have yet to end, or to come to the rung of this round."""
        drawn = sum(trial.state != TrialState.WAITING for trial in self._trials())
        return len(self._under_way()) + max(0, self._num_candidates - drawn)

    def next_round(self) -> bool:
        """End the candidates at the lowest rung except for its best, which go on.

        Returns:
            Whether any goes on; False if none waits, or a candidate has yet to come to its rung.
        """
        while not self.num_left and (waiting := self._running()):
            for number in self._decisions.end_round([trial.number for trial in waiting]):
                job = self._spec.candidate(number, self._trials()[number].params)
                self._folder(number).write_stopped(job)
            self.settle()
            self._interrupted = self._under_way()
        return bool(self.num_left)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the configuration of an interrupted candidate, or of a new one."""
        if self._interrupted:
            trial = optuna.Trial(self._study, self._id_of(self._interrupted.pop(0)))
        else:
            trial = self._study.ask()
        self._index_of[trial_id] = trial.number
        self._space.suggest(trial)
        job = self._spec.candidate(trial.number, trial.params)
        self._folder(trial.number).write_params(trial.params)
        self._sync.commit_file(self._journal)
        return to_config(job.placed(self._sync.location, self._resources))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell Optuna the score of an epoch."""
        trial = self._trials()[self._index_of[trial_id]]
        self._tell_epochs(trial, [(int(result["epoch"]), result[SCORE])])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a candidate ended; nothing if it has not, and can continue later."""
        self._settle(self._trials()[self._index_of[trial_id]])

    def settle(self) -> None:
        """Tell Optuna the results of all candidates that have ended."""
        for trial in self._running():
            self._settle(trial)

    def _settle(self, trial: FrozenTrial) -> None:
        """Tell how a candidate ended: its score, pruned if it was stopped, or failed."""
        if VARIANT not in trial.params:  # the driver ended before drawing: `suggest` draws it
            return
        folder = self._folder(trial.number)
        if folder.status == UNFINISHED and self._decisions.is_stopped(trial.number):
            folder.write_stopped(self._spec.candidate(trial.number, trial.params))
        row = folder.read()
        if trial.state != TrialState.RUNNING or (row is None and not self._waits(trial.number)):
            return
        # Tune does not tell a searcher the epoch at which a trial is stopped or paused.
        epochs = [(int(epoch["step"]), epoch[SCORE]) for epoch in folder.read_history()]
        self._tell_epochs(trial, epochs)
        if row is None:
            self._sync.commit_file(self._journal)
            return
        if row["status"] == FINISHED:
            self._study.tell(trial.number, row[SCORE])
        else:
            is_stopped = row["status"] == STOPPED
            state = TrialState.PRUNED if is_stopped else TrialState.FAIL
            self._study.tell(trial.number, state=state)
        self._sync.commit_file(self._journal)

    def _tell_epochs(self, trial: FrozenTrial, epochs: list[tuple[int, float]]) -> None:
        for epoch, value in epochs:
            if epoch not in trial.intermediate_values:
                trial_id = self._id_of(trial.number)
                self._storage.set_trial_intermediate_value(trial_id, epoch, value)

    def _restore_lost(self) -> None:
        """Add candidates that have a folder but are not in the journal, which was lost."""
        for params in read_candidates(self._sync.folder, self._spec)[len(self._trials()) :]:
            fixed = FixedTrial(params)
            self._space.suggest(fixed)
            trial = create_trial(
                state=TrialState.RUNNING, params=params, distributions=fixed.distributions
            )
            self._study.add_trial(trial)

    def _folder(self, index: int) -> TrialFolder:
        return self._sync.trial(candidate_path(index, self._group))

    def _id_of(self, index: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, index)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state == TrialState.RUNNING]

    def _under_way(self) -> list[int]:
        """Return the candidates that have begun, and neither ended nor wait at a rung."""
        return [trial.number for trial in self._running() if not self._waits(trial.number)]

    def _waits(self, number: int) -> bool:
        """Return whether a candidate that has not ended waits at a rung."""
        return self._decisions.waits_at(number) is not None


def run_search(
    spec: StudySpec,
    sync: StudySync,
    resources: TrialResources,
    progress: Progress,
    retries: int,
    trainable: Trainable = run_job,
    node_losses: int | None = None,
) -> int:
    """Run a search until all the candidates asked for have ended.

    Args:
        spec: One of `StudySpec.searches`.
        sync: The study, held by this process.
        resources: What each candidate asks for.
        progress: Prints every epoch.
        retries: How often a candidate that crashes is run again.
        trainable: Runs one candidate.
        node_losses: How many nodes each candidate may lose besides; None for any number.

    Returns:
        Number of candidates that have not ended, because storage failed.

    Raises:
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    folder = sync.folder / search_path(spec.group)
    folder.mkdir(parents=True, exist_ok=True)
    decisions = Decisions(folder / "decisions.csv", sync.commit_file)
    while True:  # a run of Tune per round; the last pass finds nothing left
        searcher = OptunaSearcher(spec, sync, resources, decisions)
        if not searcher.num_left and not searcher.next_round():
            return 0
        options = {"scheduler": build_scheduler(spec, decisions), "search_alg": searcher}
        options |= {"num_samples": searcher.num_left, "node_losses": node_losses}
        fit(trainable, resources, sync, progress, retries, param_space={}, **options)
        searcher.settle()
        if searcher.num_left:
            return searcher.num_left


def open_journal(path: Path) -> JournalStorage:
    """Open Optuna's journal, without what an interrupted write left behind.

    A journal that cannot be read is set aside: all that matters is in the candidates' folders too.

    Raises:
        DataError: If it is no file.
    """
    # This process holds the study, so that a lock file is stale. Optuna would wait 30 s for it.
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        regular_file(path)  # a pipe would block
    drop_broken_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, AssertionError) as error:
        _set_aside(path, f"is damaged ({error})")
        return JournalStorage(JournalFileBackend(str(path)))


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    path.rename(aside)
    message = f"{path} {reason}; it was renamed to {aside}, and is written again"
    warnings.warn(message, stacklevel=3)


class SeededSampler(BaseSampler):
    """A sampler that is rebuilt for each candidate, so that draws depend on the study alone.

    Args:
        name: One of `SAMPLERS`.
        seed: Of the search.
        waits: Whether a candidate of this number waits at a rung, if it has not ended.
    """

    def __init__(self, name: str, seed: int, waits: Callable[[int], bool]) -> None:
        self._name, self._seed, self._waits = name, seed, waits
        self._sampler = self._build(0, "")
        self._view: tuple[int, Study] | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the candidate's own sampler draws together."""
        self._sampler = self._build(trial.number, "")
        self._view = None
        return self._sampler.infer_relative_search_space(self._judged(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the values that are drawn together."""
        return self._sampler.sample_relative(self._judged(study, trial), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one value with a sampler of its own, which does not depend on earlier draws."""
        sampler = self._build(trial.number, param_name)
        judged = self._judged(study, trial)
        return sampler.sample_independent(judged, trial, param_name, param_distribution)

    def _judged(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the study, in which candidates that wait at a rung are judged by their scores.

        To Optuna they run, and TPE takes those that run for bad ones; here they are pruned ones.
        """
        if self._view is None or self._view[0] != trial.number:
            trials = study.get_trials(deepcopy=False)
            waiting = [
                one.state == TrialState.RUNNING and self._waits(one.number) for one in trials
            ]
            view = study
            if any(waiting):
                view = optuna.create_study(direction="maximize")
                pairs = zip(trials, waiting, strict=True)
                view.add_trials([_as_pruned(one) if waits else one for one, waits in pairs])
            self._view = trial.number, view
        return self._view[1]

    def _build(self, index: int, key: str) -> BaseSampler:
        words = np.random.SeedSequence([self._seed, index, crc32(key.encode())])
        seed = int(words.generate_state(1)[0])
        match self._name:
            case "random":
                return RandomSampler(seed)
            case "gp":
                return GPSampler(seed=seed)
            case _:
                # Running trials count as bad ones, so that no two explore the same point at once.
                return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
    )
