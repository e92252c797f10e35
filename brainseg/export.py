"""Model files for other programs: `python -m brainseg.export model.safetensors --onnx`.

The graph takes preprocessed slices as bytes and returns probabilities; normalisation is part of
it. What must be done before, filters and resizing, stands in the file's metadata.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.cli import FINISHED, build_parser, run_command
from brainseg.config import Experiment
from brainseg.data.preprocess import preprocess
from brainseg.data.slice_store import SliceStore, open_default
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader
from brainseg.model.networks import infer_logits, normalise
from brainseg.storage.urls import to_location

TOLERANCE = 1e-3
"""Largest difference of a probability that is put down to rounding."""

_NUM_SLICES = 32
_CPU = torch.device("cpu")


def describe_input(experiment: Experiment) -> str:
    """Return in words how a slice becomes the graph's input and its output a mask."""
    config, size = experiment.preprocess, experiment.data.size
    filters = (
        f"median filter {config.median_kernel} x {config.median_kernel}, then CLAHE on L of LAB "
        f"(clip limit {config.clip_limit:g}, {config.tile_grid} x {config.tile_grid} tiles), both "
        "at the slice's own size"
        if config.enabled
        else "no filters"
    )
    return (
        "Channels pre-contrast, FLAIR, post-contrast as uint8; a slice that is no square is "
        f"padded with 0 to one, in the middle; {filters}; resized to {size} x {size} by bilinear "
        "interpolation (OpenCV INTER_LINEAR). Normalisation is in the graph. Tumour is where the "
        f"probability is at least {experiment.threshold:g}."
    )


def export_onnx(predictor: Predictor, path: Path, data: SliceStore) -> tuple[float, int, int]:
    """Write an ONNX file and compare it with torch on slices; it is kept if they agree.

    Args:
        predictor: The trained network, on the CPU.
        path: Of the new file.
        data: Slices to compare on.

    Returns:
        The largest difference of a probability, the pixels whose mask differs, and on how many
        slices that was.

    Raises:
        CheckpointError: If the difference is more than rounding.
        ConfigError: If the packages of the extra `export` are missing.
    """
    onnx, onnxruntime = _import("onnx"), _import("onnxruntime")
    _import("onnxscript")
    experiment = predictor.experiment
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_graph(predictor.network, experiment.data.size, aside)
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
                f"onnxruntime differs from torch by {difference:.1e} in a probability; "
                f"more than {TOLERANCE:g} is no rounding, so nothing was written"
            )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    level = experiment.threshold
    return difference, int(((found >= level) != (expected >= level)).sum()), len(slices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _export(args))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser("brainseg.export", "Write a model file for other programs.", _EPILOG)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file, .safetensors")
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="?",
        const=Path(),
        required=True,
        metavar="FILE",
        help="write ONNX (default: MODEL's name with .onnx)",
    )
    parser.add_argument(
        "--data",
        type=to_location,
        metavar="DIR",
        help="slices to compare on (default: $BRAINSEG_DATA, else ./data/kaggle_3m, else "
        "generated phantoms)",
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    path = args.onnx if args.onnx.name else args.model.with_suffix(".onnx")
    if path.exists():
        raise ConfigError(f"{path} is there already: name another file, or remove it")
    predictor = Predictor.load(args.model, Compute("cpu"))
    data = open_default(args.data)
    print(
        f"tracing {predictor.experiment.model.encoder}, then comparing on slices ...", flush=True
    )
    difference, pixels, num_slices = export_onnx(predictor, path, data)
    kind = "SYNTHETIC slices" if data.synthetic else "real slices"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(
        f"on {num_slices} {kind} onnxruntime differs from torch by at most {difference:.1e} in a "
        f"probability, in {pixels} pixels of the masks"
    )
    print(f"input: {describe_input(predictor.experiment)}")
    return FINISHED


class _Probabilities(torch.nn.Module):
    """The network with what comes before and after it: bytes in, probabilities out."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(normalise(slices, _CPU))[:, 0])


def _write_graph(network: torch.nn.Module, size: int, path: Path) -> None:
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's, on what is deprecated inside it
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
        "preprocessing": describe_input(header.experiment),
        "settings": json.dumps(header.experiment.preprocess.model_dump()),
        "input": "slices: uint8 (batch, rows, columns, 3)",
        "output": "probabilities: float32 (batch, rows, columns) in [0, 1]",
        "use": "research; not for clinical use",
        "synthetic": "trained on generated phantoms" if header.synthetic else "no",
    }


def _choose_slices(data: SliceStore, experiment: Experiment) -> torch.Tensor:
    """Slices spread evenly over those with tumour, as the network is fed."""
    tumour = [number for number, item in enumerate(data.slices) if item.tumour_pixels]
    places = np.linspace(0, len(tumour) - 1, min(_NUM_SLICES, len(tumour))).astype(int)
    size, config = experiment.data.size, experiment.preprocess
    return torch.from_numpy(
        np.stack([preprocess(data.image(tumour[place]), config, size) for place in places])
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{name} is missing: pip install "brainseg[export]"') from error


_EPILOG = """\
examples:
  python -m brainseg.export results/baseline/models/raw-resnet50.safetensors --onnx
  python -m brainseg.export model.safetensors --onnx brain.onnx --data data/kaggle_3m

The ONNX file is run beside torch on slices before it is kept. It needs
  pip install "brainseg[export]"

exit codes:
  0  written and equal      1  a known error, in a line      2  usage
"""

if __name__ == "__main__":
    sys.exit(main())
