"""Write the report of a study: a page, the same as text and as numbers, tables, model cards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box, table
from rich.console import Console

from brainseg.document import Document, Table, to_html, to_latex, to_markdown
from brainseg.errors import StudyError
from brainseg.storage.files import write_csv, write_text
from study.report.checklist import describe_checklists
from study.report.figures import FigureWriter
from study.report.model_cards import write_model_cards
from study.report.patients import describe_study_patients
from study.report.provenance import describe_provenance, describe_study, published_rows
from study.report.report_json import describe_numbers, score_rows
from study.report.results import StudyResults, read_results
from study.report.search_section import describe_search
from study.report.sections import IN_MM, SHARED, describe_findings, describe_means, ranked_rows
from study.storage.schema import SCORE_TABLE
from study.storage.study_folder import read_study
from study.storage.sync import StudySync

_MANUSCRIPT = ("global Dice", "precision", "recall", "HD95", IN_MM)
_HEADINGS = {"accuracy": "acc.", "precision": "prec.", "val loss": "loss", "global Dice": "Dice"}
_NOT_PRINTED = ("Dice/slice", "IoU", "patients", IN_MM)


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
            f"{sync.location} has no trials.csv yet, which is written at the end of a run: "
            "run the study without --report-only"
        )
    with console.status("writing the report"):
        results = write_report(sync.folder)
        sync.commit()
    note = f"{describe_study(about)}\n{describe_means(results)}".strip()
    print_rows(ranked_rows(results), "Test scores, by Dice/patient", note, console)
    published = published_rows(results)
    if published:
        note = "Published by others on another split, not measured here; Dice is the global one."
        print_rows(published, "Published", note, console)
    console.print(results.conclusion.sentence, "", sep="\n")
    if sync.is_remote:
        console.print(f"study: {sync.location}")
    console.print(f"report: {sync.folder / 'report.html'}")


def write_report(folder: Path) -> StudyResults:
    """Write the report of a study into its folder.

    Args:
        folder: A folder with study.json and trials.csv.

    Returns:
        The results that the report shows.

    Raises:
        StudyError: If the files contradict each other.
    """
    results = read_results(folder)
    figures = FigureWriter(results)
    facts = describe_study(results.about)
    sections = [
        *describe_findings(results, figures),
        *describe_search(results, figures),
        *describe_study_patients(results),
        *describe_provenance(results),
    ]
    document = Document(
        title=f"Study {results.about['name']}",
        facts=facts,
        labels=results.labels,
        sentence=results.conclusion.sentence,
        answers=results.conclusion.answers,
        points=results.points,
        sections=[*sections, describe_checklists(results, sections)],
    )
    rows = [
        {key: row[key] for key in ("variant", _ranks_by(row), *_MANUSCRIPT) if key in row}
        for row in ranked_rows(results)
    ]
    units = "pixels and millimetres" if any(IN_MM in row for row in rows) else "pixels"
    caption = f"Test scores with 95 % intervals; HD95 in {units}. {facts}."
    caption = f"{caption} {describe_means(results)}".strip()
    write_text(folder / "report.html", to_html(document, folder))
    write_text(folder / "report.md", to_markdown(document))
    write_text(folder / "table.tex", to_latex(Table(caption, rows), results.labels))
    numbers = json.dumps(describe_numbers(results), indent=1, allow_nan=False)
    write_text(folder / "report.json", numbers + "\n")
    write_csv(folder / "table.csv", score_rows(results), SCORE_TABLE.names)
    write_model_cards(results)
    return results


def _ranks_by(row: Mapping[str, str]) -> str:
    """Return the column that ranks: the only Dice/patient where there is little room."""
    return SHARED if SHARED in row else "Dice/patient"


def print_rows(
    rows: Sequence[Mapping[str, str]], title: str, caption: str, console: Console
) -> None:
    """Print a table with fewer columns, decimals and intervals than in the report."""
    printed = table.Table(title=title, caption=caption, title_justify="left")
    printed.caption_justify, printed.box = "left", box.SIMPLE_HEAD
    printed.padding, printed.pad_edge = (0, 1, 0, 0), False
    hidden = {*_NOT_PRINTED, SHARED, "Dice/patient"} - {_ranks_by(rows[0])}
    columns = [column for column in rows[0] if column not in hidden]
    for column in columns:
        left = column in ("", "variant", "published")
        heading = _HEADINGS.get(column, column)
        printed.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        printed.add_row(*(_shorten(column, row[column]) for column in columns))
    console.print(printed)


def _shorten(column: str, value: str) -> str:
    if column not in ("variant", "Dice/patient", SHARED):
        value = value.partition(" (")[0]
    return f"{float(value):.3f}" if re.fullmatch(r"\d\.\d{4}", value) else value
