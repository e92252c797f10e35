"""CLAIM 2024 and TRIPOD+AI, filled in as far as the report of this study answers their items.

`checklists.yaml` holds the items in our words. Their numbers were checked against several texts:

- CLAIM 2024, 44 items: the checklist on the guideline's companion site (RSNA/CLAIM on GitHub) and
  the list in Aperivue/medsci-skills on GitHub. CLAIM 2020 had 42 items and other numbers.
- TRIPOD+AI, 27 items, 52 with their parts: the list in Aperivue/medsci-skills, copied from the
  statement (BMJ 2024;385:e078378), and the lists that two published studies filled in.

All numbers agree between these sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from brainseg.document import (
    NONE,
    Block,
    Document,
    Link,
    Paragraph,
    Section,
    Table,
    to_markdown,
)
from brainseg.storage.files import write_text
from study.report.patients import known_facts
from study.report.provenance import check_split, describe_study
from study.report.results import StudyResults
from study.storage.schema import ENSEMBLE_STEP

REPORTED, NOT_APPLICABLE, AUTHOR = "reported", "not applicable", "to be filled in by the author"


class Item(BaseModel):
    """An item of a guideline; with neither `at` nor `na` it is left to the author.

    Attributes:
        asks: What is to be reported.
        at: The section of the report that answers it, or `conclusion`.
        needs: What the report must hold beside the section, see `find_facts`.
        says: What the section says; `{key}` stands for a key of the dataset's description.
        na: Why the item does not apply to a study of this program.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: str
    at: str = ""
    needs: tuple[str, ...] = ()
    says: str = ""
    na: str = ""

    def status(self, facts: set[str]) -> str:
        """Return `REPORTED`, `NOT_APPLICABLE` or `AUTHOR`, given what the report holds."""
        if self.na:
            return NOT_APPLICABLE
        return REPORTED if self.at and {self.at, *self.needs} <= facts else AUTHOR

    def answer(self, facts: set[str], known: Mapping[str, str]) -> str:
        """Return what the report says, why the item does not apply, or that it is left open."""
        says = {
            REPORTED: self.says,
            NOT_APPLICABLE: f"{NOT_APPLICABLE}: {self.na}",
            AUTHOR: AUTHOR,
        }
        return says[self.status(facts)].format(**known)


class Guideline(BaseModel):
    """A guideline: its reference, and its items by number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    items: dict[str, Item]


def read_guidelines() -> dict[str, Guideline]:
    """Return the guidelines by name."""
    text = Path(__file__).with_name("checklists.yaml").read_text(encoding="utf-8")
    return {name: Guideline.model_validate(tree) for name, tree in yaml.safe_load(text).items()}


def find_facts(results: StudyResults, sections: Sequence[Section]) -> set[str]:
    """Return what the report of a study holds.

    Args:
        results: The study.
        sections: The sections of its report.

    Returns:
        Names of the sections; the keys of `About` that the dataset's description fills; and
        `conclusion`, `configuration`, `tested`, `characteristics`, `split.json`, `checked` (the
        split, without a failure), `ensemble` and `sites`, each if there is one.
    """
    checks = check_split(results)
    effects = results.effects_of_postprocessing
    found = {
        "conclusion": bool(results.points),
        "configuration": (results.folder / "experiment.yaml").exists(),
        "tested": bool(results.matrix.patients),
        "characteristics": bool(results.patients),
        "split.json": bool(results.split),
        "checked": bool(checks) and all(holds for _, holds in checks),
        "ensemble": any(effect.step == ENSEMBLE_STEP for effect in effects),
        "sites": any(breakdown.title == "Site" for breakdown in results.breakdowns),
    }
    names = {section.name for section in sections}
    return names | set(known_facts(results)) | {fact for fact, holds in found.items() if holds}


def describe_checklists(results: StudyResults, sections: Sequence[Section]) -> Section:
    """Return the checklists as a section, and write them as checklist.md.

    Args:
        results: The study.
        sections: The other sections of its report.
    """
    section = Section("checklists", "Reporting checklists", list(_blocks(results, sections)))
    page = Document(
        title=f"Reporting checklists of study {results.about['name']}",
        facts=describe_study(results.about),
        labels=results.labels,
        sentence="What the report answers, what does not apply, and what the author must add.",
        points=(),
        sections=[section],
    )
    write_text(results.folder / "checklist.md", to_markdown(page))
    return section


def _blocks(results: StudyResults, sections: Sequence[Section]) -> Iterator[Block]:
    facts = find_facts(results, sections)
    known = known_facts(results)
    titles = {section.name: section.title for section in sections} | {"conclusion": "Conclusion"}
    guidelines = read_guidelines()
    yield Paragraph(
        "An item counts as reported only if this report holds the answer; whether it suffices is "
        "for the author to judge. Items are put in other words than the guideline's."
    )
    rows = []
    for name, guideline in guidelines.items():
        counts = Counter(item.status(facts) for item in guideline.items.values())
        tallies = {status: str(counts[status]) for status in (REPORTED, NOT_APPLICABLE, AUTHOR)}
        rows.append({"guideline": name, "items": str(len(guideline.items)), **tallies})
    yield Table("The checklists: how many items are answered.", rows, is_result=False)
    for name, guideline in guidelines.items():
        yield Table(
            f"The items of {name} ({guideline.reference}).",
            [
                {
                    "item": number,
                    "asks for": item.asks,
                    "answer": item.answer(facts, known),
                    "section": Link(titles[item.at], item.at)
                    if item.status(facts) == REPORTED
                    else NONE,
                }
                for number, item in guideline.items.items()
            ],
            is_result=False,
        )
