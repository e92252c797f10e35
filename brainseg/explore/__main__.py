"""A dataset as one page: `python -m brainseg.explore --data DIR`.

Leaves `explore.html`, which holds everything and opens offline, the figures as files in `figures/`
and the numbers in `explore.json`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from brainseg.cli import FINISHED, build_parser, run_command
from brainseg.data.slice_store import open_default
from brainseg.explore.page import Exhibit, compose_page, explore, list_exhibits, list_late_exhibits
from brainseg.storage.files import new_folder
from brainseg.storage.urls import to_location

_DPI = 110


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _explore(args))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.explore", "Show a dataset as one page: numbers, findings, figures.", _EPILOG
    )
    parser.add_argument(
        "--data",
        type=to_location,
        metavar="DIR",
        help="the kaggle_3m folder, its parent, or the Kaggle archive's root (default: "
        "$BRAINSEG_DATA, else ./data/kaggle_3m, else generated phantoms)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("exploration"),
        metavar="DIR",
        help="a new folder for the page (default: exploration)",
    )
    parser.add_argument(
        "--seed", type=int, default=44, metavar="N", help="of the random samples (default: 44)"
    )
    return parser


def _explore(args: argparse.Namespace) -> int:
    with new_folder(args.out) as folder:
        data = open_default(args.data)
        exploration = explore(data, args.seed)
        exhibits = [*list_exhibits(exploration), *list_late_exhibits(exploration)]
        (folder / "figures").mkdir()
        figures = {}
        for exhibit in tqdm(exhibits, desc="drawing", unit="figure", disable=None):
            figures[exhibit.name] = _draw(exhibit)
            path = folder / "figures" / f"{exhibit.name}.png"
            path.write_bytes(figures[exhibit.name])
        page = compose_page(exploration, figures)
        (folder / "explore.html").write_text(page, encoding="utf-8")
        (folder / "explore.json").write_text(exploration.to_json(), encoding="utf-8")
    for sentence in (*data.notes, *exploration.summary):
        print(f"- {sentence}")
    if data.synthetic:
        print("SYNTHETIC DATA: generated phantoms. No number here says anything about patients.")
    print(f"page: {args.out / 'explore.html'}")
    return FINISHED


def _draw(exhibit: Exhibit) -> bytes:
    buffer = io.BytesIO()
    exhibit.draw().savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


_EPILOG = """\
examples:
  python -m brainseg.explore --data data/kaggle_3m
  python -m brainseg.explore --out phantoms        without data at hand: generated, SYNTHETIC

exit codes:
  0  done      1  a known error, in a line      2  usage
"""

if __name__ == "__main__":
    sys.exit(main())
