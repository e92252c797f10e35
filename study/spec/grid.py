"""A grid x folds x seeds as a list of trials: what each one gets, what all of it will cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg.config import NUM_FOLDS, Experiment
from brainseg.errors import ConfigError, StudyError

_LITE = "timm-tf_efficientnet_lite0"

GRIDS: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {
        f"{name}-{encoder}": {"model.encoder": encoder, "preprocess.enabled": enabled}
        for encoder in ("resnet50", "efficientnet-b0")
        for name, enabled in (("raw", False), ("preprocessed", True))
    },
    "lite": {
        f"{name}-lite0": {"model.encoder": _LITE, "preprocess.enabled": enabled}
        for name, enabled in (("raw", False), ("preprocessed", True))
    },
    "one": {"configured": {}},
}
"""Name of a grid -> name of a variant -> the keys in which it differs from the configuration."""

ONE = "one"
"""The grid of a single variant that decides nothing: the configuration as it is."""

WINNER = "winner-c"
"""Begins the name of the variant that is a search's winner; its candidate's number follows."""

_BYTES_PER_WEIGHT = 4
_CHECKPOINTS_KEPT = 2
_PIXELS_PER_BYTE = 3  # packed probabilities of a network that is sure of nothing; of others, 10
_MOST_CPUS_BESIDE_A_GPU = 8
# Weights, AdamW's two moments, and the best weights so far.
_COPIES_PER_CHECKPOINT = 4


@dataclass(frozen=True)
class Trial:
    """One cell of the product: a variant on one rotation of the folds with one seed."""

    variant: str
    fold: int
    seed: int
    experiment: Experiment

    @property
    def name(self) -> str:
        """Names the trial's folder; the same however many folds and seeds the study has."""
        return f"{self.variant}-fold{self.fold}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """Its folder, in the study's."""
        return Path("trials") / self.name


@dataclass(frozen=True)
class Node:
    """One machine: its processors and its GPUs.

    Attributes:
        cpus: Processors that the cluster may use.
        gpus: GPUs that it may use.
        exists: False for one that an autoscaler would start if trials asked for it.
    """

    cpus: int
    gpus: float
    exists: bool = True


Cluster = tuple[Node, ...]
"""All machines that trials can run on, those not started yet too; one, on a laptop."""


@dataclass(frozen=True)
class TrialResources:
    """What every trial asks for, and how many run at once.

    Attributes:
        cpus: Processors, counting the loader workers.
        gpus: Share of a GPU, or whole ones; 0 trains on the processors.
        workers: Loader processes.
        concurrent: Trials that run at the same time on the nodes known at the start.
        coming: How many of these wait for nodes that an autoscaler has yet to start.
        grows: Whether nodes that join later get trials too, however many.
    """

    cpus: int
    gpus: float
    workers: int
    concurrent: int
    coming: int = 0
    grows: bool = False

    def __str__(self) -> str:
        """Return them in words, as `0.5 GPU and 4 CPU`."""
        return (f"{self.gpus:g} GPU and " if self.gpus else "") + f"{self.cpus} CPU"

    def describe(self) -> str:
        """Return how many run at once, as `8 at once, 6 of them on nodes yet to be started`."""
        later = f", {self.coming} of them on nodes yet to be started" if self.coming else ""
        more = ", more as nodes join" if self.grows else ""
        return f"{self.concurrent} at once{later}{more}"

    def limit(self, *, searching: bool) -> int | None:
        """Return how many trials Tune may have at once; None for as many as there is room for.

        Without a limit Tune lets one candidate of a search wait for room, which is right where
        nodes come by themselves: it is proposed late. An autoscaler would start them one by one.
        """
        return None if self.grows and not (searching and self.coming) else self.concurrent

    @property
    def threads(self) -> int:
        """Threads of the training process itself."""
        return self.cpus - self.workers


def plan_trials(grid: str, base: Experiment, folds: int, seeds: int) -> list[Trial]:
    """Spell out a grid: all variants of one fold and seed before the next.

    Args:
        grid: A name in `GRIDS`.
        base: What the variants share; its `seed` is the first of the seeds.
        folds: Rotations 0 to folds - 1.
        seeds: How many, counted up from the first.

    Raises:
        ConfigError: If the grid is unknown or a number out of range.
    """
    if grid not in GRIDS:
        raise ConfigError(f"unknown grid {grid}; valid: {', '.join(sorted(GRIDS))}")
    if not 1 <= folds <= NUM_FOLDS:
        raise ConfigError(f"--folds is {folds}; valid: 1 to {NUM_FOLDS}")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; at least 1")
    return [
        Trial(variant, fold, seed, base.replaced({**changes, "fold": fold, "seed": seed}))
        for seed in range(base.seed, base.seed + seeds)
        for fold in range(folds)
        for variant, changes in GRIDS[grid].items()
    ]


def refuse_grid_keys(grid: str, changes: dict[str, Any]) -> None:
    """Refuse `--set` on a key that the grid or the product itself decides.

    Raises:
        ConfigError: Naming the key.
    """
    decided = {key for variant in GRIDS.get(grid, {}).values() for key in variant}
    for key in changes:
        if key in decided:
            raise ConfigError(f"--set {key}: the grid {grid} decides it, variant by variant")
        if key == "fold":
            raise ConfigError("--set fold: use --folds N, which runs rotations 0 to N-1")


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

    With GPUs: one each, and up to eight processors that mostly load data. Without: processors are
    dealt evenly, since two trials of one thread beat one trial of two (1.7 times the slices/s).

    Args:
        cluster: What there is, or could be.
        num_trials: Of the whole study, finished ones too: what a trial gets must not depend on
            when it runs, since the number of threads changes the last bits of its numbers.
        cpus: Processors per trial, if decided already.
        gpus: GPUs per trial, if decided already.
        concurrent: Trials at once at most, if the user said so.
        grows: Whether nodes may join while the study runs.

    Raises:
        StudyError: If no node can hold such a trial: it would wait for ever.
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
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, which no node has at once; the "
            f"largest of {len(cluster)} has {most.cpus} and {most.gpus:g}: "
            "give --cpus-per-trial and --gpus-per-trial accordingly"
        )
    at_once = min(fitting, num_trials)
    workers = cpus - 1 if gpus else 0
    return TrialResources(cpus, gpus, workers, at_once, max(0, at_once - present), grows)


def trials_on(node: Node, cpus: int, gpus: float) -> int:
    """Return how many trials that ask for so much a node can hold at once."""
    by_cpus = node.cpus // cpus
    return min(by_cpus, math.floor(node.gpus / gpus + 1e-9)) if gpus else by_cpus


def num_epochs(trials: Sequence[Trial]) -> int:
    """Return the epochs of all stages of all trials."""
    return sum(stage.epochs for trial in trials for stage in trial.experiment.stages)


def disk_needed(
    trials: Sequence[Trial], weights: dict[str, int], concurrent: int, num_slices: int
) -> int:
    """Estimate the bytes that a study writes at its fullest.

    Args:
        trials: All trials.
        weights: Encoder -> number of the U-Net's weights.
        concurrent: Trials at once; a finished trial keeps its model and its probabilities.
        num_slices: Of the dataset; three of the ten folds are validated and tested.
    """
    sizes = sorted((weights[t.experiment.model.encoder] for t in trials), reverse=True)
    models = sum(sizes) + sum(weights[t.experiment.model.encoder] for t in _one_each(trials))
    checkpoints = (_CHECKPOINTS_KEPT + 1) * _COPIES_PER_CHECKPOINT * sum(sizes[:concurrent])
    pixels = sum(3 * num_slices // NUM_FOLDS * t.experiment.data.size**2 for t in trials)
    return _BYTES_PER_WEIGHT * (models + checkpoints) + pixels // _PIXELS_PER_BYTE


def disk_needed_to_search(weights: dict[str, int], concurrent: int, folds: int) -> int:
    """Estimate the bytes that a search writes at its fullest: a candidate leaves no weights.

    Args:
        weights: Encoder -> number of the U-Net's weights.
        concurrent: Candidates at once.
        folds: Trainings of each.
    """
    checkpoints = (_CHECKPOINTS_KEPT + 1) * _COPIES_PER_CHECKPOINT * folds * concurrent
    return _BYTES_PER_WEIGHT * checkpoints * max(weights.values())


def _one_each(trials: Sequence[Trial]) -> list[Trial]:
    return list({trial.variant: trial for trial in trials}.values())
