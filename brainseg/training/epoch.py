"""Passes over training, validation or test slices, and the report of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.data.loader import Batch
from brainseg.metrics import Counts, count_pixels
from brainseg.model.device import mixed_precision, send
from brainseg.model.loss import segmentation_loss
from brainseg.model.networks import infer_logits, normalise


@dataclass(frozen=True)
class Pass:
    """The result of a pass over N slices.

    Attributes:
        loss: Mean over slices of the loss of their batch.
        counts: int64 (N, 4), TP, FP, FN, TN of each slice, in the order of the batches.
        masks: Index of a slice -> its predicted mask, bool (H, W), for the slices asked for.
    """

    loss: float
    counts: Counts
    masks: dict[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class Example:
    """A validation slice as the network sees it: uint8 (S, S, 3), and two bool (S, S) masks."""

    name: str
    image: NDArray[np.uint8]
    true: NDArray[np.bool_]
    predicted: NDArray[np.bool_]


@dataclass(frozen=True)
class EpochReport:
    """The report of an epoch.

    Attributes:
        row: stage, epoch (from 1 in its stage), step (from 1 over both stages), learning_rate,
            train_loss, train_dice, val_loss, val_dice (train and val Dice are global), val_iou,
            val_accuracy, val_precision, val_recall, val_dice_patient, val_dice_slice,
            best_val_dice, is_best (1 if the val loss is the lowest so far), seconds.
        epochs: Number of epochs of both stages.
        examples: Some validation slices; empty if replayed.
        replayed: Whether the epoch was trained before a resume and is reported again.
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
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[], None] = lambda: None,
) -> Pass:
    """Train on the batches of an epoch, one optimizer step per batch.

    Args:
        model: The U-Net, in the mode of its stage, on `device`.
        batches: Batches of one epoch.
        experiment: Loss weights, threshold and clipping.
        device: Device to compute on.
        optimizer: Optimizer of the weights that are not frozen.
        scaler: Gradient scaler; a disabled one does nothing.
        batch_parts: Parts that each batch is processed in; their gradients add up to one step.
            More parts need less memory and give other numbers, since BatchNorm and the Dice loss
            are computed for each part. No part has fewer than two slices, on one of which
            BatchNorm could not train.
        before_step: Called with the number of each step, from 0, before its gradients.
        after_step: Called after each step.
    """
    # Loss and counts stay on the device: fetching them at each step would make a GPU wait.
    total, counts = torch.zeros((), device=device), []
    clip = experiment.optimizer.gradient_clip
    for step, (batch, batch_masks, _) in enumerate(batches):
        before_step(step)
        optimizer.zero_grad(set_to_none=True)
        count = max(1, min(batch_parts, len(batch) // 2))
        parts = zip(batch.tensor_split(count), batch_masks.tensor_split(count), strict=True)
        for images, masks in parts:
            target = send(masks, device)
            with mixed_precision(device):
                logits = model(normalise(images, device))[:, 0]
            loss = segmentation_loss(logits.float(), target.float(), experiment.loss)
            share = len(images) / len(batch)
            scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(images)
            counts.append(count_pixels(is_tumour(logits.detach(), experiment.threshold), target))
        if clip is not None:
            scaler.unscale_(optimizer)
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, clip)
        scaler.step(optimizer)
        scaler.update()
        after_step()
    return _pass(total, counts, {})


def validate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    experiment: Experiment,
    device: torch.device,
    shown: Collection[int] = (),
) -> Pass:
    """Compute loss and counts of a part of the split, without gradients.

    Args:
        model: The U-Net, in evaluation mode, on `device`.
        batches: Batches of the part.
        experiment: Loss weights and threshold.
        device: Device to compute on.
        shown: Indices of the slices whose predicted masks are returned.
    """
    total, counts, masks_shown = torch.zeros((), device=device), [], {}
    for images, masks, indices in batches:
        target = send(masks, device)
        logits = infer_logits(model, images, device)
        predicted = is_tumour(logits, experiment.threshold)
        total += segmentation_loss(logits, target.float(), experiment.loss) * len(images)
        counts.append(count_pixels(predicted, target))
        for position, index in enumerate(indices.tolist()):
            if index in shown:
                masks_shown[index] = predicted[position].cpu().numpy()
    return _pass(total, counts, masks_shown)


def _pass(
    total: torch.Tensor, counts: list[torch.Tensor], masks: dict[int, NDArray[np.bool_]]
) -> Pass:
    gathered = torch.cat(counts).cpu().numpy()
    return Pass(float(total) / len(gathered), gathered, masks)


def is_tumour(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return whether each pixel's probability is at least a threshold, bool, same shape."""
    return logits >= math.log(threshold / (1 - threshold))
