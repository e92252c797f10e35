"""The cases that a reader learns from: the hardest patients and slices, and each variant's range.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

from study.document import NONE, Block, Gallery, Section, Table, Text, Tile, spell
from study.records import Records
from study.results import Row

_WORST = {"worst patient": "The hardest patients", "worst slice": "The hardest slices"}


def describe_cases(records: Records) -> list[Section]:
    """Return the sections with pictures; without pictures they have no blocks."""
    return [*_worst(records), _examples(records)]


def _worst(records: Records) -> list[Section]:
    sections = []
    for kind, title in _WORST.items():
        places: dict[int, list[Row]] = {}
        for row in records.examples:
            if row["kind"] == kind:
                places.setdefault(int(row["place"]), []).append(row)
        blocks: list[Block] = []
        if places:
            blocks = [
                Text(f"{_WORST_NOTE[kind]} {_OUTLINES}"),
                _worst_table(records, kind, places),
            ]
            for place, rows in sorted(places.items()):
                name = rows[0]["slice"]
                blocks.append(Gallery(f"{place}. {name}", [_tile(row) for row in rows]))
        sections.append(Section(kind.replace(" ", "-"), title, blocks))
    return sections


def _worst_table(records: Records, kind: str, places: dict[int, list[Row]]) -> Table:
    rows = []
    for place, examples in sorted(places.items()):
        patient = examples[0]["patient"]
        about = records.patients.get(patient, {})
        row = {"": str(place), "patient": patient, "site": about.get("site") or NONE}
        if kind == "worst slice":
            row["slice"] = examples[0]["slice"]
        row |= {
            "tumour, px": about.get("tumour_pixels") or NONE,
            "missing": about.get("missing") or NONE,
        }
        for variant in records.variants:
            row[variant] = _mean_dice(records, variant, patient)
        rows.append(row)
    return Table("Dice of the patient with each variant, mean over seeds.", rows)


def _mean_dice(records: Records, variant: str, patient: str) -> str:
    matrix = records.matrix
    if patient not in matrix.patients:
        return NONE
    dice = matrix.dice[matrix.index(variant), :, matrix.patients.index(patient)]
    known = [float(value) for value in dice if not np.isnan(value)]
    return spell(fmean(known)) if known else NONE


def _examples(records: Records) -> Section:
    blocks: list[Block] = []
    for variant in records.variants:
        rows = [
            row
            for kind in ("best", "median", "worst")
            for row in records.examples
            if row["kind"] == kind and row["variant"] == variant
        ]
        if rows:
            tiles = [_tile(row, f"{row['kind']}: {row['slice']}") for row in rows]
            blocks.append(Gallery(variant, tiles))
    if blocks:
        blocks.insert(0, Text(f"Of each variant's tumour slices. {_OUTLINES}"))
    return Section("examples", "Best, median and worst slice of each variant", blocks)


def _tile(row: Row, label: str = "") -> Tile:
    alt = (
        f"FLAIR slice {row['slice']} with the true outline in blue and that of {row['variant']} "
        f"in orange, Dice {float(row['Dice']):.2f}"
    )
    return Tile(row["picture"], alt, f"{label or row['variant']}, Dice {float(row['Dice']):.2f}")


_OUTLINES = "FLAIR; the true outline is blue, the predicted one orange."

_WORST_NOTE = {
    "worst patient": "The ten of the lowest mean Dice over variants and seeds; of each the slice "
    "with most wrong pixels.",
    "worst slice": "The ten of the lowest mean Dice over variants and seeds, of equal ones those "
    "with more wrong pixels; at most two of a patient.",
}
