"""Every CSV file of a study: its columns, their units, ranges and meanings, written down once.

Writers take the order of the columns from here, `read_table` checks what it reads by it, and the
section on files in docs/report.md is made of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brainseg.config import NUM_FOLDS
from brainseg.errors import DataError
from brainseg.metrics import COUNT_NAMES, dice
from brainseg.storage.files import LARGEST_TABLE, read_cells
from study.spec.study_spec import SCORE

Row = dict[str, Any]
"""Column -> value of one line of a CSV file."""

FINISHED, STOPPED, UNFINISHED = "finished", "stopped", "unfinished"
EXTERNAL = "external"
"""The status of a variant that was not trained here: its masks were read from files."""

FAILURES = ("failed", "diverged")
"""How a trial can end without a score. A stopped candidate was ended by the scheduler; an
unfinished trial has not ended."""

ALL_SEEDS = "all"
"""The seed of an ensemble's rows."""
ENSEMBLE_STEP = "ensemble"
"""The post-processing step of an ensemble's rows."""

_KINDS = {
    "text": re.compile(r"[^\0]*", re.DOTALL),
    "name": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"),
    "whole": re.compile(r"-?(0|[1-9][0-9]{0,14})"),
    "number": re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"),
}
_ROUNDED = 1e-6
"""How far a Dice of six decimals may be from that of its counts."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: In the header.
        kind: What a cell is; a name can be a part of a path.
        meaning: What it says, for readers.
        unit: Of a number, such as pixels.
        low: Lowest number.
        high: Highest number.
        options: All that a text can be; empty for any.
        empty: What an empty cell means; without it, no cell may be empty.
        is_needed: Whether a table without the column is refused.
        is_result: Whether the cell of a finished trial must be filled.
        absent: What it means that a file lacks the column, which is written only if some row has
            a value; without it, the column is always written.
    """

    name: str
    kind: Literal["text", "name", "whole", "number"]
    meaning: str
    unit: str = ""
    low: float = 0
    high: float = math.inf
    options: tuple[str, ...] = ()
    empty: str = ""
    is_needed: bool = True
    is_result: bool = False
    absent: str = ""

    def __str__(self) -> str:
        """What a cell must be, in words."""
        if self.options:
            return f"one of {', '.join(self.options)}"
        if self.kind in ("text", "name"):
            letters = " of letters, digits, dots, dashes and underscores"
            return "a text" if self.kind == "text" else f"a name{letters}"
        words = "a whole number" if self.kind == "whole" else "a number"
        if self.low == -math.inf:
            return words
        if self.high == math.inf:
            return f"{words} of at least {self.low:g}"
        return f"{words} from {self.low:.15g} to {self.high:.15g}"

    def accepts(self, cell: str) -> bool:
        """Return whether a cell's text is allowed."""
        if not cell:
            return bool(self.empty)
        if self.options:
            return cell in self.options
        if not _KINDS[self.kind].fullmatch(cell):
            return False
        is_text = self.kind in ("text", "name")
        return is_text or (self.low <= float(cell) <= self.high and math.isfinite(float(cell)))


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        file: Its path below the study's folder.
        rows: What a row is.
        columns: In the order of the file.
        key: Columns whose cells together no two rows share.
        others: What cells of further columns must be; None ignores them.
    """

    file: str
    rows: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    others: Column | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def names_in(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """Return the names of the columns that a file of these rows has."""
        return tuple(
            column.name
            for column in self.columns
            if not column.absent or any(row.get(column.name, "") != "" for row in rows)
        )

    def without(self, *names: str) -> Table:
        """Return the table without some columns."""
        columns = tuple(column for column in self.columns if column.name not in names)
        return replace(self, columns=columns, key=tuple(k for k in self.key if k not in names))


_VARIANT = Column("variant", "name", "name of the variant")
_FOLD = Column("fold", "whole", "rotation of the folds", high=NUM_FOLDS - 1)
_SEED = Column("seed", "whole", "seed of the training", high=2**32 - 1)
_CELL = (_VARIANT, _FOLD, _SEED)
_PATIENT = Column("patient", "text", "the patient, as the dataset names it")
_SLICE = Column("slice", "text", "the slice, as the dataset names it")
_DICE = Column("Dice", "number", "2 TP / (2 TP + FP + FN); 1 if all three are 0", high=1)
_COUNTS = (
    Column("TP", "whole", "tumour that was found", "pixels"),
    Column("FP", "whole", "found where no tumour is", "pixels"),
    Column("FN", "whole", "tumour that was missed", "pixels"),
    Column("TN", "whole", "all others", "pixels"),
    _DICE,
)
_TUMOUR = Column("tumour_pixels", "whole", "tumour in the mask as stored", "pixels")
_MISSING = Column(
    "missing", "text", "sequences replaced by a copy of FLAIR", empty="none is missing"
)


def _score(name: str, meaning: str, *, is_result: bool = False) -> Column:
    empty = "the trial has no result"
    return Column(name, "number", meaning, high=1, empty=empty, is_result=is_result)


_TESTS = (
    _score("test_dice_global", "Dice of all test pixels together", is_result=True),
    _score("test_iou", "TP / (TP + FP + FN) of them"),
    _score("test_accuracy", "(TP + TN) / all of them"),
    _score("test_precision", "TP / (TP + FP) of them", is_result=True),
    _score("test_recall", "TP / (TP + FN) of them", is_result=True),
    _score("test_dice_patient", "mean of the test patients' Dice", is_result=True),
    _score("test_dice_slice", "mean Dice of the test slices with tumour"),
)


def _newer(name: str, meaning: str, unit: str = "", high: float = math.inf) -> Column:
    """A column that studies of older versions lack."""
    empty = "neither outline exists, or an older study"
    return Column(name, "number", meaning, unit, high=high, empty=empty, is_needed=False)


_OF_PATIENT = (
    Column("hd95", "number", "mean of the slices' HD95", "pixels", empty="no slice has one"),
    _newer("hd95_worst", "mean of the slices' hd95_worst; 0 if none has one", "pixels"),
    _newer("nsd", "share of boundary pixels near the other outline; 1 if none", high=1),
)
_OF_SLICE = (
    Column(
        *("hd95", "number", "95th percentile of the distance between the outlines", "pixels"),
        empty="one of the outlines does not exist",
    ),
    _newer("hd95_worst", "hd95, or the diagonal if one outline does not exist", "pixels"),
    _newer("nsd", "share of boundary pixels near the other outline", high=1),
)


def _in_millimetres(columns: Iterable[Column]) -> Iterator[Column]:
    """Yield a column of the same in millimetres for each of some columns."""
    for column in columns:
        yield replace(
            column,
            name=f"{column.name}_mm",
            meaning=f"{column.name} with distances in millimetres",
            unit=column.unit and "mm",
            is_needed=False,
            absent="the spacing of the pixels is not known",
        )


_NO_RESULT = "the trial has no result"
TRIALS = Table(
    "trials.csv",
    "a trial that was asked for, failed ones too",
    (
        *_CELL,
        Column(
            *("status", "text", "how the trial ended"),
            options=(FINISHED, STOPPED, UNFINISHED, EXTERNAL, *FAILURES),
        ),
        Column("error", "text", "why it has no scores", empty="nothing went wrong"),
        Column("network", "text", "encoder and architecture"),
        Column("filters", "text", "filters before the network", empty="external"),
        Column("weights", "text", "weights before the training", empty=_NO_RESULT),
        Column("size", "whole", "side of a slice in the network", "pixels", 1, empty="external"),
        Column("epochs", "whole", "epochs trained", empty=_NO_RESULT, is_result=True),
        Column("best_stage", "number", "stage of the kept weights", empty=_NO_RESULT),
        Column("best_epoch", "number", "their epoch, in that stage", empty=_NO_RESULT),
        Column(
            *("batch_parts", "whole", "parts in which a batch was computed"),
            low=1, empty=_NO_RESULT, is_needed=False,
        ),
        Column(
            *("val_loss", "number", "validation loss of the kept weights"),
            low=-math.inf, empty=_NO_RESULT, is_result=True,
        ),
        _score("val_dice", "Dice of all validation pixels together"),
        _score("val_dice_patient", "mean of the validation patients' Dice"),
        _score("val_dice_slice", "mean Dice of the validation slices with tumour"),
        *_TESTS,
        Column("seconds", "number", "sum of the epochs", "s", empty=_NO_RESULT, is_result=True),
        # A clock that is set during a trial may give less than 0.
        Column(
            *("wall_seconds", "number", "whole trial, with its test", "s"),
            low=-math.inf, empty=_NO_RESULT,
        ),
    ),
    ("variant", "fold", "seed"),
)  # fmt: skip
SCORES = Table(
    "scores.csv",
    "a test patient of a trial, all slices together",
    (
        *(*_CELL, _PATIENT, *_COUNTS),
        *_OF_PATIENT,
        _newer("lesions_found", "lesions that share a pixel with the prediction"),
        _newer("lesions_missed", "lesions that share none"),
        _newer("lesions_invented", "predicted parts that touch no lesion"),
        *_in_millimetres(_OF_PATIENT),
    ),
    ("variant", "fold", "seed", "patient"),
)
SLICES = Table(
    "slices.csv",
    "a test slice of a trial",
    (
        *(*_CELL, _PATIENT, _SLICE, *_COUNTS),
        *_OF_SLICE,
        *(_TUMOUR, _MISSING),
        *_in_millimetres(_OF_SLICE),
    ),
    ("variant", "fold", "seed", "patient", "slice"),
)
# The file and its column "stage" keep the name of version 0.1.
POSTPROCESSING = Table(
    "stages.csv",
    "a val or test patient of a trial after a post-processing",
    (
        *_CELL,
        Column("stage", "text", "the post-processing, or plain"),
        Column("setting", "text", "what validation chose", empty="nothing to choose"),
        Column("part", "text", "part of the split", options=("val", "test")),
        *(_PATIENT, *_COUNTS),
    ),
    ("variant", "fold", "seed", "stage", "part", "patient"),
)
ENSEMBLE = replace(
    POSTPROCESSING,
    file="ensemble.csv",
    rows="a val or test patient of an ensemble over the seeds of a fold",
    columns=(
        *(_VARIANT, _FOLD),
        Column("seed", "text", "all seeds vote", options=(ALL_SEEDS,)),
        *POSTPROCESSING.columns[3:],
    ),
)
CALIBRATION = Table(
    "calibration.csv",
    "a twentieth of the predicted probability, over the test pixels of a trial",
    (
        *_CELL,
        Column("from", "number", "lowest probability", high=1),
        Column("to", "number", "highest probability", high=1),
        Column("pixels", "whole", "test pixels with such a probability", "pixels"),
        Column("probability_sum", "number", "sum of their probabilities"),
        Column("tumour_pixels", "whole", "how many of them are tumour", "pixels"),
    ),
    ("variant", "fold", "seed", "from"),
)
PATIENTS = Table(
    "patients.csv",
    "a patient of the dataset; columns of the dataset's manifest follow",
    (
        replace(_PATIENT, kind="text"),
        Column("site", "text", "second part of a TCGA name", empty="not known"),
        Column("slices", "whole", "number of slices", low=1),
        Column("tumour_slices", "whole", "number of slices with tumour"),
        replace(_TUMOUR, meaning="tumour in all slices as stored"),
        replace(_MISSING, meaning="sequences missing in every slice"),
        Column("grade", "text", "code in the dataset's data.csv", empty="not known"),
        Column("histology", "text", "code in the dataset's data.csv", empty="not known"),
        Column(
            "age", "text", "years at diagnosis, of data.csv", empty="not known", is_needed=False
        ),
        Column("sex", "text", "of data.csv", empty="not known", is_needed=False),
    ),
    ("patient",),
)
EXAMPLES = Table(
    "examples.csv",
    "a picture in examples/",
    (
        Column("kind", "text", "best, median or worst of a variant; worst patient; worst slice"),
        Column("place", "whole", "rank of the patient or slice, the worst first", low=1),
        *(*_CELL, _PATIENT, _SLICE),
        replace(_DICE, meaning="Dice of the slice"),
        Column("picture", "text", "path of the picture in the study's folder"),
    ),
    ("kind", "place", "variant"),
)
HISTORY = Table(
    "trials/*/history.csv",
    "an epoch",
    (
        # Numbers, since those of a candidate are means over its trainings.
        Column("stage", "number", "1 with the encoder frozen, then 2", low=1),
        Column("epoch", "number", "epoch in its stage", low=1),
        Column("step", "number", "epoch over both stages", low=1),
        Column("learning_rate", "number", "at the epoch's first step", is_needed=False),
        Column("train_loss", "number", "mean over batches", low=-math.inf, is_needed=False),
        replace(_score("train_dice", "Dice of all pixels in training"), is_needed=False),
        Column("val_loss", "number", "validation loss", low=-math.inf),
        _score("val_dice", "Dice of all validation pixels together"),
        replace(_score(SCORE, "highest val_dice so far"), is_needed=False),
        Column("is_best", "number", "1 if val_loss is the lowest so far", high=1, is_needed=False),
        Column("seconds", "number", "validation included", "s"),
    ),
    ("step",),
    others=Column("", "number", "other scores of the validation", low=-math.inf),
)
RUNG, KEY = f"{SCORE}@EPOCH", "KEY"
CANDIDATES = Table(
    "candidates.csv",
    "a candidate of a search",
    (
        Column("candidate", "whole", "its number, in the order of drawing"),
        replace(TRIALS.columns[3], meaning="how the candidate ended"),
        Column("epochs", "whole", "epochs trained"),
        Column("planned_epochs", "whole", "epochs if it is not stopped", low=1),
        _score(SCORE, "highest val Dice of its epochs", is_result=True),
        replace(_score(RUNG, "the same after this epoch"), empty="it was not trained so far"),
        replace(_VARIANT, meaning="the variant that it changes"),
        Column(KEY, "text", "the value of this key", empty="the key is not varied"),
        TRIALS.columns[4],
    ),
    ("candidate",),
)
DECISIONS = Table(
    "search/decisions.csv",
    "what the scheduler decided after an epoch of a candidate",
    (
        CANDIDATES.columns[0],
        Column("epoch", "whole", "epoch over both stages", low=1),
        Column("value", "number", "what it was judged by", low=-math.inf),
        Column(
            *("decision", "text", "what was decided; PAUSE: it waits at a rung for the others"),
            options=("STOP", "CONTINUE", "PAUSE"),
        ),
    ),
    ("candidate", "epoch"),
)
_P = Column("p", "number", "two-sided p-value of the sign-flip test", high=1, empty="no test")
COMPARISON = Table(
    "comparison.csv",
    "a pair of variants, in the folder that study.compare writes",
    (
        Column("first", "text", "study and variant"),
        Column("second", "text", "study and variant"),
        Column("patients", "whole", "patients that both were tested on"),
        Column("difference", "number", "first minus second, in Dice/patient", low=-1, high=1),
        Column("low", "number", "end of its 95 % interval", low=-1, high=1),
        Column("high", "number", "end of its 95 % interval", low=-1, high=1),
        _P,
        replace(_P, name="p_holm", meaning="p corrected for the number of pairs"),
    ),
    ("first", "second"),
)
SCORE_TABLE = Table(
    "table.csv",
    "a score of a variant in the report, for other programs; report.json has all of its numbers",
    (
        Column("variant", "text", "name of the variant"),
        Column("score", "text", "name of the score"),
        Column("unit", "text", "of the score; 1 is a share"),
        Column("patients", "whole", "test patients of the variant"),
        Column("point", "number", "the score", low=-math.inf),
        Column("low", "number", "end of its 95 % interval", empty="no interval"),
        Column("high", "number", "end of its 95 % interval", empty="no interval"),
    ),
    ("variant", "score"),
)
TRIAL_TABLES = {
    "scores": SCORES,
    "slices": SLICES,
    "stages": POSTPROCESSING,
    "calibration": CALIBRATION,
}
"""Tables that each finished trial writes, and that the study joins."""

STUDY_TABLES = {
    "trials": TRIALS,
    **TRIAL_TABLES,
    "ensemble": ENSEMBLE,
    "patients": PATIENTS,
    "examples": EXAMPLES,
}
"""Tables in a study's folder that a report reads."""

EXTERNAL_TABLES = {
    "trials": replace(TRIALS, columns=(_FOLD, *_TESTS), key=("fold",)),
    "scores": SCORES.without("variant", "seed"),
    "slices": SLICES.without("variant", "seed"),
}
"""Tables of the predictions of another tool; see `study.external`."""

TABLES = (*STUDY_TABLES.values(), SCORE_TABLE, HISTORY, CANDIDATES, DECISIONS, COMPARISON)


def read_table(path: Path, table: Table) -> list[Row]:
    """Return the rows of a table, cells as text; none if there is no such file.

    Raises:
        DataError: In a sentence that names the file, the line and the column, if the file is not
            as the study writes it.
    """
    if not path.exists():
        return []
    try:
        return _check(table, *read_cells(path, LARGEST_TABLE), is_whole=_ends_with_line(path))
    except _CellError as error:
        raise DataError(
            f"{path}, {error}. The table was changed or cut: put back what the study wrote"
        ) from error


class _CellError(ValueError):
    """A line and column that do not fit the table."""


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) in b"\r\n"


def _check(
    table: Table, header: Sequence[str], rows: Sequence[tuple[int, list[str]]], *, is_whole: bool
) -> list[Row]:
    known = {column.name: column for column in table.columns}
    lacking = [c.name for c in table.columns if c.is_needed and c.name not in header]
    if lacking:
        raise _CellError(
            f"line 1: no column {lacking[0]}; found {', '.join(header)[:200]!r}, expected "
            f"{', '.join(table.names)}"
        )
    if not is_whole:
        raise _CellError(f"line {rows[-1][0] if rows else 1}: the line does not end")
    if not rows:
        return []
    lines = [line for line, _ in rows]
    cells = dict(zip(header, zip(*(row for _, row in rows), strict=True), strict=True))
    for name, values in cells.items():
        column = known.get(name, table.others)
        if column is not None:
            _check_column(name, column, values, lines)
    _check_key(table.key, cells, lines)
    found = [dict(zip(header, row, strict=True)) for _, row in rows]
    if "status" in known:
        _check_results(table, found, lines)
    if {"TP", "Dice"} <= known.keys():
        _check_dice(found, lines)
    return found


def _check_column(name: str, column: Column, values: Sequence[str], lines: Sequence[int]) -> None:
    # Most cells repeat others, so that the distinct ones are few.
    wrong = {value for value in set(values) if not column.accepts(value)}
    if wrong:
        place = next(n for n, value in enumerate(values) if value in wrong)
        found = repr(values[place][:80]) if values[place] else "an empty cell"
        raise _CellError(f"line {lines[place]}, column {name}: found {found}; expected {column}")


def _check_key(
    key: Sequence[str], cells: dict[str, tuple[str, ...]], lines: Sequence[int]
) -> None:
    """Refuse rows of one key; numbers are written in one way only."""
    first: dict[tuple[str, ...], int] = {}
    for line, values in zip(lines, zip(*(cells[name] for name in key), strict=True), strict=True):
        other = first.setdefault(values, line)
        if other != line:
            same = ", ".join(f"{k} {v[:80]!r}" for k, v in zip(key, values, strict=True))
            raise _CellError(f"line {line}: the same {same} as line {other}; expected one row")


def _check_results(table: Table, rows: Sequence[Row], lines: Sequence[int]) -> None:
    for column in table.columns:
        for line, row in zip(lines, rows, strict=True):
            if column.is_result and row["status"] == FINISHED and not row[column.name]:
                raise _CellError(
                    f"line {line}, column {column.name}: found an empty cell; a finished trial "
                    f"has {column}"
                )


def _check_dice(rows: Sequence[Row], lines: Sequence[int]) -> None:
    counts = np.array([[int(row[name]) for name in COUNT_NAMES] for row in rows])
    expected = dice(counts)
    wrong = np.abs(expected - [float(row["Dice"]) for row in rows]) > _ROUNDED
    if wrong.any():
        n = int(np.argmax(wrong))
        raise _CellError(
            f"line {lines[n]}, column Dice: found {rows[n]['Dice']}; expected "
            f"{expected[n]:.6f}, which TP, FP and FN give"
        )


def describe_tables(tables: Iterable[Table] = TABLES) -> str:
    """Return the section on tables of docs/report.md, in Markdown."""
    return "\n".join(line for table in tables for line in _describe(table))


def _describe(table: Table) -> Iterator[str]:
    key = ", ".join(f"`{name}`" for name in table.key)
    yield f"### `{table.file}`\n"
    yield f"A row: {table.rows}. No two rows share {key}.\n"
    yield "| column | unit | what it is | a cell is |"
    yield "| --- | --- | --- | --- |"
    for column in (*table.columns, *((table.others,) if table.others else ())):
        cell = f"{column}; empty: {column.empty}" if column.empty else str(column)
        cell += f"; no such column: {column.absent}" if column.absent else ""
        name = f"`{column.name}`" if column.name else "others"
        yield f"| {name} | {column.unit} | {column.meaning} | {cell} |"
    yield ""
