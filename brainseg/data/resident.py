"""Batches of slices that lie on the device and are augmented there: an alternative to the loader.

The slices of a part are prepared once and kept as bytes: 1.03 GB for the LGG
dataset at 256 px. The order of an epoch is the loader's. The augmentation of a slice has the
loader's flips and angle and another displacement, see `brainseg.data.warp`: a study must not mix
both, and a checkpoint of one is refused by the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.data.input_store import open_inputs
from brainseg.data.loader import Batch, build_sampler
from brainseg.data.slice_store import SliceStore
from brainseg.data.warp import draw, send, warp

LARGEST = 4_000_000_000
"""Bytes of a dataset's prepared slices up to which `auto` keeps them on a GPU."""

_AHEAD = 256


def prepared_bytes(experiment: Experiment, store: SliceStore) -> int:
    """Return what the prepared slices of a dataset take, their masks included."""
    slice_bytes = experiment.data.size**2 * (experiment.input_channels + 1)
    return len(store.slices) * slice_bytes


def keeps_resident(experiment: Experiment, store: SliceStore, device: torch.device) -> bool:
    """Return whether training keeps its slices on the device.

    The rule looks at the dataset and the kind of device, never at free memory, so that a resume
    decides alike.
    """
    if experiment.data.resident == "auto":
        return device.type == "cuda" and prepared_bytes(experiment, store) <= LARGEST
    return experiment.data.resident == "always"


class ResidentBatches:
    """The batches of one part of the split, epoch by epoch, with the interface of `Batches`.

    The first epoch prepares the slices. Images and masks are on the device, indices are not.

    Args:
        store: The dataset.
        indices: Indices of the part's slices in the store, int64 (N,).
        experiment: Size, preprocessing, augmentation, batch size, seed.
        augmented: Whether slices are shuffled and augmented, for training.
        device: Where the slices are kept.
        threads: Threads that prepare slices, which do not change any number.
    """

    def __init__(
        self,
        store: SliceStore,
        indices: NDArray[np.int64],
        experiment: Experiment,
        *,
        augmented: bool,
        device: torch.device,
        threads: int = 1,
    ) -> None:
        self._sampler = build_sampler(store, indices, experiment, augmented=augmented)
        self._inputs = open_inputs(store, experiment)
        self._experiment = experiment
        self._changes = augmented and experiment.augment.strength > 0
        self._device = device
        self._threads = threads
        self._indices = indices.tolist()
        self._rows = {index: row for row, index in enumerate(self._indices)}

    @property
    def num_steps(self) -> int:
        """Batches of an epoch."""
        return sum(1 for _ in self._sampler)

    def epoch(self, stage: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; stage and epoch do not matter unless augmented."""
        self._sampler.set_epoch(stage, epoch)
        experiment, size = self._experiment, self._experiment.data.size
        for keys in self._sampler:
            indices = [key[2] for key in keys]
            rows = send(torch.tensor([self._rows[index] for index in indices]), self._device)
            slices = self._slices[rows]
            images, masks = slices[..., :-1], slices[..., -1]
            if self._changes:
                drawn = draw(experiment.augment, experiment.seed, keys, size, self._device)
                images, masks = warp(images, masks, drawn)
            yield images, masks, torch.tensor(indices)

    @cached_property
    def _slices(self) -> torch.Tensor:
        """The prepared slices, uint8 (N, S, S, K + 1), the mask last, on the device."""
        count = len(self._indices)
        shape = (count, *self._prepare(self._indices[0]).shape)
        kept = torch.empty(shape, dtype=torch.uint8, device=self._device)
        with ThreadPoolExecutor(self._threads, "prepare") as pool:
            # A few at a time: what is prepared is copied to the device, not gathered here.
            for start in range(0, count, _AHEAD):
                chunk = list(pool.map(self._prepare, self._indices[start : start + _AHEAD]))
                kept[start : start + len(chunk)] = torch.from_numpy(np.stack(chunk))
        return kept

    def _prepare(self, index: int) -> NDArray[np.uint8]:
        mask = self._inputs.mask(index)[:, :, None]
        return np.concatenate([self._inputs.image(index), mask], axis=2)
