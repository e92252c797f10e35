"""The flags of `python -m study.run`: what they are called, what they may be, what they mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from brainseg.storage.urls import to_location
from study.spec.grid import GRIDS, ONE
from study.storage.candidates import SAMPLERS, SCHEDULERS

_EXAMPLES = """\
examples:
  python -m study.run --grid baseline
      no data at hand: four variants on generated phantoms, minutes on a laptop
  python -m study.run --grid baseline --data data/kaggle_3m
      the published comparison on the real slices, with ImageNet encoders
  python -m study.run --grid lite --data data/kaggle_3m --folds 10 --seeds 3 --plan
      what the full product would take; starts nothing
  python -m study.run --grid baseline --set data.size=128 --set model.encoder_weights=none
  python -m study.run --grid lite --data data/kaggle_3m --search 40 --seeds 3
      looks for better settings, and tests what it finds beside the variants
  python -m study.run --config results/lite/best.yaml --data data/kaggle_3m
      one experiment as it is
  python -m study.run --grid lite --data s3://BUCKET/kaggle_3m --storage s3://BUCKET/studies
      data and results behind URLs, on machines that share no disk; python -m study.fetch
      brings the report down

The same command again continues a study: finished trials are kept. Watch one with
  tensorboard --logdir results/NAME
  optuna-dashboard results/NAME/search/journal.log

exit codes:
  0  all trials finished        2  usage: an unknown flag, key, value or grid
  1  a known error, in a line   3  some trials failed; the report is written all the same
  130  stopped by Ctrl-C or SIGTERM
"""


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what cannot be ends the program with exit code 2.

    Args:
        argv: Without the program's name; None takes the process's own.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.grid is None:
        if args.config is None:
            parser.error("give --grid NAME, or --config YAML to run one experiment as it is")
        args.grid = ONE
    if args.price_per_hour is not None and not args.plan:
        parser.error("--price-per-hour says what a plan costs: give --plan too")
    for flag in ("space", "sampler", "scheduler", "search_folds"):
        if args.search is None and getattr(args, flag) is not None:
            parser.error(f"--{flag.replace('_', '-')} says how to search: give --search N too")
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all flags."""
    parser = argparse.ArgumentParser(
        prog="python -m study.run",
        description="Train, test and rank competing U-Nets under Ray Tune.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_question(parser)
    _add_search(parser)
    where = parser.add_argument_group("where results go")
    where.add_argument(
        "--name",
        metavar="NAME",
        help="of the study (default: the grid's or, without one, the configuration's)",
    )
    where.add_argument(
        "--storage",
        type=to_location,
        default=Path("results"),
        metavar="DIR",
        help="folder of all studies, or its URL: s3://BUCKET/PREFIX or what else pyarrow opens "
        "(default: results)",
    )
    where.add_argument(
        "--fresh", action="store_true", help="move a study of that name aside first"
    )
    where.add_argument(
        "--retry-failed",
        action="store_true",
        help="run trials again that failed or diverged; a search's candidates stay as they ended",
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
        choices=sorted(GRIDS),
        help="; ".join(f"{name}: {', '.join(variants)}" for name, variants in GRIDS.items())
        + f" (default: {ONE} where --config is given)",
    )
    group.add_argument(
        "--data",
        type=to_location,
        metavar="DIR",
        help="the kaggle_3m folder, its parent, or the Kaggle archive's root; or its URL, fetched "
        "once per node (default: "
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


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is searched",
        "trains candidates on rotation 0 and judges them by val Dice alone; its winner joins\nthe "
        "variants: trained in full with the same folds and seeds, tested, compared",
    )
    group.add_argument(
        "--search",
        type=_positive,
        metavar="N",
        help="candidates in all, the variants as they are among them; a larger N goes on",
    )
    group.add_argument(
        "--space",
        type=Path,
        metavar="YAML",
        help="what varies, and from where to where (default: configs/search.yaml)",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="who proposes (default: tpe); cmaes and gp learn from candidates run in full alone, "
        "so give them --scheduler none",
    )
    group.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="who stops poor ones, after two unfrozen epochs at the earliest (default: asha); "
        "hyperband is the asynchronous one, which never pauses",
    )
    group.add_argument(
        "--search-folds",
        type=_positive,
        metavar="K",
        help="trainings per candidate, 1 to 9, each validated on other patients; the mean counts "
        "(default: 1)",
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
        "--price-per-hour",
        type=_price,
        metavar="USD",
        help="of one node; with --plan: what the nodes that hold trials would cost until the end",
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


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a price in USD, such as 1.2")
    return value


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= 1 or (value > 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text} is neither a share from 0 to 1 nor whole GPUs")
    return value
