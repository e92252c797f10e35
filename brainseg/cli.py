"""What every command of brainseg does alike: help that teaches, errors in a line, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from brainseg.errors import BrainsegError, ConfigError, DataError

FINISHED, KNOWN_ERROR, USAGE, SOME_FAILED, STOPPED = 0, 1, 2, 3, 130


def build_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a strict parser whose epilog, examples and exit codes, is printed as it is written.

    Args:
        name: Of the module that is run, such as `brainseg.predict`.
        description: What it does.
        epilog: Printed below the flags.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_command(work: Callable[[], int]) -> int:
    """Run a command's work and return its exit code; a known error is one line on stderr."""
    try:
        return work()
    except BrainsegError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, DataError):
            print("".join(f"  {problem}\n" for problem in error.problems), end="", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else KNOWN_ERROR
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        return KNOWN_ERROR
