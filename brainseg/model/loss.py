"""The loss: soft Dice and binary cross entropy on logits."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from brainseg.config import LossConfig

_EPSILON = 1e-8


def dice_bce(
    logits_BHW: torch.Tensor, masks_BHW: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    """Return the weighted sum of soft Dice loss and binary cross entropy.

    The Dice loss is that of Milletari et al. 2016 without the squares, over all pixels of the
    batch
    together: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), with p the sigmoid of the logits.

    Args:
        logits_BHW: float32, B slices of H x W pixels.
        masks_BHW: float32, 0 or 1.
        config: Weights of the two terms.

    Returns:
        A scalar, float32, at least 0.
    """
    probabilities = torch.sigmoid(logits_BHW)
    overlap = (probabilities * masks_BHW).sum()
    total = probabilities.sum() + masks_BHW.sum()
    dice = 1 - (2 * overlap + _EPSILON) / (total + _EPSILON)
    bce = binary_cross_entropy_with_logits(logits_BHW, masks_BHW)
    return config.dice_weight * dice + config.bce_weight * bce
