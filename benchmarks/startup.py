"""The fixed costs of a study: `python -m benchmarks.startup`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import (
    Spread,
    StudyRun,
    add_data,
    add_network,
    alternate,
    call,
    environment,
    epoch_flags,
    history,
    modified,
    network_changes,
    network_flags,
    parser_of,
    positive,
    prepare_data,
    print_table,
    run_study,
    set_flags,
)
from brainseg.cli import FINISHED, run_command
from brainseg.errors import StudyError

_DESCRIPTION = """\
Measure what a study takes besides training: from its command to the first epoch, for each further
trial, and from the last epoch to the end of the report; and how long --help takes.

Real studies are watched from outside. Moments are the creation of Ray's process and the times of
files: study.json (Ray has started), history.csv with one row (minus that epoch's seconds: the
first epoch begins; late by the writing of a checkpoint), result.json (minus its wall_seconds: the
trial is called) and report.html. Trials run one at a time, with two epochs; calibrate_encoder is
off, since it is training.

A second table times the pieces one after another in a process of their own: imports, Ray, the
store (which is in the cache), network, first batch, first step."""
_EXAMPLES = """\
  python -m benchmarks.startup
  python -m benchmarks.startup --data data/kaggle_3m --size 128 --trials 4 --alternations 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("startup", _DESCRIPTION, _EXAMPLES)
    add_data(parser)
    add_network(parser)
    parser.add_argument(
        "--trials", type=positive, default=3, metavar="N", help="trials of a study (default: 3)"
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    data = prepare_data(args.data)
    flags = ["--seeds", str(args.trials), "--concurrent", "1", *network_flags(args)]
    flags += [*epoch_flags((1, 1)), *set_flags({"model.calibrate_encoder": False})]
    pieces = ("benchmarks.startup.time_pieces", str(data), args.encoder, args.size)
    found = alternate(
        {"study": lambda: _watch(flags), "pieces": lambda: call(*pieces), "help": _help},
        args.alternations,
    )
    settings = f"{args.encoder}, {args.size} px, {args.alternations} alternations; seconds"
    columns = ["", "median (min to max)"]
    whole = [run | helped for run, helped in zip(found["study"], found["help"], strict=True)]
    print_table(f"a study of {args.trials} trials, {settings}", columns, _rows(whole))
    print_table(
        f"the pieces in a process of their own, {settings}", columns, _rows(found["pieces"])
    )
    return FINISHED


def _rows(runs: Sequence[dict[str, float]]) -> list[list[object]]:
    return [[name, Spread.of([run[name] for run in runs])] for name in runs[0]]


class _Moments:
    """When something was first seen of a study, as Unix times."""

    def __init__(self) -> None:
        self.raylets: set[float] = set()
        self.first_epochs: dict[str, float] = {}

    def look(self, process: psutil.Process, storage: Path) -> None:
        """Look at the processes and the histories of now."""
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                if child.name() == "raylet":
                    self.raylets.add(child.create_time())
        for trial in storage.glob("*/trials/*"):
            rows = history(trial)
            if len(rows) == 1:
                written = modified(trial / "history.csv")
                self.first_epochs[trial.name] = written - rows[0]["seconds"]


def _watch(flags: Sequence[str]) -> dict[str, float]:
    """Run a study; return the seconds of its parts."""
    moments = _Moments()
    with run_study(flags, moments.look) as study:
        trials = study.trials()
        missed = [trial.name for trial in trials if trial.name not in moments.first_epochs]
        if missed or not moments.raylets:
            raise StudyError(
                f"the start of {', '.join(missed) or 'Ray'} was not seen, since it was over too "
                "soon: give a larger --size"
            )
        return _split(study, moments)


def _split(study: StudyRun, moments: _Moments) -> dict[str, float]:
    trials, results = study.trials(), study.results()
    ends = [modified(trial / "result.json") for trial in trials]
    calls = [end - row["wall_seconds"] for end, row in zip(ends, results, strict=True)]
    epochs = [moments.first_epochs[trial.name] for trial in trials]
    last = [modified(trial / "history.csv") for trial in trials]
    ray, up = min(moments.raylets), modified(study.folder / "study.json")
    report, end = modified(study.folder / "report.html"), study.began + study.seconds
    seconds = {
        "command to Ray's start: imports, checks": ray - study.began,
        "Ray's start": up - ray,
        "Ray to the trial's call: Tune, the trial's imports": calls[0] - up,
        "the call to the first epoch: store, network": epochs[0] - calls[0],
        "**command to the first epoch**": epochs[0] - study.began,
    }
    tests = [end - written for end, written in zip(ends, last, strict=True)]
    if len(trials) > 1:
        gaps = [later - earlier for earlier, later in zip(ends, calls[1:], strict=False)]
        begins = [first - called for first, called in zip(epochs[1:], calls[1:], strict=True)]
        seconds |= {
            "a result to the next trial's call": median(gaps),
            "a further call to its first epoch": median(begins),
            "last epoch to the result: test": median(tests),
            "**a further trial**": median(gaps) + median(begins) + median(tests),
        }
    return seconds | {
        "last result to the report": report - ends[-1],
        "the report to the end of the process": end - report,
        "**last epoch to the end**": end - last[-1],
    }


def _help() -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "study.run", "--help"]
    subprocess.run(command, capture_output=True, check=True, env=environment())
    return {"--help": time.perf_counter() - began}


def time_pieces(data: str, encoder: str, size: int) -> dict[str, float]:
    """Return the seconds of what a study does before its first step, one after another."""
    seconds, began = {}, time.perf_counter()

    def ended(name: str) -> None:
        nonlocal began
        seconds[name] = time.perf_counter() - began
        began = time.perf_counter()

    import torch

    ended("import torch")
    from ray import tune  # noqa: F401

    ended("import ray.tune")
    import study.pipeline  # noqa: F401

    ended("import the rest of the study")
    from study.tune.cluster import start_cluster

    with start_cluster(None):
        ended("start Ray")
    ended("stop Ray")
    from brainseg.config import Experiment
    from brainseg.data.loader import Batches
    from brainseg.data.slice_store import open_dataset
    from brainseg.data.split import split_of
    from brainseg.model.device import build_scaler
    from brainseg.model.networks import build_model, set_training
    from brainseg.storage.urls import to_location
    from brainseg.training.epoch import train_epoch
    from brainseg.training.optimizer import build_optimizer

    store = open_dataset(to_location(data))
    ended("open the store")
    experiment = Experiment().replaced(network_changes(encoder, size))
    indices = split_of(experiment, store.slices).indices(store.slices, "train")
    ended("split the patients")
    model = build_model(experiment.model, experiment.seed)
    set_training(model, freeze_encoder=True)
    optimizer = build_optimizer(model, experiment.optimizer, 1e-4)
    ended("build the network")
    batch = next(iter(Batches(store, indices, experiment, augmented=True).epoch(1, 1)))
    ended("first batch")
    device = torch.device("cpu")
    train_epoch(model, [batch], experiment, device, optimizer, build_scaler(device))
    ended("first step")
    return {**seconds, "**together**": sum(seconds.values())}


if __name__ == "__main__":
    sys.exit(main())
