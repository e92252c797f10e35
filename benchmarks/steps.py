"""Training steps by encoder, size, threads and memory format: `python -m benchmarks.steps`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.measure import (
    Spread,
    alternate,
    limit_threads,
    network_changes,
    num_cores,
    parser_of,
    positive,
    print_table,
    ratios,
)
from brainseg.cli import FINISHED, run_command

_DESCRIPTION = """\
Measure the rate of training steps on a CPU: slices per second of forward, loss, backward and
optimizer on one random batch that stays in memory.

Every combination of encoder, size, threads and frozen or not is measured in both memory formats
in turn: channels_last, which the study uses, and contiguous. One step of each comes before."""
_EXAMPLES = """\
  python -m benchmarks.steps
  python -m benchmarks.steps --encoders resnet50 efficientnet-b0 --sizes 128 256 --threads 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("steps", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["tu-tf_efficientnet_lite0", "efficientnet-b0", "resnet50"],
        metavar="NAME",
        help="with random weights (default: tu-tf_efficientnet_lite0 efficientnet-b0 resnet50)",
    )
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[64, 128],
        metavar="PIXELS",
        help="sides of slices (default: 64 128)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        nargs="+",
        default=sorted({1, num_cores()}),
        metavar="N",
        help="numbers of threads (default: 1, and all cores)",
    )
    parser.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="slices of a batch (default: 16)"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=3,
        metavar="N",
        help="steps of a measurement (default: 3)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    rows: list[Sequence[object]] = []
    for encoder, size, threads in itertools.product(args.encoders, args.sizes, args.threads):
        limit_threads(threads)
        for frozen in (True, False):
            name = f"{encoder}, {size} px, {threads} threads, {'frozen' if frozen else 'whole'}"
            ways = {
                f"{name}, {form}": _steps(encoder, size, frozen, form, args)
                for form in ("channels_last", "contiguous")
            }
            ours, others = alternate(ways, args.alternations).values()
            rates = Spread.of(ours), Spread.of(others)
            trained = "decoder" if frozen else "all"
            rows.append([encoder, size, threads, trained, *rates, ratios(ours, others)])
    print_table(
        f"batch {args.batch}, {args.alternations} alternations of {args.steps} steps; slices/s",
        ["encoder", "px", "threads", "trained", "channels_last", "contiguous", "ratio"],
        rows,
    )
    return FINISHED


def _steps(
    encoder: str, size: int, frozen: bool, form: str, args: argparse.Namespace
) -> Callable[[], float]:
    """Return what trains some steps and returns slices per second."""
    import torch

    from brainseg.config import Experiment
    from brainseg.model.loss import segmentation_loss
    from brainseg.model.networks import build_model, set_training
    from brainseg.training.optimizer import build_optimizer

    experiment = Experiment().replaced(network_changes(encoder, size))
    layout = torch.channels_last if form == "channels_last" else torch.contiguous_format
    model = build_model(experiment.model, experiment.seed)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    set_training(model, freeze_encoder=frozen)
    optimizer = build_optimizer(model, experiment.optimizer, 1e-4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, size, size, generator=generator)
    images = images.contiguous(memory_format=layout)
    masks = (torch.rand(args.batch, size, size, generator=generator) < 0.1).float()

    def run(steps: int = args.steps) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = segmentation_loss(model(images)[:, 0], masks, experiment.loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float(steps * args.batch) / (time.perf_counter() - began)

    run(1)
    return run


if __name__ == "__main__":
    sys.exit(main())
