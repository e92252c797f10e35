"""How time and memory grow with patients and trials: `python -m benchmarks.growth`."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import (
    Spread,
    add_epochs,
    add_network,
    alternate,
    environment,
    epoch_flags,
    history,
    last_line,
    network_changes,
    parser_of,
    positive,
    print_table,
    run_study,
    set_flags,
)
from brainseg.cli import FINISHED, run_command
from brainseg.errors import StudyError

_MEGABYTE = 2**20
_DESCRIPTION = """\
Measure how time and memory grow with the number of patients and with that of trials.

Patients: phantoms of --patients times each factor are generated, their slice store is built, and
a study of one trial runs from command to end. Trials: `benchmarks.trial_cost` runs trials that
only report, on two local nodes. Each number is measured in a fresh process, in turn with the
others.

The exponent is log(last / first) over log(how many times as many), of what was measured: 0 where
nothing grows, 1 where twice as many take twice as long, above 1 where each takes longer."""
_EXAMPLES = """\
  python -m benchmarks.growth --alternations 2
  python -m benchmarks.growth --factors 1 4 --trials
      patients alone
  python -m benchmarks.growth --factors --trials 4 40 400 --alternations 1
      trials alone
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("growth", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--patients",
        type=positive,
        default=40,
        metavar="N",
        help="patients at factor 1, of 6 slices each (default: 40)",
    )
    parser.add_argument(
        "--factors",
        type=positive,
        nargs="*",
        default=[1, 2, 4],
        metavar="N",
        help="times as many patients (default: 1 2 4; nothing: leave patients out)",
    )
    parser.add_argument(
        "--trials",
        type=positive,
        nargs="*",
        default=[4, 40, 400],
        metavar="N",
        help="numbers of trials (default: 4 40 400; nothing: leave trials out)",
    )
    add_network(parser)
    add_epochs(parser, 1, 1)
    return parser


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of value = a * size ** b through the first and the last of the points."""
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def _measure(args: argparse.Namespace) -> int:
    if args.factors:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
            os.environ["BRAINSEG_CACHE"] = temporary
            numbers = [factor * args.patients for factor in args.factors]
            runs = [functools.partial(_run_patients, number, args) for number in numbers]
            settings = (
                f"{args.encoder}, {args.size} px, {args.epochs[0]} + {args.epochs[1]} epochs"
            )
            _compare("patients", numbers, runs, args.alternations, settings)
    if args.trials:
        runs = [functools.partial(_run_trials, number) for number in args.trials]
        _compare(
            "trials", args.trials, runs, args.alternations, "trials that only report, 2 nodes"
        )
    return FINISHED


def _compare(
    what: str,
    numbers: Sequence[int],
    runs: Sequence[Callable[[], dict[str, float]]],
    times: int,
    settings: str,
) -> None:
    ways = {f"{n} {what}": run for n, run in zip(numbers, runs, strict=True)}
    found = list(alternate(ways, times).values())
    rows: list[Sequence[object]] = []
    for name in found[0][0]:
        values = [[run[name] for run in way] for way in found]
        grown = ["-"]
        if len(numbers) > 1:
            in_turn = zip(*values, strict=True)
            grown = [str(Spread.of([exponent(numbers, turn) for turn in in_turn]))]
        rows.append([name, *(Spread.of(way) for way in values), *grown])
    columns = [what, *map(str, numbers), "exponent"]
    print_table(f"{settings}, {times} alternations", columns, rows)


def _run_patients(number: int, args: argparse.Namespace) -> dict[str, float]:
    from brainseg.data.phantom import generate_phantom
    from brainseg.data.slice_store import open_dataset

    peaks = {"driver": 0.0, "trial": 0.0}

    def watch(process: psutil.Process, storage: Path) -> None:
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                is_trial = "ImplicitFunc" in member.name()
                if is_trial or member.pid == process.pid:
                    name = "trial" if is_trial else "driver"
                    peaks[name] = max(peaks[name], member.memory_info().rss / _MEGABYTE)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        root = generate_phantom(Path(temporary) / "data", patients=number, size=64)
        began = time.perf_counter()
        open_dataset(root)
        built = time.perf_counter() - began
        network = network_changes(args.encoder, args.size)
        flags = ["--data", str(root), *set_flags(network), *epoch_flags(args.epochs)]
        with run_study(flags, watch, every=0.5) as study:
            rows = [row for trial in study.trials() for row in history(trial)]
            return {
                "building the slice store, s": built,
                "a study of one trial, s": study.seconds,
                "an epoch (median), s": median([row["seconds"] for row in rows]),
                "the driver's peak memory (RSS), MiB": peaks["driver"],
                "the trial's peak memory (RSS), MiB": peaks["trial"],
            }


def _run_trials(number: int) -> dict[str, float]:
    flags = ["--trials", str(number), "--nodes", "2"]
    command = [sys.executable, "-m", "benchmarks.trial_cost", *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if run.returncode:
        raise StudyError(f"benchmarks.trial_cost failed: {last_line(run.stderr)}")
    found = json.loads(run.stdout.splitlines()[-1])
    return {
        "all trials, s": found["seconds"],
        "the driver's CPU, s": found["driver_cpu_ms_per_trial"] * number / 1000,
        "Ray's CPU, s": found["ray_cpu_ms_per_trial"] * number / 1000,
        "the driver's memory at the end (RSS), MiB": float(found["driver_rss_mb_at_end"]),
    }


if __name__ == "__main__":
    sys.exit(main())
