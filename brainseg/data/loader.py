"""Batches of preprocessed and augmented slices.

Seed, stage and epoch determine the order of an epoch; with the slice's index, and how often the
epoch has drawn it before, they also determine its augmentation. All of these travel to the worker,
so that the number and order of workers, persistent workers and a resume do not change a batch.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from brainseg.config import Experiment
from brainseg.data.augment import Augmenter
from brainseg.data.input_store import open_inputs
from brainseg.data.slice_store import SliceStore

Key = tuple[int, ...]
"""Stage (1 or 2), epoch (from 1) and index of a slice in the store; for a slice that the epoch has
drawn before, also how often."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images uint8 (B, H, W, K), masks uint8 (B, H, W), indices int64 (B)."""


class SliceDataset(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8], int]]):
    """Slices of a store by `Key`: image uint8 (H, W, K), mask uint8 (H, W) and index.

    Args:
        store: The dataset.
        experiment: Size, preprocessing, augmentation, seed.
        augmented: Whether slices are augmented.
    """

    def __init__(self, store: SliceStore, experiment: Experiment, augmented: bool) -> None:
        self._inputs = open_inputs(store, experiment)
        strength = experiment.augment.strength if augmented else 0.0
        self._augmenter = Augmenter(experiment.augment, experiment.seed) if strength else None

    def __getitem__(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        index = key[2]
        image, mask = self._inputs.image(index), self._inputs.mask(index)
        if self._augmenter is not None:
            image, mask = self._augmenter(image, mask, key)
        return image, mask, index


class EpochSampler(Sampler[list[Key]]):
    """Yields the keys of each batch of an epoch.

    Args:
        indices: Indices of a part's slices in the store, int64 (N,).
        batch_size: Slices per batch; the last batch may be smaller.
        seed: Seed of the order; None keeps the order.
        weights: Probability of each slice, float64 (N,): as many slices as there are are drawn
            with replacement. None takes each slice once.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int | None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._weights = weights
        self._indices = indices
        self._batch_size = batch_size
        self._seed = seed
        self._stage = self._epoch = 0

    def set_epoch(self, stage: int, epoch: int) -> None:
        """Set the stage (1 or 2) and epoch (from 1) of the next pass."""
        self._stage, self._epoch = stage, epoch

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._indices
        if self._seed is not None:
            rng = np.random.default_rng([self._seed, self._stage, self._epoch])
            if self._weights is None:
                order = rng.permutation(order)
            else:
                order = rng.choice(order, len(order), p=self._weights)
        drawn: Counter[int] = Counter()
        for start in range(0, len(order), self._batch_size):
            chunk = order[start : start + self._batch_size].tolist()
            # BatchNorm cannot train on one slice: the bottleneck of 32 pixels is a single value.
            if len(chunk) > 1 or self._seed is None:
                yield [self._key(index, drawn) for index in chunk]

    def _key(self, index: int, drawn: Counter[int]) -> Key:
        before = drawn[index]
        drawn[index] += 1
        key = (self._stage, self._epoch, index)
        return (*key, before) if before else key


class Batches:
    """The batches of one part of the split, epoch by epoch.

    Args:
        store: The dataset.
        indices: Indices of the part's slices in the store, int64 (N,).
        experiment: Size, preprocessing, augmentation, batch size, seed.
        augmented: Whether slices are shuffled and augmented, for training.
        workers: Loader processes; 0 loads in this process.
        pinned: Whether batches lie in page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        store: SliceStore,
        indices: NDArray[np.int64],
        experiment: Experiment,
        *,
        augmented: bool,
        workers: int = 0,
        pinned: bool = False,
    ) -> None:
        self._sampler = build_sampler(store, indices, experiment, augmented=augmented)
        self._loader = DataLoader(
            SliceDataset(store, experiment, augmented),
            batch_sampler=self._sampler,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            worker_init_fn=_use_one_thread,
            # The loader draws a seed for its workers at each pass, which nothing reads; drawn from
            # the global generator, it would change dropout.
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def num_steps(self) -> int:
        """Batches of an epoch."""
        return sum(1 for _ in self._sampler)

    def epoch(self, stage: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; stage and epoch do not matter unless augmented."""
        self._sampler.set_epoch(stage, epoch)
        yield from self._loader


def build_sampler(
    store: SliceStore, indices: NDArray[np.int64], experiment: Experiment, *, augmented: bool
) -> EpochSampler:
    """Return the sampler of a part of the split, see `Batches`."""
    seed = experiment.seed if augmented else None
    weights = _weigh(store, indices, experiment.data.tumour_share) if augmented else None
    return EpochSampler(indices, experiment.optimizer.batch_size, seed, weights)


def _weigh(
    store: SliceStore, indices: NDArray[np.int64], tumour_share: float | None
) -> NDArray[np.float64] | None:
    """Return the probability of each slice, so that slices with tumour have a share.

    `check_share` refuses a training part that has slices of one kind only.
    """
    if tumour_share is None:
        return None
    tumour = np.array([store.slices[index].tumour_pixels > 0 for index in indices])
    each = np.where(tumour, tumour_share / tumour.sum(), (1 - tumour_share) / (~tumour).sum())
    return np.asarray(each)


def _collate(samples: list[tuple[NDArray[np.uint8], NDArray[np.uint8], int]]) -> Batch:
    images, masks, indices = zip(*samples, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)),
        torch.tensor(indices),
    )


def _use_one_thread(worker: int) -> None:
    # Each worker is one of the CPUs that the trial asked for.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
