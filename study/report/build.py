"""A study's files -> report.html, report.md, table.tex, figures/ and the model cards.

Needs neither Ray nor torch: a report can be redone on any laptop.
"""

from __future__ import annotations

from pathlib import Path

from brainseg.document import Document, Table, to_html, to_latex, to_markdown
from brainseg.storage.files import write_text
from study.report.figures import Drawer
from study.report.model_cards import write_cards
from study.report.provenance import describe_basis, describe_study
from study.report.results import Records, read_records
from study.report.search_section import describe_search
from study.report.sections import describe_findings, ranked_rows

_MANUSCRIPT = ("variant", "Dice/patient", "global Dice", "precision", "recall", "HD95")


def write_report(study: Path) -> Records:
    """Write everything that a reader may want from the files of a study.

    Args:
        study: A folder with study.json and trials.csv.

    Returns:
        What was read, compared.

    Raises:
        StudyError: If the files contradict each other.
    """
    records = read_records(study)
    document = _compose(records)
    write_text(study / "report.html", to_html(document, study))
    write_text(study / "report.md", to_markdown(document))
    write_text(study / "table.tex", _table(records))
    write_cards(records)
    return records


def _table(records: Records) -> str:
    rows = [{key: row[key] for key in _MANUSCRIPT} for row in ranked_rows(records)]
    caption = f"Test scores with 95 % intervals; HD95 in pixels. {describe_study(records.about)}."
    return to_latex(Table(caption, rows), records.labels)


def _compose(records: Records) -> Document:
    drawer = Drawer(records.study, records.matrix.variants, records.labels)
    return Document(
        f"Study {records.about['name']}",
        describe_study(records.about),
        records.labels,
        records.conclusion.sentence,
        records.conclusion.caveats,
        [
            *describe_findings(records, drawer),
            *describe_search(records, drawer),
            *describe_basis(records),
        ],
    )
