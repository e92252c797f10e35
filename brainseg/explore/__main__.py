"""The explore command: shows a dataset as one page, with figures and numbers beside it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.cli import (
    FINISHED,
    build_parser,
    location,
    result_folder,
    run_command,
    say,
    whole_number,
)
from brainseg.storage.files import new_folder

if TYPE_CHECKING:
    from brainseg.data.slice_store import SliceStore


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _explore(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.explore", "Show a dataset as one page: numbers, findings, figures.", _EPILOG
    )
    parser.add_argument(
        "--data",
        type=location,
        metavar="DIR",
        help="the kaggle_3m folder, its parent, or the Kaggle archive's root (default: "
        "$BRAINSEG_DATA, else ./data/kaggle_3m, else generated phantoms)",
    )
    parser.add_argument(
        "--out",
        type=result_folder,
        default=Path("exploration"),
        metavar="DIR",
        help="a new folder for the page (default: exploration)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write no page: say what is wrong with the dataset, file by file, and what is unused",
    )
    parser.add_argument(
        "--layout",
        metavar="FILE.py:FUNCTION",
        help="write no page: let a function of yours find the images and masks of --data, and "
        "write a manifest.csv and a dataset.yaml there, which all commands read",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=44,
        metavar="N",
        help="the seed of the random samples (default: 44)",
    )
    return parser


def _explore(args: argparse.Namespace) -> int:
    # Imported here: the figures take seconds, and --help does not need them.
    from brainseg.data.description import DESCRIPTION_FILE, MANIFEST_FILE, write_manifest
    from brainseg.data.slice_store import open_default
    from brainseg.explore.exploration import explore
    from brainseg.explore.page import write_page

    if args.layout is not None:
        folder = write_manifest(args.layout, args.data)
        written = " and ".join(str(folder / name) for name in (DESCRIPTION_FILE, MANIFEST_FILE))
        say(f"written: {written}; complete the first")
        return FINISHED
    if args.check:
        return _check(open_default(args.data))
    with new_folder(args.out) as folder:
        exploration = explore(open_default(args.data), args.seed)
        write_page(exploration, folder)
    data = exploration.data
    for sentence in (*data.notes, *exploration.summary):
        say(f"- {sentence}")
    if data.synthetic:
        say("SYNTHETIC DATA: generated phantoms. No number here says anything about patients.")
    say(f"page: {args.out / 'explore.html'}")
    return FINISHED


def _check(data: SliceStore) -> int:
    """Print what a dataset holds; what is wrong with it was an error that lists every file."""
    sizes = Counter(f"{height} x {width}" for height, width in data.shapes)
    say(f"dataset     {data.about.name or 'without a name'}, in {data.root}")
    say(f"patients    {len(data.patients)}")
    say(f"slices      {len(data.slices):,}, {data.num_tumour_slices:,} with tumour")
    say(f"sizes       {', '.join(f'{size}: {n:,}' for size, n in sizes.most_common(5))} px")
    say(f"channels    {', '.join(data.channels)}")
    say(f"licence     {data.about.licence or 'not stated'}")
    for note in data.notes:
        say(f"note        {note}")
    say("No file is wrong.")
    return FINISHED


_EPILOG = """\
examples:
  python -m brainseg.explore --data data/kaggle_3m
  python -m brainseg.explore --data DIR --check    what is wrong with a dataset of your own
  python -m brainseg.explore --data DIR --layout ./mine.py:find
  python -m brainseg.explore --out phantoms        without data: generated phantoms, SYNTHETIC

DIR receives explore.html, one page that opens offline; its figures in figures/; and all numbers in
explore.json.

exit codes:
  0  the page is written
  1  the dataset is missing or cannot be used, or DIR cannot be written
  2  a flag or value is wrong, or DIR exists already
"""

if __name__ == "__main__":
    sys.exit(main())
