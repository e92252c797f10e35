"""Schedulers that stop poor candidates: Tune's own, with decisions that outlive the process.

Tune does not restore the state of schedulers after an interruption. Here every decision is written
to `search/decisions.csv` before it takes effect. A new start rebuilds the scheduler from there, so
that each candidate is stopped or continued as without the interruption.

Successive halving in rounds is the study's own: a candidate ends at a rung, so that it holds no
process, and waits there with its checkpoint. The best go on when all have come.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Collection, Iterator
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

from study.spec.halving import FACTOR, Halving, num_survivors
from study.spec.study_spec import MODE, SCORE, StudySpec
from study.storage.schema import DECISIONS, read_table
from study.tune.trainable import JOB

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE
PAUSE = TrialScheduler.PAUSE
"""A candidate has come to a rung; later decisions about it say that it went on from there."""

_JUDGED_BY = {"time_attr": "epoch", "metric": SCORE, "mode": MODE}


class Decisions:
    """What was decided about each candidate after each epoch, in the order of the decisions.

    A last line that was not written completely is removed.

    Args:
        path: Of decisions.csv; created by the first decision.
        send: Called with the path after each decision, to copy the file to the study's location.
    """

    def __init__(self, path: Path, send: Callable[[Path], None] = lambda path: None) -> None:
        self._path, self._send = path, send
        self._made: dict[tuple[int, int], tuple[float, str]] = {}
        self._latest: dict[int, int] = {}
        self._going_on: set[int] = set()
        drop_broken_line(path)
        is_begun = path.exists() and (not path.is_file() or path.stat().st_size > 0)
        for row in read_table(path, DECISIONS) if is_begun else ():
            key = int(row["candidate"]), int(row["epoch"])
            self._keep(*key, float(row["value"]), row["decision"])

    def __iter__(self) -> Iterator[tuple[int, int, float, str]]:
        """Yield candidate, epoch, value and decision."""
        return iter((*key, *made) for key, made in self._made.items())

    def get(self, candidate: int, epoch: int) -> str | None:
        """Return what was decided, or None; CONTINUE for a pause that is over."""
        _, decision = self._made.get((candidate, epoch), (0.0, None))
        is_over = decision == PAUSE and self.waits_at(candidate) != epoch
        return CONTINUE if is_over else decision

    def waits_at(self, candidate: int) -> int | None:
        """Return the rung at which a candidate waits for the others, or None."""
        epoch = self._latest.get(candidate)
        if epoch is None or candidate in self._going_on:
            return None
        return epoch if self._made[candidate, epoch][1] == PAUSE else None

    def end_round(self, waiting: Collection[int]) -> list[int]:
        """Let the best of the candidates at the lowest rung go on; those at others wait.

        They are the best of all that ever came to this rung, so that a start after an interruption
        chooses the same ones, and a search that is extended compares new candidates with old ones.

        Args:
            waiting: The candidates that wait, at least one.

        Returns:
            Those at the lowest rung that do not go on.
        """
        at = {candidate: self.waits_at(candidate) for candidate in waiting}
        rung = min(epoch for epoch in at.values() if epoch is not None)
        values = {
            candidate: value
            for (candidate, epoch), (value, decision) in self._made.items()
            if epoch == rung and decision == PAUSE
        }
        order = sorted(values, key=lambda candidate: (-values[candidate], candidate))
        best = order[: num_survivors(len(order))]
        here = [candidate for candidate in waiting if at[candidate] == rung]
        self._going_on |= set(here) & set(best)
        return [candidate for candidate in here if candidate not in best]

    def is_stopped(self, candidate: int) -> bool:
        """Return whether a candidate was stopped."""
        return any(key[0] == candidate and made[1] == STOP for key, made in self._made.items())

    def add(self, candidate: int, epoch: int, value: float, decision: str) -> None:
        """Record a decision; on return it is on the disk."""
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(DECISIONS.names)
            writer.writerow((candidate, epoch, repr(value), decision))
            file.flush()
            os.fsync(file.fileno())
        self._send(self._path)
        self._keep(candidate, epoch, value, decision)

    def _keep(self, candidate: int, epoch: int, value: float, decision: str) -> None:
        self._made[candidate, epoch] = (value, decision)
        self._latest[candidate] = max(epoch, self._latest.get(candidate, 0))
        self._going_on.discard(candidate)


@dataclass(frozen=True)
class _Candidate:
    """What Tune's schedulers know of a trial: an id that is the same after an interruption."""

    trial_id: str


class RecordedScheduler(FIFOScheduler):  # type: ignore[misc]
    """Asks a scheduler of Tune's about each epoch of a candidate once, and records its decision.

    Args:
        brackets: Schedulers of Tune's; each candidate belongs to one of them.
        bracket_of: Index of a candidate -> index of its scheduler.
        decisions: What was decided before; the schedulers are brought to that state.
    """

    def __init__(
        self,
        brackets: list[TrialScheduler],
        bracket_of: Callable[[int], int],
        decisions: Decisions,
    ) -> None:
        super().__init__()
        self._brackets, self._bracket_of, self._decisions = brackets, bracket_of, decisions
        self._known: set[int] = set()
        for candidate, epoch, value, _ in decisions:
            self._ask(candidate, epoch, value)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its schedulers into files that nothing here reads back

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what was decided about this epoch, or decide.

        A candidate at its last epoch continues, to write its result: nothing is left to save.
        """
        candidate, epoch = int(trial.config[JOB]["candidate"]), int(result["epoch"])
        known = self._decisions.get(candidate, epoch)
        if known is not None:
            return known
        decision = self._ask(candidate, epoch, float(result[SCORE]))
        if epoch == result["epochs"]:
            decision = CONTINUE
        self._decisions.add(candidate, epoch, float(result[SCORE]), decision)
        return decision

    def _ask(self, candidate: int, epoch: int, value: float) -> str:
        bracket, trial = self._brackets[self._bracket_of(candidate)], _Candidate(str(candidate))
        if candidate not in self._known:
            self._known.add(candidate)
            bracket.on_trial_add(None, trial)
        result = {"epoch": epoch, SCORE: value}
        return str(bracket.on_trial_result(None, trial, result))


class RoundScheduler(FIFOScheduler):  # type: ignore[misc]
    """Lets every candidate wait at its next rung, see `Decisions.end_round`.

    Args:
        rungs: Epochs.
        decisions: What was decided before.
    """

    def __init__(self, rungs: Collection[int], decisions: Decisions) -> None:
        super().__init__()
        self._rungs, self._decisions = rungs, decisions

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its schedulers into files that nothing here reads back

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """End the trial at a rung; a candidate at its last epoch writes its result."""
        candidate, epoch = int(trial.config[JOB]["candidate"]), int(result["epoch"])
        decision = self._decisions.get(candidate, epoch)
        if decision is None:
            waits = epoch in self._rungs and epoch < result["epochs"]
            decision = PAUSE if waits else CONTINUE
            self._decisions.add(candidate, epoch, float(result[SCORE]), decision)
        return STOP if decision == PAUSE else decision  # Tune's own pause would hold the process


def build_scheduler(spec: StudySpec, decisions: Decisions) -> TrialScheduler:
    """Build the scheduler of a search in the state that it had after its last decision.

    `asha` is asynchronous successive halving with one bracket, `hyperband` with several; a
    candidate's bracket is drawn from the seed and its index. `halving` is successive halving in
    rounds. Tune's synchronous HyperBand is not offered: it pauses candidates, which hold their
    processes while they wait. `median` is the median stopping rule of Vizier (Golovin et al.
    2017).
    """
    halving, seed = spec.halving, spec.experiment.seed
    match spec.own_search.scheduler:
        case "none":
            return FIFOScheduler()
        case "halving":
            return RoundScheduler(halving.rungs(), decisions)
        case "median":
            # An infinite time slice: never pause a candidate to see others first.
            first = {"grace_period": halving.first, "min_time_slice": math.inf}
            return RecordedScheduler(
                [MedianStoppingRule(**_JUDGED_BY, **first)], lambda _: 0, decisions
            )

    def bracket_of(candidate: int) -> int:
        rng = np.random.default_rng([seed, candidate])
        return int(rng.choice(halving.brackets, p=halving.chances()))

    brackets = [_bracket(halving, index) for index in range(halving.brackets)]
    return RecordedScheduler(brackets, bracket_of, decisions)


def _bracket(halving: Halving, index: int) -> TrialScheduler:
    first = halving.start(index)
    return AsyncHyperBandScheduler(
        **_JUDGED_BY,
        # More epochs than any candidate has: at its limit Tune stops a trial that is about to
        # write its result. A bracket whose first rung comes after that has no rung.
        max_t=max(halving.longest + 1, first),
        grace_period=first,
        reduction_factor=FACTOR,
        brackets=1,
    )


def drop_broken_line(path: Path) -> None:
    """Remove what follows the last end of line: a write that was interrupted."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
