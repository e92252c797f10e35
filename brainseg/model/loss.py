"""The loss: a weighted sum of terms on logits; by default soft Dice and binary cross entropy."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from brainseg.config import LossConfig

_EPSILON = 1e-8


def segmentation_loss(
    logits_BHW: torch.Tensor, masks_BHW: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    """Return the weighted sum of the loss's terms.

    With p the sigmoid of the logits, t the mask, sums over all pixels of the batch together:

    - Dice (Milletari et al. 2016, without the squares): 1 - (2 sum(p t) + e) / (sum(p) + sum(t) +
      e);
    - Tversky (Salehi et al. 2017), with a the weight of false positives:
      1 - (sum(p t) + e) / (sum(p t) + a sum(p (1 - t)) + (1 - a) sum((1 - p) t) + e);
    - binary cross entropy, the mean over pixels;
    - focal (Lin et al. 2017, without the balance of classes): the mean of (1 - q)^gamma times the
      cross entropy, q the probability of the true class.

    Args:
        logits_BHW: float32, B slices of H x W pixels.
        masks_BHW: float32, 0 or 1.
        config: Weights of the terms.

    Returns:
        A scalar, float32, at least 0.
    """
    probabilities = torch.sigmoid(logits_BHW)
    overlap = (probabilities * masks_BHW).sum()
    total = probabilities.sum() + masks_BHW.sum()
    dice = 1 - (2 * overlap + _EPSILON) / (total + _EPSILON)
    bce = binary_cross_entropy_with_logits(logits_BHW, masks_BHW)
    loss = config.dice_weight * dice + config.bce_weight * bce
    if config.tversky_weight:
        false = config.tversky_alpha * (probabilities.sum() - overlap)
        false = false + (1 - config.tversky_alpha) * (masks_BHW.sum() - overlap)
        tversky = 1 - (overlap + _EPSILON) / (overlap + false + _EPSILON)
        loss = loss + config.tversky_weight * tversky
    if config.focal_weight:
        each = binary_cross_entropy_with_logits(logits_BHW, masks_BHW, reduction="none")
        # Below 1, the power's gradient is infinite at 0, where sure and right pixels are.
        wrong = (-torch.expm1(-each)).clamp_min(_EPSILON)
        focal = (wrong**config.focal_gamma * each).mean()
        loss = loss + config.focal_weight * focal
    return loss
