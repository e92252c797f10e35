"""Train, test and rank competing U-Nets under Ray Tune: `python -m study.run --grid baseline`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from brainseg.cli import FINISHED, run_command
from brainseg.storage.remote import require_store
from study.cli import build_console, list_grids, parse_options
from study.storage.sync import find_study

_STOPPED = "stopped; the same command, without --fresh, continues from the last completed epochs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""

    def work() -> int:
        args, console = parse_options(argv), build_console()
        if args.list:
            list_grids(console)
            return FINISHED
        # What takes seconds to import is imported when it is needed: --help needs nothing.
        if args.report_only:
            from study.report.build import publish

            require_store(args.storage)
            publish(find_study(args.storage, args.name, args.grid.name, args.config), console)
            return FINISHED
        from brainseg.data.layouts import find_default_root
        from study.spec.request import check_options

        # Before torch, Ray and the data, so that mistakes are reported early.
        check_options(args, synthetic=args.data is None and find_default_root() is None)
        require_store(args.storage)
        from study.pipeline import run_study

        return run_study(args, console)

    return run_command(work, stopped=_STOPPED)


if __name__ == "__main__":
    sys.exit(main())
