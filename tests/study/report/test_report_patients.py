"""The sections on the patients of a study and on their outlines."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from brainseg.config import LEAKY_SPLIT
from brainseg.data.about import LGG
from brainseg.document import Bullets, Paragraph, Section, Table
from study.report.patients import compare_parts, describe_study_patients
from study.report.results import read_results
from study.storage.schema import Row

PATIENTS: dict[str, Row] = {
    name: {"patient": name, "age": age, "sex": sex, "missing": missing, "grade": ""}
    for name, age, sex, missing in (
        ("a", "20", "female", ""),
        ("b", "30", "female", "post-contrast"),
        ("c", "40", "male", ""),
        ("d", "", "female", ""),
        ("e", "60", "male", ""),
        ("f", "70", "male", ""),
        ("g", "80", "", ""),
    )
}
ROTATIONS = [
    {"train": ["a", "b", "c", "d"], "val": ["e"], "test": ["f", "g"]},
    {"train": ["c", "d", "e", "f"], "val": ["g"], "test": ["a", "b"]},
]


def _rows(**cells: Any) -> dict[str, dict[str, str]]:
    patients = {name: row | cells for name, row in PATIENTS.items()}
    return {row.pop("characteristic"): row for row in compare_parts(patients, ROTATIONS)}


def _sections(study: Path) -> dict[str, Section]:
    return {section.name: section for section in describe_study_patients(read_results(study))}


def _change(study: Path, **facts: Any) -> None:
    about = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(about | facts))


def _tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_numbers_are_medians_with_quartiles_and_categories_shares() -> None:
    rows = _rows()
    assert list(rows) == [
        "age, years",
        "age, years: not known",
        "sex: female",
        "sex: male",
        "sex: not known",
        "missing sequence: none",
        "missing sequence: post-contrast",
    ]
    age = rows["age, years"]
    assert list(age)[:4] == ["all (n = 7)", "train (n = 4)", "val (n = 1)", "test (n = 2)"]
    assert list(age.values())[:4] == [
        "50 (32.5 to 67.5)",
        "30 (25 to 35)",
        "60 (60 to 60)",
        "75 (72.5 to 77.5)",
    ]
    assert list(rows["sex: female"].values())[:4] == ["3 (43%)", "3 (75%)", "0 (0%)", "0 (0%)"]
    assert rows["age, years: not known"]["all (n = 7)"] == "1 (14%)"


def test_the_difference_of_train_and_test_is_in_standard_deviations() -> None:
    rows = _rows()
    age = (30 - 75) / math.sqrt((100 + 50) / 2)  # variances 100 and 50
    female = 0.75 / math.sqrt(0.75 * 0.25 / 2)
    assert rows["age, years"]["SMD, train - test"] == f"{age:.2f}"
    assert rows["sex: female"]["SMD, train - test"] == f"{female:.2f}"
    second = (170 / 3 - 25) / math.sqrt((700 / 3 + 50) / 2)
    assert abs(second) < abs(age)
    assert rows["age, years"]["largest SMD"] == f"{abs(age):.2f}"
    assert rows["missing sequence: none"]["largest SMD"] == f"{0.5 / math.sqrt(0.125):.2f}"


def test_parts_that_are_all_alike_have_no_standard_deviation() -> None:
    rows = compare_parts(PATIENTS, [{"train": ["a", "b"], "val": ["d"], "test": ["c", "e"]}])
    by_name = {row["characteristic"]: row for row in rows}
    assert by_name["sex: male"]["SMD, train - test"] == "-"
    assert by_name["sex: not known"]["SMD, train - test"] == "0.00"
    assert "largest SMD" not in by_name["sex: male"]


def test_a_column_of_few_numbers_is_a_category_and_one_of_many_words_is_only_counted() -> None:
    assert {name for name in _rows(scanner="3") if "scanner" in name} == {"scanner: 3"}
    patients = {f"p{n}": {"patient": f"p{n}", "id": f"x{n}" if n else ""} for n in range(20)}
    (known, unknown) = compare_parts(patients, [])
    assert known == {"characteristic": "id: known", "all (n = 20)": "19 (95%)"}
    assert unknown == {"characteristic": "id: not known", "all (n = 20)": "1 (5%)"}


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_none_makes_its_column_a_category(cell: str) -> None:
    patients = {
        name: row | {"age": cell if name == "a" else "50"} for name, row in PATIENTS.items()
    }
    names = {row["characteristic"] for row in compare_parts(patients, ROTATIONS)}
    assert f"age, years: {cell}" in names


def test_the_flow_goes_from_the_folder_to_the_analysis(generated: Path) -> None:
    flow, characteristics = _tables(_sections(generated)["people"])
    rows = {row["step"]: (row["number"], row["note"]) for row in flow.rows}
    assert rows["patients found"] == ("20", "200 slices, 128 with tumour")
    assert rows["patients in train"] == ("14", "of each of 2 rotation(s)")
    assert rows["patients analysed"] == ("4", "16 have no test score")
    assert rows["trials finished"] == ("15 of 16", "1 diverged")
    assert list(characteristics.rows[0])[:5] == [
        "characteristic",
        "all (n = 20)",
        "train (n = 14)",
        "val (n = 4)",
        "test (n = 2)",
    ]


def test_notes_of_the_folder_are_repeated(small: Path) -> None:
    _change(small, notes=["x.txt is not used"])
    assert Bullets(["x.txt is not used"]) in _sections(small)["people"].blocks


def test_slices_as_members_of_parts_are_counted_but_not_described(small: Path) -> None:
    split = json.loads((small / "split.json").read_text())
    for rotation in split["rotations"]:
        rotation["by"] = "slice"
    (small / "split.json").write_text(json.dumps(split))
    about = json.loads((small / "study.json").read_text())
    about["experiment"]["data"]["split"] = LEAKY_SPLIT
    _change(small, experiment=about["experiment"])
    section = _sections(small)["people"]
    flow, characteristics = _tables(section)
    assert "slices in train" in {row["step"] for row in flow.rows}
    assert list(characteristics.rows[0]) == ["characteristic", "all (n = 20)"]
    assert isinstance(section.blocks[0], Paragraph)
    assert "LEAKY" in section.blocks[0].text


def test_what_is_known_of_the_dataset_is_printed_with_every_key(small: Path) -> None:
    assert "reference" not in _sections(small)  # synthetic
    known = LGG.model_copy(update={"ethics": "Board 1, 2019.", "dates": "2001 to 2010"})
    _change(small, synthetic=False, about=known.model_dump())
    (table,) = _tables(_sections(small)["reference"])
    facts = {row[""]: row["value"] for row in table.rows}
    assert facts["ethics"] == "Board 1, 2019."
    assert facts["readers agreement"] == LGG.readers_agreement
    assert len(facts) == sum(map(bool, known.model_dump().values())) - 3
    _change(small, about={"name": "mine", "source": "", "licence": ""})  # of an earlier version
    assert "reference" not in _sections(small)


def test_without_a_table_of_patients_only_the_flow_is_shown(small: Path) -> None:
    results = dataclasses.replace(read_results(small), patients={}, split={})
    (people,) = describe_study_patients(results)
    (flow,) = _tables(people)
    assert [row["step"] for row in flow.rows] == [
        "patients found",
        "patients refused",
        "patients analysed",
        "trials finished",
    ]
