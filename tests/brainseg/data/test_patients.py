from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from brainseg.data.patients import describe_patients, missing_sequences
from brainseg.data.slice_store import SliceStore


@pytest.mark.parametrize(
    ("copied", "expected"),
    [
        ((), ""),
        ((0,), "pre-contrast"),
        ((2,), "post-contrast"),
        ((0, 2), "pre-contrast + post-contrast"),
    ],
)
def test_a_sequence_is_missing_if_it_is_a_copy_of_flair(
    copied: tuple[int, ...], expected: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for channel in copied:
        image[:, :, channel] = image[:, :, 1]
    assert missing_sequences(image) == expected


def test_every_patient_has_a_row(data: SliceStore) -> None:
    rows = describe_patients(data)
    assert [row["patient"] for row in rows] == data.patients
    assert sum(row["slices"] for row in rows) == len(data.slices)
    assert sum(row["tumour_pixels"] for row in rows) == sum(s.tumour_pixels for s in data.slices)
    assert {row["site"] for row in rows} == {"CS", "DU", "FG", "HT"}
    assert all(row["grade"] == row["histology"] == "" for row in rows)


def test_data_csv_is_read_if_there_is_one(data: SliceStore, tmp_path: Path) -> None:
    first, second = data.patients[:2]
    header = "Patient,histological_type,neoplasm_histologic_grade"
    (tmp_path / "data.csv").write_text(f"{header}\n{first},3,2\n{second},,1\n")
    rows = describe_patients(dataclasses.replace(data, root=tmp_path))
    assert [(row["grade"], row["histology"]) for row in rows[:3]] == [
        ("2", "3"),
        ("1", ""),
        ("", ""),
    ]


def test_age_and_sex_are_read_from_data_csv(data: SliceStore, tmp_path: Path) -> None:
    header = "Patient,gender,age_at_initial_pathologic"
    lines = [
        f"{name},{cells}"
        for name, cells in zip(data.patients, ("1,57", "2,67", "x,"), strict=False)
    ]
    (tmp_path / "data.csv").write_text("\n".join([header, *lines]) + "\n")
    rows = describe_patients(dataclasses.replace(data, root=tmp_path))
    assert [(row["sex"], row["age"]) for row in rows[:4]] == [
        ("female", "57"),
        ("male", "67"),
        ("x", ""),
        ("", ""),
    ]


def test_the_real_patients(real_data: SliceStore) -> None:
    rows = {row["patient"]: row for row in describe_patients(real_data)}
    assert rows["TCGA_DU_7013"]["missing"] == "pre-contrast + post-contrast"
    assert rows["TCGA_FG_7634"]["missing"] == "post-contrast"
    assert (rows["TCGA_CS_4942"]["missing"], rows["TCGA_CS_4942"]["site"]) == ("", "CS")
    assert (rows["TCGA_CS_6668"]["age"], rows["TCGA_CS_6668"]["sex"]) == ("57", "female")
    assert (rows["TCGA_CS_6668"]["grade"], rows["TCGA_CS_6668"]["histology"]) == ("1", "3")
