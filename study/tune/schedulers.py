"""Who stops a candidate: Tune's schedulers, with a memory that outlives them.

Tune forgets its schedulers when a study is interrupted. Here every decision is on the disk, in
`search/decisions.csv`, before anybody acts on it, and a start rebuilds the scheduler from there:
the rungs are exactly as they were, and each candidate is stopped or kept as it would have been.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from brainseg.storage.files import read_csv
from study.spec.halving import FACTOR, Halving
from study.storage.candidates import SCORE, Search
from study.storage.study_folder import MODE

_COLUMNS = ("candidate", "epoch", "value", "decision")
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


class Decisions:
    """What was decided about each candidate after each epoch, in the order of the decisions.

    Args:
        path: Of decisions.csv; made when first written to.
        send: Told of the file after each decision, to bring it where it is safe.
    """

    def __init__(self, path: Path, send: Callable[[Path], None] = lambda path: None) -> None:
        """Read what is there; a last line that was never completed is taken away."""
        self._path, self._send = path, send
        self._made: dict[tuple[int, int], tuple[float, str]] = {}
        drop_broken_line(path)
        for row in read_csv(path):
            self._made[int(row["candidate"]), int(row["epoch"])] = (
                float(row["value"]),
                row["decision"],
            )

    def __iter__(self) -> Any:
        """Yield candidate, epoch, value and decision."""
        return iter((*key, *made) for key, made in self._made.items())

    def get(self, candidate: int, epoch: int) -> str | None:
        """Return what was decided, or None if nothing was yet."""
        made = self._made.get((candidate, epoch))
        return made and made[1]

    def is_stopped(self, candidate: int) -> bool:
        """Return whether a candidate was stopped."""
        return any(key[0] == candidate and made[1] == STOP for key, made in self._made.items())

    def add(self, candidate: int, epoch: int, value: float, decision: str) -> None:
        """Remember a decision; on return it is on the disk."""
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(_COLUMNS)
            writer.writerow((candidate, epoch, repr(value), decision))
            file.flush()
            os.fsync(file.fileno())
        self._send(self._path)
        self._made[candidate, epoch] = (value, decision)


@dataclass(frozen=True)
class _Known:
    """Stands for Tune's trial: the same one before and after an interruption."""

    trial_id: str


class _Remembering(FIFOScheduler):  # type: ignore[misc]
    """Asks the scheduler behind it in the order of bases about each epoch of a candidate, once."""

    decisions: Decisions

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its schedulers into files that nothing here reads back."""
        return {}

    def rebuild(self, decisions: Decisions) -> None:
        """Bring the scheduler to where it was after the last decision."""
        self.decisions = decisions
        for candidate, epoch, value, _ in decisions:
            self._ask(candidate, epoch, value)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what was decided about this epoch, or decide.

        A candidate at its last epoch goes on to write its result: there is nothing left to save.
        """
        number, epoch = number_of(trial), int(result["epoch"])
        known = self.decisions.get(number, epoch)
        if known is not None:
            return known
        decision = self._ask(number, epoch, float(result[SCORE]))
        if epoch == result["epochs"]:
            decision = CONTINUE
        self.decisions.add(number, epoch, float(result[SCORE]), decision)
        return decision

    def _ask(self, number: int, epoch: int, value: float) -> str:
        known = _Known(str(number))
        self.meet(number)
        answer: str = super().on_trial_result(None, known, {"epoch": epoch, SCORE: value})
        return answer

    def meet(self, number: int) -> None:
        """Prepare for a candidate that may be new."""

    # What these tell was told by results already, or is no business of a rung.
    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Do nothing."""

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing."""

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """Do nothing."""

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Do nothing."""


class Halver(_Remembering, AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving: ASHA with one bracket, asynchronous HyperBand with more.

    Args:
        halving: The rungs.
        seed: Draws the bracket of each candidate, together with its number.
    """

    def __init__(self, halving: Halving, seed: int) -> None:
        """Begin with empty rungs."""
        super().__init__(
            time_attr="epoch",
            metric=SCORE,
            mode=MODE,
            # One more than anybody runs: at its limit Tune stops a trial that writes its result.
            # At least the first rung, which nobody may reach.
            max_t=max(halving.longest + 1, halving.first),
            grace_period=halving.first,
            reduction_factor=FACTOR,
            brackets=halving.brackets,
        )
        self._chances, self._seed = halving.chances(), seed

    def meet(self, number: int) -> None:
        """Give a candidate its bracket; Tune would draw it from numpy's global random numbers."""
        if str(number) not in self._trial_info:
            rng = np.random.default_rng([self._seed, number])
            bracket = rng.choice(len(self._brackets), p=self._chances)
            self._trial_info[str(number)] = self._brackets[bracket]


class Median(_Remembering, MedianStoppingRule):  # type: ignore[misc]
    """The median stopping rule of Vizier (Golovin et al. 2017).

    Args:
        halving: Its first rung is where stopping may begin.
    """

    def __init__(self, halving: Halving) -> None:
        """Begin without any curve."""
        super().__init__(
            time_attr="epoch",
            metric=SCORE,
            mode=MODE,
            grace_period=halving.first,
            min_time_slice=math.inf,  # never pause a candidate to see others first
        )


def build_scheduler(search: Search, decisions: Decisions) -> TrialScheduler:
    """Build the scheduler of a search as it was after its last decision.

    Tune's synchronous HyperBand is not among them: it pauses trials, and would hold a cluster's
    processes for candidates that wait. `hyperband` is its asynchronous form.
    """
    if search.scheduler == "none":
        return FIFOScheduler()
    halving = search.halving
    scheduler = Median(halving) if search.scheduler == "median" else Halver(halving, search.seed)
    scheduler.rebuild(decisions)
    return scheduler


def number_of(trial: Any) -> int:
    """Return the number of the candidate that a trial of Tune's runs."""
    number: int = trial.config["task"]["candidate"][0]
    return number


def drop_broken_line(path: Path) -> None:
    """Take away what follows the last end of line: a write that was cut off."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
