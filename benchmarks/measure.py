"""What the benchmarks share: alternation, ratios and their spread, tables, machine, studies."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil

from brainseg.cli import build_parser, whole_number
from brainseg.errors import StudyError
from brainseg.storage.files import read_csv
from brainseg.storage.urls import Location, to_location
from study.spec.configs import shipped
from study.storage.study_folder import find_commit

TWO_VARIANTS = Path(__file__).with_name("two.yaml")
"""A grid of raw and preprocessed slices."""

FILTERS: dict[str, list[str]] = {"raw": [], "median+clahe": ["median", "clahe"]}
"""Preprocessing -> its filters."""

_ROOT = Path(__file__).parents[1]
EXIT_CODES = """
exit codes:
  0  measured           2  usage: an unknown flag, key or value
  1  a known error      130  stopped by Ctrl-C or SIGTERM
"""
_T = TypeVar("_T")

positive = whole_number(1)
"""The type of flags that take a whole number of at least 1."""


@dataclass(frozen=True)
class Spread:
    """The median of some values and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{digits(self.median)} ({digits(self.low)} to {digits(self.high)})"


def digits(value: float) -> str:
    """Return a number with three significant digits, and all digits before the point."""
    places = sum(abs(value) < limit for limit in (100, 10, 1))
    return f"{round(value, places) + 0.0:.{places}f}"  # + 0.0: no minus before a zero


def ratios(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the spread of one / other, alternation by alternation."""
    return Spread.of([one / other for one, other in zip(ones, others, strict=True)])


def alternate(ways: Mapping[str, Callable[[], _T]], times: int) -> dict[str, list[_T]]:
    """Call each way in turn, A B A B, so that a change of the machine's load meets all of them.

    Returns:
        What each way returned, in order.
    """
    found: dict[str, list[_T]] = {name: [] for name in ways}
    for number in range(1, times + 1):
        for name, run in ways.items():
            print(f"{number} of {times}: {name}", file=sys.stderr, flush=True)
            found[name].append(run())
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; floats get three significant digits."""
    cells = [[digits(v) if isinstance(v, float) else str(v) for v in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(
    settings: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
) -> None:
    """Print what was measured on which machine, as Markdown."""
    print(f"{settings}  \n{describe_machine()}\n\n{table(columns, rows)}")
    print(f"\n{note}\n" if note else "")


def describe_machine() -> str:
    """Return processor, cores, memory, load, versions and date."""
    gigabytes = psutil.virtual_memory().total / 2**30
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "ray")]
    return ", ".join(
        [
            processor(),
            f"{num_cores()} cores",
            f"{gigabytes:.0f} GiB",
            f"load {psutil.getloadavg()[0]:.1f}",
            f"Python {platform.python_version()}",
            *versions,
            f"brainseg {find_commit()}",
            time.strftime("%Y-%m-%d"),
        ]
    )


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parser_of(
    name: str, description: str, examples: str, alternations: int = 5
) -> argparse.ArgumentParser:
    """Return a benchmark's parser, with the options that all have.

    Args:
        name: The module's name.
        description: What is measured and how.
        examples: Indented command lines.
        alternations: The default of `--alternations`.
    """
    epilog = f"examples:\n{examples}{EXIT_CODES}"
    parser = build_parser(f"benchmarks.{name}", description, epilog)
    parser.add_argument(
        "--alternations",
        type=positive,
        default=alternations,
        metavar="N",
        help=f"how often each is measured, in turn with the others (default: {alternations})",
    )
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option `--data`."""
    parser.add_argument(
        "--data",
        type=_absolute,
        metavar="DIR",
        help="the kaggle_3m folder (default: generated phantoms)",
    )


def add_network(
    parser: argparse.ArgumentParser, size: int = 64, encoder: str = "mobilenet_v2"
) -> None:
    """Add the options of the network that is trained."""
    parser.add_argument(
        "--encoder",
        default=encoder,
        metavar="NAME",
        help=f"the U-Net's encoder, with random weights (default: {encoder})",
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=size,
        metavar="PIXELS",
        help=f"side of a slice (default: {size})",
    )


def add_epochs(parser: argparse.ArgumentParser, first: int, second: int) -> None:
    """Add the option `--epochs A B`."""
    parser.add_argument(
        "--epochs",
        type=int,
        nargs=2,
        default=(first, second),
        metavar=("A", "B"),
        help=f"epochs with a frozen encoder, and of the whole network (default: {first} {second})",
    )


def _absolute(text: str) -> Location:
    """Parse a location; studies run in another folder."""
    found = to_location(text)
    return found.expanduser().resolve() if isinstance(found, Path) else found


def prepare_data(data: Location | None) -> Location:
    """Build the slice store in the cache if there is none; return the dataset's location.

    Raises:
        BrainsegError: If the dataset cannot be used.
    """
    from brainseg.data.slice_store import PHANTOM, open_dataset

    opened = open_dataset(data or PHANTOM)
    return data or opened.root


def set_flags(changes: Mapping[str, object]) -> list[str]:
    """Return `--set` flags of a study; lists and numbers are written as JSON, which is YAML."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in changes.items()}
    return [word for key, text in texts.items() for word in ("--set", f"{key}={text}")]


def network_changes(encoder: str, size: int) -> dict[str, object]:
    """Return the keys of a network with random weights and of the size of its slices."""
    return {"data.size": size, "model.encoder": encoder, "model.encoder_weights": "none"}


def network_flags(args: argparse.Namespace) -> list[str]:
    """Return the flags that give a study the data and the network of the options."""
    changes = network_changes(args.encoder, args.size)
    return ["--data", str(prepare_data(args.data)), *set_flags(changes)]


def epoch_flags(epochs: Sequence[int]) -> list[str]:
    """Return the flags that set the epochs of both stages."""
    return set_flags({f"stages.{stage}.epochs": count for stage, count in enumerate(epochs)})


@dataclass(frozen=True)
class StudyRun:
    """A study that has ended.

    Attributes:
        folder: The study's, which exists until the `with` block ends.
        began: Unix time of the start of its process.
        seconds: From then to the end of its process.
    """

    folder: Path
    began: float
    seconds: float

    def trials(self) -> list[Path]:
        """Return the folders of its trials, in the order in which they ended."""
        results = self.folder.glob("trials/*/result.json")
        return [path.parent for path in sorted(results, key=modified)]

    def results(self) -> list[dict[str, Any]]:
        """Return the results of its trials, in the same order."""
        return [json.loads((path / "result.json").read_text()) for path in self.trials()]


def history(trial: Path) -> list[dict[str, float]]:
    """Return one row per epoch of a trial."""
    rows = read_csv(trial / "history.csv")
    return [{key: float(value) for key, value in row.items()} for row in rows]


def modified(path: Path) -> float:
    """Return the Unix time at which a file was written."""
    return path.stat().st_mtime


@contextmanager
def run_study(
    flags: Sequence[str],
    watch: Callable[[psutil.Process, Path], None] = lambda process, storage: None,
    every: float = 0.1,
) -> Iterator[StudyRun]:
    """Run a study as its user would, in a temporary folder; the cache stays the user's.

    Args:
        flags: Of `study.run`, without `--storage` and `--name`. Unless they name a configuration,
            the published protocol is changed by them, for phantoms too.
        watch: Called with the study's process and the folder of studies, again and again.
        every: Seconds between two calls; looking takes time of the processor.

    Raises:
        StudyError: If it fails, with the last line that it printed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the study too
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        storage, log = Path(temporary) / "results", Path(temporary) / "log.txt"
        config = [] if "--config" in flags else ["--config", str(shipped("baseline.yaml"))]
        command = [sys.executable, "-m", "study.run", *config, *flags]
        with log.open("wb") as output:
            began = time.time()
            process = subprocess.Popen(
                [*command, "--storage", str(storage), "--name", "benchmark"],
                cwd=temporary, stdout=output, stderr=subprocess.STDOUT, env=environment(),
            )  # fmt: skip
            _wait(process, lambda: watch(psutil.Process(process.pid), storage), every)
            seconds = time.time() - began
        if process.returncode:
            end = last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise StudyError(f"the study ended with exit code {process.returncode}: {end}")
        yield StudyRun(storage / "benchmark", began, seconds)


def _wait(process: subprocess.Popen[bytes], look: Callable[[], None], every: float) -> None:
    """Look at a process until it ends."""
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(every)
                return
            look()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def environment() -> dict[str, str]:
    """Return the variables of a process that imports this checkout."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def call(function: str, *arguments: object) -> Any:
    """Call a function in a fresh process and return what it returns, by way of JSON.

    Args:
        function: Module and name, such as `benchmarks.startup.time_pieces`.
        arguments: Numbers, texts and None.

    Raises:
        StudyError: If the process fails.
    """
    module, _, name = function.rpartition(".")
    code = (
        "import json, sys; import importlib; "
        f"found = importlib.import_module({module!r}).{name}(*json.loads(sys.argv[1])); "
        "print(json.dumps(found))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    if run.returncode:
        raise StudyError(f"{function} failed: {last_line(run.stderr)}")
    return json.loads(run.stdout.splitlines()[-1])


def last_line(text: str) -> str:
    """Return the last line of what a process printed."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def limit_threads(threads: int) -> None:
    """Give this process the threads and the memory settings of a trial."""
    from study.spec.resources import TrialResources
    from study.tune import trainable

    trainable.limit_threads(TrialResources(cpus=threads))
