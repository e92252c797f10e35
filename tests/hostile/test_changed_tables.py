"""Every table of a study, changed or cut in every column: one sentence, naming file and place.

The cases are made of the schema, so that a new table or column is met here by being there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated import generate_study
from hostile_cases import Answer, Case, assert_answered
from s3 import Store

from brainseg.cli import KNOWN_ERROR
from brainseg.data.phantom import generate_phantom
from brainseg.errors import BrainsegError, DataError
from brainseg.storage.files import read_json, write_csv
from study.storage.probability_maps import load_probabilities
from study.storage.schema import (
    CANDIDATES,
    EXTERNAL_TABLES,
    STUDY_TABLES,
    TABLES,
    Column,
    Row,
    Table,
)
from study.storage.schema import read_table as read
from study.storage.study_folder import read_spec, read_split, read_study
from study.storage.tables import collect, read_tables
from study.storage.trial_folder import TrialFolder, candidate_folder, read_params

pytestmark = pytest.mark.slow  # thousands of cases

EVERY = [*TABLES, *(replace(t, file=f"external/NAME/{t.file}") for t in EXTERNAL_TABLES.values())]
FOLDER, PIPE, HUGE = "folder", "pipe", "huge"


def _cell(table: Table, column: Column, line: int) -> str:
    """Return a cell that is allowed, and differs from line to line in the columns of the key."""
    if column.name in ("TP", "FP", "FN", "TN", "Dice"):
        return {"TP": "3", "Dice": "0.75"}.get(column.name, "1")
    if column.options:
        return column.options[0]
    if column.kind == "text":
        return f"text {line}"
    if column.kind == "name":
        return f"name-{line}"
    lowest = max(column.low, 0)
    if column.kind == "whole":
        return str(int(lowest) + line)
    return f"{lowest + line / 8}"


def _rows(table: Table) -> list[dict[str, str]]:
    """Return three rows that are allowed."""
    return [{c.name: _cell(table, c, n) for c in table.columns} for n in range(3)]


def _write(path: Path, table: Table) -> list[str]:
    """Write a table of three rows; return its lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, _rows(table), table.names)
    return path.read_text().splitlines(keepends=True)


def _wrong_cells(column: Column) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the cell."""
    if not column.empty:
        yield "nothing", ""
    if column.options:
        yield "none of the options", "Finished "
    elif column.kind == "name":
        yield from {
            "a path": "../up",
            "hidden": ".x",
            "a space": "a b",
            "control": "a\x1b[1m",
        }.items()
    elif column.kind in ("whole", "number"):
        yield from {"text": "many", "NaN": "nan", "infinite": "inf", "huge": "1e999"}.items()
        yield from {
            "a formula": "=1+1",
            "a space": " 1",
            "other digits": "\uff11",
            "_": "1_0",
        }.items()
        yield "a decimal comma", "0,5"
        if column.kind == "whole":
            yield from {
                "a fraction": "0.5",
                "a zero before it": "01",
                "endless": "9" * 5000,
            }.items()
        if column.low > -float("inf"):
            yield "too low", str(int(column.low) - 1)
        if column.high < float("inf"):
            yield "too high", str(int(column.high) + 6)


CELLS = [
    pytest.param(table, column, cell, id=f"{table.file}-{column.name}-{what}")
    for table in EVERY
    for column in table.columns
    for what, cell in _wrong_cells(column)
]


@pytest.mark.parametrize(("table", "column", "cell"), CELLS)
def test_a_cell_that_cannot_be_is_named(
    table: Table, column: Column, cell: str, tmp_path: Path
) -> None:
    path = tmp_path / Path(table.file).name
    rows = _rows(table)
    rows[1][column.name] = cell
    write_csv(path, rows, table.names)
    said = _refused(path, table)
    assert f"{path}, line 3, column {column.name}: found " in said
    assert f"; expected {column}" in said


def test_the_cases_are_many() -> None:
    assert len(CELLS) > 500


@pytest.mark.parametrize("table", EVERY, ids=lambda table: table.file)
def test_what_the_writer_writes_is_read(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = _write(path, table)
    rows = read(path, table)
    assert [list(row) for row in rows] == [list(table.names)] * 3
    text = "".join(lines)
    # As spreadsheets write it.
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read(path, table) == rows
    assert read(tmp_path / "none.csv", table) == []
    path.write_text(lines[0])
    assert read(path, table) == []


COLUMNS = [
    pytest.param(table, column, id=f"{table.file}-{column.name}")
    for table in EVERY
    for column in table.columns
]


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_is_there_once(table: Table, column: Column, tmp_path: Path) -> None:
    path, rows = tmp_path / "table.csv", _rows(table)
    if column.is_needed:
        write_csv(path, rows, [name for name in table.names if name != column.name])
        assert f"{path}, line 1: no column {column.name}" in _refused(path, table)
    write_csv(path, rows, [*table.names, column.name])
    assert f"{path}, line 1: two columns are named {column.name!r}" in _refused(path, table)


Damage = Callable[[Path, list[str]], object]


def _put(text: str | bytes) -> Damage:
    content = text.encode() if isinstance(text, str) else text
    return lambda path, lines: path.write_bytes(content)


def _replace_by(kind: str) -> Damage:
    def damage(path: Path, lines: list[str]) -> None:
        path.unlink()
        if kind == FOLDER:
            path.mkdir()
        elif kind == PIPE:
            os.mkfifo(path)
        else:
            with path.open("wb") as file:
                file.truncate(2**40)  # a hole: nothing is on the disk

    return damage


FILES: dict[str, tuple[Damage, str]] = {
    "empty": (_put(""), "is empty"),
    "without a header": (lambda p, lines: p.write_text("".join(lines[1:])), "line 1: "),
    "a row too short": (lambda p, li: p.write_text("".join(li) + "x\n"), "line 5: 1 cells"),
    "a row too long": (
        lambda p, li: p.write_text("".join(li[:3]) + li[3].strip() + ",1,2\n"),
        "line 4: ",
    ),
    "cut in its last line": (
        lambda p, li: p.write_text("".join(li).rstrip("\n")),
        "line 4: the line does not end",
    ),
    "a row twice": (lambda p, li: p.write_text("".join([*li, li[2]])), "line 5: the same "),
    "its header twice": (lambda p, li: p.write_text("".join([*li, li[0]])), "line "),
    "an open quote": (lambda p, li: p.write_text("".join(li) + '"' + li[1]), "line "),
    "a zero byte": (lambda p, li: p.write_bytes("".join(li).encode() + b"\0\n"), "line 5: the by"),
    "zeros alone": (_put(bytes(512)), "line 1: the byte 0x00"),
    "Latin-1": (lambda p, li: p.write_bytes(li[0].encode() + b"\xe4,\n"), "line 2: the byte 0xe4"),
    "UTF-16": (lambda p, li: p.write_bytes("".join(li).encode("utf-16")), "line 1: the byte 0x"),
    "a page of a server": (_put("<html><body>404</body></html>\n"), "line 1: no column "),
    "semicolons": (lambda p, li: p.write_text("".join(li).replace(",", ";")), "line 1: no column"),
    "a folder": (_replace_by(FOLDER), "is a folder; expected a file"),
    "a pipe": (_replace_by(PIPE), "is a pipe, socket or device; expected a file"),
    "a terabyte": (_replace_by(HUGE), "at most 1,074 are read"),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("table", EVERY, ids=lambda table: table.file)
def test_a_file_that_is_no_table_is_named(table: Table, what: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    damage, said = FILES[what]
    damage(path, _write(path, table))
    found = _refused(path, table)
    assert str(path) in found
    assert said in found


def _refused(path: Path, table: Table) -> str:
    with pytest.raises(DataError) as error:
        read(path, table)
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 1500
    return said


def test_a_score_of_other_counts_is_named(tmp_path: Path) -> None:
    for table in EVERY:
        if {"TP", "Dice"} <= set(table.names):
            lines = _write(tmp_path / "table.csv", table)
            text = "".join(lines).replace(",0.75", ",0.76", 1)
            (tmp_path / "table.csv").write_text(text)
            said = _refused(tmp_path / "table.csv", table)
            assert "line 2, column Dice: found 0.76; expected 0.750000" in said


def test_a_finished_trial_has_its_results(tmp_path: Path) -> None:
    for table in (STUDY_TABLES["trials"], CANDIDATES):
        results = [column.name for column in table.columns if column.is_result]
        assert results
        for name in results:
            write_csv(tmp_path / "table.csv", [_rows(table)[0] | {name: ""}], table.names)
            said = _refused(tmp_path / "table.csv", table)
            assert f"line 2, column {name}: found an empty cell" in said


RECORDS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1: no JSON"),
    "cut": (b'{\n "name": "s', "line 2: no JSON"),
    "zeros": (bytes(300), "line 1: the byte 0x00"),
    "Latin-1": (b'{"name":\n"\xe4"}', "line 2: the byte 0xe4"),
    "a list": (b"[]", "holds a list; expected an object"),
    "a number": (b"7", "holds 7; expected an object"),
    "NaN": (b'{"folds": NaN}', "NaN is not a finite number"),
    "infinite": (b'{"folds": 1e999}', "1e999 is not a finite number"),
    "a key twice": (b'{"folds": 1, "folds": 2}', "the key 'folds' is there twice"),
    "nested": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "endless": (b'{"folds": ' + b"9" * 10_000 + b"}", "digits"),
    "half a character": (b'{"name": "\\ud800"}', "is not Unicode"),
    "two": (b"{} {}", "line 1: no JSON"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_file_that_is_no_record_is_named(what: str, tmp_path: Path) -> None:
    content, said = RECORDS[what]
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", [FOLDER, PIPE, HUGE])
def test_a_record_that_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("{}")
    _replace_by(kind)(path, [])
    with pytest.raises(DataError, match=r"record\.json"):
        read_json(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that no test changes."""
    return generate_study(tmp_path_factory.mktemp("tables") / "small", grid="lite", failed=(3,))


@pytest.fixture
def study(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "small"))


def _keys(record: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Yield the path of every value of a record."""
    if path:
        yield path
    if isinstance(record, dict):
        for key in record:
            yield from _keys(record[key], (*path, key))
    elif isinstance(record, list) and record:
        yield from _keys(record[0], (*path, 0))


@pytest.mark.parametrize("value", [None, -5, "many", [1], {"a": 1}, 1e300], ids=repr)
def test_a_changed_study_json_is_refused_or_reads_as_text_and_numbers(
    study: Path, value: object
) -> None:
    """Whatever becomes of a value, the answer is a sentence or a record that a report can use."""
    whole = json.loads((study / "study.json").read_text())
    refused = 0
    for keys in _keys(whole):
        changed = json.loads(json.dumps(whole))
        place = changed
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (study / "study.json").write_text(json.dumps(changed))
        try:
            about = read_study(study)
        except BrainsegError as error:
            refused += 1
            assert str(error).startswith(f"{study}/study.json, ")
            assert str(error).isprintable()
        else:
            assert all(f"{about[k]:,}" for k in ("patients", "slices", "tumour_slices"))
            assert {*about} == {*read_study(study)}
    assert refused > 40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patients": None}, "split.json, patients"),
        ({"rotations": [{"rotation": 0}]}, "split.json, rotations.0.train: the key is missing"),
        ({"rotations": 3}, "split.json, rotations: found 3"),
        ({"search": [{"rotation": -1, "train": [], "val": [], "test": []}]}, "search.0.rotation"),
    ],
)
def test_a_changed_split_is_named(study: Path, change: Row, said: str) -> None:
    record = json.loads((study / "split.json").read_text())
    (study / "split.json").write_text(json.dumps(record | change))
    with pytest.raises(DataError, match=re.escape(said)):
        read_split(study)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "done"}, "status: found 'done'"),
        ({"seed": "44"}, "seed: found '44'"),
        ({"val_loss": "low"}, "val_loss: found 'low'"),
        ({"val_loss": None}, "a finished trial has val_loss"),
        ({"epochs": -1}, "epochs: found -1"),
        ({"seconds": -1.0}, "seconds: found -1.0"),
        ({"error": None}, "error: found None"),
    ],
)
def test_a_changed_result_is_named_and_a_cut_one_is_none(
    study: Path, change: Row, said: str
) -> None:
    path = study / "trials" / "raw-lite0-fold0-seed44" / "result.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | change))
    with pytest.raises(DataError, match=re.escape(f"{path}, ")) as error:
        TrialFolder(path.parent).read()
    assert said in str(error.value)
    path.write_text(json.dumps(record)[:-9])
    assert TrialFolder(path.parent).read() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "variant: the key is missing"),
        ("[]", "holds a list"),
        ('{"variant": 3}', "variant: found 3"),
        ('{"variant": "raw", "optimizer.batch_size": {}}', "optimizer.batch_size"),
        ('{"variant": "raw"', "no JSON"),
    ],
)
def test_changed_parameters_are_named(tmp_path: Path, text: str, said: str) -> None:
    folder = candidate_folder(tmp_path, 0)
    folder.write_params({"variant": "raw", "augment.strength": 0.5})
    assert read_params(tmp_path) == [{"variant": "raw", "augment.strength": 0.5}]
    (folder.path / "params.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read_params(tmp_path)
    assert str(folder.path / "params.json") in str(error.value)


def test_a_candidate_without_parameters_is_named(tmp_path: Path) -> None:
    for index in (0, 2):
        candidate_folder(tmp_path, index).write_params({"variant": "raw"})
    with pytest.raises(DataError, match=r"there is no .*0001/params\.json"):
        read_params(tmp_path)


MAPS: dict[str, tuple[Damage, str]] = {
    "empty": (_put(""), "is damaged (No data left in file)"),
    "no archive": (_put("PK, but no more"), "is damaged ("),
    "a pickle": (_put(b"\x80\x04N."), "is damaged ("),
    "another archive": (lambda path, _: np.savez(path.open("wb"), a=[1]), "test_levels"),
    "other lengths": (
        lambda path, _: np.savez(
            path.open("wb"),
            test_levels=np.zeros(4, np.uint8),
            test_shapes=[[2, 2]],
            test_true=np.zeros(1, np.uint8),
            test_slices=["a", "b"],
            test_patients=["a", "b"],
        ),
        "2 names of 1 slices",
    ),
    "a folder": (_replace_by(FOLDER), "is a folder; expected a file"),
    "a pipe": (_replace_by(PIPE), "is a pipe, socket or device"),
}


@pytest.mark.parametrize("what", MAPS)
def test_damaged_probabilities_are_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "probabilities.npz"
    path.touch()
    damage, said = MAPS[what]
    damage(path, [])
    with pytest.raises(DataError, match=re.escape(said)) as error:
        load_probabilities(path, "test")
    assert str(error.value).startswith(str(path))
    assert "remove the trial's folder" in str(error.value)


def _edit(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    def damage(study: Path) -> None:
        text = (study / name).read_text()
        found = re.sub(old, new, text, count=count, flags=re.MULTILINE)
        assert found != text
        (study / name).write_text(found)

    return damage


CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no trial": (_edit("trials.csv", r"^(raw|prep).*\n", "", 0), "trials.csv: no rows"),
    "a trial cut off": (
        _edit("trials.csv", r"^prepro.*\n\Z", ""),
        "trials.csv: no row for variant",
    ),
    "another variant": (_edit("trials.csv", "^raw-lite0", "mine"), "trials.csv: variant mine"),
    "another fold": (
        _edit("trials.csv", "^raw-lite0,0", "raw-lite0,7"),
        "variant raw-lite0, fold 7",
    ),
    "another seed": (
        _edit("trials.csv", "^raw-lite0,0,44", "raw-lite0,0,9"),
        "seed 9; study.json",
    ),
    "an external one": (
        _edit("trials.csv", "^(raw-lite0,0,44),finished", r"\1,external"),
        "has the status external",
    ),
    "scores of no trial": (
        _edit("scores.csv", "^raw-lite0,0,44", "raw-lite0,5,44"),
        "scores.csv: variant raw-lite0, fold 5, seed 44; trials.csv has no such finished trial",
    ),
    "a trial without scores": (
        _edit("scores.csv", r"^raw-lite0,0,44,.*\n", "", 0),
        "scores.csv: no rows of variant raw-lite0, fold 0, seed 44",
    ),
    "a patient without scores": (
        _edit("scores.csv", r"^raw-lite0,0,44,.*\n", ""),
        "scores.csv: no row of variant raw-lite0, fold 0, seed 44, patient 'TCGA",
    ),
    "another patient": (
        _edit("slices.csv", "^(raw-lite0,0,44),TCGA_[A-Z]*_0009", r"\1,Me"),
        "slices.csv: patient 'Me' is not in patients.csv",
    ),
    "counts of a patient": (
        _edit("scores.csv", r"^(raw-lite0,0,44,\w+),(\d+),(\d+),(\d+),(\d+)", r"\1,\2,\3,\4,1\5"),
        "scores.csv: variant raw-lite0, fold 0, seed 44, patient 'TCGA",
    ),
    "pixels of a slice": (
        _edit("slices.csv", r"^(raw-lite0,0,45,\w+,\w+,\d+,\d+,\d+),(\d+)", r"\1,1\2"),
        "pixels; expected 65536",
    ),
    "a slice cut off": (
        _edit("slices.csv", r"^raw-lite0,0,44,.*\n", ""),
        "the rows of slices.csv add up to",
    ),
    "a stage cut off": (
        _edit("stages.csv", r"^raw-lite0,0,44,flips,.*\n", ""),
        "stages.csv: 5 rows of variant raw-lite0, fold 0, seed 44, flips; expected 6",
    ),
    "a bin cut off": (
        _edit("calibration.csv", r"^raw-lite0,0,44,.*\n", ""),
        "calibration.csv: 19 rows of variant raw-lite0, fold 0, seed 44; expected 20",
    ),
    "an example of no trial": (
        _edit("examples.csv", "raw-lite0,0,44", "raw-lite0,0,43"),
        "examples.csv: variant raw-lite0, fold 0, seed 43 is not in trials.csv",
    ),
    "an ensemble of no trial": (
        _edit("ensemble.csv", "^raw-lite0,0", "raw-lite0,8"),
        "ensemble.csv: variant raw-lite0, fold 8, seed all is not in trials.csv",
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_tables_that_contradict_each_other_are_named(study: Path, what: str) -> None:
    assert read_tables(study)
    damage, said = CONTRADICTIONS[what]
    damage(study)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read_tables(study)
    assert str(error.value).startswith(str(study))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("table", ["scores", "slices", "stages", "calibration"])
def test_a_trials_own_table_is_read_by_the_same_rules(study: Path, table: str) -> None:
    """What a study that continues collects, before it writes its tables again."""
    before = (study / f"{table}.csv").read_bytes()
    jobs = read_spec(study).jobs()
    path = study / jobs[0].path / f"{table}.csv"
    path.write_text(path.read_text().replace(",0,44,", ",0,many,", 1))
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2, column seed: found 'many'")):
        collect(study, jobs)
    assert (study / f"{table}.csv").read_bytes() == before
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is a folder; expected a file"):
        collect(study, jobs)


def test_collecting_a_study_again_gives_the_same_bytes(study: Path) -> None:
    names = ("trials", "scores", "slices", "stages", "calibration")
    before = {name: (study / f"{name}.csv").read_bytes() for name in names}
    collect(study, read_spec(study).jobs())
    assert before == {name: (study / f"{name}.csv").read_bytes() for name in names}


def _become(name: str, what: str) -> Callable[[Path], None]:
    def damage(study: Path) -> None:
        FILES[what][0](study / f"{name}.csv", [])

    return damage


REPORT = ("study.run", "--grid", "lite", "--storage", "{here}", "--name", "small", "--report-only")
COMPARE = ("study.compare", "{here}/small", "{here}/other")
REPORTED: dict[str, tuple[Callable[[Path], object], str]] = {
    **CONTRADICTIONS,
    "a Dice of 7": (
        _edit("scores.csv", r"(,\d+,\d+,\d+,\d+),0\.\d+", r"\1,7"),
        "scores.csv, line 2, column Dice: found '7'; expected a number from 0 to 1",
    ),
    "a history of text": (
        _edit("trials/raw-lite0-fold0-seed44/history.csv", r"^1,1,1,[^,]*", "1,1,1,slow"),
        "raw-lite0-fold0-seed44/history.csv, line 2, column seconds: found 'slow'",
    ),
    "a cut study.json": (
        lambda study: (study / "study.json").write_text('{"name": "small"'),
        "study.json, line 1: no JSON",
    ),
    "study.json of another version": (
        lambda study: (study / "study.json").write_text('{"name": "small"}'),
        "study.json, grid: the key is missing",
    ),
    "a cut split.json": (
        lambda study: (study / "split.json").write_text("{"),
        "split.json, line 1: no JSON",
    ),
    "a picture outside": (
        _edit("examples.csv", "examples/raw-lite0/[^,]*$", "../secret.png"),
        "examples.csv, column picture: found '../secret.png', which is outside the study",
    ),
    **{
        f"{name}.csv is {what}": (_become(name, what), f"{name}.csv")
        for name in STUDY_TABLES
        for what in ("empty", "zeros alone", "a folder", "a pipe")
    },
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("argv", [REPORT, COMPARE], ids=["report", "compare"])
@pytest.mark.parametrize("what", REPORTED)
def test_a_report_ends_with_the_sentence(
    original: Path, argv: tuple[str, ...], what: str, answer: Answer
) -> None:
    damage, said = REPORTED[what]

    def prepare(here: Path) -> None:
        shutil.copytree(original, here / "small")
        if argv is COMPARE:
            shutil.copytree(original, here / "other")
        damage(here / "small")

    case = Case(what, argv, KNOWN_ERROR, (said,), prepare)
    answer(case)


EXPERIMENTS: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path, _: path.unlink(), "No such file or directory"),
    "cut": (_put("stages: [{epochs: 2"), "line 1: "),
    "of an unknown key": (_put("stage: []"), "unknown key stage"),
    "a pipe": (_replace_by(PIPE), "is a pipe"),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("what", EXPERIMENTS)
def test_a_trial_whose_experiment_was_changed_is_named(
    original: Path, what: str, answer: Answer
) -> None:
    damage, said = EXPERIMENTS[what]

    def prepare(here: Path) -> None:
        study = shutil.copytree(original, here / "small")
        _edit("study.json", '"patience": null', '"patience": 3')(study)
        damage(study / "trials" / "raw-lite0-fold0-seed44" / "experiment.yaml", [])

    named = ("trials/raw-lite0-fold0-seed44/experiment.yaml", said, "put the file back")
    answer(Case(what, REPORT, KNOWN_ERROR, named, prepare))


DATA_CSV = {
    "a row too short": ("Patient,a\nPHANTOM_A_0001\n", "data.csv, line 2: 1 cells; expected 2"),
    "a column twice": ("Patient,a,a\n1,2,3\n", "data.csv, line 1: two columns are named 'a'"),
    "an open quote": ('Patient,a\n1,"2\n', "data.csv, line 2: "),
    "empty": ("", "data.csv is empty"),
    "no patients": ("name,a\n1,2\n", "data.csv: no rows with a column Patient"),
    "a zero byte": ("Patient,a\n1,\0\n", "data.csv, line 2: the byte 0x00"),
}


@pytest.mark.parametrize("what", DATA_CSV)
def test_exploring_ends_with_the_sentence(what: str, answer: Answer) -> None:
    text, said = DATA_CSV[what]

    def prepare(here: Path) -> None:
        generate_phantom(here / "data", patients=12, slices=1, size=32)
        (here / "data" / "data.csv").write_text(text)

    argv = ("brainseg.explore.__main__", "--data", "{here}/data", "--out", "{here}/out")
    case = Case(what, argv, KNOWN_ERROR, (said,), prepare)
    answer(case)


MANIFESTS = {
    "a row too short": ("image,mask,patient\na.png\n", "manifest.csv, line 2: 1 cells"),
    "a column twice": ("image,image,mask,patient\n", "manifest.csv, line 1: two columns"),
    "a counted column": ("image,mask,patient,slices\n", "slices is counted here"),
    "Latin-1": ("image,mask,patient\n\udce4,b,c\n", "manifest.csv, line 2: the byte 0xe4"),
    "a formula": ("image,mask,patient\n=A1,b,c\n", "line 2: there is no file =A1"),
    "none": (None, "manifest.csv"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_changed_manifest_ends_with_the_sentence(what: str, answer: Answer) -> None:
    text, said = MANIFESTS[what]

    def prepare(here: Path) -> None:
        (here / "dataset.yaml").write_text("manifest: manifest.csv\nchannels: [a]\n")
        if text is not None:
            (here / "manifest.csv").write_text(text, errors="surrogateescape")

    argv = ("brainseg.explore.__main__", "--data", "{here}", "--check")
    case = Case(what, argv, KNOWN_ERROR, (said,), prepare)
    answer(case)


def test_formulas_stay_texts(study: Path) -> None:
    text = (study / "patients.csv").read_text()
    formula = '"=HYPERLINK(""http://x"")"'
    (study / "patients.csv").write_text(re.sub(r"_0001,\w*", f"_0001,{formula}", text))
    rows = read_tables(study)["patients"]
    assert rows[1]["site"] == '=HYPERLINK("http://x")'


@pytest.mark.usefixtures("undrawn", "machine")
def test_a_study_at_a_url_is_read_by_the_same_rules(
    study: Path,
    store: Store,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    REPORTED["a Dice of 7"][0](study)
    store.upload(study, f"{tmp_path.name}/small")
    argv = (*REPORT[:4], store.url(tmp_path.name), *REPORT[5:])
    (tmp_path / "run").mkdir()
    case = Case("at a URL", argv, KNOWN_ERROR, (REPORTED["a Dice of 7"][1],))
    assert_answered(case, tmp_path / "run", capfd, monkeypatch)
