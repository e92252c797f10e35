"""Looks for errors in a dataset's slices, masks and patients' data, and checks its splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from brainseg.config import NUM_FOLDS
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS, split_by_patient
from brainseg.errors import DataError
from brainseg.explore.measurements import AIR, Measurements, Row

SPECK = 10
"""Components with fewer pixels are reported."""

_NUM_EXAMPLES = 3


def check_quality(
    data: SliceStore, found: Measurements, patients: pd.DataFrame, table: pd.DataFrame
) -> list[str]:
    """Return a sentence per check that found something, and one that names the other checks.

    Args:
        data: The dataset.
        found: Its measurements.
        patients: A row per patient, see `describe_patients`.
        table: data.csv, a row per patient; empty if there is no such file.
    """
    slices, parts = found.slices, found.components
    shapes = np.array(data.shapes)[parts["slice"].to_numpy(int)].reshape(-1, 2)
    names, owner = slices["name"], slices["patient"]
    is_black = found.histograms[:, :, 1:].sum(axis=(1, 2)) == 0
    saturated = found.histograms[:, :, 255] / found.histograms.sum(axis=2) > 0.01
    at_border = (parts[["left", "top"]] == 0).any(axis=1) | (
        (parts["left"] + parts["width"] == shapes[:, 1])
        | (parts["top"] + parts["height"] == shapes[:, 0])
    )
    first = slices.groupby("digest")["name"].transform("first")
    tumour = slices["tumour_pixels"]
    volume = [owner, slices["scan"]]
    before = tumour.groupby(volume).cummax() > 0
    after = tumour[::-1].groupby(volume).cummax() > 0
    complete = patients.loc[patients["missing"] == "", "patient"]
    incomplete = owner[(slices["missing"] != "") & owner.isin(complete)]
    checks: dict[str, Sequence[str]] = {
        "slices without any signal": names[is_black],
        "slices with the same pixels as another one": (names + " is " + first)[names != first],
        "patients without any tumour": patients.loc[patients["tumour_slices"] == 0, "patient"],
        "patients whose slices are not numbered without gaps": _gaps_in_numbers(slices),
        "tumour-free slices between two with tumour": names[before & after & (tumour == 0)],
        f"masks with a speck of fewer than {SPECK} pixels": sorted(
            set(names[parts.loc[parts["area"] < SPECK, "slice"]])
        ),
        "masks that touch the border of the slice": sorted(
            set(names[parts.loc[at_border, "slice"]])
        ),
        "masks that reach where there is no signal": names[slices["outside"] > 0],
        "patients with a sequence missing in some slices only": sorted(set(incomplete)),
        "sequences of patients whose background is not black": _bright_backgrounds(found),
        "slices with more than 1 % of a sequence saturated": names[saturated.any(axis=1)],
        "patients without a row in data.csv": (
            sorted(set(owner) - set(table.index)) if len(table) else []
        ),
        "rows of data.csv without slices": sorted(set(table.index) - set(owner)),
    }
    hits = {what: list(names) for what, names in checks.items()}
    sentences = [
        f"{what[0].upper()}{what[1:]}: {len(names)} ({_first(names)})."
        for what, names in hits.items()
        if names
    ]
    clean = [what for what, names in hits.items() if not names]
    return [
        f"All {len(slices):,} slices decode, each with a mask of its size and of two values only.",
        *sentences,
        f"Looked for and not found: {'; '.join(clean)}.",
    ]


def check_splits(data: SliceStore, split_seed: int) -> list[Row]:
    """Return a row per rotation and part: patients, slices, those with tumour, shared patients.

    A rotation that cannot be built has one row with its `error`.
    """
    rows: list[Row] = []
    for rotation in range(NUM_FOLDS):
        try:
            split = split_by_patient(data.slices, rotation, split_seed)
        except DataError as error:
            rows.append({"rotation": rotation, "error": str(error)})
            continue
        sets = {part: set(getattr(split, part)) for part in PARTS}
        for part in PARTS:
            indices = split.indices(data.slices, part)
            tumour = sum(data.slices[index].tumour_pixels > 0 for index in indices)
            others = set().union(*(sets[other] for other in PARTS if other != part))
            rows.append(
                {
                    "rotation": rotation,
                    "part": part,
                    "patients": len(sets[part]),
                    "slices": len(indices),
                    "tumour_slices": tumour,
                    "tumour_share": tumour / len(indices),
                    "shared_patients": len(sets[part] & others),
                }
            )
    return rows


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _NUM_EXAMPLES
    return ", ".join(names[:_NUM_EXAMPLES]) + (f" and {rest} more" if rest > 0 else "")


def _gaps_in_numbers(slices: pd.DataFrame) -> list[str]:
    """Return patients with a scan whose slice names do not end in consecutive numbers."""
    # A DICOM UID has more digits than an integer holds.
    numbers = slices["name"].str.extract(r"(\d{1,18})$")[0].fillna(-1).astype(int)
    scans = numbers.groupby([slices["patient"], slices["scan"]], sort=False)
    own = scans.agg(["min", "max", "size", "nunique"])
    is_whole = (own["max"] - own["min"] + 1 == own["size"]) & (own["nunique"] == own["size"])
    return list(dict.fromkeys(patient for patient, _ in own.index[~is_whole]))


def _bright_backgrounds(found: Measurements) -> list[str]:
    """Return patients and sequences whose most frequent level is above air in half the slices."""
    most = pd.DataFrame(found.histograms.argmax(axis=2), columns=list(found.channels))
    medians = most.groupby(found.slices["patient"], sort=False).median()
    return [
        f"{patient} {name}"
        for patient, row in medians.iterrows()
        for name in found.channels
        if row[name] > AIR
    ]
