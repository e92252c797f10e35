from __future__ import annotations

import math

import pytest
import torch

from brainseg.config import LossConfig
from brainseg.model.encoders import smp
from brainseg.model.loss import segmentation_loss

DICE, BCE = (LossConfig(dice_weight=d, bce_weight=1 - d) for d in (1, 0))


def test_the_loss_by_hand() -> None:
    logits = torch.zeros((1, 2, 2))
    masks = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert float(segmentation_loss(logits, masks, DICE)) == pytest.approx(1 - 2 * 1 / (2 + 2))
    assert float(segmentation_loss(logits, masks, BCE)) == pytest.approx(math.log(2))
    assert float(segmentation_loss(logits, masks, LossConfig())) == pytest.approx(
        0.25 + math.log(2) / 2
    )


def test_the_dice_loss_of_smp_is_the_same_if_there_is_tumour() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 8, 8), generator=generator)
    masks = (torch.rand((3, 8, 8), generator=generator) > 0.5).float()
    theirs = smp.losses.DiceLoss("binary", from_logits=True)(logits[:, None], masks[:, None])
    assert float(segmentation_loss(logits, masks, DICE)) == pytest.approx(float(theirs), rel=1e-5)


def test_perfect_is_zero_and_wrong_is_one() -> None:
    masks = (torch.arange(16).reshape(1, 4, 4) % 2).float()
    sure = (masks * 2 - 1) * 50
    assert float(segmentation_loss(sure, masks, DICE)) == pytest.approx(0, abs=1e-6)
    assert float(segmentation_loss(-sure, masks, DICE)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gamma", [0, 0.2, 0.5, 1, 2])
def test_sure_and_right_pixels_have_a_finite_focal_gradient(gamma: float) -> None:
    logits = torch.tensor([[[12.0, 30.0, 200.0]]], requires_grad=True)
    config = LossConfig(dice_weight=0, bce_weight=0, focal_weight=1, focal_gamma=gamma)
    segmentation_loss(logits, torch.ones((1, 1, 3)), config).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_empty_masks_give_a_finite_loss_and_gradient() -> None:
    logits = torch.full((2, 4, 4), -200.0, requires_grad=True)
    loss = segmentation_loss(logits, torch.zeros((2, 4, 4)), LossConfig())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
