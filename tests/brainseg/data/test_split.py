from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.model_selection import StratifiedGroupKFold

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS, Split, assign_folds, check_share, split_by_patient, split_of
from brainseg.data.store_builder import Slice
from brainseg.errors import DataError


@pytest.mark.parametrize("rotation", range(10))
@pytest.mark.parametrize("seed", [0, 44])
def test_no_patient_is_in_two_parts(data: SliceStore, rotation: int, seed: int) -> None:
    split = split_by_patient(data.slices, rotation, seed)
    everyone = [patient for part in PARTS for patient in getattr(split, part)]
    assert sorted(everyone) == sorted(data.patients)
    indices = np.concatenate([split.indices(data.slices, part) for part in PARTS])
    assert sorted(indices.tolist()) == list(range(len(data.slices)))


def test_a_split_with_a_leak_cannot_be_constructed() -> None:
    with pytest.raises(ValidationError, match="a would be in both train and test"):
        Split(rotation=0, split_seed=44, train=("a", "b"), val=("c",), test=("a",))


def test_a_leak_written_by_hand_cannot_be_read_back(data: SliceStore) -> None:
    split = split_by_patient(data.slices, 3, 44)
    assert Split.model_validate_json(split.model_dump_json()) == split
    leaking = split.model_dump() | {"val": split.test}
    with pytest.raises(ValidationError, match="both val and test"):
        Split.model_validate(leaking)


def test_inner_rotations_test_the_same_and_validate_on_all_others_twice(data: SliceStore) -> None:
    splits = [split_by_patient(data.slices, 3, 44, inner) for inner in range(9)]
    assert {split.test for split in splits} == {split_by_patient(data.slices, 3, 44).test}
    validated = sorted(patient for split in splits for patient in split.val)
    assert validated == sorted(2 * [p for p in data.patients if p not in splits[0].test])
    assert len({split.val for split in splits}) == 9
    assert splits[0] == split_by_patient(data.slices, 3, 44)


def test_ten_rotations_test_every_patient_once(data: SliceStore) -> None:
    tested = [p for r in range(10) for p in split_by_patient(data.slices, r, 44).test]
    assert sorted(tested) == sorted(data.patients)


def test_rotation_zero_is_the_published_assignment(data: SliceStore) -> None:
    folds = assign_folds(data.slices, 44)
    split = split_by_patient(data.slices, 0, 44)
    assert {folds[p] for p in split.train} <= set(range(7))
    assert {folds[p] for p in split.val} <= {7, 8}
    assert {folds[p] for p in split.test} == {9}
    assert {folds[p] for p in split_by_patient(data.slices, 1, 44).test} == {0}


def test_folds_are_those_of_scikit_learn_on_the_real_slices(real_data: SliceStore) -> None:
    groups = [item.patient for item in real_data.slices]
    labels = [int(item.tumour_pixels > 0) for item in real_data.slices]
    folder = StratifiedGroupKFold(10, shuffle=True, random_state=44)
    last = [test for _, test in folder.split(groups, labels, groups)][9]
    split = split_by_patient(real_data.slices, 0, 44)
    assert split.indices(real_data.slices, "test").tolist() == last.tolist()


def test_rotation_zero_of_the_whole_dataset_is_the_published_split(real_data: SliceStore) -> None:
    known = {40: ([26, 9, 5], [1022, 270, 157]), 110: ([77, 21, 12], [2763, 786, 380])}
    if len(real_data.patients) not in known:
        pytest.skip("another choice of patients")
    split = split_by_patient(real_data.slices, 0, 44)
    patients = [len(getattr(split, part)) for part in PARTS]
    slices = [len(split.indices(real_data.slices, part)) for part in PARTS]
    assert (patients, slices) == known[len(real_data.patients)]


def test_same_seed_same_folds_other_seed_other_folds(data: SliceStore) -> None:
    assert assign_folds(data.slices, 44) == assign_folds(data.slices, 44)
    assert assign_folds(data.slices, 44) != assign_folds(data.slices, 45)


def test_fewer_patients_than_folds_are_refused() -> None:
    slices = tuple(Slice(f"s{n}", f"p{n}", n % 2) for n in range(9))
    with pytest.raises(DataError, match="9 patients"):
        assign_folds(slices, 44)


def test_too_few_slices_of_either_kind_are_refused() -> None:
    slices = tuple(Slice(f"s{n}", f"p{n}", n % 2) for n in range(18))
    with pytest.raises(DataError, match="9 slices with tumour and 9 without; the 10 folds need"):
        assign_folds(slices, 44)
    leaky = Experiment().replaced({"data.split": "slice"})
    with pytest.raises(DataError, match="9 slices with tumour and 9 without"):
        split_of(leaky, slices)


def test_a_share_of_tumour_needs_slices_without() -> None:
    slices = tuple(Slice(f"s{n}", f"p{n % 20}", 1) for n in range(60))
    share = Experiment().replaced({"data.tumour_share": 0.5})
    split = split_of(share, slices)  # which a model that was trained before still has
    with pytest.raises(DataError, match=r"tumour_share is 0\.5, but every slice of train holds"):
        check_share(share, slices, split)


def test_a_part_without_tumour_is_refused() -> None:
    slices = tuple(Slice(f"s{n}", f"p{n}", int(n == 0)) for n in range(20))
    with pytest.raises(DataError, match="holds tumour"):
        split_by_patient(slices, 0, 44)
