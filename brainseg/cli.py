"""The parser, the types of flags, the exit codes, the lines and the ending of all commands.

An error has one exit code, which depends on what a user has to do. If something has to be written
in another way, it is 2: a flag, a key, a value or a name, on the command line, in a YAML file that
it names or in the user's own code; or a new folder or file of results that is there already. If
all of it may stay as it is, it is 1: a file, folder or study is missing, damaged or of another
kind, a disk, store or cluster refuses or does not answer, memory ran out. A missing file is thus
1, and what a YAML file says 2; a dataset.yaml and a model file belong to the data, which is 1.
Errors of the command line itself are reported before anything that it names is opened.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from brainseg.errors import BrainsegError, ConfigError, StorageError
from brainseg.storage.files import cache_folder, cache_root, user_path
from brainseg.storage.urls import Location, check_url, escape, is_url, redact

FINISHED = 0
KNOWN_ERROR = 1  # what is there, or is not: a BrainsegError or a disk error, in one line
USAGE = 2  # what was written: a ConfigError
SOME_FAILED = 3  # some trials or files failed; the results of the others are written
FAULT = 70  # a fault of this program; the line on stderr says where its traceback is
STOPPED = 130  # Ctrl-C or SIGTERM

Value = TypeVar("Value")

DEBUG = "BRAINSEG_DEBUG"
"""The environment variable that shows the traceback of every error."""

_LONGEST = 8_000  # characters of a line
_NO_MEMORY = "memory ran out: close other programs, or ask for less"
_FORESEEN: tuple[tuple[type[BaseException], str, int, str], ...] = (
    (RecursionError, "", KNOWN_ERROR, "a file or value is nested too deeply to be read"),
    (MemoryError, "", KNOWN_ERROR, _NO_MEMORY),
    (RuntimeError, "out of memory|can't allocate memory", KNOWN_ERROR, _NO_MEMORY),
    (
        RuntimeError,
        "home directory",
        USAGE,
        "a path begins with ~NAME, but there is no such user: write it in full",
    ),
    (ValueError, "null (byte|character)", USAGE, "a path holds a NUL: correct it"),
    (
        UnicodeEncodeError,
        "surrogates not allowed",
        KNOWN_ERROR,
        "the name of a file or folder is not UTF-8, so that no table can hold it: rename it",
    ),
    (
        BrokenPipeError,
        "",
        KNOWN_ERROR,
        "nothing reads the output any more; files that were written stay",
    ),
    (
        SystemExit,
        "",
        KNOWN_ERROR,
        "code that is not part of this program ended it by sys.exit: remove that call",
    ),
)


class _HelpShown(SystemExit):
    """The end after `--help`."""


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _HelpShown(status)

    def _print_message(self, message: str, file: Any = None) -> None:
        file.write(message)  # argparse's own hides that the disk is full

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")


def build_parser(module: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser that takes no abbreviated flags and raises ConfigError for a wrong one.

    Args:
        module: The module that is run, such as `brainseg.predict`.
        description: What the command does.
        epilog: Examples and, at the end, exit codes, printed below the flags as written.
    """
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"{epilog}  {FAULT}  a fault of this program: its line names a file to report it\n",
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


def whole_number(low: int, high: int = 1_000_000) -> Callable[[str], int]:
    """Return the type of flags that take a whole number from low to high."""

    def parse(text: str) -> int:
        # Without the second condition, a number of thousands of digits would be read first.
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(high))
        if not is_number or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"{text:.40} is not a whole number from {low} to {high}"
            )
        return int(text)

    return parse


def local_path(text: str) -> Path:
    """Return the path that a flag gives; the type of flags that name what is read."""
    return typed(user_path, text)


def store_url(text: str) -> str:
    """Return the URL that a flag gives, which is well formed and holds no secret."""
    if not is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text:.100} is not a URL: expected such as s3://BUCKET/X"
        )
    typed(check_url, text)
    return text


def location(text: str) -> Location:
    """Return the path or URL that a flag gives; the type of flags that name what is read."""
    return store_url(text) if is_url(text) else local_path(text)


def result_folder(text: str) -> Path:
    """Return the folder that a flag gives for results; it, or the one above, may be missing."""
    path = there = local_path(text)
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is not a folder: name another folder")
    return path


def result_location(text: str) -> Location:
    """Return the folder or URL that a flag gives for results."""
    return store_url(text) if is_url(text) else result_folder(text)


def result_file(text: str) -> Path:
    """Return the file that a flag gives for a result, which must not exist."""
    path = local_path(text)
    if os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{path} exists already: name another, or remove it")
    return path


def typed(read: Callable[[str], Value], text: str) -> Value:
    """Read the value of a flag; argparse puts the flag's name in front of an error."""
    try:
        return read(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def clean(text: str) -> str:
    """Return a text as one line that steers no terminal and shows no secret of a URL."""
    line = re.sub(r"\s*[\r\n]\s*", " ", redact(text))
    shown = escape(line[:_LONGEST])
    return f"{shown} ..." if len(line) > _LONGEST else shown


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, each cleaned; on stdout by default."""
    for line in lines:
        print(clean(line), file=file, flush=True)


def run_command(command: Callable[[], int], stopped: str = "stopped; nothing was written") -> int:
    """Run a command; an error becomes one line on stderr and an exit code.

    `BRAINSEG_DEBUG=1` prints its traceback too. A fault of this program leaves its traceback in a
    file.

    Args:
        command: Parses the command line, does the work and returns an exit code.
        stopped: Printed after Ctrl-C or SIGTERM.

    Returns:
        The command's exit code, or the one of the error that ended it.
    """
    _open_streams()
    try:
        try:
            with _sigterm_interrupts():
                return command()
        finally:
            _flush_output()
    except _HelpShown:
        raise
    except KeyboardInterrupt:
        _complain(stopped)
        return STOPPED
    except (Exception, SystemExit) as error:
        return _end(error)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM, by which schedulers and containers stop a command, act like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_streams() -> None:
    """Open streams that are closed, so that no other file gets their numbers; print any name."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            null = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  it stays open
            setattr(sys, name, null)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more at its end, and would print an error of its own.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StorageError(
            f"cannot write to the standard output: {error.strerror}; files that were written stay"
        ) from error


def _complain(*lines: str) -> None:
    with suppress(OSError, ValueError):  # stderr is full or closed: the exit code remains
        say(*lines, file=sys.stderr)


def _end(error: BaseException) -> int:
    """Print what ended a command, and return its exit code."""
    if os.environ.get(DEBUG):
        with suppress(OSError, ValueError):
            print(_format(error), file=sys.stderr)
    text, code = _explain(error)
    problems = error.problems if isinstance(error, BrainsegError) else []
    _complain(f"error: {text}", *(f"  {problem}" for problem in problems))
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return an error in a sentence, and the exit code."""
    if isinstance(error, BrainsegError):
        text = str(error) or type(error).__name__
        return text, USAGE if isinstance(error, ConfigError) else KNOWN_ERROR
    for kind, pattern, code, sentence in _FORESEEN:
        if isinstance(error, kind) and re.search(pattern, str(error)):
            return sentence, code
    if isinstance(error, OSError) and error.filename is not None:
        return _explain_file(error), KNOWN_ERROR
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"the system refused a read or write: {reason}; {_keep(error)}", KNOWN_ERROR
    return (
        f"a fault of this program, {type(error).__name__}: {str(error)[:300]}; {_keep(error)}. "
        "Please report it with that file, once you have seen that it holds nothing private; "
        f"{DEBUG}=1 shows it here",
        FAULT,
    )


def _explain_file(error: OSError) -> str:
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    text = f"cannot read or write {path}: {error.strerror or type(error).__name__}"
    with suppress(OSError, RuntimeError, ValueError):
        if Path(str(path)).absolute().is_relative_to(cache_root()):
            text += "; it is in the cache: set BRAINSEG_CACHE to a folder that can be written"
    return text


def _keep(error: BaseException) -> str:
    """Write the traceback of an error into a file; return where it is, in words."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    folders: tuple[Callable[[], Path], ...] = (
        lambda: cache_folder("faults"),
        lambda: Path(tempfile.mkdtemp(prefix="brainseg-fault-")),
    )
    for folder in folders:
        with suppress(OSError, RuntimeError, ValueError):
            path = folder() / name
            path.write_text(_format(error), encoding="utf-8", errors="backslashreplace")
            return f"its traceback is in {path}"
    return "no file could be written with its traceback"


def _format(error: BaseException) -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return redact(f"{command}\n\n{''.join(traceback.format_exception(error))}")
