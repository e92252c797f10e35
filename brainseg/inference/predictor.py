"""The predictor: a trained network and its preprocessing, applied to slices.

It is the only inference path: evaluation, the predict command, the demo and the export use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.data.image_files import show_shape
from brainseg.data.inputs import StoreInputs, Volume
from brainseg.data.loader import Batches
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_of
from brainseg.errors import CheckpointError, ConfigError, DataError
from brainseg.inference.mask_metrics import keep_components
from brainseg.model.device import Compute, computes_in_float16
from brainseg.model.model_file import ModelHeader, Tensors, load_model
from brainseg.model.networks import build_network, infer_logits, limit_weights, names_code
from brainseg.training.epoch import is_tumour
from brainseg.training.trainer import TrainResult

Image = NDArray[np.uint8]

_FLIPS: tuple[tuple[int, ...], ...] = ((1,), (2,), (1, 2))


class Prediction(NamedTuple):
    """The prediction for a slice, at the slice's own size.

    Attributes:
        probabilities: float32 (H, W) in [0, 1].
        mask: bool (H, W), True where tumour.
    """

    probabilities: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Predictor:
    """A trained network with the preprocessing it was trained with.

    Args:
        weights: The weights of the network.
        header: The header of the model file: network, size and preprocessing.
        compute: Device and loader workers.
        allow_code: Whether code that the header names may be run, see `brainseg.plugins`.

    Attributes:
        network: The network, in evaluation mode.

    Raises:
        CheckpointError: If the weights do not fit the network that the header names, or the
            network or a filter needs code that is not allowed.
        ConfigError: If the network cannot be built here.
    """

    def __init__(
        self,
        weights: Tensors,
        header: ModelHeader,
        compute: Compute | None = None,
        *,
        allow_code: bool = False,
    ) -> None:
        model, code = header.experiment.model, [*header.experiment.preprocess.own_filters]
        code += [model.architecture] if names_code(model) else []
        if code and not allow_code:
            raise CheckpointError(
                f"the model needs code that is not part of this program: "
                f"{', '.join(code)}. It would be run with your rights; if "
                "you trust it, give --allow-code, or allow_code=True in Python"
            )
        self.header = header
        self.experiment = header.experiment
        self._compute = compute or Compute()
        self._device = self._compute.torch_device()
        # The initial weights are drawn and overwritten: the caller's random state is kept.
        count = sum(tensor.numel() for tensor in weights.values())
        with torch.random.fork_rng(), limit_weights(count):
            network = build_network(self.experiment.model, self.experiment.input_channels)
            self.network = network.to(self._device)
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            name = self.experiment.network
            raise CheckpointError(f"the weights do not fit the network {name}") from error
        self.network.eval()

    @classmethod
    def load(
        cls, path: Path | str, compute: Compute | None = None, *, allow_code: bool = False
    ) -> Predictor:
        """Read a model file.

        Args:
            path: The file.
            compute: Device and loader workers.
            allow_code: Whether code that the file names may be run.

        Raises:
            CheckpointError: If it cannot be used, or the network that it names cannot be built.
            ConfigError: If this machine does not have the device.
        """
        compute = compute or Compute()
        compute.torch_device()
        weights, header = load_model(Path(path))
        try:
            return cls(weights, header, compute, allow_code=allow_code)
        except ConfigError as error:  # on a key that the file holds, not the user's
            raise CheckpointError(f"the model file {path} cannot be used: {error}") from error

    @classmethod
    def of(cls, result: TrainResult, compute: Compute | None = None) -> Predictor:
        """Take the network that a training has returned."""
        return cls(result.weights, result.header, compute, allow_code=True)

    def predict(
        self,
        images: Sequence[Image],
        *,
        threshold: float | None = None,
        tta: bool | None = None,
        patients: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predict slices of any sizes; slices that are not square are padded to a square.

        Args:
            images: uint8 (H, W, C), with the channels of the training's dataset.
            threshold: The lowest probability of a tumour pixel; None takes the experiment's.
            tta: Whether to average the probabilities over the slice and its three flips
                (test-time augmentation by mirroring, as in nnU-Net, Isensee et al. 2021); None
                takes the experiment's `flips`.
            patients: The patient of each slice, or the scan, where a patient has several. Slices
                of one name, in the given order, are the volume that neighbours, intensities, crop
                and largest component are taken from. None is allowed for one slice, which is then
                a volume of its own, and for networks that see each slice alone.

        Raises:
            CheckpointError: If the network gives values that are infinite or NaN.
            DataError: If an image has another dtype or shape, or patients are needed.
        """
        level = self.experiment.threshold if threshold is None else threshold
        averaged = self.experiment.flips if tta is None else tta
        inputs = self._volumes(images, patients)
        results = []
        batch_size = self.experiment.optimizer.batch_size
        for start in range(0, len(images), batch_size):
            chunk = range(start, min(start + batch_size, len(images)))
            prepared = np.stack([inputs[i][0].image(inputs[i][1]) for i in chunk])
            logits = self._logits(torch.from_numpy(prepared), averaged)
            for index, map_ in zip(chunk, logits, strict=True):
                # Logits are resized, not masks, and compared as in evaluation.
                height, width = images[index].shape[:2]
                fitted = torch.from_numpy(inputs[index][0].restore(map_.numpy(), height, width))
                mask = is_tumour(fitted, level).numpy()
                results.append(Prediction(torch.sigmoid(fitted).numpy(), mask))
        masks = keep_components(
            [result.mask for result in results],
            [""] * len(results) if patients is None else patients,
            self.experiment.largest_component,
        )
        return [Prediction(r.probabilities, m) for r, m in zip(results, masks, strict=True)]

    def probabilities(
        self, images: Sequence[Image], patients: Sequence[str] | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the tumour probabilities of each slice, float32 (H, W); see `predict`."""
        return [found.probabilities for found in self.predict(images, patients=patients)]

    def masks(
        self, images: Sequence[Image], patients: Sequence[str] | None = None
    ) -> list[NDArray[np.bool_]]:
        """Return the predicted mask of each slice, bool (H, W); see `predict`."""
        return [found.mask for found in self.predict(images, patients=patients)]

    def part_indices(self, data: SliceStore, part: str) -> NDArray[np.int64]:
        """Return the indices, in the store, of one part of the split of the training.

        Raises:
            CheckpointError: If the data are not those of the training: its patients could then
                be in another part.
        """
        if data.fingerprint != self.header.fingerprint:
            raise CheckpointError(
                f"the model was trained on data with fingerprint {self.header.fingerprint[:12]}, "
                f"not on these with {data.fingerprint[:12]}"
            )
        return split_of(self.experiment, data.slices).indices(data.slices, part)

    def part_logits(
        self, data: SliceStore, indices: NDArray[np.int64]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of slices of the dataset, alone and averaged over flips, in turn.

        Args:
            data: The dataset.
            indices: Slices in the store.

        Yields:
            float32 (2, H, W) at the slice's own size: those of `predict` without and with `tta`.

        Raises:
            CheckpointError: If the network gives values that are infinite or NaN.
        """
        inputs = StoreInputs(data, self.experiment)
        workers = self._compute.workers
        batches = Batches(data, indices, self.experiment, augmented=False, workers=workers)
        for images, _, members in batches.epoch(0, 0):
            views = self._infer_flips(images)
            maps = torch.stack([views[0].cpu(), _average(views)]).numpy()
            for position, index in enumerate(members.tolist()):
                yield np.stack([inputs.restore(index, map_[position]) for map_ in maps])

    def _volumes(
        self, images: Sequence[Image], patients: Sequence[str] | None
    ) -> list[tuple[Volume, int]]:
        """Return the volume of each image, and the image's position in it."""
        num_channels = len(self.header.channels)
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != num_channels:
                shape = show_shape(image.shape)
                raise DataError(
                    f"a slice is {shape} {image.dtype}; expected HxWx{num_channels} of uint8, "
                    f"channels {', '.join(self.header.channels)}"
                )
        if patients is None:
            if self.experiment.needs_volume and len(images) > 1:
                raise DataError(
                    "the network looks at a patient's other slices too: give the patient of each "
                    "slice (patients=...)"
                )
            patients = [""] * len(images)
        members: dict[str, list[Image]] = {}
        place = []
        for image, patient in zip(images, patients, strict=True):
            own = members.setdefault(patient, [])
            place.append((patient, len(own)))
            own.append(image)
        volumes = {
            patient: Volume(own.__getitem__, len(own), self.experiment, self.header.channels)
            for patient, own in members.items()
        }
        return [(volumes[patient], position) for patient, position in place]

    def _logits(self, images: torch.Tensor, tta: bool) -> torch.Tensor:
        """Return the logits of images, or of the mean probability over their flips; on the CPU."""
        if not tta:
            return self._checked(infer_logits(self.network, images, self._device).cpu())
        return _average(self._infer_flips(images))

    def _infer_flips(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images and of their flips, flipped back, (4, B, H, W).

        The flips of a slice make a batch, which is faster; the slice itself is computed alone, so
        that its logits are the same bits as without flips.
        """
        plain = infer_logits(self.network, images, self._device)
        flips = torch.stack([images.flip(axes) for axes in _FLIPS], dim=1)
        logits = infer_logits(self.network, flips.flatten(0, 1), self._device, len(_FLIPS))
        views = logits.reshape(*flips.shape[:2], *logits.shape[1:]).unbind(dim=1)
        back = [view.flip(axes) for view, axes in zip(views, _FLIPS, strict=True)]
        return self._checked(torch.stack([plain, *back]))

    def _checked(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits that are numbers: no comparison with NaN would ever find tumour."""
        if not torch.isfinite(logits).all():
            reason = "its training diverged, or its model file is damaged"
            if computes_in_float16(self._device):
                reason = f"they exceed float16 of this GPU (give --device cpu), or {reason}"
            raise CheckpointError(
                f"the network {self.experiment.network} gives values that are infinite or NaN: "
                f"{reason}"
            )
        return logits


def _average(views: torch.Tensor) -> torch.Tensor:
    """Return the logits of the mean probability over views, (V, B, H, W) to (B, H, W), on the CPU.

    A probability of exactly 1 has an infinite logit, which cannot be resized.
    """
    return torch.logit(torch.sigmoid(views).mean(dim=0), eps=1e-6).cpu()
