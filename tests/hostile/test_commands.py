"""How every command ends: whatever is typed, raised or closed, the user reads one line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hostile_cases import Case, assert_answered

from brainseg.cli import FAULT, KNOWN_ERROR, STOPPED, USAGE, clean, run_command, say
from brainseg.errors import DataError
from study.cli import build_console, build_parser

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"

COMMANDS = {
    "study.run": ["--grid", "lite", "--data", "nowhere", "--plan"],
    "study.fetch": ["nowhere", "out"],
    "study.compare": ["nowhere", "nowhere"],
    "brainseg.predict": ["nowhere", "nowhere", "--out", "out"],
    "brainseg.explore.__main__": ["--data", "nowhere"],
    "brainseg.export": ["nowhere", "--onnx"],
    "brainseg.demo.__main__": ["nowhere"],
    "brainseg.check": ["nowhere"],
}
"""A command -> arguments with which it says that something is not there."""

VALUES = {
    "empty": "",
    "a space": " ",
    "a colour": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;owned\x07",
    "a forged line": "x\nerror: forged",
    "markup": "[bold]x[/bold]",
    "a turned text": "\u202etxt.exe",
    "negative": "-1",
    "no number": "nan",
    "too large": "1e999",
    "thousands of digits": "9" * 5000,
    "a digit that is none": "²",
    "no such user": "~nobody-of-that-name/x",
    "a long name": "x" * 300,
    "a device": "/dev/null",
    "a pipe": "{here}/pipe",
    "no UTF-8": "caf\udce9",
    "a format": "%s%n%(prog)s",
    "a password": f"s3://AKIA:{SECRET}/x@bucket/y",
    "a broken URL": "s3://[x",
}

# Files of YAML have a table of their own, in which pipes stand too.
YAML = {"--config", "--space", "--grid", "--split", "--set"}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Import what commands import when they begin: it is not what is timed."""
    for name in ("study.pipeline", "brainseg.check", "brainseg.demo.handlers"):
        importlib.import_module(name)


def _flags(module: str) -> Iterator[argparse.Action]:
    """Yield every flag and argument of a command that takes a value."""
    command = importlib.import_module(module)
    parser = build_parser() if module == "study.run" else command._parser()
    yield from (a for a in parser._actions if a.nargs != 0 and a.dest != "help")


def _typed(module: str, action: argparse.Action, value: str) -> list[str]:
    """Return a command line in which a flag or argument has a value."""
    arguments = list(COMMANDS[module])
    if action.option_strings:
        return [module, *arguments, f"{action.option_strings[0]}={value}"]
    parser = importlib.import_module(module)._parser()
    places = [a.dest for a in parser._actions if not a.option_strings]
    arguments[places.index(action.dest)] = value or "''"
    return [module, *(["--"] if value.startswith("-") else []), *arguments]


def _typed_rows() -> Iterator[Case]:
    for module in COMMANDS:
        for action in _flags(module):
            flag = action.option_strings[0] if action.option_strings else action.dest
            for name, value in VALUES.items():
                if name == "a pipe" and flag in YAML:
                    continue
                yield Case(
                    f"{module} {flag}: {name}",
                    _typed(module, action, value),
                    (KNOWN_ERROR, USAGE),
                    prepare=lambda here: os.mkfifo(here / "pipe"),
                    secrets=(SECRET, "\nerror: forged"),
                )


@pytest.mark.parametrize("case", list(_typed_rows()), ids=lambda case: case.name)
def test_any_value_of_any_flag_is_answered(
    case: Case,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_answered(case, tmp_path, capfd, monkeypatch)


def _raising(error: BaseException) -> int:
    raise error


def _nested() -> int:
    return len(json.loads("[" * 100_000))


def _encoded() -> int:
    return len("caf\udce9".encode())


def _system(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([name] if name else []))


ENDINGS = [
    (MemoryError(), KNOWN_ERROR, "memory ran out"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), KNOWN_ERROR, "memory ran out"),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        KNOWN_ERROR,
        "memory ran out",
    ),
    (RecursionError("maximum recursion depth exceeded"), KNOWN_ERROR, "nested too deeply"),
    (KeyboardInterrupt(), STOPPED, "stopped"),
    (BrokenPipeError(32, "Broken pipe"), KNOWN_ERROR, "nothing reads the output"),
    (SystemExit(0), KNOWN_ERROR, "sys.exit"),
    (SystemExit("bye"), KNOWN_ERROR, "sys.exit"),
    (_system(28), KNOWN_ERROR, "refused a read or write: No space left on device; its traceback"),
    (_system(13, "/a/b"), KNOWN_ERROR, "cannot read or write /a/b: Permission denied"),
    (_system(21, "/a/\x1b[2J"), KNOWN_ERROR, "/a/\\x1b[2J: Is a directory"),
    (OSError(), KNOWN_ERROR, "refused a read or write: OSError"),
    (OSError("Errno 5"), KNOWN_ERROR, "its traceback is in"),
    (RuntimeError("Could not determine home directory."), USAGE, "~NAME"),
    (ValueError("embedded null byte"), USAGE, "a path holds a NUL"),
    (ValueError("embedded null character in path"), USAGE, "a path holds a NUL"),
    (DataError("3 files\x07", ["a\x1b[0m", "b\nc"]), KNOWN_ERROR, "  a\\x1b[0m\n  b c"),
    (KeyError("x"), FAULT, "a fault of this program, KeyError: 'x'; its traceback is in"),
    (AssertionError(), FAULT, "a fault of this program, AssertionError"),
    (StopIteration(), FAULT, "BRAINSEG_DEBUG=1 shows it"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), FAULT, "UnicodeDecodeError"),
    (ValueError(f"s3://u:{SECRET}@b/x?sig={SECRET}"), FAULT, "s3://***@b/x?sig=***"),
    (ValueError("x" * 100_000), FAULT, "xxx;"),
    (ExceptionGroup("two", [ValueError(), KeyError()]), FAULT, "ExceptionGroup"),
]


@pytest.mark.parametrize(
    ("error", "code", "words"), ENDINGS, ids=lambda value: repr(value)[:40].replace("\\", "")
)
def test_whatever_is_raised_ends_in_one_line(
    error: BaseException, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: _raising(error)) == code
    out, err = capfd.readouterr()
    assert words in err
    assert sum(not line.startswith("  ") for line in err.splitlines()) == 1
    assert "Traceback" not in err
    assert SECRET not in err
    assert not any(ord(c) < 32 and c != "\n" for c in out + err)


@pytest.mark.parametrize(("work", "words"), [(_nested, "nested"), (_encoded, "no UTF-8")])
def test_what_python_itself_raises_is_recognised(
    work: object, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(work)
    assert run_command(work) == KNOWN_ERROR
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 back\x08 tab\t", "bell\\x07 back\\x08 tab\\t"),
        ("\x9b31m \x7f", "\\x9b31m \\x7f"),
        ("one\r\n  two", "one two"),
        ("\u202eabc \u2028x \u200b", "\\u202eabc \\u2028x \\u200b"),
        ("caf\udce9 café 脳 ·", "caf\\udce9 café 脳 ·"),
        ("[red]x[/red] :smile:", "[red]x[/red] :smile:"),
        ("  indented", "  indented"),
        ("x" * 8_001, "x" * 8_000 + " ..."),
        ("s3://a:b/c@d/e?x=1&region=eu", "s3://***@d/e?x=***&region=eu"),
    ],
)
def test_a_line_steers_no_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean(text) == shown
    say(text)
    assert capsys.readouterr().out == shown + "\n"
    if len(text) < 100:
        build_console().print(text)
        assert capsys.readouterr().out == shown + "\n"


def _shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("python", sys.executable, 1)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("python -m study.run --list >&-", 0, ""),
        ("python -m study.run --list >&- 2>&- <&-", 0, ""),
        ("python -m study.run --list >/dev/full", KNOWN_ERROR, "No space left"),
        ("python -m study.run --help >/dev/full", KNOWN_ERROR, "No space left"),
        ("python -m study.run --gridd 2>&-", USAGE, ""),
        ("python -m study.run --gridd 2>/dev/full", USAGE, ""),
        ("python -m study.run --list | true; exit ${PIPESTATUS[0]}", KNOWN_ERROR, "output"),
    ],
)
def test_streams_that_are_closed_or_full_are_survived(command: str, code: int, words: str) -> None:
    run = _shell(command)
    assert run.returncode == code, run.stderr
    assert words in run.stderr
    assert run.stderr.count("\n") == (1 if words else 0)


def test_names_are_printed_in_any_locale() -> None:
    for locale in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        code = "from brainseg.cli import *; run_command(lambda: say('caf\\xe9 \\u8133') or 0)"
        run = _shell(f'python -c "{code}"', **locale)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("caf")


def test_a_damaged_image_makes_opencv_print_nothing() -> None:
    code = (
        "import brainseg, cv2, numpy as np; raw = cv2.imencode('.png', np.eye(64) * 255)[1];"
        "cv2.imdecode(raw[:90], -1); cv2.imread('nowhere.png'); print(cv2.__version__)"
    )
    run = _shell(f'python -c "{code}"')
    assert run.stderr == ""
    loud = _shell(f'python -c "{code}"', OPENCV_LOG_LEVEL="WARNING")
    assert "nowhere.png" in loud.stderr, "otherwise this test cannot fail"


def test_a_wrong_key_is_told_without_loading_torch() -> None:
    code = (
        "import sys; from study.run import main;"
        "code = main(['--grid', 'lite', '--set', 'data.sise=64']);"
        "print(code, {'torch', 'ray', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    run = _shell(f'python -c "{code}"')
    assert run.stdout == f"{USAGE} set()\n"
    assert "did you mean data.size" in run.stderr


def _plan(phantom_root: Path, *flags: str) -> list[str]:
    none = "model.encoder_weights=none"
    return ["study.run", "--grid", "lite", "--data", str(phantom_root), "--set", none, *flags]


def _other_weights(here: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.ones(2)}, here / "w.safetensors")


REFUSED = [
    ("storage is a file", ["--storage", "{here}/file"], USAGE, "is no folder"),
    ("storage below a file", ["--storage", "{here}/file/x"], USAGE, "is no folder"),
    ("storage in /proc", ["--storage", "/proc/nowhere"], KNOWN_ERROR, "/proc/nowhere"),
    ("name is a file", ["--storage", "{here}", "--name", "file"], USAGE, "is no folder"),
    ("name with a slash", ["--name", "a/b"], USAGE, "--name"),
    ("name is dots", ["--name", ".."], USAGE, "--name"),
    ("name with a control", ["--name", "a\x1b[2J/b"], USAGE, "a\\x1b[2J/b"),
    (
        "weights of another encoder",
        ["--set", "model.encoder_weights={here}/w.safetensors"],
        KNOWN_ERROR,
        "does not hold the weights",
    ),
    ("a disk that is full", [], KNOWN_ERROR, "make room"),
]


@pytest.mark.parametrize("plan", [True, False], ids=["plan", "run"])
@pytest.mark.parametrize(("name", "flags", "code", "words"), REFUSED, ids=lambda v: str(v)[:30])
def test_a_plan_refuses_what_the_run_refuses(
    name: str,
    flags: Sequence[str],
    code: int,
    words: str,
    plan: bool,
    phantom_root: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "disk" in name:
        if not plan:
            pytest.skip("the run's check is tested with Ray, in test_pipeline")
        full = type("Usage", (), {"free": 0})
        monkeypatch.setattr("shutil.disk_usage", lambda path: full)

    def prepare(here: Path) -> None:
        (here / "file").touch()
        if "weights" in name:
            _other_weights(here)

    argv = _plan(phantom_root, *flags, *(["--plan"] if plan else []))
    assert_answered(Case(name, argv, code, [words], prepare), tmp_path, capfd, monkeypatch)


@pytest.mark.parametrize(
    "address",
    ["x:99999", "x:0", "x:-1", "x:²", ":1", "[::1", "ray://head:10001", "a b:1", "u@h:1", "x", ""],
)
def test_an_address_that_is_none_is_told_without_ray(
    address: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["study.run", "--grid", "lite", f"--address={address}"]
    case = Case(address, argv, USAGE, ["neither HOST:PORT of the head node nor auto"], seconds=2)
    assert_answered(case, tmp_path, capfd, monkeypatch)


@pytest.mark.parametrize("kind", ["a file", "below a file", "/proc"])
def test_a_cache_that_cannot_be_made_is_named(
    kind: str,
    phantom_root: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    places = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x"}
    cache = str(places.get(kind, Path("/proc/nowhere")))
    case = Case(
        kind,
        _plan(phantom_root, "--plan"),
        KNOWN_ERROR,
        [cache, "set BRAINSEG_CACHE"],
        environment={"BRAINSEG_CACHE": cache},
    )
    assert_answered(case, tmp_path, capfd, monkeypatch)


@pytest.mark.parametrize("command", ["brainseg.predict", "brainseg.demo.__main__"])
@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99", "\x1b[2J", "cpu:x"])
def test_a_device_that_cannot_be_used_is_a_sentence(
    command: str,
    device: str,
    model_file: Path,
    patient: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rest = [str(patient), "--out", "out"] if command == "brainseg.predict" else []
    argv = [command, str(model_file), *rest, "--device", device]
    case = Case(device, argv, USAGE, ["cannot be used here"])
    assert_answered(case, tmp_path, capfd, monkeypatch)
