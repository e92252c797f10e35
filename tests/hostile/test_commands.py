"""How every command ends: whatever is typed, raised or closed, the user reads one line."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hostile_cases import Answer, Case

from brainseg.cli import FAULT, KNOWN_ERROR, STOPPED, USAGE, clean, run_command, say
from brainseg.errors import DataError
from study.cli import build_console, build_parser

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"

COMMANDS = {
    "study.run": ["--grid", "lite", "--search", "4", "--data", "no-data", "--plan"],
    "study.fetch": ["file://{here}/no-study", "out"],
    "study.compare": ["no-study", "no-other-study"],
    "brainseg.predict": ["no-model", "no-slices", "--out", "out"],
    "brainseg.explore.__main__": ["--data", "no-data"],
    "brainseg.export": ["no-model", "--onnx"],
    "brainseg.demo.__main__": ["no-model"],
    "brainseg.check": ["./no-network.py:build"],
}
"""A command -> arguments with which it says that the first `no-...` of them is not there."""

VALUES = {
    "empty": "",
    "a space": " ",
    "this folder": ".",
    "a colour": "\x1b[31mred",
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
    "missing YAML": "no-file.yaml",
    "missing YAML of no user": "~nobody-of-that-name/x.yaml",
    "missing code": "./no-code.py:find",
}
"""What is typed: no number, pair, option or sound URL, and no path of what can be read."""


def _is_no_path(value: str) -> bool:
    """Nothing can have this path, on any disk."""
    is_long = max(map(len, os.fsencode(value).split(b"/"))) > 255
    return value == "" or "://" in value or value.startswith("~nobody") or is_long


def _is_no_new_folder(value: str) -> bool:
    # The folder in which the command runs holds a pipe.
    return _is_no_path(value) or value in ("/dev/null", "{here}/pipe", ".")


def _always(value: str) -> bool:
    return True


REFUSED_BY_KIND: dict[str, Callable[[str], bool]] = {
    # The type of an action, by its name or by what it returns.
    "int": _always,
    "float": _always,
    "local_path": _is_no_path,
    "location": _is_no_path,
    "store_url": _always,
    "result_folder": _is_no_new_folder,
    "result_file": _is_no_new_folder,
    # The name of the study is added to it.
    "result_location": lambda value: _is_no_new_folder(value) and value != ".",
    "_study_name": lambda value: not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,59}", value, re.ASCII),
    "_host": lambda value: not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,252}", value, re.ASCII),
    "_network": lambda value: ".py:" not in value,
    "_prediction": _always,
    "_address": _always,
    # What a metavar says of an action without a type.
    "KEY=VALUE": _always,
    "DEVICE": _always,
    "FILE.py:FUNCTION": lambda value: ".py:" not in value,
    "NAME|FILE": lambda value: not ("/" in value or ".yaml" in value) or _is_no_path(value),
    "WAY|FILE": lambda value: ".yaml" not in value or _is_no_path(value),
}
"""A kind of flag -> whether a value is refused, whatever lies on the disk."""

OTHER_MACHINES = ("--host",)
"""Flags whose values are refused besides without a password."""
READ_FIRST = ("YAML", "NAME|FILE", "WAY|FILE", "FILE.py:FUNCTION")
"""Metavars of what is read before data, models and studies are looked for."""


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


def _kind(action: argparse.Action) -> str:
    """The kind of a flag; one that no rule is written for is a KeyError of `REFUSED_BY_KIND`."""
    if action.type is None:
        return str(action.metavar)
    returned = typing.get_type_hints(action.type).get("return")
    return str(getattr(returned if returned in (int, float) else action.type, "__name__", ""))


def _is_refused(action: argparse.Action, value: str) -> bool:
    if action.choices is not None:
        return value not in action.choices
    if _flag(action) in OTHER_MACHINES:
        return True
    return REFUSED_BY_KIND[_kind(action)](value)


def _flag(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def _split(module: str) -> tuple[list[str], list[str]]:
    """The arguments of a command: those without a flag in front, and the rest."""
    arguments = COMMANDS[module]
    count = next((n for n, text in enumerate(arguments) if text[:2] == "--"), len(arguments))
    return arguments[:count], arguments[count:]


def _typed(module: str, action: argparse.Action, value: str) -> list[str]:
    """Return a command line in which a flag or argument has a value."""
    places, flags = _split(module)
    if action.option_strings:
        return [module, *places, *flags, f"{action.option_strings[0]}={value}"]
    names = [one.dest for one in _flags(module) if not one.option_strings]
    places[names.index(action.dest)] = value
    return [module, *flags, "--", *places]


def _missing(module: str, action: argparse.Action, value: str) -> str:
    """Return what the command says is not there, if the value is accepted."""
    first = next(text for text in COMMANDS[module] if "no-" in text)
    places, flags = _split(module)
    if action.option_strings:
        replaced = dict(itertools.pairwise(flags)).get(action.option_strings[0])
    else:
        names = [one.dest for one in _flags(module) if not one.option_strings]
        replaced = places[names.index(action.dest)]
    if replaced == first or action.metavar in READ_FIRST:
        return clean(value).removeprefix("{here}").removeprefix("./").removesuffix(":find")
    return first.removeprefix("file://{here}/").removeprefix("./").removesuffix(":build")


def _typed_rows() -> Iterator[Case]:
    for module in COMMANDS:
        for action in _flags(module):
            for name, value in VALUES.items():
                is_refused = _is_refused(action, value)
                yield Case(
                    f"{module} {_flag(action)}: {name}",
                    _typed(module, action, value),
                    USAGE if is_refused else KNOWN_ERROR,
                    [_flag(action) if is_refused else _missing(module, action, value)],
                    prepare=lambda here: os.mkfifo(here / "pipe"),
                    secrets=(SECRET, "\nerror: forged"),
                )


def test_the_rows_are_many_and_of_both_codes() -> None:
    rows = list(_typed_rows())
    assert len(rows) > 1_000
    for module in COMMANDS:
        own = [row for row in rows if row.argv[0] == module]
        assert {row.exit for row in own} == {KNOWN_ERROR, USAGE}, module


@pytest.mark.slow
@pytest.mark.parametrize("case", list(_typed_rows()), ids=lambda case: case.name)
def test_any_value_of_any_flag_is_answered(case: Case, answer: Answer) -> None:
    answer(case)


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


@pytest.mark.parametrize(("work", "words"), [(_nested, "nested"), (_encoded, "is not UTF-8")])
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
    ("storage is a file", ["--storage", "{here}/file"], USAGE, "is not a folder"),
    ("storage below a file", ["--storage", "{here}/file/x"], USAGE, "is not a folder"),
    ("storage in /proc", ["--storage", "/proc/nowhere"], KNOWN_ERROR, "/proc/nowhere"),
    ("name is a file", ["--storage", "{here}", "--name", "file"], USAGE, "is not a folder"),
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
    (
        "code that is missing",
        ["--set", "model.architecture={here}/none.py:build"],
        KNOWN_ERROR,
        "none.py is not a file",
    ),
    (
        "code without the function",
        ["--set", "model.architecture={here}/code.py:build"],
        USAGE,
        "no attribute 'build'",
    ),
    (
        "a network that is unknown",
        ["--set", "model.architecture=unett"],
        USAGE,
        "model.architecture is unett, which is unknown; did you mean unet?",
    ),
    (
        "a split that is missing",
        ["--set", "data.split={here}/none.yaml"],
        KNOWN_ERROR,
        "none.yaml: No such file",
    ),
    ("a grid whose scores are missing", ["--grid", "{here}/grid.yaml"], KNOWN_ERROR, "none.yaml"),
    ("a grid of unknown keys", ["--grid", "{here}/other.yaml"], USAGE, "unknown key data.sise"),
    (
        "weights that are missing",
        ["--set", "model.encoder_weights=none.safetensors"],
        KNOWN_ERROR,
        "model.encoder_weights is {here}/none.safetensors, which is not a file",
    ),
    (
        "weights at no URL",
        ["--set", "model.encoder_weights=s3://[x/w.safetensors"],
        USAGE,
        "s3://[x/w.safetensors cannot be opened",
    ),
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
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
) -> None:
    if "disk" in name:
        if not plan:
            pytest.skip("the run's check is tested with Ray, in test_pipeline")
        full = type("Usage", (), {"free": 0})
        monkeypatch.setattr("shutil.disk_usage", lambda path: full)

    def prepare(here: Path) -> None:
        (here / "file").touch()
        (here / "code.py").touch()
        text = "description: x\nvariants: {a: {threshold: 0.4}}\n"
        (here / "grid.yaml").write_text(f"{text}published: none.yaml\n")
        (here / "other.yaml").write_text(text.replace("threshold", "data.sise"))
        if name == "weights of another encoder":
            _other_weights(here)

    argv = _plan(phantom_root, *flags, *(["--plan"] if plan else []))
    answer(Case(name, argv, code, [words.replace("{here}", str(tmp_path / "here"))], prepare))


@pytest.mark.parametrize(
    "address",
    ["x:99999", "x:0", "x:-1", "x:²", ":1", "[::1", "ray://head:10001", "a b:1", "u@h:1", "x", ""],
)
def test_an_address_that_is_none_is_told_without_ray(address: str, answer: Answer) -> None:
    argv = ["study.run", "--grid", "lite", f"--address={address}"]
    words = ["--address", "neither HOST:PORT of the head node nor auto"]
    case = Case(address, argv, USAGE, words, seconds=2)
    answer(case)


@pytest.mark.parametrize("kind", ["a file", "below a file", "/proc"])
def test_a_cache_that_cannot_be_made_is_named(
    kind: str, phantom_root: Path, tmp_path: Path, answer: Answer
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
    answer(case)


@pytest.mark.parametrize("command", ["brainseg.predict", "brainseg.demo.__main__"])
@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99", "\x1b[2J", "cpu:x"])
def test_a_device_that_cannot_be_used_is_a_sentence(
    command: str, device: str, model_file: Path, patient: Path, answer: Answer
) -> None:
    rest = [str(patient), "--out", "out"] if command == "brainseg.predict" else []
    argv = [command, str(model_file), *rest, "--device", device]
    case = Case(device, argv, USAGE, ["--device", "cannot be used here"])
    answer(case)
