"""One pass over training slices, one over validation or test slices, and what is told of both.

Shapes: B slices of a batch, H and W pixels, N slices of a part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.data.loader import Batch
from brainseg.metrics import Counts, count_pixels
from brainseg.model.device import mixed_precision
from brainseg.model.loss import dice_bce
from brainseg.model.networks import infer_logits, normalise


@dataclass(frozen=True)
class Pass:
    """What a pass over N slices found.

    Attributes:
        loss: Mean over slices of their batch's loss.
        counts: int64 (N, 4), TP, FP, FN, TN of each slice, in the order of the batches.
        shown: Number of a slice -> its predicted mask, bool (H, W), of the slices asked for.
    """

    loss: float
    counts: Counts
    shown: dict[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class Example:
    """A validation slice as the network saw it: uint8 (S, S, 3), and two bool (S, S) masks."""

    name: str
    image: NDArray[np.uint8]
    true: NDArray[np.bool_]
    predicted: NDArray[np.bool_]


@dataclass(frozen=True)
class EpochReport:
    """What `on_epoch` is told.

    Attributes:
        row: stage, epoch (from 1 in its stage), step (from 1 over both), learning_rate,
            train_loss, train_dice, val_loss, val_dice (both global), val_dice_patient,
            val_dice_slice, val_iou, val_precision, val_recall, best_val_dice, is_best, seconds.
        epochs: Epochs of both stages together.
        examples: Some validation slices; empty if replayed.
        replayed: True for an epoch of before a resume, reported again.
    """

    row: dict[str, float]
    epochs: int
    examples: tuple[Example, ...] = ()
    replayed: bool = False


def train_epoch(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    experiment: Experiment,
    device: torch.device,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch_parts: int = 1,
) -> Pass:
    """Take one optimizer step per batch.

    Args:
        model: In the mode of its stage, on `device`.
        batches: Of one epoch.
        experiment: Loss weights and threshold.
        device: Where to compute.
        optimizer: Of the weights that are not frozen.
        scaler: Of the gradients; a disabled one does nothing.
        batch_parts: Takes each batch in so many parts, whose gradients add up to one step: less
            memory, and numbers that differ, since BatchNorm and Dice see a part at a time.
    """
    # Loss and counts stay on the device: asking for them at each step would make a GPU wait.
    total, num_slices = torch.zeros((), device=device), 0
    counts = []
    for batch, batch_masks, _ in batches:
        optimizer.zero_grad(set_to_none=True)
        parts = zip(batch.chunk(batch_parts), batch_masks.chunk(batch_parts), strict=True)
        for images, masks in parts:
            target = masks.to(device, non_blocking=True)
            with mixed_precision(device):
                logits = model(normalise(images, device))[:, 0]
            loss = dice_bce(logits.float(), target.float(), experiment.loss)
            share = len(images) / len(batch)
            scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(images)
            counts.append(count_pixels(is_tumour(logits.detach(), experiment.threshold), target))
        scaler.step(optimizer)
        scaler.update()
        num_slices += len(batch)
    return Pass(float(total) / num_slices, _gather(counts), {})


def validate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    experiment: Experiment,
    device: torch.device,
    shown: Collection[int] = (),
) -> Pass:
    """Judge a part of the split, without gradient.

    Args:
        model: In evaluation mode, on `device`.
        batches: The part, in order, as it is.
        experiment: Loss weights and threshold.
        device: Where to compute.
        shown: Slices whose predicted masks are wanted.
    """
    total, num_slices = torch.zeros((), device=device), 0
    counts, masks_shown = [], {}
    for images, masks, numbers in batches:
        target = masks.to(device, non_blocking=True)
        logits = infer_logits(model, images, device)
        predicted = is_tumour(logits, experiment.threshold)
        total += dice_bce(logits, target.float(), experiment.loss) * len(images)
        num_slices += len(images)
        counts.append(count_pixels(predicted, target))
        for position, number in enumerate(numbers.tolist()):
            if number in shown:
                masks_shown[number] = predicted[position].cpu().numpy()
    return Pass(float(total) / num_slices, _gather(counts), masks_shown)


def _gather(counts: list[torch.Tensor]) -> Counts:
    return torch.cat(counts).cpu().numpy()


def is_tumour(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return where the probability reaches a threshold, as bool, without computing a sigmoid."""
    return logits >= math.log(threshold / (1 - threshold))
