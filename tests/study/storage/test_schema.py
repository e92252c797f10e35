"""The schema of the CSV files, and the page of the documentation that is made of it."""

from __future__ import annotations

import csv
import os
import re
import time
from pathlib import Path

import pytest

from brainseg.errors import DataError
from brainseg.storage import files
from study.storage.schema import (
    SCORE_TABLE,
    SLICES,
    STUDY_TABLES,
    TABLES,
    Table,
    describe_tables,
    read_table,
)

PAGE = Path(__file__).parents[3] / "docs" / "report.md"


def test_the_documentation_describes_every_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, mark, rest = text.partition("<!-- tables -->\n")
    _, end, tail = rest.partition("<!-- /tables -->")
    expected = f"{head}{mark}\n{describe_tables()}{end}{tail}"
    if os.environ.get("BRAINSEG_WRITE_TABLES"):
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected, "run: make tables"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_a_table_names_each_column_once_and_says_what_it_is(table: Table) -> None:
    assert len(set(table.names)) == len(table.names)
    assert set(table.key) <= set(table.names)
    for column in table.columns:
        assert column.meaning
        assert "|" not in f"{column.meaning}{column}{column.empty}"


def test_every_table_that_a_study_has_is_in_the_schema(generated: Path) -> None:
    found = {path.name for path in generated.glob("*.csv")}
    assert found == {table.file for table in (*STUDY_TABLES.values(), SCORE_TABLE)}
    for table in STUDY_TABLES.values():
        with (generated / table.file).open(newline="", encoding="utf-8") as file:
            assert tuple(next(csv.reader(file))) == table.names_in([])


def test_columns_in_millimetres_are_there_only_if_a_row_has_one() -> None:
    in_mm = ("hd95_mm", "hd95_worst_mm", "nsd_mm")
    assert not set(in_mm) & set(SLICES.names_in([{"hd95": "1.5", "hd95_mm": ""}]))
    assert SLICES.names_in([{}, {"hd95_mm": 0.5}])[-1:] == in_mm[:1]
    assert SLICES.names_in([dict.fromkeys(in_mm, 0.0)]) == SLICES.names
    assert SLICES.names[-3:] == in_mm


def test_a_large_table_is_read_in_seconds(tmp_path: Path) -> None:
    head = ",".join(SLICES.names_in([]))
    rows = (
        f"v{n % 4},{n % 10},{n % 3},P{n // 36},S{n},3,1,1,65531,0.75,,,,4," for n in range(100_000)
    )
    (tmp_path / "slices.csv").write_text("\n".join([head, *rows, ""]))
    start = time.process_time()
    assert len(read_table(tmp_path / "slices.csv", SLICES)) == 100_000
    assert time.process_time() - start < 10  # 1 s on a quiet machine


def test_a_table_of_several_faults_names_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "slices.csv"
    rows = [f"v,0,1,P,S{n},3,1,1,11,{score},,,,4," for n, score in enumerate(("0.75", "2", "3"))]
    path.write_text("\n".join([",".join(SLICES.names_in([])), *rows, ""]))
    with pytest.raises(ValueError, match=re.escape("line 3, column Dice: found '2'")):
        read_table(path, SLICES)


def test_a_large_studys_slices_are_read_and_a_table_without_end_is_not(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small / SLICES.file
    row = path.read_bytes().splitlines(keepends=True)[1]
    assert (
        1_000 * 50 * 2 * 30 * len(row) < files.LARGEST_TABLE
    )  # patients, variants, seeds, slices
    monkeypatch.setattr(files, "_LARGEST", 100)
    assert read_table(path, SLICES)
    monkeypatch.setattr("study.storage.schema.LARGEST_TABLE", 100)
    with pytest.raises(DataError, match="at most 0 are read"):
        read_table(path, SLICES)
