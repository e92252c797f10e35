"""What one GPU trains in a second, and what feeds it: prints Markdown tables to paste.

All measurements run the study's own code: `train_epoch` on batches of the loader or of resident
slices, `Training` with its checkpoints. Weights are random, which does not change the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import processor, table
from brainseg.cli import FINISHED, build_parser, run_command
from brainseg.config import Experiment, parse_changes
from brainseg.data.inputs import name_channels
from brainseg.data.loader import Batch, Batches
from brainseg.data.phantom import generate_phantom
from brainseg.data.resident import ResidentBatches
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.data.split import split_of
from brainseg.errors import ConfigError
from brainseg.model.device import Compute, build_scaler, cuda_dtype, fix_algorithms
from brainseg.model.model_file import Tensors
from brainseg.model.networks import build_model, set_training
from brainseg.storage.files import cache_folder, write_text
from brainseg.storage.urls import to_location
from brainseg.training.checkpoint import CheckpointFolder
from brainseg.training.epoch import train_epoch
from brainseg.training.optimizer import build_optimizer
from brainseg.training.trainer import Training

OUT_OF_MEMORY = "out of memory"
MEMORY, RESIDENT = "one batch in memory", "data.resident: always"
_ENOUGH = 0.95
_EPOCH_SLICES = 3000
_WARM_UP, _FEWEST = 3, 2
_SHORTEST, _LONGEST = 0.2, 20.0
_MEASURING = 0.6
"""Share of the time left that is spent in measurements; networks and processes take the rest."""
_LONGEST_WAIT = 300.0

Row = list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser("benchmarks.gpu", "Measure what a GPU trains in a second.", _EPILOG)
    add = parser.add_argument
    add("--device", metavar="NAME", help="cuda or cpu (default: a GPU, which must be there)")
    add(
        "--data",
        type=to_location,
        metavar="DIR",
        help="the dataset (default: phantoms generated at --size)",
    )
    add("--size", type=int, default=256, metavar="PX", help="side of the slices (default: 256)")
    add("--batch-size", type=int, default=16, metavar="N", help="slices a step (default: 16)")
    add(
        "--encoders",
        nargs="+",
        default=["resnet50", "efficientnet-b0"],
        metavar="NAME",
        help="encoders of the U-Net (default: resnet50 efficientnet-b0)",
    )
    add(
        "--workers",
        nargs="+",
        type=int,
        metavar="N",
        help="numbers of loader workers to try, until one feeds the device (default: 0 1 2 4 8 "
        "... up to the processors)",
    )
    add(
        "--packed",
        nargs="+",
        type=int,
        default=[1, 2, 4],
        metavar="N",
        help="trainings at once, the first of which the others are compared with (default: 1 2 4)",
    )
    add("--minutes", type=float, default=9.0, help="time for everything, about (default: 9)")
    add(
        "--seconds",
        type=float,
        metavar="N",
        help="time of each measurement (default: what --minutes allows)",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="another experiment")
    add("--out", type=Path, metavar="FILE", help="write the tables here instead of printing them")
    return parser


class Budget:
    """Divides the time among the measurements that are left.

    Args:
        minutes: Time for everything.
        planned: Number of measurements.
        seconds: Seconds of each measurement; None divides `minutes`.
    """

    def __init__(self, minutes: float, planned: int, seconds: float | None) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._left = planned
        self._seconds = seconds

    def skip(self, count: int) -> None:
        """Leave out some measurements."""
        self._left = max(self._left - count, 1)

    def take(self) -> float:
        """Return the seconds of the next measurement."""
        share = _MEASURING * (self._end - time.monotonic()) / self._left
        self._left = max(self._left - 1, 1)
        return self._seconds or min(max(share, _SHORTEST), _LONGEST)


@dataclass(frozen=True)
class EncoderSetup:
    """What all measurements of an encoder share.

    Attributes:
        experiment: Encoder, size and batch size.
        store: The dataset.
        device: Device to train on.
    """

    experiment: Experiment
    store: SliceStore
    device: torch.device

    @functools.cached_property
    def indices(self) -> NDArray[np.int64]:
        """The training part, repeated to the length of an epoch of the LGG dataset."""
        own = split_of(self.experiment, self.store.slices).indices(self.store.slices, "train")
        return np.tile(own, math.ceil(_EPOCH_SLICES / len(own)))[: max(len(own), _EPOCH_SLICES)]

    def from_loader(self, workers: int) -> Iterator[Batch]:
        """Yield the training batches of the loader, epoch after epoch."""
        pinned = self.device.type == "cuda"
        batches = Batches(
            self.store,
            self.indices,
            self.experiment,
            augmented=True,
            workers=workers,
            pinned=pinned,
        )
        return _endless(batches)

    def from_device(self) -> Iterator[Batch]:
        """Yield the training batches of slices on the device, epoch after epoch."""
        batches = ResidentBatches(
            self.store,
            self.indices,
            self.experiment,
            augmented=True,
            device=self.device,
            threads=os.cpu_count() or 1,
        )
        return _endless(batches)

    def from_memory(self) -> Iterator[Batch]:
        """Yield one batch on the device, again and again."""
        images, masks, indices = next(self.from_loader(0))
        return itertools.repeat((images.to(self.device), masks.to(self.device), indices))


def _endless(batches: Batches | ResidentBatches) -> Iterator[Batch]:
    for epoch in itertools.count(1):
        yield from batches.epoch(1, epoch)


@dataclass(frozen=True)
class Rate:
    """The result of a measurement.

    Attributes:
        slices: Slices a second; NaN if the memory did not suffice.
        busy: Share of the time in which the GPU was busy, in percent; NaN if unknown.
        gigabytes: Most memory in use, of the GPU or of this process.
    """

    slices: float
    busy: float = math.nan
    gigabytes: float = math.nan

    def cells(self, best: float) -> Row:
        """Return the cells of a row; `best` are the slices a second to compare with."""
        if math.isnan(self.slices):
            return [OUT_OF_MEMORY, "", "", ""]
        busy = "unknown" if math.isnan(self.busy) else f"{self.busy:.0f} %"
        share = "" if math.isnan(best) else f"{100 * self.slices / best:.0f} %"
        return [f"{self.slices:.1f}", share, busy, f"{self.gigabytes:.2f} GB"]


class Steps:
    """A network in one of the two stages, ready for steps.

    Args:
        setup: Encoder and device.
        frozen: Whether the encoder is frozen.
    """

    def __init__(self, setup: EncoderSetup, frozen: bool) -> None:
        experiment, device = setup.experiment, setup.device
        fix_algorithms(device)
        stage = experiment.stages[0 if frozen else 1]
        model = build_model(experiment.model, experiment.seed, experiment.input_channels)
        self._model = model.to(device)
        set_training(self._model, freeze_encoder=frozen)
        self._optimizer = build_optimizer(self._model, experiment.optimizer, stage.learning_rate)
        self._scaler = build_scaler(device)
        self._setup = setup

    def rate(self, batches: Iterator[Batch], seconds: float) -> Rate:
        """Train for some seconds, after a few steps that are not counted."""
        device = self._setup.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._train(itertools.islice(batches, _WARM_UP))
        count = 0

        def timed() -> Iterator[Batch]:
            nonlocal count
            end = time.perf_counter() + seconds
            for step, batch in enumerate(batches):
                if step >= _FEWEST and time.perf_counter() >= end:
                    return
                yield batch
                count += len(batch[0])

        with watch_gpu(device) as samples:
            started = time.perf_counter()
            self._train(timed())  # ends once the device has finished
            slices = count / (time.perf_counter() - started)
        return Rate(slices, fmean(samples) if samples else math.nan, _peak_gigabytes(device))

    def _train(self, batches: Iterable[Batch]) -> None:
        train_epoch(
            self._model,
            batches,
            self._setup.experiment,
            self._setup.device,
            self._optimizer,
            self._scaler,
        )


def unless_full(measure: Callable[[], Rate]) -> Rate:
    """Measure; return a rate of NaN if the memory does not suffice."""
    try:
        return measure()
    except (torch.OutOfMemoryError, MemoryError):
        return Rate(math.nan)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextlib.contextmanager
def watch_gpu(device: torch.device) -> Iterator[list[float]]:
    """Collect the percent in which a GPU is busy; nothing if the driver does not report it."""
    samples: list[float] = []
    stop = threading.Event()

    def poll() -> None:
        with contextlib.suppress(Exception):  # NVML and the driver raise kinds of their own
            while not stop.wait(0.25):
                samples.append(_utilisation(device))

    thread = threading.Thread(target=poll, daemon=True)
    if device.type == "cuda":
        thread.start()
    try:
        yield samples
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()


def _utilisation(device: torch.device) -> float:
    try:
        return float(torch.cuda.utilization(device))  # by nvidia-ml-py
    except ModuleNotFoundError:
        card = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        command = ["nvidia-smi", f"--id={card}", *query]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return float(done.stdout)


def _measure(args: argparse.Namespace) -> int:
    device = Compute(args.device or "cuda").torch_device()
    experiment = Experiment().replaced(
        {
            "data.size": args.size,
            "optimizer.batch_size": args.batch_size,
            "model.encoder_weights": "none",
            **parse_changes(args.set),
        }
    )
    workers = sorted(set(args.workers or _worker_counts()))
    if min(workers) < 0 or min(args.packed) < 1 or args.minutes <= 0:
        raise ConfigError("--workers are at least 0, --packed at least 1, --minutes above 0")
    store = open_dataset(args.data or _phantom(args.size))
    per_encoder = 2 * (2 + len(workers)) + len(args.packed)
    budget = Budget(args.minutes, per_encoder * len(args.encoders), args.seconds)
    speeds, packs, resumes, needs = list[Row](), list[Row](), list[Row](), list[str]()
    for encoder in args.encoders:
        own = name_channels(experiment.replaced({"model.encoder": encoder}), store)
        setup = EncoderSetup(own, store, device)
        resident = Rate(math.nan)
        for frozen in (True, False):
            rows, need, resident = _measure_stage(setup, frozen, workers, budget)
            speeds += rows
            needs.append(need)
        packs += _measure_packed(setup, args.packed, budget.take())
        budget.skip(len(args.packed) - 1)
        _say(f"{encoder}: checkpoints and resume")
        resumes += [_measure_resume(setup, kept, resident) for kept in ("never", "always")]
    text = _describe(setup, args) + _tables(speeds, needs, packs, resumes)
    if args.out is None:
        print(text)
    else:
        write_text(args.out, text)
        _say(f"{args.out} is written")
    return FINISHED


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _worker_counts() -> list[int]:
    most = os.cpu_count() or 1
    return [0, *(2**power for power in range(most.bit_length()) if 2**power <= most)]


def _phantom(size: int) -> Path:
    folder = cache_folder("phantom") / f"benchmark-{size}"
    return generate_phantom(folder, patients=20, slices=4, size=size)


def _measure_stage(
    setup: EncoderSetup, frozen: bool, workers: Sequence[int], budget: Budget
) -> tuple[list[Row], str, Rate]:
    """Measure one stage fed from memory, by the loader, and by resident slices.

    Returns:
        Rows of the table, the sentence on the workers that it needs, and the resident rate.
    """
    encoder, stage = setup.experiment.model.encoder, "frozen" if frozen else "unfrozen"

    def rate(feed: str, start: Callable[[], Iterator[Batch]]) -> Rate:
        _say(f"{encoder}, {stage}: {feed}")
        seconds = budget.take()
        return unless_full(lambda: Steps(setup, frozen).rate(start(), seconds))

    rates = {MEMORY: rate(MEMORY, setup.from_memory)}
    best, needed = rates[MEMORY].slices, None
    for place, count in enumerate(workers):
        feed = f"loader, {_workers(count)}"
        rates[feed] = rate(feed, functools.partial(setup.from_loader, count))
        if rates[feed].slices >= _ENOUGH * best:
            needed = count
            budget.skip(len(workers) - place - 1)
            break
    rates[RESIDENT] = rate(RESIDENT, setup.from_device)
    takes = _workers(needed) if needed is not None else f"more than {_workers(max(workers))}"
    if math.isnan(best):
        takes = f"an unknown number of workers: {OUT_OF_MEMORY}"
    need = f"{encoder}, {stage}: {100 * _ENOUGH:.0f} % of the step rate takes {takes}."
    rows = [[encoder, stage, feed, *found.cells(best)] for feed, found in rates.items()]
    return rows, need, rates[RESIDENT]


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _measure_packed(setup: EncoderSetup, counts: Sequence[int], seconds: float) -> list[Row]:
    """Train several networks at once on the device, each in a process with resident slices."""
    context = multiprocessing.get_context("spawn")
    most = max(counts)
    barrier = context.Barrier(most)
    rates = context.Array("d", [math.nan] * (len(counts) * most))
    _say(f"{setup.experiment.model.encoder}: up to {most} trainings at once")
    processes = [
        context.Process(target=_train_packed, args=(rank, counts, setup, seconds, barrier, rates))
        for rank in range(most)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = any(process.exitcode for process in processes)
    rows, first = list[Row](), math.nan
    for place, count in enumerate(counts):
        total = sum(rates[place * most : place * most + count])
        first = total if place == 0 else first
        cells = [f"{total:.1f}", f"{100 * total / first:.0f} %"]
        if math.isnan(total):
            cells = ["failed" if failed else OUT_OF_MEMORY, ""]
        rows.append([setup.experiment.model.encoder, str(count), *cells])
    return rows


def _train_packed(
    rank: int,
    counts: Sequence[int],
    setup: EncoderSetup,
    seconds: float,
    barrier: Barrier,
    rates: Any,
) -> None:
    """Train in the rounds that have more trainings than this one's rank; wait in the others."""
    steps: Steps | None = None
    batches: Iterator[Batch] = iter(())
    try:
        with contextlib.suppress(torch.OutOfMemoryError, MemoryError):
            steps, batches = Steps(setup, frozen=False), setup.from_device()
            steps.rate(batches, 0)
        for place, count in enumerate(counts):
            barrier.wait(_LONGEST_WAIT)
            if rank < count and steps is not None:
                found = unless_full(functools.partial(steps.rate, batches, seconds))
                rates[place * barrier.parties + rank] = found.slices
            barrier.wait(_LONGEST_WAIT)
    except BaseException:
        barrier.abort()  # the others must not wait for this one
        raise


def _measure_resume(setup: EncoderSetup, kept: str, resident: Rate) -> Row:
    """Train two epochs of a few phantoms in one go, and with a break; compare all weights."""
    experiment = setup.experiment.replaced(
        {
            "data.resident": kept,
            "data.split": "patient",
            "data.channels": None,
            "stages.0.epochs": 0,
            "stages.1.epochs": 2,
        }
    )
    few = open_dataset(_phantom(setup.experiment.data.size))
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        try:
            seconds = _train(experiment, few, setup.device, whole, epochs=2)
            _train(experiment, few, setup.device, parts, epochs=1)
            _train(experiment, few, setup.device, parts, epochs=2)
        except (torch.OutOfMemoryError, MemoryError):
            return [experiment.model.encoder, kept, OUT_OF_MEMORY, "", "", ""]
        weights = [_last_weights(experiment, few, path) for path in (whole, parts)]
        megabytes = sum(file.stat().st_size for file in max(whole.iterdir()).iterdir()) / 1e6
    difference = max(
        float((weights[0][key].double() - weights[1][key].double()).abs().max())
        for key in weights[0]
    )
    equal = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    epoch = len(setup.indices) / resident.slices
    return [
        experiment.model.encoder,
        kept,
        f"{megabytes:.0f} MB",
        f"{seconds:.2f} s",
        "" if math.isnan(epoch) else f"{100 * seconds / (seconds + epoch):.1f} %",
        "yes" if equal else f"no, by up to {difference:.1e}",
    ]


def _train(
    experiment: Experiment, store: SliceStore, device: torch.device, folder: Path, *, epochs: int
) -> float:
    """Train up to a number of epochs; return the seconds that the last one took to be saved."""
    training = Training(experiment, store, compute=Compute(str(device)), checkpoints=folder)
    reports, seconds = training.epochs(), 0.0
    for _ in range(epochs):
        started = time.perf_counter()
        report = next(reports)
        seconds = time.perf_counter() - started - report.row["seconds"]
    return seconds


def _last_weights(experiment: Experiment, store: SliceStore, folder: Path) -> Tensors:
    state = CheckpointFolder(folder, experiment, store.fingerprint).latest()
    assert state is not None
    return state.model


def _describe(setup: EncoderSetup, args: argparse.Namespace) -> str:
    """Return the heading of the tables: when, where, on what."""
    device, store, experiment = setup.device, setup.store, setup.experiment
    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_name(device) if on_gpu else "none"
    precision = str(cuda_dtype()).removeprefix("torch.") if on_gpu else "float32"
    kind = "SYNTHETIC phantoms" if store.synthetic else "slices"
    run = (
        "" if on_gpu else "**CPU run**: it shows that the command works, not what a GPU does.\n\n"
    )
    changes = "; ".join(args.set) or "the published protocol without filters"
    cudnn = torch.backends.cudnn.version() if on_gpu else None  # type: ignore[no-untyped-call]
    return f"""\
### What a GPU trains in a second

{run}| | |
| --- | --- |
| date | {datetime.now(UTC):%Y-%m-%d} |
| machine | {processor()}, {os.cpu_count()} cores, {_memory():.0f} GB, {platform.system()} |
| card | {card} |
| versions | torch {torch.__version__}, CUDA {torch.version.cuda or "none"}, \
cuDNN {cudnn or "none"}, Python {platform.python_version()} |
| data | {len(store.slices):,} {kind}, trained at {experiment.data.size} px in batches of \
{experiment.optimizer.batch_size}, {precision}; {changes} |

"""


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _tables(
    speeds: Sequence[Row], needs: Sequence[str], packs: Sequence[Row], resumes: Sequence[Row]
) -> str:
    speed = ["encoder", "encoder is", "fed by", "slices/s", "of step rate", "GPU busy", "peak"]
    pack = ["encoder", "trainings at once", "slices/s together", "against the first row"]
    resume = [
        "encoder",
        "data.resident",
        "checkpoint",
        "to save it",
        "of an epoch",
        "resume equal",
    ]
    return "\n".join(
        [
            table(speed, speeds),
            "",
            *(f"- {need}" for need in needs),
            "",
            table(pack, packs),
            "",
            table(resume, resumes),
            "",
            f"Peak: of the GPU's memory, or of the process so far on a CPU. An epoch has "
            f"{_EPOCH_SLICES:,} slices (the dataset's if there are more) and is fed by resident "
            "slices. Resume equal: two epochs in one go and with a break give the same bits.",
            "",
        ]
    )


_EPILOG = """\
examples:
  python -m benchmarks.gpu --data data/kaggle_3m --out gpu.md
  python -m benchmarks.gpu --encoders resnet50 --set 'preprocess.filters=[median,clahe]'
  python -m benchmarks.gpu --device cpu --size 64 --encoders mobilenet_v2 --seconds 1 --packed 1 2

Run it on a machine that does nothing else. Each encoder is trained with a frozen and an unfrozen
encoder: fed by one batch in memory (the step rate), by the loader with more and more workers until
they reach 95 % of it, and by slices on the device (data.resident). Then: trainings at once, each a
process; what a checkpoint costs; whether a resumed training gives the same bits.

exit codes:
  0  the tables are printed or written
  1  the data cannot be used
  2  a flag or value is wrong, or there is no GPU and no --device cpu
"""

if __name__ == "__main__":
    sys.exit(main())
