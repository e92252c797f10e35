"""Train, test and rank competing U-Nets under Ray Tune: `python -m study.run --grid baseline`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from brainseg.cli import FINISHED, run_command
from brainseg.storage.remote import require_store
from study.cli import list_grids, parse_options
from study.storage.sync import find_study

_STOPPED = "stopped; the same command continues from the last completed epochs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)

    def work() -> int:
        args = parse_options(argv)
        if args.list:
            list_grids(console)
            return FINISHED
        require_store(args.storage)
        # What takes seconds to import is imported when it is needed: --help needs nothing.
        if args.report_only:
            from study.report.build import publish

            publish(find_study(args.storage, args.name, args.grid.name, args.config), console)
            return FINISHED
        from study.pipeline import run_study

        return run_study(args, console)

    return run_command(work, stopped=_STOPPED)


if __name__ == "__main__":
    sys.exit(main())
