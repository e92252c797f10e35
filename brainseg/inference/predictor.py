"""Slices to masks: the only inference path, for testing, users and the demo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.data.loader import Batch, Batches
from brainseg.data.preprocess import fit_back, pad_to_square, preprocess
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.errors import CheckpointError, DataError
from brainseg.metrics import Counts
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader, Tensors, load_model
from brainseg.model.networks import build_unet, infer_logits
from brainseg.training.epoch import is_tumour, validate
from brainseg.training.trainer import TrainResult

Image = NDArray[np.uint8]

_FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))


class Prediction(NamedTuple):
    """What is predicted of a slice, at its own size.

    Attributes:
        probabilities: float32 (H, W) in [0, 1].
        mask: bool (H, W), True where tumour.
    """

    probabilities: NDArray[np.float32]
    mask: NDArray[np.bool_]


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

    @property
    def network(self) -> torch.nn.Module:
        """The U-Net, in evaluation mode."""
        return self._model

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

    def predict(
        self, images: Sequence[Image], *, threshold: float | None = None, tta: bool = False
    ) -> list[Prediction]:
        """Find tumour in slices of any sizes; those that are no squares are padded to one.

        Args:
            images: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.
            threshold: Probability from which on a pixel is tumour; None takes the experiment's.
            tta: Average the probabilities of the slice and its three flips (test-time
                augmentation by mirroring, as in nnU-Net, Isensee et al. 2021).

        Raises:
            DataError: If an image has another type or shape.
        """
        level = self.experiment.threshold if threshold is None else threshold
        results = []
        batch_size = self.experiment.optimizer.batch_size
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            logits = self._logits(self._prepare(chunk), tta)
            for image, map_ in zip(chunk, logits, strict=True):
                # Logits are resized, not masks: the threshold is the one that evaluation applies.
                fitted = torch.from_numpy(fit_back(map_.numpy(), *image.shape[:2]))
                mask = is_tumour(fitted, level).numpy()
                results.append(Prediction(torch.sigmoid(fitted).numpy(), mask))
        return results

    def probabilities(self, images: Sequence[Image]) -> list[NDArray[np.float32]]:
        """Return each slice's tumour probability, float32 (H, W) in [0, 1], see `predict`."""
        return [prediction.probabilities for prediction in self.predict(images)]

    def masks(self, images: Sequence[Image]) -> list[NDArray[np.bool_]]:
        """Return where tumour is predicted, bool (H, W) at each input's own size."""
        return [prediction.mask for prediction in self.predict(images)]

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
            data.slices,
            self.experiment.fold,
            self.experiment.data.split_seed,
            self.experiment.inner_fold,
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

    def _prepare(self, images: Sequence[Image]) -> torch.Tensor:
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                shape = "x".join(map(str, image.shape))
                raise DataError(f"a slice is {shape} {image.dtype}; expected HxWx3 of uint8")
        size, config = self.experiment.data.size, self.experiment.preprocess
        squares = [preprocess(pad_to_square(image), config, size) for image in images]
        return torch.from_numpy(np.stack(squares))

    def _logits(self, images: torch.Tensor, tta: bool) -> torch.Tensor:
        """Of the images as they are, or of the mean probability over their flips; on the CPU."""
        if not tta:
            return infer_logits(self._model, images, self._device).cpu()
        views = [
            infer_logits(self._model, images.flip(axes), self._device).flip(axes)
            for axes in _FLIPS
        ]
        # A probability of exactly 1 would have a logit without end, which cannot be resized.
        return torch.logit(torch.sigmoid(torch.stack(views)).mean(dim=0), eps=1e-6).cpu()
