"""What a study would take: trials, candidates, epochs, steps, disk; before anything is started."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from brainseg.encoders import describe_weights
from brainseg.errors import StudyError
from brainseg.split import PARTS, split_by_patient
from study.plan import (
    Trial,
    TrialResources,
    disk_needed,
    disk_needed_to_search,
    num_epochs,
)
from study.setup import Setup, num_tumour_slices


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
            f"{len(split.numbers(setup.data.slices, part)):,} slices"
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
        slices = len(split.numbers(setup.data.slices, "train"))
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
