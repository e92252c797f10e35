"""Seconds until validation Dice reaches a target: `python -m benchmarks.quality`."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import (
    Spread,
    add_data,
    add_epochs,
    alternate,
    history,
    limit_threads,
    num_cores,
    parser_of,
    positive,
    prepare_data,
    print_table,
    ratios,
    run_study,
    set_flags,
)
from brainseg.cli import FINISHED, run_command
from brainseg.config import Experiment, parse_changes
from brainseg.errors import ConfigError
from brainseg.storage.urls import Location
from study.spec.grid import Changes, load_grid

Curve = list[tuple[float, float]]
"""Seconds since the first epoch began, and val Dice, after each epoch."""

_DESCRIPTION = """\
Measure the seconds of training until the validation Dice reaches a target: the published protocol
against another recipe, on raw slices.

The other recipe is a variant of a grid (--grid, --recipe), or --set pairs, or both. Each is one
trial of a study on all cores, or with --through training a `Training` in this process. Seconds are
the cumulative ones of history.csv: epochs, validation included; start, calibration and test not.
The same seed gives the same Dice, so that alternations repeat the times alone: the default is 1.

--peer FILE.json is the result of a plain loop with the same data and epochs: a `history` of
epochs with `val_dice`, `train_s` and `val_s`. Its last val Dice is a second target."""
_EXAMPLES = """\
  python -m benchmarks.quality --data data/kaggle_3m --weights lite0.safetensors --size 128
  python -m benchmarks.quality --data data/kaggle_3m --recipe cosine --peer loop.json
  python -m benchmarks.quality --set stages.0.learning_rate=0.001 --target 0.3 --epochs 1 3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("quality", _DESCRIPTION, _EXAMPLES, alternations=1)
    add_data(parser)
    parser.add_argument(
        "--encoder",
        default="tu-tf_efficientnet_lite0",
        metavar="NAME",
        help="the U-Net's encoder (default: tu-tf_efficientnet_lite0)",
    )
    parser.add_argument(
        "--weights",
        default="none",
        metavar="FILE",
        help="its weights: a file, imagenet or none (default: none)",
    )
    parser.add_argument(
        "--size", type=positive, default=64, metavar="PIXELS", help="side of a slice (default: 64)"
    )
    add_epochs(parser, 5, 15)
    parser.add_argument(
        "--grid", default="recipes", metavar="NAME|FILE", help="grid of recipes (default: recipes)"
    )
    parser.add_argument(
        "--recipe",
        metavar="VARIANT",
        help="the grid's variant to compare (default: faster, or with --set the protocol)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a key of the other recipe; may be given again",
    )
    parser.add_argument(
        "--target", type=float, default=0.7, metavar="DICE", help="val Dice (default: 0.70)"
    )
    parser.add_argument(
        "--peer", type=Path, metavar="FILE.json", help="the result of a plain loop"
    )
    parser.add_argument(
        "--through",
        choices=("study", "training"),
        default="study",
        help="what trains (default: study)",
    )
    return parser


def reached(curve: Curve, target: float) -> float | None:
    """Return the seconds after which the Dice first reached a target, None if never."""
    return next((seconds for seconds, dice in curve if dice >= target), None)


def accumulate(rows: Sequence[tuple[float, float]]) -> Curve:
    """Return the curve of epochs, each given as its own seconds and its val Dice."""
    total, curve = 0.0, []
    for seconds, dice in rows:
        total += seconds
        curve.append((total, dice))
    return curve


def _measure(args: argparse.Namespace) -> int:
    if args.weights not in ("imagenet", "none"):
        args.weights = str(Path(args.weights).resolve())
    recipes: dict[str, Changes] = {"protocol": {}, "other": _read_recipe(args)}
    data = prepare_data(args.data)
    train = _through_study if args.through == "study" else _through_training
    ways = {
        name: functools.partial(train, args, data, changes) for name, changes in recipes.items()
    }
    curves = alternate(ways, args.alternations)
    peer = [_read_peer(args.peer)] if args.peer else []
    targets = {f"{args.target:.3g}": args.target}
    if peer:
        targets[f"{peer[0][-1][1]:.3g}, the plain loop's last"] = peer[0][-1][1]
    named = {**curves, "plain loop": peer} if peer else curves
    rows: list[Sequence[object]] = [
        [f"s to val Dice {label}", *(_spread(found, target) for found in named.values())]
        for label, target in targets.items()
    ]
    rows.append(["s of all epochs", *(Spread.of([c[-1][0] for c in v]) for v in named.values())])
    rows.append(["last val Dice", *(found[0][-1][1] for found in named.values())])
    rows.append(["best val Dice", *(max(d for _, d in found[0]) for found in named.values())])
    print_table(
        f"{args.encoder}, {args.size} px, at most {args.epochs[0]} + {args.epochs[1]} epochs, "
        f"through the {args.through}, {args.alternations} alternations  \n"
        f"other: {recipes['other']}",
        ["", *named],
        rows,
        "\n".join(_compare(curves["protocol"], curves["other"], t) for t in targets.values()),
    )
    return FINISHED


def _read_recipe(args: argparse.Namespace) -> Changes:
    """Return the keys in which the other recipe differs from the protocol.

    Raises:
        ConfigError: If the grid has no such variant, or nothing differs.
    """
    name = args.recipe or (None if args.changes else "faster")
    variants = load_grid(args.grid).variants
    if name is not None and name not in variants:
        raise ConfigError(f"--recipe {name}: the grid has {', '.join(variants)}")
    changes: Changes = {**(variants[name] if name else {}), **parse_changes(args.changes)}
    if Experiment().replaced(changes) == Experiment():
        raise ConfigError("--recipe and --set leave the protocol as it is: nothing to compare")
    return changes


def _spread(curves: Sequence[Curve], target: float) -> str:
    times = [reached(curve, target) for curve in curves]
    found = [seconds for seconds in times if seconds is not None]
    return str(Spread.of(found)) if len(found) == len(times) else "not reached"


def _compare(ours: Sequence[Curve], others: Sequence[Curve], target: float) -> str:
    """Return how many times sooner the other recipe reaches a target."""
    pairs = [(reached(a, target), reached(b, target)) for a, b in zip(ours, others, strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(both) < len(pairs):
        return f"Dice {target:.3g}: no ratio, since not both reach it."
    return f"Dice {target:.3g}: protocol / other = {ratios(*zip(*both, strict=True))}."


def _settings(args: argparse.Namespace) -> Changes:
    """Return the keys that both recipes share; a recipe's own epochs come later and win."""
    return {
        "data.size": args.size,
        "model.encoder": args.encoder,
        "model.encoder_weights": args.weights,
        "stages.0.epochs": args.epochs[0],
        "stages.1.epochs": args.epochs[1],
    }


def _through_study(args: argparse.Namespace, data: Location, changes: Changes) -> Curve:
    flags = ["--data", str(data), "--concurrent", "1"]
    with run_study([*flags, *set_flags({**_settings(args), **changes})]) as study:
        (trial,) = study.trials()
        return accumulate([(row["seconds"], row["val_dice"]) for row in history(trial)])


def _through_training(args: argparse.Namespace, data: Location, changes: Changes) -> Curve:
    from brainseg.data.slice_store import open_dataset
    from brainseg.model.device import Compute
    from brainseg.training.trainer import train_two_stage

    limit_threads(num_cores())
    experiment = Experiment().replaced({**_settings(args), **changes})
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        checkpoints = Path(folder) / "checkpoints"
        result = train_two_stage(
            experiment, open_dataset(data), compute=Compute("cpu"), checkpoints=checkpoints
        )
    return accumulate([(row["seconds"], row["val_dice"]) for row in result.history])


def _read_peer(path: Path) -> Curve:
    rows = json.loads(path.read_text(encoding="utf-8"))["history"]
    return accumulate([(row["train_s"] + row["val_s"], row["val_dice"]) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
