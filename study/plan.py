"""A grid x folds x seeds as a list of trials: what each one gets, what all of it will cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
}
"""Name of a grid -> name of a variant -> the keys in which it differs from the configuration."""

_BYTES_PER_WEIGHT = 4
_CHECKPOINTS_KEPT = 2
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


@dataclass(frozen=True)
class Machine:
    """What there is to share: totals, and the largest single node."""

    cpus: int
    gpus: float
    node_cpus: int
    node_gpus: float


@dataclass(frozen=True)
class TrialResources:
    """What every trial asks for, and how many run at once.

    Attributes:
        cpus: Processors, counting the loader workers.
        gpus: Share of a GPU, or whole ones; 0 trains on the processors.
        workers: Loader processes.
        concurrent: Trials that run at the same time.
    """

    cpus: int
    gpus: float
    workers: int
    concurrent: int

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


def share_machine(
    machine: Machine,
    num_trials: int,
    *,
    cpus: int | None = None,
    gpus: float | None = None,
    concurrent: int | None = None,
) -> TrialResources:
    """Decide what each trial asks for.

    With GPUs: one each, and up to eight processors that mostly load data. Without: processors are
    dealt evenly, since two trials of one thread beat one trial of two (1.7 times the slices/s).

    Args:
        machine: What there is.
        num_trials: How many trials want it.
        cpus: Processors per trial, if the user said so.
        gpus: GPUs per trial, if the user said so.
        concurrent: Trials at once at most, if the user said so.

    Raises:
        StudyError: If no node can hold such a trial: it would wait for ever.
    """
    num_trials = max(1, num_trials if concurrent is None else min(num_trials, concurrent))
    gpus = gpus if gpus is not None else (1.0 if machine.gpus >= 1 else 0.0)
    slots = max(1, math.floor(machine.gpus / gpus)) if gpus else num_trials
    if cpus is None:
        cpus = max(1, machine.cpus // min(slots, num_trials))
        cpus = min(cpus, machine.node_cpus, 8 if gpus else machine.cpus)
    if cpus < 1 or cpus > machine.node_cpus:
        raise StudyError(
            f"a trial asks for {cpus} CPUs, the largest node has {machine.node_cpus}: "
            f"give --cpus-per-trial between 1 and {machine.node_cpus}"
        )
    if gpus < 0 or gpus > machine.node_gpus:
        raise StudyError(
            f"a trial asks for {gpus:g} GPUs, the largest node has {machine.node_gpus:g}: "
            "give --gpus-per-trial accordingly"
        )
    fitting = machine.cpus // cpus
    if gpus:
        fitting = min(fitting, math.floor(machine.gpus / gpus + 1e-9))
    workers = cpus - 1 if gpus else 0
    return TrialResources(cpus, gpus, workers, max(1, min(fitting, num_trials)))


def disk_needed(trials: Sequence[Trial], weights: dict[str, int], concurrent: int) -> int:
    """Estimate the bytes that a study writes at its fullest.

    Args:
        trials: All trials.
        weights: Encoder -> number of the U-Net's weights.
        concurrent: Trials at once; a finished trial keeps its model alone.
    """
    sizes = sorted((weights[t.experiment.model.encoder] for t in trials), reverse=True)
    models = sum(sizes) + sum(weights[t.experiment.model.encoder] for t in _one_each(trials))
    checkpoints = (_CHECKPOINTS_KEPT + 1) * _COPIES_PER_CHECKPOINT * sum(sizes[:concurrent])
    return _BYTES_PER_WEIGHT * (models + checkpoints)


def _one_each(trials: Sequence[Trial]) -> list[Trial]:
    return list({trial.variant: trial for trial in trials}.values())
