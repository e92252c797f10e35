"""The parser, the exit codes and the error lines that all commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from brainseg.errors import BrainsegError, ConfigError, DataError

FINISHED = 0
KNOWN_ERROR = 1  # a BrainsegError or a disk error, printed as one line on stderr
USAGE = 2  # a ConfigError: an unknown flag, key or value
SOME_FAILED = 3  # some trials or files failed; the results of the others are written
STOPPED = 130  # Ctrl-C or SIGTERM


def build_parser(module: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser that takes no abbreviated flags.

    Args:
        module: The module that is run, such as `brainseg.predict`.
        description: What the command does.
        epilog: Examples and exit codes, printed below the flags as written.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that load model files."""
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run the code that a model file names as its network; only for files that you trust",
    )


def run_command(command: Callable[[], int], stopped: str = "stopped; nothing was written") -> int:
    """Run a command; print a known error on stderr, without a traceback.

    Args:
        command: Does the work and returns an exit code.
        stopped: Printed after Ctrl-C.

    Returns:
        The command's exit code, or the one of the error that ended it.
    """
    try:
        return command()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return STOPPED
    except (BrainsegError, OSError) as error:  # OSError: a full disk, a folder without access
        print(f"error: {error}", file=sys.stderr)
        for problem in error.problems if isinstance(error, DataError) else ():
            print(f"  {problem}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else KNOWN_ERROR
