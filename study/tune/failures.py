"""Failures of trials: Tune handles each once, of any kind, and lost nodes use up no retry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

_NODE_DIED = "because its node has died"


def is_lost_node(error: BaseException | None) -> bool:
    """Return whether a trial failed because its node is gone.

    A process that dies by itself, or is ended to save its node's memory, is reported by its node
    at once. If the node is gone too, nothing reports it: Ray finds the process unavailable.
    """
    if isinstance(error, RayActorError):
        # Drained nodes say `preempted`. Ray tells a node's death from a process's in words only.
        unavailable = isinstance(error, ActorUnavailableError)
        return error.preempted or unavailable or _NODE_DIED in str(error)
    return isinstance(error, NodeDiedError)


class Failures:
    """Counts the nodes that trials lose, and knows each trial's latest failure.

    Args:
        limit: How many nodes each trial may lose without using up a retry; None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lost: Counter[str] = Counter()
        self._latest: dict[str, BaseException | None] = {}

    @property
    def num_lost_nodes(self) -> int:
        """How often a trial has lost its node."""
        return self._lost.total()

    def lost_nodes(self, trial: Trial) -> int:
        """Return how many nodes a trial has lost if its latest failure was such a loss, else 0."""
        return self._lost[trial.trial_id] if is_lost_node(self.latest(trial)) else 0

    def latest(self, trial: Trial) -> BaseException | None:
        """Return the error by which a trial failed latest."""
        return self._latest.get(trial.trial_id)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within the block, Tune handles failures as a study needs it.

        - Its count of a trial's failures leaves lost nodes out. Tune itself leaves out only those
          whose loss a cloud announced.
        - An error that is neither of an actor nor of its code counts as the trial's failure, such
          as Ray's when it ends a process to save its node's memory. Tune itself would end.
        - A process that died before it was given its next trial is one failure of that trial. Tune
          itself counts two, and gives the trial up.
        """
        handle, process = Trial.handle_error, TuneController._process_trial_failure
        fail = RayActorManager._actor_task_failed

        def handle_error(trial: Trial, exc: Any = None) -> None:
            before = trial.num_failures
            handle(trial, exc)
            self._latest[trial.trial_id] = exc
            if is_lost_node(exc):
                self._lost[trial.trial_id] += 1
                over = self._limit is not None and self._lost[trial.trial_id] > self._limit
                trial.run_metadata.num_failures = trial.max_failures + 1 if over else before

        def process_failure(controller: TuneController, trial: Trial, exception: Any) -> None:
            controller._resetting_trials.discard(trial)
            if exception is not self.latest(trial):
                process(controller, trial, exception)

        def task_failed(
            manager: RayActorManager, tracked_actor_task: Any, exception: Exception
        ) -> None:
            fail(manager, tracked_actor_task, as_failure(exception))

        with (
            patch.object(Trial, "handle_error", handle_error),
            patch.object(TuneController, "_process_trial_failure", process_failure),
            patch.object(RayActorManager, "_actor_task_failed", task_failed),
        ):
            yield


def as_failure(error: Exception) -> Exception:
    """Return an error that Tune takes for a trial's failure, given any that Ray may raise."""
    if not isinstance(error, RayError) or isinstance(error, RayActorError | RayTaskError):
        return error
    text = f"{type(error).__name__}: {error}"
    failure: Exception = RayActorError(error_msg=text, preempted=is_lost_node(error))
    return failure
