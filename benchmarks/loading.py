"""What loading costs a training: `python -m benchmarks.loading`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks.measure import (
    FILTERS,
    Spread,
    add_data,
    add_network,
    alternate,
    limit_threads,
    network_changes,
    parser_of,
    positive,
    prepare_data,
    print_table,
    ratios,
)
from brainseg.cli import FINISHED, run_command

if TYPE_CHECKING:
    from brainseg.config import Experiment
    from brainseg.data.loader import Batch
    from brainseg.data.slice_store import SliceStore

_DESCRIPTION = """\
Measure what loading, preprocessing and augmentation cost a training on a CPU.

An epoch of the whole network with the study's loader alternates with as many steps on one batch
that stays in memory, for raw slices and for median + CLAHE. Both are training slices per second;
a ratio of 1 would mean that loading costs nothing. Loading and step share the threads, as in a
trial without a GPU. Nothing is validated."""
_EXAMPLES = """\
  python -m benchmarks.loading
  python -m benchmarks.loading --data data/kaggle_3m --size 128 --threads 2 --alternations 3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("loading", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser, size=128)
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of the training (default: 1, as where each core has a trial)",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="steps of an epoch (default: all of it)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    from brainseg.config import Experiment
    from brainseg.data.slice_store import open_dataset

    limit_threads(args.threads)
    data = open_dataset(prepare_data(args.data))
    rows: list[Sequence[object]] = []
    for name, filters in FILTERS.items():
        changes = network_changes(args.encoder, args.size) | {"preprocess.filters": filters}
        training = _Training(Experiment().replaced(changes), data, args.steps)
        ways = {f"{name}, loader": training.load, f"{name}, memory": training.repeat}
        loaded, repeated = alternate(ways, args.alternations).values()
        rates = Spread.of(loaded), Spread.of(repeated)
        rows.append([name, *rates, ratios(loaded, repeated)])
    print_table(
        f"{args.encoder}, {args.size} px, {args.threads} threads, {len(data.patients)} patients, "
        f"{args.alternations} alternations; training slices/s",
        ["slices", "with the loader", "from memory", "loader / memory"],
        rows,
    )
    return FINISHED


class _Training:
    """Training steps of the whole network, with the loader or on one batch."""

    def __init__(self, experiment: Experiment, data: SliceStore, steps: int | None) -> None:
        from brainseg.data.loader import Batches
        from brainseg.data.split import split_of
        from brainseg.model.networks import build_model, set_training
        from brainseg.training.optimizer import build_optimizer

        indices = split_of(experiment, data.slices).indices(data.slices, "train")
        self._experiment, self._steps = experiment, steps
        self._batches = Batches(data, indices, experiment, augmented=True)
        self._model = build_model(experiment.model, experiment.seed)
        set_training(self._model, freeze_encoder=False)
        self._optimizer = build_optimizer(self._model, experiment.optimizer, 1e-4)
        self._epoch = 0
        self._one = next(iter(self._batches.epoch(2, 0)))
        self._train([self._one])  # the first step allocates

    def load(self) -> float:
        """Train an epoch; return slices per second."""
        self._epoch += 1
        return self._train(itertools.islice(self._batches.epoch(2, self._epoch), self._steps))

    def repeat(self) -> float:
        """Train as many steps on one batch; return slices per second."""
        return self._train([self._one] * (self._steps or self._batches.num_steps))

    def _train(self, batches: Iterable[Batch]) -> float:
        import torch

        from brainseg.model.device import build_scaler
        from brainseg.training.epoch import train_epoch

        device = torch.device("cpu")
        began = time.perf_counter()
        done = train_epoch(
            self._model,
            batches,
            self._experiment,
            device,
            self._optimizer,
            build_scaler(device),
        )
        return len(done.counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
