from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainseg.errors import DataError
from brainseg.explore.covariates import compare_covariates, read_patient_table


def test_covariates_find_a_relation_and_no_other() -> None:
    rng = np.random.default_rng(0)
    indices = np.arange(60)
    sizes = pd.Series(0.01 * indices, [f"p{index}" for index in indices])
    table = pd.DataFrame(
        {
            "age": 20 + indices,  # grows with the size
            "grade": np.where(indices < 30, "1", "2"),
            "noise": rng.integers(1, 3, 60),
            "constant": "1",
            "words": np.where(rng.random(60) < 0.5, "left", "right"),
            "rare": np.where(indices < 58, "1", "2"),
        },
        sizes.index,
    ).astype(str)
    table.loc["p5", "grade"] = ""
    table.loc["stranger"] = "1"
    found = {covariate.name: covariate for covariate in compare_covariates(table, sizes)}
    assert list(found) == ["age", "grade", "noise", "words", "rare"]
    assert (found["age"].test, found["grade"].test) == ("Spearman", "Kruskal-Wallis")
    assert found["rare"].test == ""  # a group of two
    assert found["age"].adjusted < 1e-6
    assert found["grade"].adjusted < 1e-6
    assert len(found["grade"].patients) == 59
    assert min(found["noise"].adjusted, found["words"].adjusted) > 0.05
    assert all(c.adjusted >= c.p_value for c in found.values() if c.test)
    assert list(found["words"].groups) == ["left", "right"]


def test_a_data_csv_without_patients_is_refused(tmp_path: Path) -> None:
    assert read_patient_table(tmp_path / "data.csv").empty
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no rows with a column Patient"):
        read_patient_table(tmp_path / "data.csv")


def test_data_csv_keeps_codes_as_text(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("\ufeffPatient,grade,age\nA,1,\nB,NA,007\n")
    table = read_patient_table(tmp_path / "data.csv")
    assert table.loc["A"].to_dict() == {"grade": "1", "age": ""}
    assert table.loc["B"].to_dict() == {"grade": "NA", "age": "007"}
