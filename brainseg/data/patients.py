"""A table of the patients: site, slices, tumour, missing sequences and clinical data.

The dataset replaces a missing sequence by a copy of FLAIR, which is how it is recognised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg.data.about import CHANNELS, FLAIR
from brainseg.data.slice_store import SliceStore
from brainseg.storage.files import read_csv

_SEQUENCES = {"pre-contrast": 0, "post-contrast": 2}
_CLINICAL = {
    "grade": "neoplasm_histologic_grade",
    "histology": "histological_type",
    "age": "age_at_initial_pathologic",
    "sex": "gender",
}
# data.csv has no key. In TCGA, whose patients these are, TCGA-CS-6668, coded 1, is a woman of 57,
# and TCGA-DU-7306, coded 2, a man of 67; data.csv has the same ages.
_SEX = {"1": "female", "2": "male"}


def missing_sequences(image: NDArray[np.uint8]) -> str:
    """Return the missing sequences of a slice.

    Args:
        image: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.

    Returns:
        `pre-contrast`, `post-contrast`, `pre-contrast + post-contrast`, or an empty text.
    """
    flair = image[:, :, FLAIR]
    names = [n for n, c in _SEQUENCES.items() if np.array_equal(image[:, :, c], flair)]
    return " + ".join(names)


def missing_in(data: SliceStore, index: int) -> str:
    """Return the missing sequences of a slice; none in a dataset without the LGG's channels."""
    return missing_sequences(data.image(index)) if data.channels == CHANNELS else ""


def describe_patients(data: SliceStore) -> list[dict[str, Any]]:
    """Return a row per patient, in the order of the dataset.

    The columns: patient; site, the second part of a TCGA name; slices; tumour_slices;
    tumour_pixels, of all slices as stored; missing, the sequences missing in every slice; from
    the dataset's data.csv, empty if unknown, grade and histology as coded there, age in years and
    sex, `female`, `male` or another code; then the columns of the dataset's manifest.
    """
    clinical = _read_clinical(data.root / "data.csv")
    slices_of: dict[str, list[int]] = {}
    for index, item in enumerate(data.slices):
        slices_of.setdefault(item.patient, []).append(index)
    rows = []
    for patient, indices in slices_of.items():
        tumour = [data.slices[index].tumour_pixels for index in indices]
        rows.append(
            {
                "patient": patient,
                "site": site_of(patient),
                "slices": len(indices),
                "tumour_slices": sum(pixels > 0 for pixels in tumour),
                "tumour_pixels": sum(tumour),
                "missing": _missing_everywhere(data, indices),
                **{key: clinical.get(patient, {}).get(key, "") for key in _CLINICAL},
                **data.covariates.get(patient, {}),
            }
        )
    return rows


def _missing_everywhere(data: SliceStore, indices: list[int]) -> str:
    # Most patients miss nothing, which their first slice already shows.
    common = set(_SEQUENCES)
    for index in indices:
        common &= set(missing_in(data, index).split(" + "))
        if not common:
            break
    return " + ".join(name for name in _SEQUENCES if name in common)


def site_of(patient: str) -> str:
    """Return the site in a patient's name, such as CS of TCGA_CS_4941; empty if there is none."""
    parts = patient.split("_")
    return parts[1] if len(parts) == 3 else ""


def _read_clinical(path: Path) -> dict[str, dict[str, str]]:
    """Patient -> clinical data; empty if the file is missing or has other columns."""
    found = {}
    for row in read_csv(path):
        cells = {key: row.get(name) or "" for key, name in _CLINICAL.items()}
        found[row.get("Patient", "")] = cells | {"sex": _SEX.get(cells["sex"], cells["sex"])}
    return found
