"""The sections that show slices: at a glance, hardest patients and slices, examples."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import numpy as np
import pandas as pd

from brainseg.data.about import shown_channel
from brainseg.document import (
    NONE,
    Block,
    Figure,
    Gallery,
    Paragraph,
    Table,
    Tile,
    format_number,
)
from study.report.figures import FigureWriter
from study.report.results import WORST_PATIENT, WORST_SLICE, StudyResults
from study.storage.schema import Row


def overview(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    """Yield the ranking as a picture, and three slices of the first variant."""
    ranked = [item for item in results.comparison.variants if item.ranks]
    if len(ranked) > 1:
        yield Figure(
            figures.scores(),
            "Dots with intervals: Dice/patient of each variant, the best on top",
            "Overlapping intervals do not show that two variants are equal, nor that they differ: "
            "see the paired differences below.",
        )
    first = results.variants[0] if results.variants else ""
    tiles = _typical_tiles(results, first)
    if tiles:
        yield Gallery(f"Three slices with tumour, by {first}. {_outlines(results)}", tiles)


def hardest_patients(results: StudyResults) -> Iterator[Block]:
    """Yield the patients with the lowest Dice, in numbers and pictures."""
    groups = _by_rank(results, WORST_PATIENT)
    if not groups:
        return
    yield Paragraph(
        f"The {len(groups)} patients with the lowest mean Dice over variants and seeds. Each is "
        f"shown by the slice that has the most wrong pixels. {_outlines(results)}"
    )
    rows = []
    for rank, (example, *_) in groups.items():
        patient = example["patient"]
        about = results.patients.get(patient, {})
        area = about.get("tumour_pixels")
        rows.append(
            {
                "": str(rank),
                "patient": patient,
                "site": about.get("site") or NONE,
                "tumour, px": f"{int(area):,}" if area else NONE,
                "missing": about.get("missing") or NONE,
                **{name: _patient_dice(results, name, patient) for name in results.variants},
            }
        )
    yield Table("Dice of each patient by variant, mean over seeds.", rows)
    yield from _galleries(results, groups)


def hardest_slices(results: StudyResults) -> Iterator[Block]:
    """Yield the slices with the lowest Dice, in numbers and pictures."""
    groups = _by_rank(results, WORST_SLICE)
    if not groups:
        return
    yield Paragraph(
        f"The {len(groups)} slices with the lowest mean Dice over variants and seeds, at most "
        "two of a patient. Of equal slices, those with more wrong pixels come first. "
        f"{_outlines(results)}"
    )
    rows = []
    for rank, (example, *_) in groups.items():
        area = _tumour_area(results, example)
        row = {
            "": str(rank),
            "slice": _name(example),
            "tumour, px": NONE if area is None else f"{area:,}",
        }
        rows.append(row | {v: _wrong_pixels(results, v, example) for v in results.variants})
    yield Table(
        "Wrong pixels of each slice by variant, false positives and false negatives together; "
        "mean over seeds.",
        rows,
    )
    yield from _galleries(results, groups)


def examples(results: StudyResults) -> Iterator[Block]:
    """Yield the best, the median and the worst slice of each variant."""
    found = {variant: _typical_tiles(results, variant) for variant in results.variants}
    galleries = [Gallery(variant, tiles) for variant, tiles in found.items() if tiles]
    if galleries:
        yield Paragraph(f"Chosen from the tumour slices of each variant. {_outlines(results)}")
        yield from galleries


def _typical_tiles(results: StudyResults, variant: str) -> list[Tile]:
    """Return the best, the median and the worst slice of a variant."""
    return [
        _tile(results, row, f"{kind}: {_name(row)}")
        for kind in ("best", "median", "worst")
        for row in results.examples
        if row["kind"] == kind and row["variant"] == variant
    ]


def _shown(results: StudyResults) -> str:
    """Return the name of the channel that pictures of slices show."""
    channels = results.about["channels"]
    return str(channels[shown_channel(len(channels))])


def _outlines(results: StudyResults) -> str:
    return (
        f"Pictures show {_shown(results)} with the true outline in blue and the predicted one in "
        "orange."
    )


def _by_rank(results: StudyResults, kind: str) -> dict[int, list[Row]]:
    """Return rank -> the example slices of one kind, a row per variant."""
    groups: dict[int, list[Row]] = {}
    for row in results.examples:
        if row["kind"] == kind:
            groups.setdefault(int(row["place"]), []).append(row)
    return dict(sorted(groups.items()))


def _galleries(results: StudyResults, groups: dict[int, list[Row]]) -> Iterator[Gallery]:
    for rank, rows in groups.items():
        note = " (no tumour)" if _tumour_area(results, rows[0]) == 0 else ""
        yield Gallery(
            f"{rank}. {_name(rows[0])}{note}",
            [_tile(results, row, row["variant"]) for row in rows],
        )


def _tile(results: StudyResults, row: Row, label: str) -> Tile:
    score = f"Dice {float(row['Dice']):.2f}"
    alt = (
        f"{_shown(results)} slice {_name(row)} with the true outline in blue and that of "
        f"{row['variant']} in orange, {score}"
    )
    return Tile(row["picture"], alt, f"{label}, {score}")


def _patient_dice(results: StudyResults, variant: str, patient: str) -> str:
    matrix = results.matrix
    if patient not in matrix.patients:
        return NONE
    values = matrix.dice[matrix.index(variant), :, matrix.patients.index(patient)]
    known = values[~np.isnan(values)].tolist()
    return format_number(fmean(known)) if known else NONE


def _name(example: Row) -> str:
    """Return a slice's name, with the patient's before it unless it begins with that."""
    patient, name = example["patient"], str(example["slice"])
    return name if name.startswith(f"{patient}_") else f"{patient}/{name}"


def _rows_of(results: StudyResults, example: Row) -> pd.DataFrame:
    """Return the rows of a slice: slices of several patients can have one name."""
    slices = results.slices
    is_same = (slices["patient"] == example["patient"]) & (slices["slice"] == example["slice"])
    return slices[is_same]


def _wrong_pixels(results: StudyResults, variant: str, example: Row) -> str:
    slices = _rows_of(results, example)
    own = slices.loc[slices["variant"] == variant, ["FP", "FN"]]
    return format_number(float(own.sum(axis=1).mean()), 1)


def _tumour_area(results: StudyResults, example: Row) -> int | None:
    areas = _rows_of(results, example)["tumour_pixels"]
    return int(areas.iloc[0]) if len(areas) else None
