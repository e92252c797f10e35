"""The patients of a study: their flow, their characteristics by part, the reference outlines.

Parts are compared by standardised mean differences as in Austin 2009 (PMC3472075): the difference
of two means, divided by the root of the mean of the two variances; of each category, its share is
the mean. If parts are drawn at random, its standard error is the root of 1/n + 1/m.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from brainseg.config import LEAKY_SPLIT
from brainseg.data.about import CHANNELS, LGG, About
from brainseg.document import (
    NONE,
    Block,
    Bullets,
    Paragraph,
    Section,
    Table,
    facts_table,
    format_number,
)
from study.report.results import StudyResults
from study.storage.schema import EXTERNAL, FINISHED, Row

PARTS = ("train", "val", "test")
_LABELS = {
    "slices": "slices",
    "tumour_slices": "slices with tumour",
    "tumour_pixels": "tumour in all slices, pixels",
    "missing": "missing sequence",
    "grade": "grade (code)",
    "histology": "histology (code)",
    "age": "age, years",
}
_NUMBERS = ("slices", "tumour_slices", "tumour_pixels", "age")
_CATEGORIES = ("site", "missing", "grade", "histology", "sex")
_MOST_LEVELS = 12
_FEWEST_NUMBERS = 6
_SPLITS = {
    "patient": "Patients were assigned at random to ten folds, stratified by slices with tumour.",
    "site": "Each site is tested in turn; patients of the others train and validate.",
    LEAKY_SPLIT: "Slices, not patients, were assigned to ten folds, which is LEAKY.",
}


def describe_study_patients(results: StudyResults) -> list[Section]:
    """Return the sections on the patients and on their outlines; those without data are left out.

    Args:
        results: The study.
    """
    sections = [
        Section("people", "Who was studied", [*_flow(results), *_characteristics(results)]),
        Section("reference", "Patients and outlines of the dataset", list(_reference(results))),
    ]
    return [section for section in sections if section.blocks]


def known_facts(results: StudyResults) -> dict[str, str]:
    """Return what the dataset's description says, key of `About` -> text, without empty ones.

    Args:
        results: The study; of generated phantoms nothing is known.
    """
    about = About.model_validate(results.about.get("about") or LGG.model_dump())
    items = {} if results.about["synthetic"] else about.model_dump()
    return {key: text for key, text in items.items() if text}


def compare_parts(
    patients: Mapping[str, Row], rotations: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return a row per characteristic, or per category of one, values as text.

    Args:
        patients: Patient -> row of patients.csv.
        rotations: Of split.json; the parts shown are those of the first. May be empty.

    Returns:
        Numbers as the median with quartiles, categories as n (%), over all patients and each
        part. Then the standardised mean difference of train and test in the first rotation and,
        if there are more, the largest of all.
    """
    groups = {"all": list(patients)}
    if rotations:
        groups |= {part: [p for p in rotations[0][part] if p in patients] for part in PARTS}
    rows = []
    for column in list(next(iter(patients.values()), {})):
        cells = {patient: str(row.get(column) or "") for patient, row in patients.items()}
        for label, values, show in _lines(column, cells):
            row = {"characteristic": label}
            for name, members in groups.items():
                row[f"{name} (n = {len(members)})"] = show([values[p] for p in members])
            differences = [_differ(values, rotation, show) for rotation in rotations]
            if differences:
                row["SMD, train - test"] = format_number(differences[0], 2)
            if len(differences) > 1:
                known = [abs(d) for d in differences if not math.isnan(d)]
                row["largest SMD"] = format_number(max(known, default=math.nan), 2)
            rows.append(row)
    return rows


Show = Callable[[Sequence[float]], str]


def _lines(
    column: str, cells: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, float], Show]]:
    """Yield label, value of each patient and how to show a group's; a share has values 0 and 1."""
    known = [cell for cell in cells.values() if cell]
    if column == "patient" or (not known and column != "missing"):
        return
    label, empty = _LABELS.get(column, column), "none" if column == "missing" else "not known"
    numbers = {patient: _number(cell) for patient, cell in cells.items()}
    named = {patient: cell or empty for patient, cell in cells.items()}
    levels = sorted(set(named.values()))
    are_numbers = not any(math.isnan(_number(cell)) for cell in known)
    is_varied = column not in _CATEGORIES and len(set(known)) >= _FEWEST_NUMBERS
    if are_numbers and (column in _NUMBERS or is_varied):
        yield label, numbers, _quartiles
        levels = [empty] if empty in levels else []
    elif len(levels) > _MOST_LEVELS:
        named = {patient: "known" if cell else empty for patient, cell in cells.items()}
        levels = sorted(set(named.values()))
    for level in levels:
        yield f"{label}: {level}", {p: float(named[p] == level) for p in cells}, _share


def _number(cell: str) -> float:
    """Return a cell as a number, NaN if it is none or not finite."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _quartiles(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return NONE
    low, median, high = (_short(q) for q in np.quantile(known, [0.25, 0.5, 0.75]).tolist())
    return f"{median} ({low} to {high})"


def _share(values: Sequence[float]) -> str:
    return f"{sum(values):.0f} ({100 * sum(values) / len(values):.0f}%)" if values else NONE


def _short(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.3g}"


def _differ(values: Mapping[str, float], rotation: Mapping[str, Any], show: Show) -> float:
    """Return the standardised mean difference of train and test; NaN if it has none."""
    sides = []
    for part in ("train", "test"):
        own = np.array([values.get(patient, math.nan) for patient in rotation[part]])
        sides.append(own[~np.isnan(own)])
    ddof = 0 if show is _share else 1
    if min(len(side) for side in sides) <= ddof:
        return math.nan
    gap = float(sides[0].mean() - sides[1].mean())
    spread = math.sqrt(sum(float(side.var(ddof=ddof)) for side in sides) / 2)
    return gap / spread if spread else (math.nan if gap else 0.0)


def _flow(results: StudyResults) -> Iterator[Block]:
    about, rotations = results.about, results.split.get("rotations", [])
    kind = about["experiment"].get("data", {}).get("split", "patient")
    trained = [row for row in results.trials if row["status"] != EXTERNAL]
    ends = Counter(row["status"] for row in trained)
    scored = set(results.matrix.patients)
    sizes = f"{about['slices']:,} slices, {about['tumour_slices']:,} with tumour"
    rows = [
        ("patients found", f"{about['patients']:,}", sizes),
        ("patients refused", "0", "a file that cannot be used stops the study"),
    ]
    for part in PARTS:
        counts = [len(rotation[part]) for rotation in rotations]
        if counts:
            low, high = min(counts), max(counts)
            text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            by = "slices" if kind == LEAKY_SPLIT else "patients"
            rows.append((f"{by} in {part}", text, f"of each of {len(counts)} rotation(s)"))
    untested = about["patients"] - len(scored)
    rows.append(("patients analysed", f"{len(scored):,}", f"{untested:,} have no test score"))
    others = [f"{n} {status}" for status, n in sorted(ends.items()) if status != FINISHED]
    rows.append(("trials finished", f"{ends[FINISHED]:,} of {len(trained):,}", ", ".join(others)))
    yield Paragraph(
        f"{_SPLITS.get(kind, 'The parts were read from a file.')} All slices of a patient are "
        "used; none was chosen by hand."
    )
    titles = ("step", "number", "note")
    yield Table(
        "The flow from the dataset's folder to the analysis.",
        [dict(zip(titles, row, strict=True)) for row in rows],
    )
    if about.get("notes"):
        yield Paragraph("Notes from reading the dataset's folder:")
        yield Bullets(about["notes"])


def _characteristics(results: StudyResults) -> Iterator[Block]:
    rotations = [r for r in results.split.get("rotations", []) if r.get("by") != "slice"]
    rows = compare_parts(results.patients, rotations)
    if not rows:
        return
    what = " The parts are those of the first rotation." if len(rotations) > 1 else ""
    yield Table(
        f"Patients: numbers as the median (quartiles), categories as n (%).{what}",
        rows,
    )
    if rotations:
        chance = 1.96 * math.sqrt(sum(1 / len(rotations[0][part]) for part in ("train", "test")))
        yield Paragraph(
            "SMD is the standardised mean difference (Austin 2009, PMC3472075); 0 is balance. "
            f"If patients are assigned by chance, 5 % of them lie beyond {chance:.2f} on either "
            "side."
        )
    text = "A patient with an unknown characteristic is kept and counted as not known."
    if tuple(results.about["channels"]) == CHANNELS:
        text += (
            " The dataset replaces a missing sequence by a copy of FLAIR; such patients are kept."
        )
    yield Paragraph(text)


def _reference(results: StudyResults) -> Iterator[Block]:
    named = {"name", "source", "licence"}  # which the section on the data says
    facts = {
        key.replace("_", " "): text
        for key, text in known_facts(results).items()
        if key not in named
    }
    if facts:
        yield facts_table("The dataset, as its makers describe it; not measured here.", facts)
