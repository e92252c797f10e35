"""Write the report of a study: report.html, report.md, table.tex, figures/ and model cards."""

from __future__ import annotations

from pathlib import Path

from brainseg.document import Document, Table, to_html, to_latex, to_markdown
from brainseg.storage.files import write_text
from study.report.figures import FigureWriter
from study.report.model_cards import write_model_cards
from study.report.provenance import describe_provenance, describe_study
from study.report.results import StudyResults, read_results
from study.report.search_section import describe_search
from study.report.sections import describe_findings, ranked_rows

_MANUSCRIPT = ("variant", "Dice/patient", "global Dice", "precision", "recall", "HD95")


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
    document = Document(
        title=f"Study {results.about['name']}",
        facts=facts,
        labels=results.labels,
        sentence=results.conclusion.sentence,
        points=results.conclusion.caveats,
        sections=[
            *describe_findings(results, figures),
            *describe_search(results, figures),
            *describe_provenance(results),
        ],
    )
    rows = [{key: row[key] for key in _MANUSCRIPT} for row in ranked_rows(results)]
    caption = f"Test scores with 95 % intervals; HD95 in pixels. {facts}."
    write_text(folder / "report.html", to_html(document, folder))
    write_text(folder / "report.md", to_markdown(document))
    write_text(folder / "table.tex", to_latex(Table(caption, rows), results.labels))
    write_model_cards(results)
    return results
