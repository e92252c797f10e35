"""Who the patients are: site, slices, tumour, missing sequences, and what data.csv says of them.

A sequence is missing where its channel is a copy of FLAIR: so the dataset fills the gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg.data.slice_store import SliceStore
from brainseg.storage.files import read_csv

_FLAIR = 1
_SEQUENCES = {"pre-contrast": 0, "post-contrast": 2}
_CLINICAL = {"grade": "neoplasm_histologic_grade", "histology": "histological_type"}


def missing_sequences(image: NDArray[np.uint8]) -> str:
    """Return which sequences of a slice are a copy of FLAIR.

    Args:
        image: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.

    Returns:
        `pre-contrast`, `post-contrast`, both joined by a +, or nothing.
    """
    flair = image[:, :, _FLAIR]
    names = [n for n, c in _SEQUENCES.items() if np.array_equal(image[:, :, c], flair)]
    return " + ".join(names)


def describe_patients(data: SliceStore) -> list[dict[str, Any]]:
    """Return a row per patient, in the order of the dataset.

    Returns:
        patient; site, the part of a TCGA name that says where it was treated; slices;
        tumour_slices; tumour_pixels, over all slices as stored; missing, the sequences that are
        missing in every slice; grade and histology, the codes of data.csv, empty where it is not
        there or says nothing.
    """
    clinical = _read_clinical(data.root / "data.csv")
    slices_of: dict[str, list[int]] = {}
    for number, item in enumerate(data.slices):
        slices_of.setdefault(item.patient, []).append(number)
    rows = []
    for patient, numbers in slices_of.items():
        tumour = [data.slices[number].tumour_pixels for number in numbers]
        rows.append(
            {
                "patient": patient,
                "site": _site(patient),
                "slices": len(numbers),
                "tumour_slices": sum(pixels > 0 for pixels in tumour),
                "tumour_pixels": sum(tumour),
                "missing": _missing_everywhere(data, numbers),
                **{key: clinical.get(patient, {}).get(key, "") for key in _CLINICAL},
            }
        )
    return rows


def _missing_everywhere(data: SliceStore, numbers: list[int]) -> str:
    # Most patients miss nothing, which their first slice already shows.
    common = set(_SEQUENCES)
    for number in numbers:
        common &= set(missing_sequences(data.image(number)).split(" + "))
        if not common:
            break
    return " + ".join(name for name in _SEQUENCES if name in common)


def _site(patient: str) -> str:
    parts = patient.split("_")
    return parts[1] if len(parts) == 3 else ""


def _read_clinical(path: Path) -> dict[str, dict[str, str]]:
    """Patient -> grade and histology; empty if the file is missing or has other columns."""
    return {
        row.get("Patient", ""): {key: row.get(name) or "" for key, name in _CLINICAL.items()}
        for row in read_csv(path)
    }
