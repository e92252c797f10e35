"""What a study would take, before anything is started: epochs, disk, hours, money."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from rich.table import Table

from brainseg.config import NUM_FOLDS, Experiment
from brainseg.data.split import PARTS, split_of
from brainseg.errors import StudyError
from brainseg.storage.files import read_json
from study.analysis.protocol import PRIMARY
from study.resolve import Study
from study.spec.resources import Cluster, TrialResources, trials_on
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.schema import FINISHED
from study.storage.trial_folder import TrialFolder

Line = tuple[str, str]
"""A name and a value of `--plan`."""

_BYTES_PER_WEIGHT = 4
_CHECKPOINTS_KEPT = 2
# Weights, AdamW's two moments, and the best weights so far; one more with a moving average.
_COPIES_PER_CHECKPOINT = 4
_PIXELS_PER_BYTE = 3  # packed probabilities of an untrained network; trained ones pack 10 a byte
_SECONDS_PER_HOUR = 3600
_EPOCHS = ("stages.0.epochs", "stages.1.epochs")


def require_disk(study: Study, jobs: Sequence[TrialJob], resources: TrialResources) -> None:
    """Refuse a study that would fill the disk.

    Raises:
        StudyError: With what is needed and what is free.
    """
    needed, free = measure_disk(study, jobs, resources)
    if free < needed:
        raise StudyError(
            f"the study needs about {needed / 1e9:.1f} GB in {study.folder.parent}, which has "
            f"{free / 1e9:.1f} GB free: make room, or give --storage on a larger disk"
        )


def measure_disk(
    study: Study, jobs: Sequence[TrialJob], resources: TrialResources
) -> tuple[int, int]:
    """Return the most bytes that the trials take at any time, and the bytes that are free.

    A finished trial keeps its model and its probabilities, a running one its checkpoints; a
    search's candidate keeps no weights.
    """
    existing = next(path for path in (study.folder, *study.folder.parents) if path.exists())
    weights = [study.sizes[job.experiment.network] for job in jobs]
    exported = {job.variant: size for job, size in zip(jobs, weights, strict=True)}
    largest = sum(sorted(weights, reverse=True)[: resources.concurrent])
    averaged = any(job.experiment.optimizer.average_decay for job in jobs)
    copies = (_CHECKPOINTS_KEPT + 1) * (_COPIES_PER_CHECKPOINT + averaged)
    running = copies * largest
    # Three of the ten folds are validated and tested.
    maps = sum(3 * study.spec.slices // NUM_FOLDS * job.experiment.data.size**2 for job in jobs)
    needed = _BYTES_PER_WEIGHT * (sum(weights) + sum(exported.values()) + running)
    needed += maps // _PIXELS_PER_BYTE
    if study.spec.search is not None:
        # Candidates that wait at a rung keep their checkpoints.
        waiting = study.spec.search.candidates if study.spec.halving.in_rounds else 0
        trainings = study.spec.search.trainings * max(resources.concurrent, waiting)
        checkpoints = _BYTES_PER_WEIGHT * copies * trainings
        needed = max(needed, checkpoints * max(study.sizes.values()))
    return needed, shutil.disk_usage(existing).free


def num_epochs(jobs: Sequence[TrialJob]) -> int:
    """Return the epochs of both stages of all trials."""
    return sum(job.num_epochs for job in jobs)


def describe_plan(
    study: Study, jobs: Sequence[TrialJob], left: Sequence[TrialJob], resources: TrialResources
) -> list[Line]:
    """Return the lines of `--plan` on what there is, what would run and how it would be shared.

    Args:
        study: The study.
        jobs: All its trials.
        left: Those to run.
        resources: What each of them gets.
    """
    spec = study.spec
    needed, free = measure_disk(study, left, resources)
    stages = _distinct(" + ".join(str(s.epochs) for s in job.experiment.stages) for job in jobs)
    batches = _distinct(job.experiment.optimizer.batch_size for job in jobs)
    return [
        ("data", f"{spec.data}{' (SYNTHETIC)' if spec.synthetic else ''}"),
        ("fingerprint", spec.fingerprint),
        ("slices", f"{spec.slices:,}, of which {spec.tumour_slices:,} with tumour"),
        *_describe_splits(study),
        ("encoder weights", study.weights),
        *((name, PRIMARY[name]) for name in ("primary metric", "test", "correction")),
        ("trials", f"{len(jobs)}, {len(left)} of them to run"),
        ("epochs", f"{stages} per trial, {num_epochs(left):,} to run"),
        ("steps", f"{_num_steps(study, left):,} of {batches} slices"),
        *_describe_search(study),
        ("each trial", f"{resources} ({resources.workers} loader workers)"),
        ("at once", resources.describe()),
        ("disk", f"{needed / 1e9:.1f} GB at its fullest, {free / 1e9:.1f} GB free"),
        ("folder", str(study.sync.location)),
    ]


def _distinct(values: Iterable[object]) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))


def tabulate_variants(spec: StudySpec) -> Table:
    """Return the variants of a grid, each with the keys in which it differs, as a table."""
    table = Table("variant", "differs in", box=None, pad_edge=False)
    for variant, changes in spec.variants.items():
        keys = [f"{key} = {json.dumps(value)}" for key, value in changes.items()]
        table.add_row(variant, ", ".join(keys) or "as configured")
    return table


def describe_hours(
    study: Study,
    left: Sequence[TrialJob],
    resources: TrialResources,
    cluster: Cluster,
    price: float | None,
) -> list[Line]:
    """Return the lines of `--plan` on hours and money, from the epochs of earlier studies.

    Args:
        study: The study.
        left: The trials to run.
        resources: What each of them gets.
        cluster: Where they would run.
        price: Of a node per hour, in USD; None leaves money out.
    """
    times = EpochTimes(study.folder.parent)
    candidates = study.num_open_candidates()
    # An epoch of the search is assumed to take as long as the variants' epochs do on average.
    needed = {job.name: job for job in [*left, *(study.spec.jobs() if candidates else ())]}
    kinds = {
        name: TrialKind.of(job.experiment, study.spec.slices, resources)
        for name, job in needed.items()
    }
    trainings = {name: times.training(kinds[name], job.experiment) for name, job in needed.items()}
    missing = dict.fromkeys(str(kinds[n]) for n, seconds in trainings.items() if seconds is None)
    if missing:
        return [_describe_unknown(list(missing), study)]
    seconds = []
    for job in left:
        folder = TrialFolder(study.folder / job.path)
        done = 0 if study.begins_again else len(folder.read_history())
        training = times.training(kinds[job.name], job.experiment, done)
        assert training is not None
        seconds.append(training + times.rest(kinds[job.name]))
    each = searching = 0.0
    if candidates:
        per_epoch = fmean(
            (trainings[name] or 0.0) / job.num_epochs for name, job in needed.items()
        )
        each = per_epoch * study.spec.own_search.trainings
        searching = each * _expected_epochs(study)
    work = f"{sum(seconds) / _SECONDS_PER_HOUR:.2f} of trials"
    if searching:
        work += (
            f", {searching / _SECONDS_PER_HOUR:.2f} of the search, assuming that halving "
            f"alone stops candidates, at {each:.1f} s an epoch, the mean of the variants"
        )
    lines = [("epochs known", times.describe(list(dict.fromkeys(kinds.values()))))]
    lines += [("trial-hours", work)]
    return lines + _describe_ways(seconds, searching, resources, cluster, price)


@dataclass(frozen=True)
class TrialKind:
    """What the time of an epoch depends on, apart from the machine."""

    network: str
    filters: tuple[str, ...]
    channels: int
    size: int
    batch_size: int
    slices: int
    resident: str
    cpus: int
    gpus: float

    @classmethod
    def of(cls, experiment: Experiment, slices: int, resources: TrialResources) -> TrialKind:
        """Return the kind of a trial.

        Args:
            experiment: The trial's.
            slices: Number of slices of the whole dataset.
            resources: What the trial gets.
        """
        return cls(
            experiment.network,
            experiment.preprocess.filters,
            experiment.input_channels,
            experiment.data.size,
            experiment.optimizer.batch_size,
            slices,
            experiment.data.resident,
            resources.cpus,
            resources.gpus,
        )

    def __str__(self) -> str:
        how = ", ".join(self.filters) or "raw"
        device = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus} CPU"
        shape = f"{self.size} px in batches of {self.batch_size}, {self.slices:,} slices"
        kept = "" if self.resident == "never" else f" with data.resident: {self.resident}"
        return f"{self.network} {how} at {shape}{kept}, on {device}"


class EpochTimes:
    """Seconds of epochs and trials, from the histories of all studies in a folder.

    Args:
        storage: The folder of all studies.
    """

    def __init__(self, storage: Path) -> None:
        self._epochs: dict[tuple[TrialKind, int], list[float]] = defaultdict(list)
        self._rest: dict[TrialKind, list[float]] = defaultdict(list)
        for path in sorted(storage.glob("*/study.json")):
            try:
                for kind, folder in _trials_of(path):
                    self._add(kind, folder)
            except (ValueError, KeyError, TypeError):
                # of another version, or damaged: that study's own commands report it
                continue

    def _add(self, kind: TrialKind, folder: TrialFolder) -> None:
        for row in folder.read_history():
            self._epochs[kind, int(row["stage"])].append(row["seconds"])
        result = folder.read() or {}
        if result.get("status") == FINISHED and "wall_seconds" in result:
            rest = float(result["wall_seconds"]) - float(result["seconds"])
            self._rest[kind].append(max(0.0, rest))

    def epoch(self, kind: TrialKind, stage: int) -> float | None:
        """Return the median seconds of an epoch of a stage, from 1; None if none was run."""
        seconds = self._epochs.get((kind, stage))
        return median(seconds) if seconds else None

    def training(self, kind: TrialKind, experiment: Experiment, done: int = 0) -> float | None:
        """Return the seconds of a trial's epochs after the first `done`; None if unknown."""
        total = 0.0
        for stage, config in enumerate(experiment.stages, start=1):
            left = max(0, config.epochs - done)
            done = max(0, done - config.epochs)
            seconds = self.epoch(kind, stage) if left else 0.0
            if seconds is None:
                return None
            total += left * seconds
        return total

    def rest(self, kind: TrialKind) -> float:
        """Return the median seconds of a trial's start and test; 0 if no trial has ended yet."""
        return median(self._rest[kind]) if self._rest.get(kind) else 0.0

    def describe(self, kinds: Sequence[TrialKind]) -> str:
        """Return the seconds per epoch of some kinds, in words."""
        parts = []
        for kind in kinds:
            stages = [self.epoch(kind, stage) for stage in (1, 2)]
            seen = sum(len(rows) for (known, _), rows in self._epochs.items() if known == kind)
            median_of = " and ".join(f"{s:.1f} s" for s in stages if s is not None)
            parts.append(f"{kind}: {median_of} per stage, median of {seen}")
        return "; ".join(parts)


def _trials_of(path: Path) -> Iterator[tuple[TrialKind, TrialFolder]]:
    """Yield the kind and the folder of each trial of a study that has begun."""
    about = read_json(path)
    spec = StudySpec.model_validate(about)
    resources = TrialResources(cpus=about["cpus_per_trial"], gpus=about["gpus_per_trial"])
    known = {job.variant: job.experiment for job in spec.jobs()}
    for folder in sorted(path.parent.glob("trials/*-fold*")):
        variant = folder.name.rpartition("-fold")[0]
        if variant in known:
            experiment = known[variant]
        elif (folder / "experiment.yaml").exists():  # a search's winner has its own settings
            experiment = TrialFolder(folder).read_experiment()
        else:
            continue
        yield TrialKind.of(experiment, spec.slices, resources), TrialFolder(folder)


def _describe_splits(study: Study) -> list[Line]:
    lines = []
    slices, experiment = study.data.slices, study.spec.experiment
    for fold in range(study.spec.folds):
        split = split_of(experiment.replaced({"fold": fold}), slices)
        sizes = (
            f"{part} {len(getattr(split, part))} {split.by}s, "
            f"{len(split.indices(slices, part)):,} slices"
            for part in PARTS
        )
        about = f"split, rotation {fold}{split.tested and f', {split.tested}'}"
        lines.append((about, "; ".join(sizes)))
    return lines


def _num_steps(study: Study, jobs: Sequence[TrialJob]) -> int:
    steps = 0
    for job in jobs:
        batch, split = (
            job.experiment.optimizer.batch_size,
            split_of(job.experiment, study.data.slices),
        )
        steps += job.num_epochs * -(-len(split.indices(study.data.slices, "train")) // batch)
    return steps


def _describe_search(study: Study) -> list[Line]:
    """Return what the searches would take, and what stopping is expected to save."""
    spec, left = study.spec, study.num_open_candidates()
    if spec.search is None:
        return []
    search, halving, space = spec.search, spec.halving, spec.search_space
    many = [f"{one.group}: {', '.join(one.variants)}" for one in spec.searches]
    in_full = sum(study.count_open(s) * s.halving.longest for s in spec.searches)
    epochs = _expected_epochs(study)
    rungs = ", ".join(map(str, halving.rungs()))
    stops = {"none": "stops no candidate", "median": f"from epoch {halving.first} on"}
    how = f"rungs after epochs {rungs}" if rungs else "no rung, since there are too few epochs"
    how = stops.get(search.scheduler, how)
    if halving.in_rounds and rungs:
        how = f"rounds; candidates wait after epochs {rungs}, the best third goes on"
    cost = f"{in_full:,} in full"
    if halving.brackets and left:
        saved = f"{epochs:,.0f} by halving alone ({epochs / in_full:.0%})"
        learns = "" if halving.in_rounds else "; more as the sampler learns"
        cost = f"{saved}, {cost}{learns}"
    warm = f", then {len(search.starts)} of {search.warm_start}" if search.starts else ""
    return [
        *[("search of", text) for text in many if search.per],
        ("search", f"{search.candidates} candidates{' each' * bool(search.per)}, {left} to run"),
        ("sampler", f"{search.sampler}; the first candidates are the variants, unchanged{warm}"),
        ("scheduler", f"{search.scheduler}: {how}"),
        ("judged by", f"val Dice, {search.trainings} training(s) each; never tested"),
        ("search epochs", cost),
        *[("varied", f"{key}: {values}") for key, values in space.ranges.items()],
        *[("all candidates", f"{key}: {value}") for key, value in space.values.items()],
        ("winner", "trained in full among the trials above"),
    ]


def _expected_epochs(study: Study) -> float:
    """Return the epochs that the searches are expected to train yet, per training."""
    return sum(
        search.halving.expected_epochs(study.count_open(search)) for search in study.spec.searches
    )


def _describe_ways(
    seconds: Sequence[float],
    searching: float,
    resources: TrialResources,
    cluster: Cluster,
    price: float | None,
) -> list[Line]:
    """Return hours and money on the nodes that exist, and on those an autoscaler would add."""
    lines = []
    ways = {"now": resources.concurrent - resources.coming}
    if resources.coming:
        ways["after scale-up"] = resources.concurrent
    for when, slots in ways.items():
        if slots:
            hours = (_makespan(seconds, slots) + searching / slots) / _SECONDS_PER_HOUR
            nodes = _nodes_used(cluster, resources, slots)
            lines.append(
                (f"hours, {when}", f"{hours:.2f} with {slots} at once on {nodes} node(s)")
            )
            if price is not None:
                cost = f"{hours * nodes * price:.2f} USD: {nodes} x {hours:.2f} h x {price:g} USD"
                lines.append((f"money, {when}", cost))
    return lines


def _makespan(seconds: Sequence[float], slots: int) -> float:
    """Return when the last of some trials ends if each starts as soon as a slot is free."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _nodes_used(cluster: Cluster, resources: TrialResources, slots: int) -> int:
    """Return how many nodes hold so many trials, using existing nodes first."""
    used = 0
    for node in sorted(cluster, key=lambda node: not node.exists):
        holds = trials_on(node, resources.cpus, resources.gpus)
        if slots > 0 and holds:
            used, slots = used + 1, slots - holds
    return used


def _describe_unknown(missing: Sequence[str], study: Study) -> Line:
    probe = "--name probe --set stages.0.epochs=1 --set stages.1.epochs=1"
    way = f"run the same command without --plan and with {probe}, then plan again"
    if study.sync.is_remote:  # the times of other studies at a URL are not read
        way = (
            f"run the same command with {probe} and --storage results, and plan with that storage"
        )
    elif any(key in _EPOCHS for changes in study.spec.variants.values() for key in changes):
        way = "start the study, and plan again once a trial of each kind has run both stages"
    where = study.folder.parent
    text = f"unknown: no study in {where} has run both stages of {'; '.join(missing)}. "
    return "hours", f"{text}To know them, {way}"
