"""The pipeline of a study: resolve, check, hold, search, train, collect, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from brainseg.cli import FINISHED, SOME_FAILED, say
from brainseg.plugins import is_path
from brainseg.storage.urls import is_url
from study.estimate import (
    describe_hours,
    describe_plan,
    num_epochs,
    require_disk,
    tabulate_variants,
)
from study.report.build import publish
from study.report.examples import draw_examples
from study.report.provenance import describe_study
from study.resolve import Study, allocate, resolve, write_facts
from study.spec.resources import Cluster, Node, TrialResources
from study.spec.study_spec import SCORE, StudySpec
from study.spec.trial_job import TrialJob, candidate_name, search_path
from study.storage.leaderboard import (
    count_open,
    leaderboard_folder,
    ranked,
    read_candidates,
    read_leaderboard,
    write_leaderboard,
)
from study.storage.lease import hold
from study.storage.probability_maps import collect_ensembles
from study.storage.schema import EXTERNAL, FAILURES, Row
from study.storage.schema import FINISHED as TRIAL_FINISHED
from study.storage.study_folder import check_folder, keep_grid, read_study
from study.storage.tables import collect, jobs_to_export
from study.tune.cluster import require_shared, start_cluster
from study.tune.progress import Progress
from study.tune.searcher import run_search
from study.tune.tuner import run_trials

_SHARED = "on a disk that all nodes share, or as a URL such as s3://BUCKET/PREFIX"


def run_study(args: argparse.Namespace, console: Console) -> int:
    """Run what is left of a study, and write its report.

    Args:
        args: The command line, see `study.cli`.
        console: Prints progress and the ranking.

    Returns:
        The exit code.

    Raises:
        BrainsegError: If something that the study needs cannot be used.
        KeyboardInterrupt: If SIGINT or SIGTERM came; finished epochs are saved.
    """
    study = resolve(args, console.print)
    if args.plan:
        return _plan(args, study, console)
    with hold(study.sync, console.print):
        if args.fresh and (aside := study.sync.move_aside()):
            console.print(f"The existing study was renamed to {aside}")
        study.sync.fetch()
        if check_folder(study.folder, study.spec):
            console.print(f"Continuing the study in {study.sync.location}")
        _search_and_train(args, study, console)
        with console.status("collecting the results of the trials"):
            rows = _collect(study)
        publish(study.sync, console)
        return _exit_code(study, rows)


def _plan(args: argparse.Namespace, study: Study, console: Console) -> int:
    """Print what would run and what it would take."""
    study.sync.fetch()
    study = replace(study, begins_again=args.fresh)
    is_there = not args.fresh and check_folder(study.folder, study.spec)
    jobs = study.expected_jobs()
    left = study.open_jobs(jobs, retry_failed=args.retry_failed) if is_there else jobs
    nodes = _measure_nodes(args.address)
    resources = allocate(args, study, nodes)
    console.print(tabulate_variants(study.spec), "")
    lines = describe_plan(study, jobs, left, resources)
    lines += describe_hours(study, left, resources, nodes, args.price_per_hour)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        console.print(f"{name:<{width}}  {value}")
    require_disk(study, left, resources)
    return FINISHED


def _search_and_train(args: argparse.Namespace, study: Study, console: Console) -> None:
    """Run what is left of the search, then of the trials; start no cluster if nothing is."""

    def left(jobs: Sequence[TrialJob]) -> list[TrialJob]:
        return study.open_jobs(jobs, retry_failed=args.retry_failed)

    has_work = study.num_open_candidates() or left(study.jobs())
    if not has_work and not study.has_new_predictions():
        return
    with start_cluster(args.address) as nodes:
        resources = allocate(args, study, nodes)
        require_disk(study, left(study.expected_jobs()), resources)
        write_facts(study, resources)
        changed = keep_grid(study.folder, args.grid.text)
        if changed:
            say("The file of the grid was changed since the study's last start:", *changed)
        study.sync.commit()
        _require_shared(study)
        console.print(
            f"{resources.describe()}, each with {resources}; live curves: {_curves(study)}"
        )
        for search in study.spec.searches:
            if count_open(study.folder, search):
                _search(args, study, search, resources, console)
        if study.num_open_candidates():
            console.print("The search is not over: the same command continues it.")
        jobs = study.jobs()
        open_jobs = left(jobs)
        console.print(f"Trials: {len(jobs)}, {len(open_jobs)} to run, in {study.sync.location}")
        if open_jobs:
            names = [job.name for job in open_jobs]
            progress = Progress(names, num_epochs(open_jobs), console)
            run_trials(open_jobs, resources, study.sync, progress, args.retries, args.node_losses)


def _search(
    args: argparse.Namespace,
    study: Study,
    spec: StudySpec,
    resources: TrialResources,
    console: Console,
) -> None:
    """Run what is left of one of the searches, and say what it found."""
    left, group = count_open(study.folder, spec), spec.group
    journal = study.folder / search_path(group) / "journal.log"
    of = f" of {group}" if group else ""
    console.print(
        f"Search{of}: {spec.own_search.candidates} candidates, {left} to run; live: "
        f"optuna-dashboard {os.path.relpath(journal)}"
    )
    names = [candidate_name(index, group) for index in range(left)]
    expected, in_rounds = spec.halving.expected_epochs(left), spec.halving.in_rounds
    progress = Progress(names, round(expected), console, in_rounds=in_rounds)
    run_search(spec, study.sync, resources, progress, args.retries, node_losses=args.node_losses)
    full = ranked(write_leaderboard(study.folder, spec, _heading(study)))
    if count_open(study.folder, spec):
        return
    if not full:
        console.print(f"The search{of} has no winner: no candidate ran in full.")
    elif spec.search_space.is_variant(read_candidates(study.folder, spec)[full[0]["candidate"]]):
        console.print(f"The search{of} found nothing better than {full[0]['variant']}, unchanged.")
    else:
        console.print(
            f"Winner{of}: candidate {full[0]['candidate']}, val Dice {full[0][SCORE]:.4f}; "
            f"{len(full)} of {spec.own_search.candidates} ran in full. "
            f"Settings: {leaderboard_folder(study.folder, spec)}/best.yaml and best_grid.yaml"
        )


def _collect(study: Study) -> list[Row]:
    """Write the study's tables, models and pictures; return the rows of trials.csv."""
    study.sync.commit()
    study.sync.fetch()
    for search in study.spec.searches:
        write_leaderboard(study.folder, search, _heading(study))
    jobs = study.jobs()
    study.sync.fetch_models(job.path for job in jobs_to_export(study.folder, jobs))
    rows = collect(study.folder, jobs, study.spec.external)
    collect_ensembles(study.folder, jobs)
    draw_examples(study.folder, jobs, study.data)
    return rows


def _heading(study: Study) -> str:
    return describe_study(read_study(study.folder))


def _require_shared(study: Study) -> None:
    """Refuse local paths that some node does not see."""
    if not study.sync.is_remote:
        require_shared(study.folder / "study.json", f"give --storage {_SHARED}")
    if not is_url(study.data.source):
        # A file, since an empty folder may be there where a disk should have been mounted.
        files = (path for path in study.data.root.rglob("*") if path.is_file())
        require_shared(next(files), f"give --data {_SHARED}")
    for reference in study.spec.files:
        path, _, _ = reference.rpartition(":") if is_path(reference) else (reference, "", "")
        if "/" in path:
            require_shared(Path(path), f"put {path} on a disk that all nodes share")
    for weights in study.spec.weight_files:
        if not is_url(weights):
            require_shared(Path(weights), f"give --set model.encoder_weights={_SHARED}")


def _curves(study: Study) -> str:
    """Return the command that shows the live curves; a study at a URL is fetched first."""
    if study.sync.is_remote:
        return f'python -m study.fetch "{study.sync.location}" DIR && tensorboard --logdir DIR'
    return f"tensorboard --logdir {os.path.relpath(study.folder)}"


def _measure_nodes(address: str | None) -> Cluster:
    """Return the nodes of a cluster, or this machine without starting Ray on it."""
    if address is not None:
        with start_cluster(address) as nodes:
            return nodes
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (Node(cpus or 1, float(torch.cuda.device_count())),)


def _exit_code(study: Study, rows: Sequence[Row]) -> int:
    failed = [row for row in rows if row["status"] not in (TRIAL_FINISHED, EXTERNAL)]
    for row in failed:
        name = f"{row['variant']} fold {row['fold']} seed {row['seed']}"
        say(f"{row['status']}: {name}: {row['error']}", file=sys.stderr)
    if any(row["status"] in FAILURES for row in failed):
        say("the same command with --retry-failed runs failed trials again", file=sys.stderr)
    searches = study.spec.searches
    have_winners = all(ranked(read_leaderboard(study.folder, search)) for search in searches)
    is_over = have_winners and not study.num_open_candidates()
    return FINISHED if is_over and not failed else SOME_FAILED
