"""Slices to masks: the only inference path, for testing, users and the demo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.batches import Batch, Batches
from brainseg.epoch import validate
from brainseg.errors import CheckpointError, DataError
from brainseg.metrics import Counts
from brainseg.model import build_unet, infer_logits
from brainseg.modelfile import ModelHeader, Tensors, load_model
from brainseg.preprocess import preprocess
from brainseg.split import split_by_patient
from brainseg.store import SliceStore
from brainseg.training import Compute, TrainResult

_FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))


class Predictor:
    """A trained network with the preprocessing it was trained with.

    Args:
        weights: Of the network.
        header: Says which network, size and preprocessing.
        compute: Device and loader workers.

    Raises:
        CheckpointError: If the weights do not fit the network that the header names.
    """

    def __init__(
        self, weights: Tensors, header: ModelHeader, compute: Compute | None = None
    ) -> None:
        """Build the network and load the weights."""
        self.header = header
        self.experiment = header.experiment
        self._compute = compute or Compute()
        self._device = self._compute.torch_device()
        # Building draws initial weights, which are overwritten: the caller's stream is kept.
        with torch.random.fork_rng():
            self._model = build_unet(self.experiment.model.encoder).to(self._device)
        try:
            self._model.load_state_dict(weights)
        except RuntimeError as error:
            encoder = self.experiment.model.encoder
            raise CheckpointError(f"the weights do not fit a U-Net with {encoder}") from error
        self._model.eval()

    @classmethod
    def load(cls, path: Path | str, compute: Compute | None = None) -> Predictor:
        """Read a model file.

        Raises:
            CheckpointError: If it cannot be used.
        """
        return cls(*load_model(Path(path)), compute)

    @classmethod
    def of(cls, result: TrainResult, compute: Compute | None = None) -> Predictor:
        """Take the network that a training has just kept."""
        return cls(result.weights, result.header, compute)

    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return each slice's tumour probability.

        Args:
            images: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast; any sizes.

        Returns:
            float32 (H, W) in [0, 1], at each input's own size.

        Raises:
            DataError: If an image has another type or shape.
        """
        results = []
        batch_size = self.experiment.optimizer.batch_size
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            logits = infer_logits(self._model, self._prepare(chunk), self._device)
            for image, map_ in zip(chunk, torch.sigmoid(logits).cpu().numpy(), strict=True):
                height, width = image.shape[:2]
                results.append(_fit(map_, width, height))
        return results

    def masks(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        """Return where tumour is predicted, bool (H, W) at each input's own size."""
        threshold = self.experiment.threshold
        return [map_ >= threshold for map_ in self.probabilities(images)]

    def evaluate(self, data: SliceStore, part: str) -> tuple[Counts, list[str]]:
        """Count pixels over one part of the split that the network was trained on.

        Args:
            data: The dataset that it was trained on.
            part: `val` or `test`.

        Returns:
            int64 (N, 4), TP, FP, FN, TN at the network's own size, and the N patients.

        Raises:
            CheckpointError: If the data are not those it was trained on: patients of its training
                might then be tested.
        """
        numbers = self.numbers(data, part)
        judged = validate(self._model, self._batches(data, numbers), self.experiment, self._device)
        return judged.counts, [data.slices[number].patient for number in numbers]

    def numbers(self, data: SliceStore, part: str) -> NDArray[np.int64]:
        """Return the positions, in the store, of one part of the split that it was trained on.

        Raises:
            CheckpointError: If the data are not those it was trained on.
        """
        if data.fingerprint != self.header.fingerprint:
            raise CheckpointError(
                f"the model was trained on data {self.header.fingerprint[:12]}, "
                f"these are {data.fingerprint[:12]}"
            )
        split = split_by_patient(
            data.slices, self.experiment.fold, self.experiment.data.split_seed
        )
        return split.numbers(data.slices, part)

    def views(
        self, data: SliceStore, numbers: NDArray[np.int64]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield logits of slices as they are and flipped, batch by batch, on the CPU.

        Args:
            data: The dataset.
            numbers: Positions of slices in the store.

        Yields:
            float32 (4, B, S, S): as it is, flipped up-down, left-right, and both, each turned
            back; and the masks, bool (B, S, S).
        """
        for images, masks, _ in self._batches(data, numbers):
            views = [
                infer_logits(self._model, images.flip(axes), self._device).flip(axes)
                for axes in _FLIPS
            ]
            yield torch.stack(views).cpu(), masks.bool()

    def _batches(self, data: SliceStore, numbers: NDArray[np.int64]) -> Iterator[Batch]:
        workers = self._compute.workers
        batches = Batches(data, numbers, self.experiment, augmented=False, workers=workers)
        return batches.epoch(0, 0)

    def _prepare(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                shape = "x".join(map(str, image.shape))
                raise DataError(f"a slice is {shape} {image.dtype}; expected HxWx3 of uint8")
        size, config = self.experiment.data.size, self.experiment.preprocess
        return torch.from_numpy(np.stack([preprocess(image, config, size) for image in images]))


def _fit(map_: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    if map_.shape == (height, width):
        return map_
    resized = cv2.resize(map_, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)
