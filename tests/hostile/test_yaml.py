"""YAML text that a configuration cannot be: one sentence that names the file and the line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_cases import Answer, Case

from brainseg.config import load_experiment, parse_changes
from brainseg.data.description import read_description
from brainseg.data.split import count_rotations
from brainseg.errors import BrainsegError, ConfigError, DataError
from brainseg.storage.values import MAX_BYTES, parse_yaml, read_yaml
from study.spec.grid import load_grid
from study.spec.search_space import parse_space

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{above}'] * 30)}]}}\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)

TEXTS: dict[str, tuple[str | bytes, str]] = {
    "twice": ("seed: 1\nfold: 2\nseed: 3", "line 3: the key seed is there twice"),
    "twice below": ("data:\n  size: 64\n  size: 96", "line 3: the key size is there twice"),
    "twice in flow": ("data: {size: 64, 'size': 96}", "line 1: the key size is there twice"),
    "bomb": (_BOMB, "more than 50,000 values"),
    "bomb of merges": (_MERGES, "more than 50,000 values"),
    "alias to itself": ("a: &a [*a]", "*a lies in what it stands for"),
    "alias to its mapping": ("a: &a {b: *a}", "*a lies in what it stands for"),
    "unknown alias": ("a: *b", "line 1: found undefined alias"),
    "anchor twice": ("a: &x 1\nb: &x 2", "line 2: second occurrence"),
    "deep lists": ("a: " + "[" * 10_000, "more than 20 deep"),
    "deep lists, closed": ("a: " + "[" * 10_000 + "]" * 10_000, "more than 20 deep"),
    "deep mappings": ("{a: " * 5_000 + "1" + "}" * 5_000, "more than 20 deep"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(900)), "more than 20 deep"),
    "deep dashes": ("- " * 5_000 + "x", "more than 20 deep"),
    "deep keys": ("? " * 5_000 + "x", "more than 20 deep"),
    "digits": ("seed: 1" + "0" * 5_000, "a number has 5,001 digits"),
    "digits of a float": ("seed: 1." + "0" * 5_000, "a number has 5,002 digits"),
    "digits in hexadecimal": ("seed: 0x" + "f" * 90_000, "digits"),
    "digits in binary": ("seed: 0b" + "1" * 90_000, "digits"),
    "digits in a key": ("1" + "0" * 5_000 + ": 1", "a number has 5,001 digits"),
    "octal without digits": ("seed: 0o", "seed is '0o'"),
    "hexadecimal without digits": ("seed: 0x_", "not YAML"),
    "many bytes": (b"#" + b"x" * MAX_BYTES, "more than 1,000,000 bytes"),
    "many values": ("a: [" + "1," * 300_000 + "]", "more than 50,000 values"),
    "not UTF-8": (b"seed: 1\ndata: \xff\xfe", "line 2 is not UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "is not UTF-8"),
    "bytes of a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8"),
    "NUL": (b"seed: 1\nfold: \0", "line 2 holds the control character U+0000"),
    "bell": (b"seed: \x07", "line 1 holds the control character U+0007"),
    "escaped NUL": ('data: {split: "a\\0.yaml"}', "the control character U+0000"),
    "escaped escape": ('data: {split: "\\e[31m.yaml"}', "the control character U+001B"),
    "escaped surrogate": ('data: {split: "\\ud800.yaml"}', "the control character U+D800"),
    "tab": ("data:\n\tsize: 64", "line 2: found character '\\t'"),
    "tag of Python": ("seed: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org"),
    "tag": ("data: !mine {size: 64}", "line 1: the tag !mine is not allowed"),
    "tag of YAML": ("seed: !!binary aGVsbG8=", "the tag tag:yaml.org,2002:binary"),
    "tag of a set": ("data: !!set {a, b}", "the tag tag:yaml.org,2002:set"),
    "unknown handle": ("seed: !e!x 1", "line 1: found undefined tag handle"),
    "date": ("seed: 2020-01-01", "line 1: 2020-01-01 is a date: write it in quotes"),
    "impossible date": ("seed: 2020-13-99", "is a date"),
    "time": ("seed: 2020-01-01 10:00:00", "is a date"),
    "equals sign": ("seed: =", "line 1"),
    "number as key": ("1: 2", "line 1: the key 1 is not a text: write it in quotes"),
    "null as key": ("null: 2", "the key null is not a text"),
    "true as key": ("on: 2", "the key on is not a text"),
    "date as key": ("2020-01-01: 2", "2020-01-01 is a date"),
    "list as key": ("? [a]\n: 2", "the key a list or mapping is not a text"),
    "mapping as key": ("{{a: 1}: 2}", "the key a list or mapping is not a text"),
    "two documents": ("seed: 1\n---\nseed: 2", "line 2: but found another document"),
    "open list": ("seed: [1, 2", "line 1: expected"),
    "open quote": ("seed: '1", "line 1: found unexpected end of stream"),
    "no space": ("seed: {a:1", "line 1"),
    "colon in value": ("seed: a: b", "line 1: mapping values are not allowed here"),
    "version": ("%YAML 9.9\n---\nseed: 1", "found incompatible YAML document"),
    "merge of a number": ("data:\n  <<: 3", "line 2: expected a mapping or list of mappings"),
    "reserved character": ("seed: @a", "line 1: found character '@'"),
    "percent": ("seed: %a", "line 1: found character '%'"),
    "backquote": ("seed: `a`", "line 1: found character '`'"),
    "unknown escape": ('seed: "\\q"', "line 1: found unknown escape character"),
}
"""Name -> text, and what is said of it; a configuration of one of these is refused."""

NO_MAPPINGS = {
    "nothing": "",
    "comments": "# nothing",
    "a list": "- 1",
    "a text": "hello",
    "a number": "3",
    "null": "null",
    "an empty list": "[]",
    "one document after none": "---\n---\n",
}


def _write(folder: Path, content: str | bytes, name: str = "file.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_configuration_is_answered_by_its_line(
    name: str, tmp_path: Path
) -> None:
    content, said = TEXTS[name]
    path = _write(tmp_path, content)
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert time.monotonic() - start < 10
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 300 + len(str(path))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", NO_MAPPINGS)
def test_a_text_without_keys_is_said_to_have_none(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, NO_MAPPINGS[name])
    with pytest.raises(ConfigError, match=r"holds no keys|another document"):
        load_experiment(path)
    with pytest.raises(ConfigError, match=r"holds no keys|another document"):
        load_grid(str(path))


READERS: dict[str, Callable[[Path], object]] = {
    "configuration": load_experiment,
    "grid": lambda path: load_grid(str(path)),
    "search space": lambda path: parse_space(path, str(path)),
    "split": lambda path: count_rotations(
        load_experiment(_write(path.parent, f"data: {{split: {path}}}", "c.yaml")).data, ()
    ),
    "description": lambda path: read_description(
        path.rename(path.with_name("dataset.yaml")).parent
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["twice", "bomb", "deep lists", "digits", "not UTF-8", "tag"])
def test_every_file_is_read_by_the_same_reader(name: str, reader: str, tmp_path: Path) -> None:
    content, said = TEXTS[name]
    with pytest.raises(BrainsegError) as error:
        READERS[reader](_write(tmp_path, content))
    assert said in str(error.value)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "is a folder; expected a file"),
        (_pipe, "is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, socket or device"),
        (lambda path: path.symlink_to(path), "cannot read"),
    ],
)
@pytest.mark.parametrize("reader", [name for name in READERS if name != "description"])
def test_only_files_are_opened(
    reader: str, make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "file.yaml")
    with pytest.raises(DataError, match=said):
        READERS[reader](tmp_path / "file.yaml")


@pytest.mark.parametrize("name", [n for n, (text, _) in TEXTS.items() if isinstance(text, str)])
def test_a_value_of_set_is_answered_by_its_key(name: str) -> None:
    text, said = TEXTS[name]
    assert isinstance(text, str)
    try:
        changes = parse_changes([f"data.channels={text}"])
    except ConfigError as error:
        assert "--set data.channels" in str(error)
        assert len(str(error)) < 300
    else:
        assert said.startswith("seed is")
        assert changes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1}\nb: {<<: *x, m: 2}", {"a": {"k": 1}, "b": {"k": 1, "m": 2}}),
        ("a: &x {k: 1}\nb: {<<: *x, k: 2}", {"a": {"k": 1}, "b": {"k": 2}}),
        ('{"train": ["a"], "k": [1.5, null, true]}', {"train": ["a"], "k": [1.5, None, True]}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1e-3", {"a": "1e-3"}),  # YAML 1.1; a number's key takes it
        ("", None),
        ("a: '2020-01-01'", {"a": "2020-01-01"}),
        ("---\na: 1\n...\n", {"a": 1}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_what_a_configuration_needs_is_read(text: str, value: object, tmp_path: Path) -> None:
    assert parse_yaml(text, "here") == value
    assert read_yaml(_write(tmp_path, text)) == value


SEARCH = {"--space": ("--grid", "lite", "--search", "2")}
COMMANDS = [
    Case(
        name=f"{flag} {name}",
        argv=["study.run", *SEARCH.get(flag, ()), flag, "{here}/file.yaml", "--plan"],
        exit=2,
        names=["file.yaml", TEXTS[name][1]],
        prepare=lambda folder, name=name: _write(folder, TEXTS[name][0]),  # type: ignore[misc]
    )
    for flag in ("--config", "--grid", "--space")
    for name in ("twice", "bomb", "deep lists", "digits", "not UTF-8", "tab", "two documents")
]


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.name)
def test_a_command_answers(case: Case, answer: Answer) -> None:
    answer(case)
