"""Train, test and rank competing U-Nets under Ray Tune: `python -m study.run --grid baseline`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from brainseg.config import parse_changes
from brainseg.errors import BrainsegError, ConfigError, DataError, StudyError
from study.account import describe_study, published_rows
from study.console import Progress, print_lines, print_ranking
from study.findings import ranked_rows
from study.folder import check_folder, locked, move_aside, read_study
from study.plan import GRIDS, Cluster, Node, Trial, TrialResources, num_epochs, share_cluster
from study.report import write_report
from study.results import FAILURES, Row, collect

if TYPE_CHECKING:
    from study.setup import Request, Setup

FINISHED, KNOWN_ERROR, USAGE, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130

_EXAMPLES = """\
examples:
  python -m study.run --grid baseline
      no data at hand: four variants on generated phantoms, minutes on a laptop
  python -m study.run --grid baseline --data data/kaggle_3m
      the published comparison on the real slices, with ImageNet encoders
  python -m study.run --grid lite --data data/kaggle_3m --folds 10 --seeds 3 --plan
      what the full product would take; starts nothing
  python -m study.run --grid baseline --set data.size=128 --set model.encoder_weights=none

The same command again continues a study: finished trials are kept. Watch one with
  tensorboard --logdir results/NAME

exit codes:
  0  all trials finished        2  usage: an unknown flag, key, value or grid
  1  a known error, in a line   3  some trials failed; the report is written all the same
  130  stopped by Ctrl-C or SIGTERM
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m study.run",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_question(parser)
    where = parser.add_argument_group("where results go")
    where.add_argument("--name", metavar="NAME", help="of the study (default: the grid's)")
    where.add_argument(
        "--storage",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of all studies (default: results)",
    )
    where.add_argument(
        "--fresh", action="store_true", help="move a study of that name aside first"
    )
    where.add_argument(
        "--retry-failed", action="store_true", help="run trials again that failed or diverged"
    )
    _add_machine(parser)
    instead = parser.add_argument_group("instead of running").add_mutually_exclusive_group()
    instead.add_argument(
        "--plan", action="store_true", help="print what would run and what it takes; start nothing"
    )
    instead.add_argument(
        "--report-only", action="store_true", help="write the report anew from the CSV files"
    )
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--grid",
        required=True,
        choices=sorted(GRIDS),
        help="; ".join(f"{name}: {', '.join(variants)}" for name, variants in GRIDS.items()),
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the kaggle_3m folder, its parent, or the Kaggle archive's root (default: "
        "$BRAINSEG_DATA, else ./data/kaggle_3m, else generated phantoms)",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="the experiment that all variants share (default: configs/baseline.yaml, for "
        "phantoms configs/phantom.yaml)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change one of its keys, such as data.size=128; may be given again",
    )
    group.add_argument(
        "--folds",
        type=int,
        default=1,
        metavar="N",
        help="rotations of the ten folds, 1 to 10; 10 test every patient once (default: 1)",
    )
    group.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds per variant and fold (default: 1)"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it runs on")
    group.add_argument("--concurrent", type=_positive, metavar="N", help="trials at once, at most")
    group.add_argument(
        "--gpus-per-trial",
        type=_gpus,
        metavar="F",
        help="a share such as 0.5, or whole ones (default: 1 where there is a GPU, else 0)",
    )
    group.add_argument(
        "--cpus-per-trial",
        type=_positive,
        metavar="N",
        help="counting loader workers (default: dealt evenly among the trials)",
    )
    group.add_argument(
        "--retries",
        type=_count,
        default=3,
        metavar="N",
        help="of a trial whose process dies; it goes on after its last epoch (default: 3)",
    )
    group.add_argument(
        "--address",
        metavar="ADDR",
        help="a running Ray cluster, or auto (default: start one here)",
    )


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text} is neither a share from 0 to 1 nor whole GPUs")
    return value


def _study(args: argparse.Namespace, console: Console) -> int:
    from study.examples import draw_examples
    from study.probabilities import collect_ensembles
    from study.setup import describe_plan, prepare

    setup = prepare(_request(args), console.print, download=not args.plan)
    if args.plan:
        is_there = not args.fresh and check_folder(setup.folder, setup.question)
        trials = setup.open_trials(retry_failed=args.retry_failed) if is_there else setup.trials
        resources = _resources(args, _cluster(args.address), setup)
        print_lines(describe_plan(setup, trials, resources), console)
        return FINISHED
    with locked(setup.folder):
        if args.fresh and (aside := move_aside(setup.folder)):
            console.print(f"The study that was here is now {aside}")
        if check_folder(setup.folder, setup.question):
            console.print(f"Continuing the study in {setup.folder}")
        trials = setup.open_trials(retry_failed=args.retry_failed)
        if trials:
            _run_trials(args, setup, trials, console)
        with console.status("gathering what the trials left"):
            rows = collect(setup.folder, setup.trials)
            collect_ensembles(setup.folder, setup.trials)
            draw_examples(setup.folder, setup.trials, setup.data)
        _report(setup.folder, console)
    return _exit_code(rows)


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
    )


def _run_trials(
    args: argparse.Namespace, setup: Setup, trials: Sequence[Trial], console: Console
) -> None:
    from study.setup import require_disk, write_facts
    from study.trial import Task
    from study.tuning import cluster, require_shared_folder, run_trials

    console.print(f"Study: {len(setup.trials)} trials, {len(trials)} to run, in {setup.folder}")
    with cluster(args.address) as nodes:
        resources = _resources(args, nodes, setup)
        require_disk(setup, trials, resources)
        write_facts(setup, resources)
        require_shared_folder(setup.folder)
        console.print(
            f"{resources.concurrent} at once, each with {resources}; live curves: "
            f"tensorboard --logdir {os.path.relpath(setup.folder)}"
        )
        data = setup.data
        tasks = [Task(t, setup.folder, data.root, data.fingerprint, resources) for t in trials]
        progress = Progress([trial.name for trial in trials], num_epochs(trials), console)
        run_trials(tasks, resources, setup.folder, progress, args.retries)


def _resources(args: argparse.Namespace, nodes: Cluster, setup: Setup) -> TrialResources:
    """What each trial gets; a study that goes on keeps what it started with, unless told."""
    is_new = args.fresh or not (setup.folder / "study.json").exists()
    record = {} if is_new else read_study(setup.folder)
    cpus, gpus = args.cpus_per_trial, args.gpus_per_trial
    return share_cluster(
        nodes,
        len(setup.trials),
        cpus=record.get("cpus_per_trial") if cpus is None else cpus,
        gpus=record.get("gpus_per_trial") if gpus is None else gpus,
        concurrent=args.concurrent,
    )


def _cluster(address: str | None) -> Cluster:
    """What there is, without starting Ray where it does not run."""
    if address is not None:
        from study.tuning import cluster

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
    both = (args.grid, f"{args.grid}-synthetic")
    return next((name for name in both if (args.storage / name).is_dir()), args.grid)


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
