"""The report's ranking, printed in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from brainseg.errors import StudyError
from study.report.build import write_report
from study.report.provenance import describe_study, published_rows
from study.report.sections import ranked_rows
from study.storage.study_folder import read_study
from study.storage.sync import StudySync

_HEADINGS = {
    "accuracy": "acc.",
    "precision": "prec.",
    "val loss": "loss",
    "global Dice": "Dice",
}
_LEFT_OUT = ("Dice/slice", "IoU", "patients")
_WITH_INTERVAL = "Dice/patient"
_FRACTION = re.compile(r"\d\.\d{4}")


def publish(sync: StudySync, console: Console) -> None:
    """Write the report of a study, send it to where the study is, and print its ranking.

    Args:
        sync: The study, fetched.
        console: Prints the ranking and the conclusion.

    Raises:
        StudyError: If the folder holds no study, or one whose tables were not written yet.
    """
    about = read_study(sync.folder)
    if not (sync.folder / "trials.csv").exists():
        raise StudyError(
            f"{sync.location} has no trials.csv yet, which is written when all trials have ended: "
            "run the study without --report-only"
        )
    with console.status("writing the report"):
        results = write_report(sync.folder)
        sync.commit()
    print_ranking(
        ranked_rows(results), "Test scores, by Dice/patient", describe_study(about), console
    )
    published = published_rows(results)
    if published:
        note = "Published by others on another split, not measured here; Dice is the global one."
        print_ranking(published, "Published", note, console)
    console.print(f"{results.conclusion.sentence}\n")
    if sync.is_remote:
        console.print(f"study: {sync.location}")
    console.print(f"report: {sync.folder / 'report.html'}")


def print_ranking(
    rows: Sequence[Mapping[str, str]], title: str, caption: str, console: Console
) -> None:
    """Print a table whose columns are the keys of its rows.

    To fit a terminal, fractions are rounded to three decimals, headings shortened, and only
    Dice/patient keeps its interval; the report has all.
    """
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    columns = [column for column in rows[0] if column not in _LEFT_OUT]
    for column in columns:
        left = column in ("", "variant", "published")
        table.add_column(
            _HEADINGS.get(column, column), justify="left" if left else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_shorten_value(column, row[column]) for column in columns))
    console.print(table)


def _shorten_value(column: str, value: str) -> str:
    if column != _WITH_INTERVAL:
        value = value.partition(" (")[0]
    return f"{float(value):.3f}" if _FRACTION.fullmatch(value) else value
