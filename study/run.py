"""Train, test and rank competing U-Nets under Ray Tune: `python -m study.run --grid baseline`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from brainseg.cli import FINISHED, SOME_FAILED, run_command
from brainseg.config import parse_changes
from brainseg.errors import StudyError
from brainseg.storage.remote import require_store
from brainseg.storage.urls import is_url, join_location
from study.cli import parse_options
from study.report.build import write_report
from study.report.provenance import describe_study, published_rows
from study.report.sections import ranked_rows
from study.spec.grid import Cluster, Node, Trial, TrialResources, num_epochs, share_cluster
from study.storage.candidates import SAMPLERS, SCHEDULERS, SCORE, candidate_name, read_params
from study.storage.leaderboard import is_variant, ranked, write_standings
from study.storage.lease import held
from study.storage.study_folder import check_folder, default_name, read_study
from study.storage.sync import Mirror
from study.storage.tables import FAILURES, Row, collect
from study.tune.progress import Progress, print_lines, print_ranking

if TYPE_CHECKING:
    from study.pipeline import Request, Setup
    from study.tune.trainable import Task

_SHARED = "on a disk that all nodes share, or as a URL such as s3://BUCKET/PREFIX"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = parse_options(argv)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    return run_command(
        lambda: _report(_existing(args), console) if args.report_only else _study(args, console),
        stopped="stopped; the same command goes on after the last finished epochs",
    )


def _study(args: argparse.Namespace, console: Console) -> int:
    require_store(args.storage)  # before the imports, which take longest
    from study.pipeline import prepare
    from study.report.examples import draw_examples
    from study.storage.probability_maps import collect_ensembles

    setup = prepare(_request(args), console.print, download=not args.plan)
    if args.plan:
        _plan(args, setup, console)
        return FINISHED
    with held(setup.mirror, console.print):
        if args.fresh and (aside := setup.mirror.move_aside()):
            console.print(f"The study that was here is now {aside}")
        setup.mirror.pull()
        if check_folder(setup.folder, setup.question):
            console.print(f"Continuing the study in {setup.mirror.place}")
        if not setup.num_open_candidates():
            setup = setup.with_winner()
        if setup.num_open_candidates() or setup.open_trials(retry_failed=args.retry_failed):
            setup = _run_open(args, setup, console)
        with console.status("gathering what the trials left"):
            setup.fetch_results()
            candidates = _write_standings(setup)
            rows = collect(setup.folder, setup.trials)
            collect_ensembles(setup.folder, setup.trials)
            draw_examples(setup.folder, setup.trials, setup.data)
        _report(setup.mirror, console)
    has_winner = setup.search is None or bool(ranked(candidates))
    return _exit_code(rows) if has_winner and not setup.num_open_candidates() else SOME_FAILED


def _plan(args: argparse.Namespace, setup: Setup, console: Console) -> None:
    from study.estimate import describe_hours, describe_plan

    setup.mirror.pull()
    is_there = not args.fresh and check_folder(setup.folder, setup.question)
    is_known = is_there and not setup.num_open_candidates()
    setup = setup.with_winner() if is_known else setup.with_stand_in()
    trials = setup.open_trials(retry_failed=args.retry_failed) if is_there else setup.trials
    nodes = _cluster(args.address)
    resources = _resources(args, nodes, setup)
    hours = describe_hours(setup, trials, resources, nodes, args.price_per_hour)
    print_lines([*describe_plan(setup, trials, resources), *hours], console)


def _request(args: argparse.Namespace) -> Request:
    from study.pipeline import Request

    return Request(
        grid=args.grid,
        data=args.data,
        config=args.config,
        changes=parse_changes(args.changes),
        folds=args.folds,
        seeds=args.seeds,
        name=args.name,
        storage=args.storage,
        search=args.search,
        space=args.space,
        sampler=args.sampler or SAMPLERS[0],
        scheduler=args.scheduler or SCHEDULERS[0],
        search_folds=args.search_folds or 1,
    )


def _run_open(args: argparse.Namespace, setup: Setup, console: Console) -> Setup:
    """Run what is left of the search, then of the trials; return the setup with the winner."""
    from study.estimate import require_disk
    from study.pipeline import write_facts
    from study.tune.cluster import cluster
    from study.tune.trainable import Task
    from study.tune.tuner import run_trials

    def task(trial: Trial) -> Task:
        data = setup.data
        weights = setup.question.weights_hash
        at = (setup.mirror.place, data.source, data.fingerprint)
        return Task(trial, *at, data.synthetic, resources, weights)

    with cluster(args.address) as nodes:
        resources = _resources(args, nodes, setup)
        whole = setup.with_stand_in() if setup.num_open_candidates() else setup
        require_disk(setup, whole.open_trials(retry_failed=args.retry_failed), resources)
        write_facts(setup, resources)
        setup.mirror.push()
        _require_shared(setup)
        console.print(
            f"{resources.describe()}, each with {resources}; live curves: {_curves(setup)}"
        )
        if setup.num_open_candidates():
            setup = _search(args, setup, task, resources, console)
        trials = setup.open_trials(retry_failed=args.retry_failed)
        console.print(
            f"Trials: {len(setup.trials)}, {len(trials)} to run, in {setup.mirror.place}"
        )
        if trials:
            progress = Progress([trial.name for trial in trials], num_epochs(trials), console)
            tasks = [task(trial) for trial in trials]
            run_trials(tasks, resources, setup.folder, progress, args.retries)
    return setup


def _curves(setup: Setup) -> str:
    """Say how to look at a study while it runs; one behind a URL is fetched for that."""
    if setup.mirror.is_remote:
        return f'python -m study.fetch "{setup.mirror.place}" DIR && tensorboard --logdir DIR'
    return f"tensorboard --logdir {os.path.relpath(setup.folder)}"


def _require_shared(setup: Setup) -> None:
    """Refuse local paths that some node does not see."""
    from study.tune.cluster import require_shared

    data, weights = setup.data, setup.question.base.model.encoder_weights
    if not setup.mirror.is_remote:
        require_shared(setup.folder / "study.json", f"give --storage {_SHARED}")
    if not is_url(data.source):
        # A file: the folder alone may be where a disk should have been mounted.
        require_shared(next(data.root.glob("*/*.tif")), f"give --data {_SHARED}")
    if setup.question.weights_hash and not is_url(weights):
        require_shared(Path(weights), f"give --set model.encoder_weights={_SHARED}")


def _search(
    args: argparse.Namespace,
    setup: Setup,
    task: Callable[[Trial], Task],
    resources: TrialResources,
    console: Console,
) -> Setup:
    """Run what is left of the search; return the setup with its winner, if it has one."""
    from study.tune.searcher import run_search

    search, left = setup.search, setup.num_open_candidates()
    assert search is not None
    console.print(
        f"Search: {search.candidates} candidates, {left} to run; live: "
        f"optuna-dashboard {os.path.relpath(setup.folder)}/search/journal.log"
    )
    names = [candidate_name(number) for number in range(left)]
    progress = Progress(names, round(search.halving.expected_epochs(left)), console)
    flags = (resources, progress, args.retries)
    run_search(search, setup.folder, task, *flags, mirror=setup.mirror)
    full = ranked(_write_standings(setup))
    if setup.num_open_candidates():
        console.print("The search is not over: the same command goes on with it.")
        return setup
    if not full:
        console.print("The search has no winner: no candidate ran in full.")
        return setup
    best = full[0]
    if is_variant(search, read_params(setup.folder)[best["candidate"]]):
        console.print(f"The search found nothing better than {best['variant']} as it is.")
        return setup.with_winner()
    console.print(
        f"Winner: candidate {best['candidate']}, val Dice {best[SCORE]:.4f}; "
        f"{len(full)} of {search.candidates} ran in full. Settings: {setup.folder}/best.yaml"
    )
    return setup.with_winner()


def _write_standings(setup: Setup) -> list[Row]:
    """Write what candidates left, if there is a search."""
    if setup.search is None:
        return []
    return write_standings(setup.folder, setup.search, describe_study(read_study(setup.folder)))


def _resources(args: argparse.Namespace, nodes: Cluster, setup: Setup) -> TrialResources:
    """What each trial gets; a study that goes on keeps what it started with, unless told."""
    is_new = args.fresh or not (setup.folder / "study.json").exists()
    record = {} if is_new else read_study(setup.folder)
    cpus, gpus = args.cpus_per_trial, args.gpus_per_trial
    return share_cluster(
        nodes,
        max(len(setup.trials), setup.search.candidates if setup.search else 0),
        cpus=record.get("cpus_per_trial") if cpus is None else cpus,
        gpus=record.get("gpus_per_trial") if gpus is None else gpus,
        concurrent=args.concurrent,
        grows=args.address is not None,
    )


def _cluster(address: str | None) -> Cluster:
    """What there is, without starting Ray where it does not run."""
    if address is not None:
        from study.tune.cluster import cluster

        with cluster(address) as nodes:
            return nodes
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (Node(cpus or 1, float(torch.cuda.device_count())),)


def _report(mirror: Mirror, console: Console) -> int:
    folder = mirror.folder
    about = read_study(folder)
    if not (folder / "trials.csv").exists():
        raise StudyError(f"{mirror.place} has no trials.csv yet: no start of it has ended")
    with console.status("writing the report"):
        records = write_report(folder)
        mirror.push()
    ranking = ranked_rows(records)
    print_ranking(ranking, "Test scores, by Dice/patient", describe_study(about), console)
    published = published_rows(records)
    if published:
        note = "Published by others on another split, not measured here; Dice is the global one."
        print_ranking(published, "Published", note, console)
    console.print(f"{records.conclusion.sentence}\n")
    if mirror.is_remote:
        console.print(f"study: {mirror.place}")
    console.print(f"report: {folder / 'report.html'}")
    return FINISHED


def _existing(args: argparse.Namespace) -> Mirror:
    require_store(args.storage)
    both = [default_name(args.grid, args.config, synthetic=which) for which in (False, True)]
    names = [args.name] if args.name else both
    mirrors = [Mirror(join_location(args.storage, name), reading=True) for name in names]
    mirror = next((mirror for mirror in mirrors if mirror.exists()), mirrors[0])
    mirror.pull()
    return mirror


def _exit_code(rows: Sequence[Row]) -> int:
    failed = [row for row in rows if row["status"] != "finished"]
    for row in failed:
        name = f"{row['variant']} fold {row['fold']} seed {row['seed']}"
        print(f"{row['status']}: {name}: {row['error']}", file=sys.stderr)
    if any(row["status"] in FAILURES for row in failed):
        print("the same command with --retry-failed runs failed trials again", file=sys.stderr)
    return SOME_FAILED if failed else FINISHED


if __name__ == "__main__":
    sys.exit(main())
