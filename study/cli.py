"""The command line of `python -m study.run`: its flags, their values and what they mean."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brainseg.cli import build_parser as command_parser
from brainseg.cli import clean, local_path, location, result_location, typed
from brainseg.cli import whole_number as _whole
from brainseg.config import NUM_FOLDS, NUM_INNER_FOLDS
from brainseg.storage.values import cut
from study.spec.grid import (
    MAX_CANDIDATES,
    MAX_SEEDS,
    ONE,
    checked_name,
    is_name,
    load_grid,
    shipped_grids,
)
from study.spec.study_spec import SAMPLERS, SCHEDULERS
from study.storage.study_folder import default_name

_EXAMPLES = """\
examples:
  python -m study.run --grid baseline
      no data at hand: four variants on generated phantoms, minutes on a laptop
  python -m study.run --grid baseline --data data/kaggle_3m
      the published comparison on the real slices, with ImageNet encoders
  python -m study.run --grid my_grid.yaml --data data/kaggle_3m --plan
      variants and factors of your own; docs/studies.md shows how to write them
  python -m study.run --grid lite --data data/kaggle_3m --folds 10 --seeds 3 --plan
      what all variants, folds and seeds would take; starts nothing
  python -m study.run --grid baseline --set data.size=128 --set model.encoder_weights=none
  python -m study.run --grid lite --data data/kaggle_3m --search 40 --seeds 3
      looks for better settings, and tests what it finds beside the variants
  python -m study.run --config results/lite/best.yaml --data data/kaggle_3m
      one experiment, without a grid
  python -m study.run --grid lite --data s3://BUCKET/kaggle_3m --storage s3://BUCKET/studies
      data and results at URLs, on machines that share no disk; python -m study.fetch
      brings the report down

The same command again continues a study: finished trials are kept. Watch one with
  tensorboard --logdir results/NAME
  optuna-dashboard results/NAME/search/journal.log

exit codes:
  0  all trials finished
  1  something is missing, damaged or refuses: data, a file, a study, a disk, a store, a cluster
  2  usage: a flag, key, value or name, here or in a YAML file, has to be written otherwise
  3  some trials, or the search, did not finish; the report is written all the same
  130  stopped by Ctrl-C or SIGTERM
"""


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a wrong flag or value ends the program with exit code 2.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: If the grid cannot be read, or the study cannot have its name.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list:
        return args
    if args.grid is None and args.config is None:
        parser.error("give --grid NAME or FILE, or --config YAML to run one experiment as it is")
    args.grid = ONE if args.grid is None else load_grid(args.grid)
    name = args.name or default_name(args.grid.name, args.config, synthetic=False)
    checked_name(name, "--name: the study")
    if args.price_per_hour is not None and not args.plan:
        parser.error("--price-per-hour needs --plan: it is the price in the plan")
    for flag in ("space", "sampler", "scheduler", "search_folds", "search_seeds", "warm_start"):
        if args.search is args.grid.search is None and getattr(args, flag) is not None:
            parser.error(
                f"--{flag.replace('_', '-')} needs --search N, or a grid that has a search"
            )
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all flags."""
    description = "Train, test and rank competing U-Nets under Ray Tune."
    parser = command_parser("study.run", description, _EXAMPLES)
    _add_comparison(parser)
    _add_search(parser)
    where = parser.add_argument_group("where results go")
    where.add_argument(
        "--name",
        type=_study_name,
        metavar="NAME",
        help="name of the study (default: that of the grid or of the configuration; -synthetic is "
        "added for generated data)",
    )
    where.add_argument(
        "--storage",
        type=result_location,
        default=Path("results"),
        metavar="DIR",
        help="folder of all studies, or its URL, such as s3://BUCKET/PREFIX (default: results)",
    )
    where.add_argument(
        "--fresh",
        action="store_true",
        help="rename an existing study of that name to NAME.<time>, and begin again; "
        "leave it out to continue a run that was stopped",
    )
    where.add_argument(
        "--retry-failed",
        action="store_true",
        help="run trials again that failed or diverged; a search's candidates stay as they ended",
    )
    _add_machine(parser)
    instead = parser.add_argument_group("instead of running").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the grids that come with it")
    instead.add_argument(
        "--plan", action="store_true", help="print what would run and what it takes; start nothing"
    )
    instead.add_argument(
        "--report-only", action="store_true", help="write the report again from the CSV files"
    )
    return parser


class _Console(Console):
    """A console on which no name steers the terminal: markup is text, controls are escaped."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else 120
        super().__init__(width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(clean(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def build_console() -> Console:
    """Return the console that a command prints on."""
    return _Console()


def list_grids(console: Console) -> None:
    """Print the grids that come with the program."""
    table = Table("grid", "variants", "what it compares", box=None, pad_edge=False)
    for grid in shipped_grids():
        table.add_row(grid.name, str(len(grid.variants)), grid.description)
    console.print(table)


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--grid",
        metavar="NAME|FILE",
        help="the variants to compare: a grid that --list names, or a YAML file of your own "
        "(default: with --config, that experiment alone)",
    )
    group.add_argument(
        "--data",
        type=location,
        metavar="DIR",
        help="the kaggle_3m folder, its parent, or the Kaggle archive's root; or its URL, fetched "
        "once per node (default: "
        "$BRAINSEG_DATA, else ./data/kaggle_3m, else generated phantoms)",
    )
    group.add_argument(
        "--config",
        type=local_path,
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
        "--split",
        metavar="WAY|FILE",
        help="patient (default: ten folds of patients), site (each site left out in turn), or a "
        "YAML or JSON file of patients; sets the key data.split",
    )
    group.add_argument(
        "--predictions",
        type=_prediction,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="masks that another tool predicted for the test patients, compared as the variant "
        "NAME; may be given again",
    )
    group.add_argument(
        "--folds",
        type=_whole(1, NUM_FOLDS),
        metavar="N",
        help="rotations of the split to run; all ten of the default one test every patient once "
        "per variant and seed (default: the grid's, mostly 1)",
    )
    group.add_argument(
        "--seeds",
        type=_whole(1, MAX_SEEDS),
        metavar="N",
        help="seeds per variant and fold (default: the grid's, mostly 1)",
    )


def _prediction(text: str) -> tuple[str, Path]:
    name, mark, folder = text.partition("=")
    if not mark or not folder or not is_name(name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=DIR, with a name of letters, digits, '.', '_' and '-'"
        )
    return name, local_path(folder)


def _study_name(text: str) -> str:
    return typed(lambda name: checked_name(name, "the study"), text)


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is searched",
        "Candidates are trained in rotation 0 and judged by val Dice alone. The winner joins the\n"
        "variants: it is trained in full with the same folds and seeds, tested and compared.\n"
        "A grid file can give each variant, or each level of a factor, a search of its own.",
    )
    group.add_argument(
        "--search",
        type=_whole(1, MAX_CANDIDATES),
        metavar="N",
        help="number of candidates, including the variants; a larger N continues a search "
        "(default: the grid's, mostly no search)",
    )
    group.add_argument(
        "--space",
        type=local_path,
        metavar="YAML",
        help="the search space (default: configs/search.yaml)",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="Optuna's sampler, which draws the candidates (default: tpe); gp learns only from "
        "candidates run in full, "
        "so give it --scheduler none",
    )
    group.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="Tune's scheduler, which stops poor candidates after two unfrozen epochs at the "
        "earliest (default: asha); "
        "hyperband is the asynchronous form, which pauses no candidate; halving lets all come to "
        "a rung before the best third goes on: fewer epochs, which the plan gives exactly",
    )
    group.add_argument(
        "--search-folds",
        type=_whole(1, NUM_INNER_FOLDS),
        metavar="K",
        help="pairs of folds that each candidate is validated on, 1 to 9; the mean counts "
        "(default: 1)",
    )
    group.add_argument(
        "--search-seeds",
        type=_whole(1, MAX_SEEDS),
        metavar="N",
        help="trainings of each candidate on each of them, with seeds counted up (default: 1)",
    )
    group.add_argument(
        "--warm-start",
        type=local_path,
        metavar="DIR",
        help="folder of a study on the same data whose search is over: its best five candidates "
        "follow the variants (default: the grid's, mostly none)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it runs on")
    group.add_argument(
        "--concurrent",
        type=_whole(1, 100_000),
        metavar="N",
        help="maximum number of trials in parallel (default: as many as fit)",
    )
    group.add_argument(
        "--gpus-per-trial",
        type=_gpus,
        metavar="F",
        help="a share such as 0.5, or whole ones (default: 1 where there is a GPU, else 0)",
    )
    group.add_argument(
        "--cpus-per-trial",
        type=_whole(1, 10_000),
        metavar="N",
        help="including loader workers (default: CPUs shared evenly, with a GPU at most 8; a "
        "continued study keeps its value)",
    )
    group.add_argument(
        "--price-per-hour",
        type=_price,
        metavar="USD",
        help="price of one node; --plan then shows what the nodes with trials would cost",
    )
    group.add_argument(
        "--retries",
        type=_whole(0, 1_000),
        default=3,
        metavar="N",
        help="how often a trial that crashes is run again, from its last completed epoch "
        "(default: 3)",
    )
    group.add_argument(
        "--node-losses",
        type=_whole(0),
        metavar="N",
        help="how many nodes each trial may lose besides, by preemption or failure of a machine "
        "(default: any number)",
    )
    group.add_argument(
        "--address",
        type=_address,
        metavar="ADDR",
        help="a running Ray cluster, or auto (default: start one here)",
    )


def _address(text: str) -> str:
    found = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    if text != "auto" and not (found and 0 < int(found[2]) < 65_536):
        raise argparse.ArgumentTypeError(f"{text} is neither HOST:PORT of the head node nor auto")
    return text


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{cut(text)} is not a price in USD, such as 1.2")
    return value


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= 1 or (1 < value <= 1_000 and value.is_integer())):
        raise argparse.ArgumentTypeError(
            f"{cut(text)} is neither a share from 0 to 1 nor whole GPUs"
        )
    return value
