"""What a study would take: trials, candidates, epochs, steps, disk; before anything is started."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from brainseg.config import Experiment, load_experiment
from brainseg.data.split import PARTS, split_by_patient
from brainseg.errors import StudyError
from brainseg.model.encoders import describe_weights
from study.pipeline import Setup, num_tumour_slices
from study.spec.grid import (
    Cluster,
    Trial,
    TrialResources,
    disk_needed,
    disk_needed_to_search,
    num_epochs,
    trials_on,
)
from study.storage.candidates import Search
from study.storage.tables import TrialFolder


def require_disk(setup: Setup, trials: Sequence[Trial], resources: TrialResources) -> None:
    """Refuse a study that would fill the disk.

    Raises:
        StudyError: With what is needed and what is free.
    """
    needed, free = disk_figures(setup, trials, resources)
    if free < needed:
        raise StudyError(
            f"the study needs about {needed / 1e9:.1f} GB in {setup.folder.parent}, which has "
            f"{free / 1e9:.1f} GB free: make room, or give --storage on a larger disk"
        )


def disk_figures(
    setup: Setup, trials: Sequence[Trial], resources: TrialResources
) -> tuple[int, int]:
    """Return the bytes that the trials need at their fullest, and those that are free."""
    existing = next(p for p in (setup.folder, *setup.folder.parents) if p.exists())
    needed = disk_needed(trials, setup.sizes, resources.concurrent, len(setup.data.slices))
    if setup.search is not None:
        at_once = (resources.concurrent, setup.search.folds)
        needed = max(needed, disk_needed_to_search(setup.sizes, *at_once))
    return needed, shutil.disk_usage(existing).free


def describe_plan(
    setup: Setup, trials: Sequence[Trial], resources: TrialResources
) -> list[tuple[str, str]]:
    """Return the lines of `--plan`: what there is, what would run, what it would take."""
    data, base = setup.data, setup.question.base
    needed, free = disk_figures(setup, trials, resources)
    stages = " + ".join(str(stage.epochs) for stage in base.stages)
    return [
        ("data", f"{data.source}{' (SYNTHETIC)' if data.synthetic else ''}"),
        ("fingerprint", data.fingerprint),
        ("slices", f"{len(data.slices):,}, of which {num_tumour_slices(data):,} with tumour"),
        *_describe_splits(setup),
        ("encoder weights", describe_weights(base.model)),
        ("trials", f"{len(setup.trials)}, {len(trials)} of them to run"),
        ("epochs", f"{stages} per trial, {num_epochs(trials):,} to run"),
        ("steps", f"{_num_steps(setup, trials):,} of {base.optimizer.batch_size} slices"),
        *_describe_search(setup),
        ("each trial", f"{resources} ({resources.workers} loader workers)"),
        ("at once", resources.describe()),
        ("disk", f"{needed / 1e9:.1f} GB at its fullest, {free / 1e9:.1f} GB free"),
        ("folder", str(setup.mirror.place)),
    ]


def _describe_splits(setup: Setup) -> list[tuple[str, str]]:
    lines = []
    seed = setup.question.base.data.split_seed
    for fold in sorted({trial.fold for trial in setup.trials}):
        split = split_by_patient(setup.data.slices, fold, seed, setup.question.base.inner_fold)
        sizes = (
            f"{part} {len(getattr(split, part))} patients, "
            f"{len(split.indices(setup.data.slices, part)):,} slices"
            for part in PARTS
        )
        lines.append((f"split, rotation {fold}", "; ".join(sizes)))
    return lines


def _num_steps(setup: Setup, trials: Sequence[Trial]) -> int:
    steps = 0
    for trial in trials:
        experiment = trial.experiment
        split = split_by_patient(
            setup.data.slices, trial.fold, experiment.data.split_seed, experiment.inner_fold
        )
        slices = len(split.indices(setup.data.slices, "train"))
        steps += num_epochs([trial]) * -(-slices // trial.experiment.optimizer.batch_size)
    return steps


def _describe_search(setup: Setup) -> list[tuple[str, str]]:
    """Return what a search would take, and what stopping is expected to save."""
    search, left = setup.search, setup.num_open_candidates()
    if search is None:
        return []
    halving, space = search.halving, search.space
    in_full, epochs = left * halving.longest, halving.expected_epochs(left)
    when = {"none": "nobody", "median": f"from epoch {halving.first} on"}.get(search.scheduler)
    rungs = ", ".join(map(str, halving.rungs())) or "none"
    cost = f"{in_full:,} in full"
    if halving.brackets and left:
        cost = (
            f"{epochs:,.0f} by halving alone ({epochs / in_full:.0%}), {cost}; more as it learns"
        )
    lines = [
        ("search", f"{search.candidates} candidates, {left} of them to run"),
        ("proposed by", f"{search.sampler}; the first {len(space.variants)} like the variants"),
        ("stopped by", f"{search.scheduler}: {when or f'rungs after epochs {rungs}'}"),
        ("judged by", f"val Dice, {search.folds} training(s) each; never tested"),
        ("search epochs", cost),
    ]
    lines += [("varied", f"{key}: {values}") for key, values in space.ranges.items()]
    lines += [("all candidates", f"{key}: {value}") for key, value in space.values.items()]
    if space.fixed:
        lines.append(("not varied", f"{', '.join(space.fixed)}: the grid decides"))
    return [*lines, ("winner", "trained in full among the trials above")]


# --- hours ---

_HOUR = 3600
Line = tuple[str, str]


@dataclass(frozen=True)
class Kind:
    """What an epoch's time depends on, the machine apart."""

    encoder: str
    preprocessed: bool
    size: int
    batch_size: int
    slices: int
    cpus: int
    gpus: float

    @classmethod
    def of(
        cls, experiment: Experiment, slices: int, resources: TrialResources | Mapping[str, Any]
    ) -> Kind:
        """Return the kind of all epochs of a trial.

        Args:
            experiment: The trial's.
            slices: Of the whole dataset.
            resources: What the trial gets, or a study.json that says so.
        """
        if not isinstance(resources, TrialResources):
            cpus, gpus = resources["cpus_per_trial"], resources["gpus_per_trial"]
            resources = TrialResources(cpus, gpus, 0, 1)
        return cls(
            experiment.model.encoder,
            experiment.preprocess.enabled,
            experiment.data.size,
            experiment.optimizer.batch_size,
            slices,
            resources.cpus,
            resources.gpus,
        )

    def __str__(self) -> str:
        """Return it in words."""
        how = "preprocessed" if self.preprocessed else "raw"
        device = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus} CPU"
        shape = f"{self.size} px in batches of {self.batch_size}, {self.slices:,} slices"
        return f"{self.encoder} {how} at {shape}, on {device}"


class Known:
    """What finished epochs and trials tell.

    Args:
        storage: The folder of all studies.
    """

    def __init__(self, storage: Path) -> None:
        """Read the histories of all studies there."""
        self._epochs: dict[tuple[Kind, int], list[float]] = defaultdict(list)
        self._rest: dict[Kind, list[float]] = defaultdict(list)
        for path in sorted(storage.glob("*/study.json")):
            for kind, folder in _trials_of(path):
                for row in folder.read_history():
                    self._epochs[kind, int(row["stage"])].append(row["seconds"])
                result = folder.read() or {}
                if result.get("status") == "finished" and "wall_seconds" in result:
                    rest = float(result["wall_seconds"]) - float(result["seconds"])
                    self._rest[kind].append(max(0.0, rest))

    def epoch(self, kind: Kind, stage: int) -> float | None:
        """Return the median seconds of an epoch of a stage, from 1; None if none was run."""
        seconds = self._epochs.get((kind, stage))
        return median(seconds) if seconds else None

    def num_epochs(self, kind: Kind) -> int:
        """Return how many epochs of a kind were seen."""
        return sum(len(rows) for (k, _), rows in self._epochs.items() if k == kind)

    def training(self, kind: Kind, experiment: Experiment, done: int = 0) -> float | None:
        """Return the seconds of the epochs of a trial that are not done; None if unknown."""
        total = 0.0
        for stage, config in enumerate(experiment.stages, start=1):
            left = max(0, config.epochs - done)
            done = max(0, done - config.epochs)
            seconds = self.epoch(kind, stage) if left else 0.0
            if seconds is None:
                return None
            total += left * seconds
        return total

    def rest(self, kind: Kind) -> float:
        """Return the median seconds of a trial's start and test; 0 if no trial has ended yet."""
        return median(self._rest[kind]) if self._rest.get(kind) else 0.0


def _trials_of(path: Path) -> Iterator[tuple[Kind, TrialFolder]]:
    """Yield the kind and the folder of each trial of a study that has begun."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        base = Experiment.model_validate(about["experiment"])
        kinds = {
            variant: Kind.of(base.replaced(changes), about["slices"], about)
            for variant, changes in about["variants"].items()
        }
    except (ValueError, KeyError, TypeError):  # of another version, or not a study's at all
        return
    for folder in sorted(path.parent.glob("trials/*-fold*")):
        variant = folder.name.rpartition("-fold")[0]
        if variant in kinds:
            yield kinds[variant], TrialFolder(folder)
        elif (folder / "experiment.yaml").exists():  # a search's winner: its settings are its own
            experiment = load_experiment(folder / "experiment.yaml")
            yield Kind.of(experiment, about["slices"], about), TrialFolder(folder)


def describe_hours(
    setup: Setup,
    trials: Sequence[Trial],
    resources: TrialResources,
    cluster: Cluster,
    price: float | None,
) -> list[Line]:
    """Return the lines of `--plan` on hours and money.

    Args:
        setup: The study.
        trials: Those to run.
        resources: What each of them gets.
        cluster: Where they would run.
        price: Of a node and hour, in USD; None says nothing of money.
    """
    known = Known(setup.folder.parent)
    slices = len(setup.data.slices)
    candidates = setup.num_open_candidates()
    # An epoch of a search is taken to cost what the variants' cost on average.
    needed = [*trials, *(setup.trials if candidates else ())]
    kinds = {trial: Kind.of(trial.experiment, slices, resources) for trial in needed}
    missing = [
        str(kind)
        for trial, kind in kinds.items()
        if known.training(kind, trial.experiment) is None
    ]
    if missing:
        return _describe_unknown(list(dict.fromkeys(missing)), setup)
    seconds = []
    for trial in trials:
        done = len(setup.folder_of(trial).read_history())
        training = known.training(kinds[trial], trial.experiment, done)
        assert training is not None
        seconds.append(training + known.rest(kinds[trial]))
    searching, each = _search_seconds(setup.search, candidates, known, kinds)
    lines = [("epochs known", _describe_epochs(known, dict.fromkeys(kinds.values())))]
    lines += [("trial-hours", _describe_work(sum(seconds), searching, each))]
    ways = {"now": resources.concurrent - resources.coming}
    if resources.coming:
        ways["grown"] = resources.concurrent
    for when, slots in ways.items():
        if slots:
            total = _makespan(seconds, slots) + searching / slots
            lines += _describe_way(when, total, slots, resources, cluster, price)
    return lines


def _search_seconds(
    search: Search | None, candidates: int, known: Known, kinds: Mapping[Trial, Kind]
) -> tuple[float, float]:
    """Return the seconds of candidates if halving alone saves, and those of one epoch."""
    if search is None or not candidates:
        return 0.0, 0.0
    means = []
    for trial, kind in kinds.items():
        training = known.training(kind, trial.experiment)
        assert training is not None
        means.append(training / sum(stage.epochs for stage in trial.experiment.stages))
    each = fmean(means) * search.folds
    return each * search.halving.expected_epochs(candidates), each


def _makespan(seconds: Sequence[float], slots: int) -> float:
    """Return when the last of some trials ends that start in turn as slots become free."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _describe_epochs(known: Known, kinds: Mapping[Kind, None]) -> str:
    parts = []
    for kind in kinds:
        stages = [known.epoch(kind, stage) for stage in (1, 2)]
        median_of = " and ".join(f"{s:.1f} s" for s in stages if s is not None)
        parts.append(f"{kind}: {median_of} per stage, median of {known.num_epochs(kind)}")
    return "; ".join(parts)


def _describe_work(trials: float, searching: float, each: float) -> str:
    text = f"{trials / _HOUR:.2f} of trials"
    if searching:
        text += (
            f", {searching / _HOUR:.2f} of the search if halving alone saves, at {each:.1f} s an "
            "epoch, the mean of the variants"
        )
    return text


def _describe_way(
    when: str,
    seconds: float,
    slots: int,
    resources: TrialResources,
    cluster: Cluster,
    price: float | None,
) -> list[Line]:
    """Return hours, and money, of one size of the cluster."""
    hours, nodes = seconds / _HOUR, _nodes_used(cluster, resources, slots)
    lines = [(f"hours, {when}", f"{hours:.2f} with {slots} at once on {nodes} node(s)")]
    if price is not None:
        cost = hours * nodes * price
        lines += [(f"money, {when}", f"{cost:.2f} USD: {nodes} x {hours:.2f} h x {price:g} USD")]
    return lines


def _nodes_used(cluster: Cluster, resources: TrialResources, slots: int) -> int:
    """Return how many nodes hold so many trials, those that exist first."""
    used = 0
    for node in sorted(cluster, key=lambda node: not node.exists):
        holds = trials_on(node, resources.cpus, resources.gpus)
        if slots > 0 and holds:
            used, slots = used + 1, slots - holds
    return used


def _describe_unknown(missing: Sequence[str], setup: Setup) -> list[Line]:
    where = setup.folder.parent
    probe = "--name probe --set stages.0.epochs=1 --set stages.1.epochs=1"
    way = f"run the same command without --plan and with {probe}, then plan again"
    if setup.mirror.is_remote:  # of other studies there nothing is read
        way = (
            f"run the same command with {probe} and --storage results, and plan with that storage"
        )
    text = f"unknown: no study in {where} has run both stages of {'; '.join(missing)}. "
    return [("hours", f"{text}To know them, {way}")]
