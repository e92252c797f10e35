"""What data.csv says of the patients, against the size of their tumours.

A patient's tumour size is its share of all of the patient's pixels: the files do not say how
thick slices are, and a sum of pixels would be larger where they are thinner.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from brainseg.errors import DataError
from brainseg.index import natural_key

_PATIENT = "Patient"
_MANY_VALUES = 10
_SMALLEST_GROUP = 3


@dataclass(frozen=True)
class Covariate:
    """One column against tumour size.

    Attributes:
        name: Of the column.
        values: Patient -> the cell; patients with an empty cell are left out.
        is_continuous: True for a quantity such as an age, False for names or codes of groups.
        test: Kruskal-Wallis over groups of at least 3 patients, or Spearman; empty if there are
            fewer than two such groups.
        p_value: Of that test; NaN without one.
        adjusted: After Benjamini and Hochberg over all columns (1995); NaN without one.
    """

    name: str
    values: dict[str, str]
    is_continuous: bool
    test: str
    p_value: float
    adjusted: float

    def groups(self, sizes: Mapping[str, float]) -> dict[str, list[float]]:
        """Return value -> tumour sizes of the patients with it, in natural order of values."""
        found: dict[str, list[float]] = {}
        for patient, value in sorted(self.values.items(), key=lambda pair: natural_key(pair[1])):
            found.setdefault(value, []).append(sizes[patient])
        return found


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Read data.csv: patient -> column -> cell; empty where there is no such file.

    Raises:
        DataError: If it has no column `Patient`.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or _PATIENT not in rows[0]:
        raise DataError(f"{path}: no rows with a column {_PATIENT}")
    return {row.pop(_PATIENT): {name: cell or "" for name, cell in row.items()} for row in rows}


def compare(
    table: Mapping[str, Mapping[str, str]], sizes: Mapping[str, float]
) -> tuple[Covariate, ...]:
    """Test each column against tumour size, in the order of the table.

    Args:
        table: Patient -> column -> cell.
        sizes: Patient -> tumour size; patients that the table lacks are left out.
    """
    columns = list(next(iter(table.values()), {}))
    found = []
    for name in columns:
        values = {p: row[name].strip() for p, row in table.items() if p in sizes}
        values = {patient: value for patient, value in values.items() if value}
        if len(set(values.values())) > 1:
            found.append(_test(name, values, sizes))
    tested = [covariate for covariate in found if covariate.test]
    adjusted = _adjust([covariate.p_value for covariate in tested])
    by_name = dict(zip((covariate.name for covariate in tested), adjusted, strict=True))
    return tuple(
        Covariate(
            c.name, c.values, c.is_continuous, c.test, c.p_value, by_name.get(c.name, np.nan)
        )
        for c in found
    )


def _test(name: str, values: dict[str, str], sizes: Mapping[str, float]) -> Covariate:
    is_continuous = len(set(values.values())) > _MANY_VALUES and all(
        map(_is_number, values.values())
    )
    bare = Covariate(name, values, is_continuous, "", np.nan, np.nan)
    if is_continuous:
        numbers = [float(value) for value in values.values()]
        result = stats.spearmanr(numbers, [sizes[patient] for patient in values])
        return Covariate(name, values, True, "Spearman", float(result.pvalue), np.nan)
    groups = [group for group in bare.groups(sizes).values() if len(group) >= _SMALLEST_GROUP]
    if len(groups) < 2:
        return bare
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all sizes equal: a p-value of NaN says so
        p_value = float(stats.kruskal(*groups).pvalue)
    return Covariate(name, values, False, "Kruskal-Wallis", p_value, np.nan)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _adjust(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.nan_to_num(p_values, nan=1.0))]
