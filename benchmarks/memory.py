"""Memory of a further trial at once: `python -m benchmarks.memory`."""

from __future__ import annotations

import argparse
import functools
import resource
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.measure import (
    Spread,
    add_data,
    add_epochs,
    add_network,
    alternate,
    call,
    epoch_flags,
    limit_threads,
    network_changes,
    network_flags,
    num_cores,
    parser_of,
    positive,
    print_table,
    run_study,
)
from brainseg.cli import FINISHED, run_command

_STEPS = 5
_DESCRIPTION = """\
Measure the memory that one more trial at once takes, beyond its model and activations. Linux.

Studies with one trial, and with --concurrent trials at once, of one thread each, run in turn.
Twice a second the proportional set size (Pss of smaps_rollup: pages that processes share count in
parts) of the study's process and all that it started is summed; the highest sum counts.

Subtracted is what a process of its own grows by, from after its imports to its peak, when it
builds the same network and optimizer and trains five steps on one batch of zeros, without
store, loader, checkpoints and Ray. What is left of a trial is the interpreter, its imports, its
store and loader, copies of the best weights and of checkpoints, and Ray."""
_EXAMPLES = """\
  python -m benchmarks.memory
  python -m benchmarks.memory --concurrent 4 --encoder resnet50 --size 128 --alternations 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("memory", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser)
    add_epochs(parser, 1, 3)
    parser.add_argument(
        "--concurrent",
        type=positive,
        default=max(2, num_cores()),
        metavar="N",
        help="trials at once that are compared with one (default: one per core)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    flags = [*network_flags(args), *epoch_flags(args.epochs)]
    flags += ["--cpus-per-trial", "1", "--gpus-per-trial", "0"]
    many = f"{args.concurrent} at once"
    ways = {
        name: functools.partial(_peak, [*flags, "--seeds", str(count), "--concurrent", str(count)])
        for name, count in (("1 trial", 1), (many, args.concurrent))
    }
    found = alternate(ways, args.alternations)
    plain = call("benchmarks.memory.train_plainly", args.encoder, args.size)
    rows: list[Sequence[object]] = [
        [f"{name}: {kind}", Spread.of([peak[kind] for peak in found[name]])]
        for name in ways
        for kind in ("driver", "trials", "Ray's other processes", "all")
    ]
    pairs = zip(found[many], found["1 trial"], strict=True)
    further = [(more["all"] - one["all"]) / (args.concurrent - 1) for more, one in pairs]
    rows += [
        ["a further trial", Spread.of(further)],
        ["model and activations, by a process of their own", plain],
        ["**a further trial beyond these**", Spread.of([value - plain for value in further])],
    ]
    print_table(
        f"{args.encoder}, {args.size} px, {args.epochs[0]} + {args.epochs[1]} epochs, "
        f"{args.alternations} alternations; MiB of Pss at the highest sum",
        ["", "median (min to max)"],
        rows,
    )
    return FINISHED


def _peak(flags: Sequence[str]) -> dict[str, float]:
    """Return the MiB of each kind of process when their sum was highest."""
    highest: dict[str, float] = {"all": 0.0}

    def watch(process: psutil.Process, storage: Path) -> None:
        sizes: dict[str, float] = defaultdict(float)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                name = "trials" if "ImplicitFunc" in member.name() else "Ray's other processes"
                sizes["driver" if member.pid == process.pid else name] += _pss(member.pid)
        sizes["all"] = sum(sizes.values())
        if sizes["all"] > highest["all"]:
            highest.clear()
            highest.update(defaultdict(float, sizes))

    with run_study(flags, watch, every=0.5):
        return {**dict.fromkeys(("driver", "trials", "Ray's other processes"), 0.0), **highest}


def _pss(pid: int) -> float:
    """Return the MiB of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def train_plainly(encoder: str, size: int) -> float:
    """Train a few steps on one batch; return the MiB by which this process grew."""
    import torch

    from brainseg.config import Experiment
    from brainseg.model.device import build_scaler
    from brainseg.model.networks import build_model, set_training
    from brainseg.training.epoch import train_epoch
    from brainseg.training.optimizer import build_optimizer

    limit_threads(1)
    before = psutil.Process().memory_info().rss
    experiment = Experiment().replaced(network_changes(encoder, size))
    model = build_model(experiment.model, experiment.seed)
    set_training(model, freeze_encoder=False)
    optimizer = build_optimizer(model, experiment.optimizer, 1e-4)
    images = torch.zeros((experiment.optimizer.batch_size, size, size, 3), dtype=torch.uint8)
    batch = (images, images[..., 0], torch.arange(len(images)))
    device = torch.device("cpu")
    train_epoch(model, [batch] * _STEPS, experiment, device, optimizer, build_scaler(device))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak - before) / 2**20


if __name__ == "__main__":
    sys.exit(main())
