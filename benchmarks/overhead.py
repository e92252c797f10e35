"""Tune's share of a study: `python -m benchmarks.overhead`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.measure import (
    Spread,
    add_data,
    add_network,
    alternate,
    history,
    modified,
    network_flags,
    parser_of,
    positive,
    print_table,
    run_study,
    set_flags,
)
from brainseg.cli import FINISHED, run_command

_DESCRIPTION = """\
Measure what Ray Tune and the study add to trials that run one at a time.

A study runs from command to end. Each of its trials says how long it took, from its call to its
result; that is compared with the whole study, and with the time from the first trial's call to
the last one's result, in which only Tune comes between trials. A trial trains until --seconds
have passed, and then to the end of its epoch (stopping.minutes)."""
_EXAMPLES = """\
  python -m benchmarks.overhead --alternations 3
  python -m benchmarks.overhead --trials 4 --seconds 20
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("overhead", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser)
    parser.add_argument(
        "--trials", type=positive, default=2, metavar="N", help="trials of a study (default: 2)"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=60,
        metavar="N",
        help="training time of a trial (default: 60)",
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    changes = {"stages.0.epochs": 1, "stages.1.epochs": 10_000}
    limits = {"stopping.minutes": args.seconds / 60}
    flags = ["--seeds", str(args.trials), "--concurrent", "1", *network_flags(args)]
    flags += set_flags({**changes, **limits})
    (runs,) = alternate({"study": lambda: _run(flags)}, args.alternations).values()
    names = list(runs[0])
    columns = {name: [run[name] for run in runs] for name in names}
    trials = columns["all trials, call to result"]
    rows: list[Sequence[object]] = [[f"{name}, s", Spread.of(columns[name])] for name in names]
    for name in ("the study, command to end", "first call to last result"):
        shares = [1 - part / whole for part, whole in zip(trials, columns[name], strict=True)]
        rows.append([f"**not in trials, of {name}**", _percent(Spread.of(shares))])
    print_table(
        f"{args.trials} trials one at a time, at least {args.seconds} s each, {args.encoder}, "
        f"{args.size} px, {args.alternations} alternations",
        ["", "median (min to max)"],
        rows,
    )
    return FINISHED


def _percent(share: Spread) -> str:
    return f"{share.median:.1%} ({share.low:.1%} to {share.high:.1%})"


def _run(flags: list[str]) -> dict[str, float]:
    with run_study(flags) as study:
        results = study.results()
        ends = [modified(trial / "result.json") for trial in study.trials()]
        walls = [result["wall_seconds"] for result in results]
        epochs = [row["seconds"] for trial in study.trials() for row in history(trial)]
        return {
            "the study, command to end": study.seconds,
            "first call to last result": ends[-1] - (ends[0] - walls[0]),
            "all trials, call to result": sum(walls),
            "all epochs": sum(epochs),
        }


if __name__ == "__main__":
    sys.exit(main())
