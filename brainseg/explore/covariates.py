"""Tests columns of patients' data against tumour size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from brainseg.data.layouts import natural_key
from brainseg.errors import DataError
from brainseg.storage.files import read_csv

_PATIENT = "Patient"
_MAX_CODES = 10
_MIN_GROUP = 3


@dataclass(frozen=True)
class Covariate:
    """A column of patients' data, tested against tumour size.

    Attributes:
        name: The name of the column.
        patients: A row per patient whose cell is not empty: value, as text, and tumour size.
        is_continuous: True for a quantity such as age, False for names or codes of groups.
        test: Spearman for a quantity; Kruskal-Wallis over groups of at least 3 patients, empty if
            there are fewer than two such groups.
        p_value: The p-value of the test; NaN without a test.
        adjusted: The p-value adjusted for the number of tested columns (Benjamini and Hochberg
            1995); NaN without a test.
    """

    name: str
    patients: pd.DataFrame
    is_continuous: bool
    test: str = ""
    p_value: float = np.nan
    adjusted: float = np.nan

    @property
    def groups(self) -> dict[str, list[float]]:
        """Value -> tumour sizes of the patients with it, values in natural order."""
        groups = self.patients.groupby("value")["size"].apply(list).to_dict()
        return {value: groups[value] for value in sorted(groups, key=natural_key)}


def read_patient_table(path: Path) -> pd.DataFrame:
    """Read data.csv: a row per patient, cells as text; an empty table if there is no such file.

    Raises:
        DataError: If it cannot be read, or has no column `Patient`.
    """
    table = pd.DataFrame(read_csv(path)).fillna("")
    if _PATIENT not in table:
        if path.exists():
            raise DataError(f"{path}: no rows with a column {_PATIENT}")
        return pd.DataFrame()
    return table.drop_duplicates(_PATIENT, keep="last").set_index(_PATIENT)


def compare_covariates(table: pd.DataFrame, sizes: pd.Series) -> list[Covariate]:
    """Test each column against tumour size, in the order of the table.

    Args:
        table: A row per patient, cells as text. Columns with fewer than two values are left out.
        sizes: Tumour size by patient; patients that only one of both has are left out.
    """
    known = table[table.index.isin(sizes.index)]
    found = []
    for name in known:
        values = known[name].str.strip()
        values = values[values != ""]
        if values.nunique() > 1:
            patients = pd.DataFrame({"value": values, "size": sizes[values.index]})
            found.append(_test(name, patients))
    p_values = [covariate.p_value for covariate in found if covariate.test]
    adjusted = iter(_adjust(p_values))
    return [replace(c, adjusted=next(adjusted)) if c.test else c for c in found]


def _test(name: str, patients: pd.DataFrame) -> Covariate:
    numbers = pd.to_numeric(patients["value"], errors="coerce")
    if patients["value"].nunique() > _MAX_CODES and np.isfinite(numbers).all():
        p_value = stats.spearmanr(numbers, patients["size"]).pvalue
        return Covariate(name, patients, True, "Spearman", float(p_value))
    codes = Covariate(name, patients, False)
    groups = [group for group in codes.groups.values() if len(group) >= _MIN_GROUP]
    if len(groups) < 2:
        return codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if all sizes are equal, the p-value is NaN
        return replace(codes, test="Kruskal-Wallis", p_value=float(stats.kruskal(*groups).pvalue))


def _adjust(p_values: list[float]) -> list[float]:
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.nan_to_num(p_values, nan=1.0))]
