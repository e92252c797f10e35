"""What each trial gets of a cluster, and how many trials run in parallel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from brainseg.errors import StudyError

_MOST_CPUS_BESIDE_A_GPU = 8


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus: CPUs that trials may use.
        gpus: GPUs that trials may use.
        exists: False for a node that an autoscaler would start on demand.
    """

    cpus: int
    gpus: float
    exists: bool = True


Cluster = tuple[Node, ...]
"""All nodes that trials can run on, including those not started yet; a laptop is one node."""


class TrialResources(BaseModel):
    """What every trial asks for, and how many trials run at once.

    Attributes:
        cpus: CPUs, including the loader workers.
        gpus: A share of a GPU, or whole GPUs; 0 trains on the CPUs.
        workers: Loader processes.
        concurrent: Trials that run at the same time on the nodes known at the start.
        coming: How many of these wait for nodes that an autoscaler has yet to start.
        grows: Whether nodes that join later get trials too.
    """

    model_config = ConfigDict(frozen=True)

    cpus: int = 1
    gpus: float = 0.0
    workers: int = 0
    concurrent: int = 1
    coming: int = 0
    grows: bool = False

    def __str__(self) -> str:
        return (f"{self.gpus:g} GPU and " if self.gpus else "") + f"{self.cpus} CPU"

    def describe(self) -> str:
        """Return how many run in parallel: `8 at once, 6 of them on nodes yet to be started`."""
        later = f", {self.coming} of them on nodes yet to be started" if self.coming else ""
        more = ", more as nodes join" if self.grows else ""
        return f"{self.concurrent} at once{later}{more}"

    def limit(self, *, searching: bool) -> int | None:
        """Return how many trials Tune may have at once; None for as many as fit.

        Without a limit, Tune queues one candidate of a search at a time, so that an autoscaler
        would add nodes one by one. A search that waits for nodes therefore gets a limit.
        """
        return None if self.grows and not (searching and self.coming) else self.concurrent

    @property
    def threads(self) -> int:
        """Threads of the training process."""
        return self.cpus - self.workers


def share_cluster(
    cluster: Cluster,
    num_trials: int,
    *,
    cpus: int | None = None,
    gpus: float | None = None,
    concurrent: int | None = None,
    grows: bool = False,
) -> TrialResources:
    """Decide what each trial asks for.

    With GPUs, a trial gets one GPU and up to eight CPUs, which mostly load data. Without GPUs, the
    CPUs are shared evenly: two trials of one thread train 1.7 times the slices/s of one trial of
    two threads.

    Args:
        cluster: The nodes that exist or could be started.
        num_trials: Of the whole study, including finished ones: what a trial gets must not depend
            on when it runs, because the number of threads changes the last bits of its numbers.
        cpus: CPUs per trial, if decided already.
        gpus: GPUs per trial, if decided already.
        concurrent: Maximum number of trials at once, if the user gave one.
        grows: Whether nodes may join while the study runs.

    Raises:
        StudyError: If no node can hold a trial, which would then wait for ever.
    """
    grows = grows and concurrent is None
    num_trials = max(1, num_trials if concurrent is None else min(num_trials, concurrent))
    gpus = gpus if gpus is not None else float(any(node.gpus >= 1 for node in cluster))
    able = [node for node in cluster if node.gpus >= gpus and node.cpus] or list(cluster)
    if cpus is None:
        slots = sum(math.floor(node.gpus / gpus) for node in able) if gpus else num_trials
        share = sum(node.cpus for node in able) // max(1, min(slots, num_trials))
        smallest = min(node.cpus for node in able)
        cpus = max(1, min(share, smallest, _MOST_CPUS_BESIDE_A_GPU if gpus else share))
    present = sum(trials_on(node, cpus, gpus) for node in cluster if node.exists)
    fitting = sum(trials_on(node, cpus, gpus) for node in cluster)
    if fitting == 0:
        most = max(cluster, key=lambda node: (node.gpus, node.cpus))
        raise StudyError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, which no single node has; the "
            f"largest of {len(cluster)} has {most.cpus} and {most.gpus:g}: "
            "lower --cpus-per-trial or --gpus-per-trial"
        )
    at_once = min(fitting, num_trials)
    return TrialResources(
        cpus=cpus,
        gpus=gpus,
        workers=cpus - 1 if gpus else 0,
        concurrent=at_once,
        coming=max(0, at_once - present),
        grows=grows,
    )


def trials_on(node: Node, cpus: int, gpus: float) -> int:
    """Return how many trials that ask for so many CPUs and GPUs a node can hold at once."""
    by_cpus = node.cpus // cpus
    return min(by_cpus, math.floor(node.gpus / gpus + 1e-9)) if gpus else by_cpus
