"""The export command: writes a model file as ONNX for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brainseg.cli import (
    FINISHED,
    add_allow_code,
    build_parser,
    local_path,
    location,
    result_file,
    run_command,
    say,
)
from brainseg.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.export", "Export a trained model to ONNX for other programs.", _EPILOG
    )
    parser.add_argument(
        "model", type=local_path, metavar="MODEL", help="a model file, .safetensors"
    )
    parser.add_argument(
        "--onnx",
        type=result_file,
        nargs="?",
        const=Path(),
        required=True,
        metavar="FILE",
        help="write ONNX (default: MODEL's name with .onnx)",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--data",
        type=location,
        metavar="DIR",
        help="compare on slices of this dataset (default: $BRAINSEG_DATA, else "
        "./data/kaggle_3m, else generated phantoms)",
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and --help does not need it.
    from brainseg.data.slice_store import open_default
    from brainseg.inference.onnx import describe_input, export_onnx, takes_channels
    from brainseg.inference.predictor import Predictor
    from brainseg.model.device import Compute

    path = args.onnx if args.onnx.name else args.model.parent / f"{args.model.stem}.onnx"
    if path.exists():
        raise ConfigError(f"{path} exists already: name another file, or remove it")
    predictor = Predictor.load(args.model, Compute("cpu"), allow_code=args.allow_code)
    if not path.parent.is_dir():
        raise ConfigError(
            f"--onnx {path}: there is no folder {path.parent}: make it, or name another"
        )
    data = open_default(args.data)
    header, found = predictor.header, ", ".join(data.channels)
    if not takes_channels(header, data.channels):
        raise ConfigError(
            f"the model takes the channels {', '.join(header.channels)}, the slices to compare on "
            f"have {found}: give --data with a dataset like the model's"
        )
    say(f"tracing {predictor.experiment.network}, then comparing it on slices ...")
    difference, pixels, num_slices = export_onnx(predictor, path, data)
    kind = "SYNTHETIC slices" if data.synthetic else "slices"
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    say(
        f"on {num_slices} {kind}, onnxruntime differs from torch by at most {difference:.1e} in a "
        f"probability and in {pixels} pixels of the masks"
    )
    say(f"input: {describe_input(header)}")
    return FINISHED


_EPILOG = """\
examples:
  python -m brainseg.export results/baseline/models/raw-resnet50.safetensors --onnx
  python -m brainseg.export model.safetensors --onnx brain.onnx --data data/kaggle_3m

The ONNX file is compared with torch on slices and kept only if both agree. The command needs,
in the checkout,
  pip install -e ".[export]"

exit codes:
  0  the file is written
  1  the model file or the dataset cannot be used, or ONNX and torch differ
  2  a flag or value is wrong, FILE exists already, or a package is missing
"""

if __name__ == "__main__":
    sys.exit(main())
