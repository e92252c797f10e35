"""How many trials at once are best for a grid: `python -m benchmarks.packing`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

from benchmarks.measure import (
    TWO_VARIANTS,
    Spread,
    add_data,
    add_epochs,
    add_network,
    alternate,
    epoch_flags,
    network_flags,
    num_cores,
    parser_of,
    positive,
    print_table,
    ratios,
    run_study,
)
from brainseg.cli import FINISHED, run_command
from study.spec.resources import Node, share_cluster

_DESCRIPTION = """\
Measure how many trials at once, with how many threads each, finish a grid soonest on the cores
of this machine.

Real studies of two variants (raw, median + CLAHE) run from command to end, with --concurrent and
--cpus-per-trial from one trial on all cores to a trial per core. The table says how far the
study's own choice is from the best. No GPU is used."""
_EXAMPLES = """\
  python -m benchmarks.packing
  python -m benchmarks.packing --trials 8 --size 128 --epochs 1 2 --alternations 3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("packing", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser)
    add_epochs(parser, 1, 3)
    parser.add_argument(
        "--trials",
        type=positive,
        default=2 * num_cores(),
        metavar="N",
        help="trials of the grid, rounded up to an even number (default: two per core)",
    )
    return parser


def list_packings(cores: int, trials: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return ways to pack trials, (trials at once, threads of each), and the study's choice."""
    even = [(n, cores // n) for n in range(1, min(cores, trials) + 1) if cores % n == 0]
    chosen = share_cluster((Node(cores, 0.0),), trials)
    default = (chosen.concurrent, chosen.cpus)
    return sorted({*even, default}), default


def _measure(args: argparse.Namespace) -> int:
    seeds = (args.trials + 1) // 2
    packings, default = list_packings(num_cores(), 2 * seeds)
    flags = ["--grid", str(TWO_VARIANTS), "--seeds", str(seeds), *network_flags(args)]
    flags += [*epoch_flags(args.epochs), "--gpus-per-trial", "0"]

    def run(concurrent: int, cpus: int) -> float:
        limits = ["--concurrent", str(concurrent), "--cpus-per-trial", str(cpus)]
        with run_study([*flags, *limits]) as study:
            return study.seconds

    ways = {f"{n} x {cpus}": functools.partial(run, n, cpus) for n, cpus in packings}
    found = alternate(ways, args.alternations)
    spreads = {name: Spread.of(seconds) for name, seconds in found.items()}
    best = min(spreads, key=lambda name: spreads[name].median)
    own = f"{default[0]} x {default[1]}"
    marks = {best: "best", own: "the study's choice"}
    if best == own:
        marks[own] = "best, and the study's choice"
    rows = [
        [name, spreads[name], ratios(found[name], found[best]), marks.get(name, "")]
        for name in ways
    ]
    print_table(
        f"{2 * seeds} trials, {args.encoder}, {args.size} px, "
        f"{args.epochs[0]} + {args.epochs[1]} epochs, {args.alternations} alternations",
        ["trials at once x threads", "seconds", "ratio to the best", ""],
        rows,
    )
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
