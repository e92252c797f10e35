"""The wall-clock of a study against a plain loop: `python -m benchmarks.grid --peer FILE`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Spread,
    add_data,
    add_epochs,
    alternate,
    environment,
    epoch_flags,
    last_line,
    parser_of,
    positive,
    prepare_data,
    print_table,
    ratios,
    run_study,
    set_flags,
)
from brainseg.cli import FINISHED, run_command
from brainseg.errors import StudyError
from brainseg.storage.urls import Location

ENCODER = "tu-tf_efficientnet_lite0"  # the one of configs/grids/lite.yaml
_SEED = 44
# brainseg's import of smp comes first: it also works beside a torchvision of another build.
_LAUNCH = (
    "import runpy, sys; import brainseg.model.encoders; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
_DESCRIPTION = """\
Measure a study's wall-clock against that of a plain training loop doing the same work.

The study is `study.run --grid lite` (raw and preprocessed slices) from its command to its end, so
imports, Ray, tests and report are included. The loop is a script of yours that trains and tests
one variant; both of its runs, one after the other, count from command to end. Its interface:

  FILE --root KAGGLE_3M --encoder NAME --weights FILE|imagenet --size N [--preprocess]
       --epochs A B --lr X Y --seed S --out FILE.json

The JSON file has `seconds`, `test` (with `dice`) and `history`. The slice store is built
before."""
_EXAMPLES = """\
  python -m benchmarks.grid --peer loop.py --data data/kaggle_3m --weights lite0.safetensors
  python -m benchmarks.grid --peer loop.py --data data/kaggle_3m --size 64 --epochs 1 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("grid", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--peer", type=Path, required=True, metavar="FILE", help="script of the plain loop"
    )
    add_data(parser)
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="FILE",
        help=f"weights of the encoder {ENCODER} (default: imagenet, which is downloaded)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=128,
        metavar="PIXELS",
        help="side of a slice (default: 128)",
    )
    add_epochs(parser, 1, 2)
    parser.add_argument(
        "--lr",
        type=float,
        nargs=2,
        default=(1e-4, 1e-5),
        metavar=("X", "Y"),
        help="learning rates of the two stages (default: 1e-4 1e-5)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    if args.weights != "imagenet":
        args.weights = str(Path(args.weights).resolve())
    data = prepare_data(args.data)
    found = alternate(
        {"study": lambda: _run_study(args, data), "peer": lambda: _run_peer(args, data)},
        args.alternations,
    )
    study, peer = ([run["seconds"] for run in found[name]] for name in ("study", "peer"))
    training = [run["training"] for run in found["peer"]]
    rows: list[Sequence[object]] = [
        ["study, s", Spread.of(study)],
        ["plain loop, s", Spread.of(peer)],
        ["of it training and test, by its own clock, s", Spread.of(training)],
        ["**study / plain loop**", ratios(study, peer)],
        ["study / plain loop's training and test", ratios(study, training)],
    ]
    for number, variant in enumerate(("raw", "preprocessed")):
        dices = [Spread.of([run["dice"][number] for run in found[k]]) for k in ("study", "peer")]
        rows.append([f"test Dice {variant}: study", dices[0]])
        rows.append([f"test Dice {variant}: plain loop", dices[1]])
    print_table(
        f"{ENCODER}, {args.size} px, {args.epochs[0]} + {args.epochs[1]} epochs, "
        f"{args.alternations} alternations",
        ["", "median (min to max)"],
        rows,
    )
    return FINISHED


def _run_study(args: argparse.Namespace, data: Location) -> dict[str, Any]:
    changes = {
        "data.size": args.size,
        "model.encoder_weights": args.weights,
        "seed": _SEED,
        **{f"stages.{stage}.learning_rate": rate for stage, rate in enumerate(args.lr)},
    }
    flags = ["--grid", "lite", "--data", str(data), *epoch_flags(args.epochs)]
    with run_study([*flags, *set_flags(changes)]) as study:
        dices = {row["variant"]: row["test_dice_global"] for row in study.results()}
        names = ("raw-lite0", "preprocessed-lite0")
        return {"seconds": study.seconds, "dice": [dices[name] for name in names]}


def _run_peer(args: argparse.Namespace, data: Location) -> dict[str, Any]:
    seconds, records = 0.0, []
    for variant in ([], ["--preprocess"]):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
            out = Path(temporary) / "peer.json"
            pairs = {"--root": data, "--encoder": ENCODER, "--weights": args.weights}
            pairs |= {"--size": args.size, "--seed": _SEED, "--out": out}
            command = [sys.executable, "-c", _LAUNCH, str(args.peer.resolve()), *variant]
            command += [str(word) for pair in pairs.items() for word in pair]
            command += ["--epochs", *map(str, args.epochs), "--lr", *map(str, args.lr)]
            began = time.perf_counter()
            run = subprocess.run(
                command,
                cwd=temporary,
                capture_output=True,
                text=True,
                check=False,
                env=environment(),
            )
            seconds += time.perf_counter() - began
            if run.returncode:
                raise StudyError(f"{args.peer} failed: {last_line(run.stderr)}")
            records.append(json.loads(out.read_text(encoding="utf-8")))
    return {
        "seconds": seconds,
        "training": sum(record["seconds"] for record in records),
        "dice": [record["test"]["dice"] for record in records],
    }


if __name__ == "__main__":
    sys.exit(main())
