"""The cases that a reader learns from: the hardest patients and slices, and each variant's range.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
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
            describe = _patient_row if kind == "worst patient" else _slice_row
            rows = [describe(records, place, r[0]) for place, r in sorted(places.items())]
            blocks = [Text(f"{_WORST_NOTE[kind]} {_OUTLINES}"), Table(_WORST_TABLE[kind], rows)]
            blocks += [_gallery(records, place, r) for place, r in sorted(places.items())]
        sections.append(Section(kind.replace(" ", "-"), title, blocks))
    return sections


def _gallery(records: Records, place: int, rows: Sequence[Row]) -> Gallery:
    name = rows[0]["slice"]
    area = _area_of(records, name)
    note = " (no tumour)" if area == 0 else ""
    return Gallery(f"{place}. {name}{note}", [_tile(row) for row in rows])


def _patient_row(records: Records, place: int, example: Row) -> dict[str, str]:
    patient = example["patient"]
    about = records.patients.get(patient, {})
    area = about.get("tumour_pixels")
    return {
        "": str(place),
        "patient": patient,
        "site": about.get("site") or NONE,
        "tumour, px": f"{int(area):,}" if area else NONE,
        "missing": about.get("missing") or NONE,
        **{variant: _patient_dice(records, variant, patient) for variant in records.variants},
    }


def _slice_row(records: Records, place: int, example: Row) -> dict[str, str]:
    name, scores = example["slice"], records.slices
    area = _area_of(records, name)
    entries = _entries(records, name)
    row = {"": str(place), "slice": name, "tumour, px": NONE if area is None else f"{area:,}"}
    for variant in records.variants:
        own = [n for n in entries if scores.variants[scores.variant[n]] == variant]
        wrong = scores.counts[own, 1:3].sum(axis=1)
        row[variant] = spell(float(wrong.mean()), 1) if own else NONE
    return row


def _entries(records: Records, name: str) -> list[int]:
    """Return where a slice is in slices.csv."""
    names = records.slices.names
    place = names.index(name) if name in names else -1
    return [int(entry) for entry in np.flatnonzero(records.slices.name == place)]


def _area_of(records: Records, name: str) -> int | None:
    entries = _entries(records, name)
    return int(records.slices.tumour_pixels[entries[0]]) if entries else None


def _patient_dice(records: Records, variant: str, patient: str) -> str:
    matrix = records.matrix
    if patient not in matrix.patients:
        return NONE
    values = matrix.dice[matrix.index(variant), :, matrix.patients.index(patient)]
    known = [float(value) for value in values if not np.isnan(value)]
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

_WORST_TABLE = {
    "worst patient": "Dice of the patient with each variant, mean over seeds.",
    "worst slice": "Wrong pixels of the slice with each variant, invented or missed, at the "
    "network's size; mean over seeds.",
}
