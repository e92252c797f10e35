"""Store, split and configuration as batches whose content depends on nothing else.

The order of an epoch comes from (seed, stage, epoch), the change of a slice from (seed, stage,
epoch, slice). Stage and epoch travel with the index to whichever worker, so worker count, worker
order, persistent workers and resuming cannot alter a batch.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from brainseg.config import Experiment
from brainseg.data.augment import Augmenter
from brainseg.data.preprocess import preprocess, resize_mask
from brainseg.data.slice_store import SliceStore

Key = tuple[int, int, int]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SliceDataset(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8], int]]):
    """Slices of a store, preprocessed and, for training, augmented; indexed by `Key`."""

    def __init__(self, store: SliceStore, experiment: Experiment, augmented: bool) -> None:
        """Hold what a worker needs; the store's array is mapped where it is first read."""
        self._store = store
        self._experiment = experiment
        strength = experiment.augment.strength if augmented else 0.0
        self._augmenter = Augmenter(experiment.augment, experiment.seed) if strength else None

    def __getitem__(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        """Return image uint8 (H, W, 3), mask uint8 (H, W) and the slice's number."""
        number = key[2]
        size = self._experiment.data.size
        image = preprocess(self._store.image(number), self._experiment.preprocess, size)
        mask = resize_mask(self._store.mask(number), size)
        if self._augmenter is not None:
            image, mask = self._augmenter(image, mask, key)
        return image, mask, number


class EpochSampler(Sampler[list[Key]]):
    """Batches of keys; `set_epoch` says of which epoch before each pass.

    Args:
        numbers: Positions of the part's slices in the store, int64.
        batch_size: Slices per batch; the last one may be smaller.
        seed: Of the shuffle; None keeps the order.
    """

    def __init__(self, numbers: NDArray[np.int64], batch_size: int, seed: int | None) -> None:
        """Start before the first epoch."""
        self._numbers = numbers
        self._batch_size = batch_size
        self._seed = seed
        self._stage = self._epoch = 0

    def set_epoch(self, stage: int, epoch: int) -> None:
        """Choose the stage (1 or 2) and epoch (from 1) of the next pass."""
        self._stage, self._epoch = stage, epoch

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield lists of (stage, epoch, number)."""
        order = self._numbers
        if self._seed is not None:
            order = np.random.default_rng([self._seed, self._stage, self._epoch]).permutation(
                order
            )
        for chunk in np.split(order, range(self._batch_size, len(order), self._batch_size)):
            # A batch of one slice has no spread for BatchNorm at the bottleneck of 32 pixels.
            if len(chunk) > 1 or self._seed is None:
                yield [(self._stage, self._epoch, int(number)) for number in chunk]

    def __len__(self) -> int:
        """Return the number of batches."""
        full, rest = divmod(len(self._numbers), self._batch_size)
        return full + int(rest > 1 or (rest == 1 and self._seed is None))


class Batches:
    """The loader of one part: `for images, masks, numbers in batches.epoch(stage, epoch)`.

    Args:
        store: The dataset.
        numbers: Positions of the part's slices.
        experiment: Size, preprocessing, augmentation, batch size, seed.
        augmented: True for training: shuffled and augmented; False keeps order and pixels.
        workers: Loader processes; 0 loads in this one.
        pinned: Page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        store: SliceStore,
        numbers: NDArray[np.int64],
        experiment: Experiment,
        *,
        augmented: bool,
        workers: int = 0,
        pinned: bool = False,
    ) -> None:
        """Build sampler and loader."""
        seed = experiment.seed if augmented else None
        self.num_slices = len(numbers)
        self._sampler = EpochSampler(numbers, experiment.optimizer.batch_size, seed)
        self._loader = DataLoader(
            SliceDataset(store, experiment, augmented),
            batch_sampler=self._sampler,
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            worker_init_fn=_use_one_thread,
            # The loader draws a seed for its workers at each pass; nothing here reads it, and
            # drawing it from the global generator would shift dropout.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self._sampler)

    def epoch(self, stage: int, epoch: int) -> Iterator[Batch]:
        """Yield images uint8 (B, H, W, 3), masks uint8 (B, H, W), numbers int64 (B)."""
        self._sampler.set_epoch(stage, epoch)
        yield from self._loader


def _collate(samples: list[tuple[NDArray[np.uint8], NDArray[np.uint8], int]]) -> Batch:
    images, masks, numbers = zip(*samples, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)),
        torch.tensor(numbers),
    )


def _use_one_thread(worker: int) -> None:
    # Each worker is one of the CPUs that the trial asked for.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
