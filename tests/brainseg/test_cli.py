from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from brainseg.cli import (
    FAULT,
    FINISHED,
    KNOWN_ERROR,
    SOME_FAILED,
    STOPPED,
    USAGE,
    build_parser,
    run_command,
)
from brainseg.errors import ConfigError, DataError, StorageError
from brainseg.storage.files import cache_folder


def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError("unknown key x"), USAGE, ["error: unknown key x"]),
        (StorageError("full"), KNOWN_ERROR, ["error: full"]),
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


def test_sigterm_stops_a_command_like_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        signal.raise_signal(signal.SIGTERM)
        return FINISHED

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(work) == STOPPED
    assert capsys.readouterr().err == "stopped; nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fault_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["brainseg", "s3://user:hunter2@bucket"])
    assert run_command(lambda: _raise(ZeroDivisionError("by gs://b?token=hunter2"))) == FAULT
    line = capsys.readouterr().err
    (kept,) = (tmp_path / "faults").iterdir()
    assert line.count("\n") == 1
    assert str(kept) in line
    assert "ZeroDivisionError: by gs://b?token=***" in line
    text = kept.read_text()
    assert "in _raise\n    raise error" in text
    assert "hunter2" not in text + line


def test_a_fault_where_nothing_can_be_written_is_still_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run_command(lambda: _raise(KeyError("x"))) == FAULT
    assert "no file could be written with its traceback" in capsys.readouterr().err


def test_an_error_of_the_system_says_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complain(error: OSError) -> str:
        assert run_command(lambda: _raise(error)) == KNOWN_ERROR
        return capsys.readouterr().err

    assert complain(PermissionError(13, "Permission denied", "/some/file")) == (
        "error: cannot read or write /some/file: Permission denied\n"
    )
    assert "system refused a read or write: No space left; its traceback is in" in complain(
        OSError(28, "No space left")
    )
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "cache"))
    assert "set BRAINSEG_CACHE" in complain(
        PermissionError(13, "Permission denied", f"{tmp_path}/cache/slices/x.lock")
    )
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError) as caught:
        cache_folder("slices")
    assert "set BRAINSEG_CACHE" in complain(caught.value)


def test_the_traceback_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRAINSEG_DEBUG", "1")
    assert run_command(lambda: _raise(ConfigError("unknown key x"))) == USAGE
    err = capsys.readouterr().err
    assert "in _raise\n    raise error" in err
    assert err.endswith("error: unknown key x\n")


def test_a_command_chooses_its_own_exit_code() -> None:
    assert run_command(lambda: SOME_FAILED) == SOME_FAILED


def test_abbreviated_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser("brainseg.example", "An example.", "exit codes:\n  0  done")
    parser.add_argument("--folder")
    assert run_command(lambda: bool(parser.parse_args(["--fold", "x"]))) == USAGE
    expected = "error: unrecognized arguments: --fold x; python -m brainseg.example --help lists"
    assert expected in capsys.readouterr().err
    assert "exit codes:\n  0  done" in parser.format_help()
