from __future__ import annotations

import pytest

from brainseg.cli import KNOWN_ERROR, SOME_FAILED, STOPPED, USAGE, build_parser, run_command
from brainseg.errors import ConfigError, DataError, StorageError


def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError("unknown key x"), USAGE, ["error: unknown key x"]),
        (StorageError("full"), KNOWN_ERROR, ["error: full"]),
        (PermissionError("denied"), KNOWN_ERROR, ["error: denied"]),
        (DataError("2 slices", ["a", "b"]), KNOWN_ERROR, ["error: 2 slices", "  a", "  b"]),
        (KeyboardInterrupt(), STOPPED, ["stopped; nothing was written"]),
    ],
)
def test_a_known_error_is_printed_and_has_an_exit_code(
    error: BaseException, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: _raise(error)) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_a_command_says_what_ctrl_c_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: _raise(KeyboardInterrupt()), stopped="stopped; go on later")
    assert capsys.readouterr().err == "stopped; go on later\n"


def test_an_unknown_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: _raise(ZeroDivisionError()))


def test_a_command_chooses_its_own_exit_code() -> None:
    assert run_command(lambda: SOME_FAILED) == SOME_FAILED


def test_abbreviated_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser("brainseg.example", "An example.", "exit codes:\n  0  done")
    parser.add_argument("--folder")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--fold", "x"])
    assert caught.value.code == USAGE
    assert "exit codes:\n  0  done" in parser.format_help()
