"""Prediction in one call against a call per slice: `python -m benchmarks.prediction`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.measure import (
    FILTERS,
    Spread,
    add_data,
    add_network,
    alternate,
    limit_threads,
    network_changes,
    num_cores,
    parser_of,
    positive,
    prepare_data,
    print_table,
    ratios,
)
from brainseg.cli import FINISHED, run_command

_DESCRIPTION = """\
Measure the slices per second of `Predictor.predict` on a CPU: all slices in one call, in turn
with one call per slice, for raw slices and for median + CLAHE.

Slices lie in memory; preprocessing, network and resizing to the slice's own size are included.
The network has random weights, which does not change its speed."""
_EXAMPLES = """\
  python -m benchmarks.prediction
  python -m benchmarks.prediction --data data/kaggle_3m --encoder resnet50 --size 256 --slices 64
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("prediction", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser, size=128)
    parser.add_argument("--slices", type=positive, default=128, metavar="N", help="(default: 128)")
    parser.add_argument(
        "--threads",
        type=positive,
        default=num_cores(),
        metavar="N",
        help="threads (default: all cores)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    from brainseg.config import Experiment
    from brainseg.data.slice_store import open_dataset
    from brainseg.inference.predictor import Predictor
    from brainseg.model.device import Compute
    from brainseg.model.model_file import ModelHeader
    from brainseg.model.networks import build_network

    limit_threads(args.threads)
    data = open_dataset(prepare_data(args.data))
    images = [data.image(index % len(data.slices)) for index in range(args.slices)]
    rows: list[Sequence[object]] = []
    for name, filters in FILTERS.items():
        changes = network_changes(args.encoder, args.size) | {"preprocess.filters": filters}
        experiment = Experiment().replaced(changes)
        header = ModelHeader(
            experiment=experiment,
            fingerprint=data.fingerprint,
            synthetic=data.synthetic,
            weights="random",
            best={},
            metrics={},
        )
        weights = build_network(experiment.model).state_dict()
        predict = Predictor(weights, header, Compute("cpu")).predict
        predict(images[:1])

        def in_one_call(predict: Callable[..., object] = predict) -> None:
            predict(images)

        def one_by_one(predict: Callable[..., object] = predict) -> None:
            for image in images:
                predict([image])

        ways = {f"{name}, one call": _rate(in_one_call, args.slices)}
        ways[f"{name}, a call per slice"] = _rate(one_by_one, args.slices)
        ours, others = alternate(ways, args.alternations).values()
        rows.append([name, Spread.of(ours), Spread.of(others), ratios(ours, others)])
    print_table(
        f"{args.encoder}, {args.size} px, {args.threads} threads, {args.slices} slices of "
        f"{data.size} px, {args.alternations} alternations; slices/s",
        ["slices", "in one call", "a call per slice", "ratio"],
        rows,
    )
    return FINISHED


def _rate(run: Callable[[], None], slices: int) -> Callable[[], float]:
    def measured() -> float:
        began = time.perf_counter()
        run()
        return slices / (time.perf_counter() - began)

    return measured


if __name__ == "__main__":
    sys.exit(main())
