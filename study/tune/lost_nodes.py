"""Failures that are not a trial's own: its node was preempted, drained, or is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import ActorUnavailableError, NodeDiedError, RayActorError
from ray.tune.experiment import Trial

_NODE_DIED = "because its node has died"


def is_lost_node(error: BaseException | None) -> bool:
    """Return whether a trial failed because its node is gone.

    A process that dies by itself, or is ended to save its node's memory, is reported by its node
    at once. If the node is gone too, nobody does: Ray finds the process unavailable.
    """
    if isinstance(error, RayActorError):
        # Drained nodes say `preempted`. Ray tells a node's death from a process's in words only.
        unavailable = isinstance(error, ActorUnavailableError)
        return error.preempted or unavailable or _NODE_DIED in str(error)
    return isinstance(error, NodeDiedError)


class LostNodes:
    """Counts the nodes that trials lose, so that these losses do not use up their retries.

    Args:
        limit: How many nodes each trial may lose; None for any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._latest: dict[str, bool] = {}

    @property
    def total(self) -> int:
        """How often a trial has lost its node."""
        return self._counts.total()

    def latest(self, trial: Trial) -> int:
        """Return how many nodes a trial has lost if its last failure was such a loss, else 0."""
        return self._counts[trial.trial_id] if self._latest.get(trial.trial_id) else 0

    @contextmanager
    def counted_apart(self) -> Iterator[None]:
        """Within the block, Tune's count of failures leaves lost nodes out.

        Tune itself leaves out only those whose loss a cloud announced.
        """
        handle = Trial.handle_error

        def handle_error(trial: Trial, error: Any = None) -> None:
            before = trial.num_failures
            handle(trial, error)
            lost = self._latest[trial.trial_id] = is_lost_node(error)
            self._counts[trial.trial_id] += lost
            if lost:
                over = self._limit is not None and self._counts[trial.trial_id] > self._limit
                trial.run_metadata.num_failures = trial.max_failures + 1 if over else before

        Trial.handle_error = handle_error
        try:
            yield
        finally:
            Trial.handle_error = handle
