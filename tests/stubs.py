"""Searches over a stub: curves whose optimum is known, in place of trainings.

Run as a program it does one such search through Tune:
python tests/stubs.py FOLDER CANDIDATES CONCURRENT [SAMPLER [SCHEDULER]]
"""

from __future__ import annotations

import json
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brainseg.config import Experiment
from brainseg.errors import DivergedError
from brainseg.training.epoch import EpochReport
from study.spec.grid import load_grid
from study.spec.resources import TrialResources
from study.spec.search_space import load_space
from study.spec.study_spec import SCORE, SearchSpec, StudySpec
from study.spec.trial_job import TrialJob, candidate_name
from study.storage.leaderboard import write_leaderboard
from study.storage.schema import Row
from study.storage.sync import StudySync
from study.storage.trial_folder import TrialFolder
from study.tune import trainable
from study.tune.schedulers import STOP, Decisions, build_scheduler
from study.tune.searcher import OptunaSearcher, run_search
from study.tune.trainable import JOB, report_epochs, workspace, write_candidate

RANGES = """
stages.0.learning_rate: {low: 0.0001, high: 0.01, log: true}
stages.1.learning_rate: {low: 0.00001, high: 0.003, log: true}
augment.strength: {low: 0.0, high: 2.0}
preprocess.clip_limit: {low: 1.0, high: 8.0, log: true, when: preprocess.filters=clahe}
"""
BASE = Experiment().replaced({"stages.0.epochs": 1, "stages.1.epochs": 13})
OPTIMUM = 0.9
"""Of a stub: raw, 1e-3 in stage 1, 3e-4 in stage 2, augmentation at 0.8."""

RESOURCES = TrialResources(cpus=1)


def build_search(
    folder: Path, candidates: int, *, text: str = RANGES, base: Experiment = BASE, **options: Any
) -> StudySpec:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "space.yaml").write_text(text)
    space = load_space(folder / "space.yaml", load_grid("lite").variants, base).record()
    search = SearchSpec(candidates=candidates, space=space, **options)
    return StudySpec(
        grid="lite",
        variants=load_grid("lite").variants,
        experiment=base,
        search=search,
        fingerprint="f" * 64,
        data=str(folder),
        synthetic=True,
    )


def final_score(experiment: Experiment) -> float:
    """How good a stub gets in the end; diverged is what learns too fast without augmentation."""
    frozen, unfrozen = (stage.learning_rate for stage in experiment.stages)
    if unfrozen > 2e-3 and experiment.augment.strength < 0.5:
        raise DivergedError(2, 1, math.nan)
    loss = 0.05 * math.log10(frozen / 1e-3) ** 2 + 0.15 * math.log10(unfrozen / 3e-4) ** 2
    loss += 0.1 * (experiment.augment.strength - 0.8) ** 2
    loss += 0.05 * bool(experiment.preprocess.filters)
    return OPTIMUM - loss


def train_stub(config: dict[str, Any], seconds: float = 0.0) -> None:
    """What Tune would run: a candidate whose curve is known."""
    job = TrialJob.model_validate(config[JOB])
    with workspace(job) as folder:
        history = report_epochs(job, folder, lambda: _stub_epochs(job, folder, seconds))
        write_candidate(job, folder, history)


def _stub_epochs(
    job: TrialJob, folder: TrialFolder, seconds: float
) -> Iterator[Sequence[EpochReport]]:
    """A curve to the final score; what history.csv has is replayed."""
    experiment = job.experiment
    known = len(folder.read_history())
    frozen, total = experiment.stages[0].epochs, experiment.num_epochs
    best = 0.0
    for step in range(1, total + 1):
        is_replayed = step <= known
        if not is_replayed:
            time.sleep(seconds)
        dice = final_score(experiment) * math.expm1(-step / 3) / math.expm1(-total / 3)
        best = max(best, dice)
        row = dict.fromkeys(("learning_rate", "train_loss", "train_dice", "is_best"), 0.0)
        row |= {"val_loss": 1 - dice, "val_dice": dice, "val_dice_patient": dice, SCORE: best}
        row |= {"stage": 1 if step <= frozen else 2, "step": step, "seconds": 1.0}
        row["epoch"] = step if step <= frozen else step - frozen
        yield [EpochReport(row, total, replayed=is_replayed)]


class KilledError(BaseException):
    """Stands for the end of the driver, at a chosen step."""


class Drive:
    """Does to a searcher and a scheduler what Tune does, one candidate at a time.

    Args:
        spec: What is asked.
        folder: The study's.
        killed_at: The step, of all that leave something on the disk, before which all ends.
    """

    def __init__(self, spec: StudySpec, folder: Path, killed_at: int | None = None) -> None:
        self.spec, self.folder, self.killed_at = spec, folder, killed_at
        self.steps = 0

    def step(self) -> None:
        if self.steps == self.killed_at:
            raise KilledError
        self.steps += 1

    def run(self, patch: pytest.MonkeyPatch) -> list[Row]:
        (self.folder / "search").mkdir(parents=True, exist_ok=True)
        decisions = Decisions(self.folder / "search" / "decisions.csv")
        searcher = OptunaSearcher(self.spec, StudySync(self.folder), RESOURCES, decisions)
        scheduler = build_scheduler(self.spec, decisions)
        while searcher.num_left or searcher.next_round():
            self.train(searcher, scheduler, patch)
        return write_leaderboard(self.folder, self.spec, "SYNTHETIC")

    def train(self, searcher: OptunaSearcher, scheduler: Any, patch: pytest.MonkeyPatch) -> None:
        """Train one candidate until it ends or is stopped."""
        patch.setattr(trainable, "LiveCurves", lambda *args: _NoCurves())
        self.step()
        trial_id = uuid.uuid4().hex
        trial = SimpleNamespace(config=searcher.suggest(trial_id))
        patch.setattr("ray.tune.report", self._report(searcher, scheduler, trial_id, trial))
        self.step()
        with suppress(_StoppedError):
            train_stub(trial.config)
        self.step()
        searcher.on_trial_complete(trial_id, {})

    def _report(
        self, searcher: OptunaSearcher, scheduler: Any, trial_id: str, trial: Any
    ) -> Callable[[dict[str, Any]], None]:
        def report(result: dict[str, Any]) -> None:
            self.step()
            if scheduler.on_trial_result(None, trial, result) == STOP:
                self.step()
                raise _StoppedError
            self.step()
            searcher.on_trial_result(trial_id, result)

        return report


class _StoppedError(BaseException):
    """Stands for the end of a candidate's process that the scheduler stopped."""


class _NoCurves:
    """In the place of TensorBoard files."""

    def __enter__(self) -> _NoCurves:
        return self

    def __exit__(self, *error: object) -> None: ...

    def write(self, report: EpochReport) -> None: ...


def history_of(folder: Path) -> list[tuple[Any, ...]]:
    """Optuna's own record of a search, without its times."""
    import optuna

    from study.tune.searcher import NAME, open_journal

    study = optuna.load_study(study_name=NAME, storage=open_journal(folder / "search/journal.log"))
    return [
        (t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in study.trials
    ]


def main() -> None:
    """Search through Tune, in this process, and say how many candidates it has."""
    from rich.console import Console

    from study.tune.cluster import start_cluster
    from study.tune.progress import Progress

    folder, candidates, concurrent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    options: dict[str, Any] = dict(zip(("sampler", "scheduler"), sys.argv[4:], strict=False))
    spec = build_search(folder, candidates, **options)
    progress = Progress([candidate_name(n) for n in range(candidates)], 1, Console(width=100))
    with start_cluster(None):
        resources = TrialResources(cpus=1, concurrent=concurrent)
        train = partial(train_stub, seconds=0.1)
        left = run_search(spec, StudySync(folder), resources, progress, 2, train)
    rows = write_leaderboard(folder, spec, "SYNTHETIC")
    sys.stdout.write(json.dumps({"candidates": len(rows), "left": left}) + "\n")


if __name__ == "__main__":
    main()
