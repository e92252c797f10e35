"""Export of a trained network to ONNX, checked against torch.

The graph takes preprocessed slices as bytes and returns probabilities: normalisation is part of
it, filters and resizing are not. The file's metadata describe them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.data.inputs import StoreInputs, describe_channels, describe_preparation
from brainseg.data.slice_store import SliceStore
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference.predictor import Predictor
from brainseg.model.model_file import ModelHeader
from brainseg.model.networks import infer_logits, normalise
from brainseg.storage.files import write_atomically

TOLERANCE = 1e-3
"""The largest difference of a probability that counts as rounding."""

_NUM_SLICES = 32
_CPU = torch.device("cpu")


class Comparison(NamedTuple):
    """How far onnxruntime's output is from torch's.

    Attributes:
        difference: The largest difference of a probability.
        pixels: The number of pixels whose mask differs.
        num_slices: The number of slices that were compared.
    """

    difference: float
    pixels: int
    num_slices: int


def export_onnx(predictor: Predictor, path: Path, data: SliceStore) -> Comparison:
    """Write an ONNX file and compare it with torch; the file is kept if they agree.

    Args:
        predictor: The trained network, on the CPU.
        path: The new file.
        data: The dataset to compare on; slices with tumour are taken from it.

    Raises:
        CheckpointError: If the two differ by more than rounding.
        ConfigError: If the packages of the extra `export` are not installed.
    """
    onnx, onnxruntime, _ = (_import(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    experiment = predictor.experiment
    with write_atomically(path) as aside:
        _write_graph(predictor.network, experiment, aside)
        graph = onnx.load(aside)
        onnx.helper.set_model_props(graph, _metadata(predictor.header))
        onnx.save(graph, aside)
        slices = _choose_slices(data, experiment)
        expected = torch.sigmoid(infer_logits(predictor.network, slices, _CPU)).numpy()
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        found: NDArray[np.float32] = session.run(None, {"slices": slices.numpy()})[0]
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"onnxruntime differs from torch by {difference:.1e} in a probability, more than "
                f"the {TOLERANCE:g} of rounding; nothing was written"
            )
    differs = (found >= experiment.threshold) != (expected >= experiment.threshold)
    return Comparison(difference, int(differs.sum()), len(slices))


def takes_channels(header: ModelHeader, channels: Sequence[str]) -> bool:
    """Return whether a network computes on slices of a dataset with these channels.

    Their names count only where the experiment chose channels by name.
    """
    chosen = header.experiment.data.channels or ()
    return len(channels) == len(header.channels) and set(chosen) <= set(channels)


_COMPONENTS = {
    "none": "",
    "slice": " Afterwards, keep the largest component of each slice.",
    "volume": " Afterwards, keep the largest component of each volume.",
}


_RESCALED = (
    " Values that are not bytes become bytes first: each channel of a scan is rescaled from its "
    "0.5th (from 0, if both are equal) to its 99.5th percentile, over the values that are not 0, "
    "to 0 to 255; NaN is 0."
)


def describe_input(header: ModelHeader) -> str:
    """Return how to prepare a slice for the graph and how to turn its output into a mask."""
    experiment = header.experiment
    size, preprocess = experiment.data.size, experiment.preprocess
    has_foreground = preprocess.intensities != "none" or preprocess.crop != "none"
    foreground = (
        f" The foreground of a volume are the pixels at which one of {', '.join(header.channels)} "
        "reaches a tenth of the volume's highest value, and at least 1."
    )
    return (
        f"{describe_channels(experiment, header.channels)} as uint8; a slice that is not square "
        "is padded with 0 on both sides to a square (of an odd number, one more below or to the "
        f"right); {describe_preparation(experiment)}, at the slice's own size; resized to {size} "
        f"x {size} by bilinear interpolation (OpenCV INTER_LINEAR). New bytes are rounded and "
        "clipped."
        + (_RESCALED if header.rescales else "")
        + (foreground if has_foreground else "")
        + " Normalisation is in the graph. The output"
        + (
            ", averaged over the slice and its three flips, which are flipped back,"
            if experiment.flips
            else ""
        )
        + " is turned back: probabilities p, kept from 1e-6 to 1 - 1e-6, into logits "
        "log(p / (1 - p)), these resized to the "
        + ("cut square, with -100 around it" if preprocess.crop != "none" else "padded square")
        + " by bilinear interpolation, and the padding cut off. Tumour is where the probability, "
        f"1 / (1 + exp(-logit)), is at least {experiment.threshold:g}."
        + _COMPONENTS[experiment.largest_component]
    )


class _Probabilities(torch.nn.Module):
    """The network from bytes to probabilities."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(normalise(slices, _CPU))[:, 0])


def _write_graph(network: torch.nn.Module, experiment: Experiment, path: Path) -> None:
    size = experiment.data.size
    example = torch.zeros((2, size, size, experiment.input_channels), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated calls
        program = torch.onnx.export(
            _Probabilities(network).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["slices"],
            output_names=["probabilities"],
            dynamic_shapes={"slices": {0: torch.export.Dim("batch", min=1, max=4096)}},
        )
        assert program is not None
        program.save(path)


def _metadata(header: ModelHeader) -> dict[str, str]:
    return {
        "brainseg": header.model_dump_json(),
        "preprocessing": describe_input(header),
        "settings": json.dumps(header.experiment.preprocess.model_dump()),
        "input": f"slices: uint8 (batch, rows, columns, {header.experiment.input_channels})",
        "output": "probabilities: float32 (batch, rows, columns) in [0, 1]",
        "use": "research; not for clinical use",
        "synthetic": "trained on generated phantoms" if header.synthetic else "no",
    }


def _choose_slices(data: SliceStore, experiment: Experiment) -> torch.Tensor:
    """Return preprocessed slices, uint8 (N, S, S, 3), spread evenly over those with tumour."""
    tumour = [index for index, item in enumerate(data.slices) if item.tumour_pixels]
    chosen = np.linspace(0, len(tumour) - 1, min(_NUM_SLICES, len(tumour))).astype(int)
    inputs = StoreInputs(data, experiment)
    images = [inputs.image(tumour[index]) for index in chosen]
    return torch.from_numpy(np.stack(images))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'{name} is not installed: in the checkout, pip install -e ".[export]"'
        ) from error
