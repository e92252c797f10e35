"""One bad input, one command, one readable line: what every table in tests/hostile is made of.

A case runs in this process, as a user's command would: its exit code, its lines on stderr and the
seconds it took are checked, and that nothing was written outside the folder it ran in.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brainseg.cli import FINISHED

SECONDS = 10.0
"""How long a user may wait for the sentence."""
DECODING_SECONDS = 30.0
"""The same where the whole dataset has to be decoded first."""


@dataclass(frozen=True)
class Case:
    """A command with a bad input.

    Attributes:
        name: What is wrong, in words; the test's id.
        argv: Module and arguments, `{here}` being the folder in which the command runs.
        exit: The exit code, by the rule in `brainseg.cli`.
        names: Texts that the lines on stderr (or stdout, if it ends well) must hold.
        prepare: Writes the input into the folder in which the command runs.
        secrets: Texts that must not be printed.
        seconds: How long it may take.
    """

    name: str
    argv: Sequence[str]
    exit: int
    names: Sequence[str] = ()
    prepare: Callable[[Path], object] = lambda folder: None
    secrets: Sequence[str] = ()
    seconds: float = SECONDS
    environment: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Case], None]
"""The fixture `answer`: `assert_answered` in the folder of the test."""


def assert_answered(
    case: Case, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    """Run a case; fail unless it was answered by a line, in time, with nothing lost.

    Args:
        case: The command and what is expected.
        folder: In which a new folder is made for the command; the rest must stay as it is.
        capfd: Of pytest.
        patch: Of pytest.
    """
    here = folder / "here"
    here.mkdir()
    case.prepare(here)
    for key, value in case.environment.items():
        patch.setenv(key, value)
    outside = _listing(folder, here)
    module, *arguments = (argument.format(here=here) for argument in case.argv)
    capfd.readouterr()
    start = time.monotonic()
    with chdir(here):
        code = _run(module, arguments)
    seconds = time.monotonic() - start
    out, err = capfd.readouterr()
    assert code == case.exit, err or out
    assert "Traceback" not in err + out
    if code != FINISHED:
        # A line, and indented lines below it where several files are at fault.
        lines = [
            line for line in err.splitlines() if line and not line.startswith(("  ", "usage"))
        ]
        assert sum(line.startswith("error:") or ": error:" in line for line in lines) <= 1, err
        assert lines, "nothing on stderr"
    for text in case.names:
        assert text in err + out, err or out
    for secret in case.secrets:
        assert secret not in err + out
    assert not any(ord(c) < 32 and c not in "\n\t\r" for c in err), repr(err)
    assert seconds < case.seconds, f"{seconds:.1f} s"
    assert _listing(folder, here) == outside, "something was written outside the folder"


def _run(module: str, arguments: Sequence[str]) -> int:
    main = importlib.import_module(module).main
    try:
        return int(main(arguments))
    except SystemExit as error:  # argparse
        return int(error.code or 0)


def _listing(root: Path, apart: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of each file below `root`, those below `apart` left out."""
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder) / name != apart]
        for name in files:
            state = (Path(folder) / name).lstat()
            found[str(Path(folder) / name)] = (state.st_size, state.st_mtime_ns)
    return found
