from __future__ import annotations

import numpy as np
import torch

from brainseg.config import Experiment, ModelConfig
from brainseg.data.loader import Batches
from brainseg.data.slice_store import SliceStore
from brainseg.model.networks import build_model, set_training
from brainseg.training.epoch import is_tumour, train_epoch, validate

CPU = torch.device("cpu")
CONFIG = ModelConfig(encoder="mobilenet_v2", encoder_weights="none")


def test_a_pixel_is_tumour_from_the_threshold_on() -> None:
    logits = torch.logit(torch.tensor([0.19, 0.21, 0.5, 0.9], dtype=torch.float64))
    assert is_tumour(logits, 0.2).tolist() == [False, True, True, True]
    assert is_tumour(torch.zeros(1), 0.5).tolist() == [True]


def test_validation_counts_every_pixel_and_returns_the_masks_asked_for(
    data: SliceStore, tiny: Experiment
) -> None:
    model = build_model(CONFIG, 0).eval()
    batches = Batches(data, np.arange(10), tiny, augmented=False).epoch(0, 0)
    found = validate(model, batches, tiny, CPU, shown=[3, 7])
    assert found.counts.sum(axis=1).tolist() == [32 * 32] * 10
    assert list(found.masks) == [3, 7]
    assert all(mask.sum() == found.counts[n, :2].sum() for n, mask in found.masks.items())


def test_batches_in_parts_take_as_many_steps(data: SliceStore, tiny: Experiment) -> None:
    steps = []
    for parts in (1, 2):
        model = build_model(CONFIG, 0)
        set_training(model, freeze_encoder=False)
        optimizer = torch.optim.AdamW(model.parameters())
        batches = Batches(data, np.arange(16), tiny, augmented=True).epoch(1, 1)
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        found = train_epoch(model, batches, tiny, CPU, optimizer, scaler, batch_parts=parts)
        assert found.counts.shape == (16, 4)
        steps.append(next(iter(optimizer.state.values()))["step"].item())
    assert steps == [2, 2]


def test_no_part_of_a_batch_is_a_single_slice(data: SliceStore, tiny: Experiment) -> None:
    model = build_model(CONFIG, 0)
    set_training(model, freeze_encoder=False)
    optimizer, sizes = torch.optim.AdamW(model.parameters()), []
    model.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    # 11 slices make a batch of 8 and one of 3, which has no two parts.
    batches = Batches(data, np.arange(11), tiny, augmented=True).epoch(1, 1)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    found = train_epoch(model, batches, tiny, CPU, optimizer, scaler, batch_parts=4)
    assert sizes == [2, 2, 2, 2, 3]
    assert found.counts.shape == (11, 4)
