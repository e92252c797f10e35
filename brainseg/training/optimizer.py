"""The optimizer of a stage, its learning rate step by step, and the average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from brainseg.config import OptimizerConfig, StageConfig

_ONECYCLE_RISE, _ONECYCLE_START, _ONECYCLE_END = 0.3, 25.0, 1e4
"""Of Smith and Topin 2018, with the values of torch's OneCycleLR."""


def build_optimizer(
    model: torch.nn.Module, settings: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer of the weights that are not frozen."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if settings.name == "sgd":
        return torch.optim.SGD(
            weights,
            lr=learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.AdamW(
        weights, lr=learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate(
    stage: StageConfig, settings: OptimizerConfig, step: int, steps_per_epoch: int
) -> float | None:
    """Return the learning rate of a step, or None with the schedule `plateau`, which decides.

    It depends on nothing but the step, so that a resumed training continues exactly.

    Args:
        stage: Its epochs and its learning rate, which is the highest one.
        settings: The schedule and the epochs of warm-up.
        step: Step within the stage, from 0.
        steps_per_epoch: Steps of an epoch.
    """
    if settings.schedule == "plateau":
        return None
    total = stage.epochs * steps_per_epoch
    if settings.schedule == "onecycle":
        return stage.learning_rate * _one_cycle(step, total)
    warm = round(settings.warmup_epochs * steps_per_epoch)
    if step < warm:
        return stage.learning_rate * (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return stage.learning_rate
    # Loshchilov and Hutter 2017, without restarts.
    return stage.learning_rate * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def average_weights(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and BatchNorm statistics.

    After t updates the decay is at most (1 + t) / (10 + t), so that the first weights are
    forgotten early (the rule of TensorFlow's ExponentialMovingAverage). Equal weights, as those of
    a frozen encoder, stay as they are.
    """

    def update(averages: Any, values: Any, count: Any) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)  # how many batches BatchNorm has seen

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _one_cycle(step: int, total: int) -> float:
    """Return the share of the highest learning rate: a rise, then a fall, both along a cosine."""
    turn = _ONECYCLE_RISE * total - 1
    low, last = 1 / _ONECYCLE_START, 1 / (_ONECYCLE_START * _ONECYCLE_END)
    if step <= turn:
        return _anneal(low, 1, step / turn)
    return _anneal(1, last, (step - turn) / (total - 1 - turn))


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
