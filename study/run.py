"""Train, test and rank competing U-Nets under Ray Tune: `python -m study.run --grid baseline`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from brainseg.config import parse_changes
from brainseg.errors import BrainsegError, ConfigError, DataError, StudyError
from study.account import describe_study, published_rows
from study.candidates import SAMPLERS, SCHEDULERS, SCORE, candidate_name, read_params
from study.console import Progress, print_lines, print_ranking
from study.findings import ranked_rows
from study.folder import check_folder, default_name, locked, move_aside, read_study
from study.options import parse_options
from study.plan import Cluster, Node, Trial, TrialResources, num_epochs, share_cluster
from study.report import write_report
from study.results import FAILURES, Row, collect
from study.standings import is_variant, ranked, write_standings

if TYPE_CHECKING:
    from study.attempt import Task
    from study.setup import Request, Setup

FINISHED, KNOWN_ERROR, USAGE, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = parse_options(argv)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    try:
        if args.report_only:
            return _report(args.storage / _existing_name(args), console)
        return _study(args, console)
    except BrainsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, DataError):
            print("".join(f"  {problem}\n" for problem in error.problems), end="", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else KNOWN_ERROR
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last finished epochs", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        return KNOWN_ERROR


def _study(args: argparse.Namespace, console: Console) -> int:
    from study.examples import draw_examples
    from study.probabilities import collect_ensembles
    from study.setup import prepare

    setup = prepare(_request(args), console.print, download=not args.plan)
    if args.plan:
        _plan(args, setup, console)
        return FINISHED
    with locked(setup.folder):
        if args.fresh and (aside := move_aside(setup.folder)):
            console.print(f"The study that was here is now {aside}")
        if check_folder(setup.folder, setup.question):
            console.print(f"Continuing the study in {setup.folder}")
        if not setup.num_open_candidates():
            setup = setup.with_winner()
        if setup.num_open_candidates() or setup.open_trials(retry_failed=args.retry_failed):
            setup = _run_open(args, setup, console)
        with console.status("gathering what the trials left"):
            candidates = _write_standings(setup)
            rows = collect(setup.folder, setup.trials)
            collect_ensembles(setup.folder, setup.trials)
            draw_examples(setup.folder, setup.trials, setup.data)
        _report(setup.folder, console)
    has_winner = setup.search is None or bool(ranked(candidates))
    return _exit_code(rows) if has_winner and not setup.num_open_candidates() else SOME_FAILED


def _plan(args: argparse.Namespace, setup: Setup, console: Console) -> None:
    from study.forecast import describe_plan
    from study.hours import describe_hours

    is_there = not args.fresh and check_folder(setup.folder, setup.question)
    is_known = is_there and not setup.num_open_candidates()
    setup = setup.with_winner() if is_known else setup.with_stand_in()
    trials = setup.open_trials(retry_failed=args.retry_failed) if is_there else setup.trials
    nodes = _cluster(args.address)
    resources = _resources(args, nodes, setup)
    hours = describe_hours(setup, trials, resources, nodes, args.price_per_hour)
    print_lines([*describe_plan(setup, trials, resources), *hours], console)


def _request(args: argparse.Namespace) -> Request:
    from study.setup import Request

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
    from study.attempt import Task
    from study.cluster import cluster, require_shared_folder
    from study.forecast import require_disk
    from study.setup import write_facts
    from study.tuning import run_trials

    def task(trial: Trial) -> Task:
        data = setup.data
        return Task(trial, setup.folder, data.root, data.fingerprint, data.synthetic, resources)

    with cluster(args.address) as nodes:
        resources = _resources(args, nodes, setup)
        whole = setup.with_stand_in() if setup.num_open_candidates() else setup
        require_disk(setup, whole.open_trials(retry_failed=args.retry_failed), resources)
        write_facts(setup, resources)
        require_shared_folder(setup.folder)
        console.print(
            f"{resources.describe()}, each with {resources}; live curves: "
            f"tensorboard --logdir {os.path.relpath(setup.folder)}"
        )
        if setup.num_open_candidates():
            setup = _search(args, setup, task, resources, console)
        trials = setup.open_trials(retry_failed=args.retry_failed)
        console.print(f"Trials: {len(setup.trials)}, {len(trials)} to run, in {setup.folder}")
        if trials:
            progress = Progress([trial.name for trial in trials], num_epochs(trials), console)
            tasks = [task(trial) for trial in trials]
            run_trials(tasks, resources, setup.folder, progress, args.retries)
    return setup


def _search(
    args: argparse.Namespace,
    setup: Setup,
    task: Callable[[Trial], Task],
    resources: TrialResources,
    console: Console,
) -> Setup:
    """Run what is left of the search; return the setup with its winner, if it has one."""
    from study.search import run_search

    search, left = setup.search, setup.num_open_candidates()
    assert search is not None
    console.print(
        f"Search: {search.candidates} candidates, {left} to run; live: "
        f"optuna-dashboard {os.path.relpath(setup.folder)}/search/journal.log"
    )
    names = [candidate_name(number) for number in range(left)]
    progress = Progress(names, round(search.halving.expected_epochs(left)), console)
    run_search(search, setup.folder, task, resources, progress, args.retries)
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
        from study.cluster import cluster

        with cluster(address) as nodes:
            return nodes
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (Node(cpus or 1, float(torch.cuda.device_count())),)


def _report(folder: Path, console: Console) -> int:
    about = read_study(folder)
    if not (folder / "trials.csv").exists():
        raise StudyError(f"{folder} has no trials.csv yet: no start of this study has ended")
    with console.status("writing the report"):
        records = write_report(folder)
    ranking = ranked_rows(records)
    print_ranking(ranking, "Test scores, by Dice/patient", describe_study(about), console)
    published = published_rows(records)
    if published:
        note = "Published by others on another split, not measured here; Dice is the global one."
        print_ranking(published, "Published", note, console)
    console.print(f"{records.conclusion.sentence}\n")
    console.print(f"report: {folder / 'report.html'}")
    return FINISHED


def _existing_name(args: argparse.Namespace) -> str:
    if args.name:
        return str(args.name)
    both = [default_name(args.grid, args.config, synthetic=which) for which in (False, True)]
    return next((name for name in both if (args.storage / name).is_dir()), both[0])


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
