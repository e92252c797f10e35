"""The candidates of a search: what is asked, what each of them is, and the folder it leaves.

A candidate's folder `search/candidates/<number>/` is the truth about it: `params.json` from the
moment it is drawn, `checkpoints/` and `history.csv` while it trains, `result.json` once it has
ended. Needs neither Ray nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg.config import NUM_INNER_FOLDS, Experiment
from brainseg.errors import ConfigError
from brainseg.storage.files import write_text
from study.spec.grid import Trial
from study.spec.halving import BRACKETS, Halving
from study.spec.search_space import VARIANT, Changes, Range, Space
from study.storage.tables import Row, TrialFolder

SAMPLERS = ("tpe", "random", "cmaes", "gp")
SCHEDULERS = (*BRACKETS, "median", "none")
SCORE = "best_val_dice"
"""What candidates are compared by, as the studies' metric is: the highest val Dice so far."""

FINISHED, STOPPED = "finished", "stopped"
CANDIDATES = Path("search") / "candidates"
_OTHER_SEEDS = 2**31


@dataclass(frozen=True)
class Candidate(Trial):
    """One point of a search: trained and validated in rotation 0, never tested.

    Attributes:
        number: From 0, in the order in which they are drawn.
        inner_folds: How many pairs of folds validate it in turn, each with a training of its own.
    """

    number: int
    inner_folds: int

    @property
    def name(self) -> str:
        """Its name where it is printed."""
        return candidate_name(self.number)

    @property
    def path(self) -> Path:
        """Its folder, in the study's."""
        return CANDIDATES / f"{self.number:04d}"

    @property
    def experiments(self) -> list[Experiment]:
        """One per inner fold."""
        folds = inner_folds(self.experiment, self.inner_folds)
        return [self.experiment.replaced({"inner_fold": inner}) for inner in folds]


@dataclass(frozen=True)
class Search:
    """What a search asks.

    Attributes:
        space: What varies.
        candidates: How many are drawn, the grid's variants as they are among them.
        sampler: One of `SAMPLERS`: who proposes.
        scheduler: One of `SCHEDULERS`: who stops.
        folds: Inner folds per candidate.
    """

    space: Space
    candidates: int
    sampler: str = "tpe"
    scheduler: str = "asha"
    folds: int = 1

    @classmethod
    def of_record(cls, about: Mapping[str, Any]) -> Search:
        """Return the search of a study.json that has one."""
        record, base = about["search"], Experiment.model_validate(about["experiment"])
        known = {key: Range.model_validate(values) for key, values in record["space"].items()}
        ranges = {key: values for key, values in known.items() if values.value is None}
        fixed = {key: known[key].value for key in known if key not in ranges}
        return cls(
            Space(about["variants"], base, ranges, fixed),
            record["candidates"],
            record["sampler"],
            record["scheduler"],
            record["folds"],
        )

    @property
    def seed(self) -> int:
        """Of the proposals."""
        return self.space.base.seed

    @property
    def inner_folds(self) -> list[int]:
        """The inner folds of each candidate."""
        return inner_folds(self.space.base, self.folds)

    @property
    def training_seed(self) -> int:
        """Of all candidates; half the seeds away from those that variants are trained with."""
        return (self.space.base.seed + _OTHER_SEEDS) % (2 * _OTHER_SEEDS)

    @property
    def halving(self) -> Halving:
        """The rungs, none with some schedulers."""
        return Halving.of(self.scheduler, self.space.stage_epochs())

    @property
    def rungs(self) -> list[int]:
        """The epochs at which ASHA compares, whoever stops in this search."""
        return Halving.of("asha", self.space.stage_epochs()).rungs()

    def experiment(self, params: Changes) -> Experiment:
        """Return what a candidate's parameters mean, with the study's own first seed."""
        changes = {key: value for key, value in params.items() if key != VARIANT}
        return self.space.base.replaced(self.space.shared(params[VARIANT]) | changes)

    def candidate(self, number: int, params: Changes) -> Candidate:
        """Return a candidate with its parameters."""
        experiment = self.experiment(params).replaced({"fold": 0, "seed": self.training_seed})
        return Candidate(
            params[VARIANT], 0, self.training_seed, experiment, number, inner_folds=self.folds
        )

    def to_record(self) -> dict[str, Any]:
        """Return what study.json says of the search."""
        return {
            "candidates": self.candidates,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "folds": self.folds,
            "training_seed": self.training_seed,
            "rungs": self.rungs,
            "epochs": self.halving.longest,
            "space": self.space.to_record(),
        }

    def changes_from(self, record: Mapping[str, Any]) -> list[str]:
        """Return a line for each difference from the search of a study.json."""
        ours = self.to_record()
        lines = [
            f"search {key}: {record[key]} -> {ours[key]}"
            for key in ("sampler", "scheduler", "folds")
            if ours[key] != record[key]
        ]
        for key in dict.fromkeys((*record["space"], *ours["space"])):
            before, now = (side["space"].get(key, "not varied") for side in (record, ours))
            if before != now:
                lines.append(f"search space {key}: {before} -> {now}")
        if self.candidates < record["candidates"]:
            lines.append(
                f"search candidates: {record['candidates']} -> {self.candidates}, "
                "which may only grow"
            )
        return lines


def inner_folds(base: Experiment, number: int) -> list[int]:
    """Return so many inner folds, counted up from the experiment's own."""
    return [(base.inner_fold + step) % NUM_INNER_FOLDS for step in range(number)]


def check_search(search: Search) -> Search:
    """Return a search whose numbers can be.

    Raises:
        ConfigError: Naming the flag.
    """
    if search.candidates < 1:
        raise ConfigError(f"--search is {search.candidates}; at least 1")
    if not 1 <= search.folds <= NUM_INNER_FOLDS:
        raise ConfigError(f"--search-folds is {search.folds}; valid: 1 to {NUM_INNER_FOLDS}")
    return search


def candidate_name(number: int) -> str:
    """Return what a candidate is called where it is printed."""
    return f"candidate-{number:04d}"


def candidate_folder(study: Path, number: int) -> TrialFolder:
    """Return the folder of a candidate."""
    return TrialFolder(study / CANDIDATES / f"{number:04d}")


def write_params(study: Path, candidate: Candidate, params: Changes) -> None:
    """Make a candidate's folder, with its parameters in it."""
    (study / candidate.path).mkdir(parents=True, exist_ok=True)
    write_text(study / candidate.path / "params.json", json.dumps(params, indent=1) + "\n")


def read_params(study: Path) -> list[Changes]:
    """Return the parameters of all candidates that were drawn, in order."""
    paths = sorted((study / CANDIDATES).glob("*/params.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def write_stopped(study: Path, candidate: Candidate) -> Row:
    """Write the result of a candidate that the scheduler stopped, and return it."""
    folder = TrialFolder(study / candidate.path)
    last = folder.read_history()[-1]
    folder.write_stopped(candidate, {"epochs": int(last["step"]), SCORE: last[SCORE]})
    row = folder.read()
    assert row is not None
    return row
