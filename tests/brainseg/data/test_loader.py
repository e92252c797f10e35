from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import equal_batches

from brainseg.config import Experiment
from brainseg.data.loader import Batches, EpochSampler
from brainseg.data.slice_store import SliceStore

Content = list[tuple[torch.Tensor, ...]]


def _content(
    data: SliceStore,
    experiment: Experiment,
    *,
    workers: int = 0,
    stage: int = 1,
    epoch: int = 1,
    before: int = 0,
) -> Content:
    indices = np.arange(0, len(data.slices), 2)
    batches = Batches(data, indices, experiment, augmented=True, workers=workers)
    for earlier in range(before):
        list(batches.epoch(1, earlier + 1))
    return list(batches.epoch(stage, epoch))


@pytest.mark.parametrize("workers", [1, 4])
def test_worker_count_changes_nothing(data: SliceStore, tiny: Experiment, workers: int) -> None:
    assert equal_batches(_content(data, tiny), _content(data, tiny, workers=workers))


def test_persistent_workers_follow_the_epoch(data: SliceStore, tiny: Experiment) -> None:
    fresh = _content(data, tiny, epoch=3)
    assert equal_batches(fresh, _content(data, tiny, epoch=3, before=2, workers=2))


def test_epochs_stages_and_seeds_differ(data: SliceStore, tiny: Experiment) -> None:
    base = _content(data, tiny)
    assert equal_batches(base, _content(data, tiny))
    assert not equal_batches(base, _content(data, tiny, epoch=2))
    assert not equal_batches(base, _content(data, tiny, stage=2))
    assert not equal_batches(base, _content(data, tiny.replaced({"seed": 45})))


def test_a_slice_is_augmented_differently_in_each_epoch(
    data: SliceStore, tiny: Experiment
) -> None:
    strong = tiny.replaced({"augment.strength": 2, "augment.flip_probability": 1})
    seen = set()
    for epoch in (1, 2, 3):
        for images, _, indices in _content(data, strong, epoch=epoch):
            seen |= {
                image.numpy().tobytes() for image, n in zip(images, indices, strict=True) if n == 4
            }
    assert len(seen) == 3


def test_loading_does_not_change_torchs_random_state(data: SliceStore, tiny: Experiment) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _content(data, tiny)
    assert torch.equal(torch.rand(3), expected)


def test_validation_keeps_order_and_pixels(data: SliceStore, tiny: Experiment) -> None:
    indices = np.array([3, 5, 30])
    images, masks, got = next(iter(Batches(data, indices, tiny, augmented=False).epoch(0, 0)))
    assert got.tolist() == [3, 5, 30]
    assert np.array_equal(images[1].numpy(), data.image(5))
    assert np.array_equal(masks[2].numpy(), data.mask(30))
    assert images.dtype == masks.dtype == torch.uint8


def test_every_training_slice_comes_once_per_epoch() -> None:
    sampler = EpochSampler(np.arange(20), 8, seed=1)
    sampler.set_epoch(1, 1)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(key[2] for batch in batches for key in batch) == list(range(20))


def test_a_last_batch_of_one_is_left_out_of_training_alone() -> None:
    training, validation = (EpochSampler(np.arange(17), 8, seed) for seed in (1, None))
    assert [len(batch) for batch in training] == [8, 8]
    assert [len(batch) for batch in validation] == [8, 8, 1]
