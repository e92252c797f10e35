from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from brainseg.config import Experiment
from brainseg.data.split import PARTS, Split, count_rotations, split_of
from brainseg.data.store_builder import Slice
from brainseg.errors import ConfigError, DataError

PATIENTS = [f"TCGA_{site}_{n}" for site, count in (("AA", 8), ("BB", 7), ("CC", 2), ("DD", 1))
            for n in range(count)]  # fmt: skip
SLICES = tuple(
    Slice(f"{patient}_{n}", patient, 10 * (n % 2)) for patient in PATIENTS for n in range(6)
)


def _split(way: str, **changes: Any) -> Split:
    return split_of(Experiment().replaced({"data.split": way, **changes}), SLICES)


def _write(tmp_path: Path, tree: object, name: str = "split.yaml") -> str:
    path = tmp_path / name
    path.write_text(json.dumps(tree) if name.endswith("json") else yaml.safe_dump(tree))
    return str(path)


def _thirds() -> list[dict[str, list[str]]]:
    thirds = [PATIENTS[n::3] for n in range(3)]
    return [
        dict(zip(PARTS, ([*thirds[r]], [*thirds[r - 1]], [*thirds[r - 2]]), strict=True))
        for r in range(3)
    ]


def test_each_site_is_left_out_in_turn_and_small_ones_together() -> None:
    data = Experiment().data.model_copy(update={"split": "site"})
    assert count_rotations(data, SLICES) == 3
    tested = [_split("site", fold=fold) for fold in range(3)]
    assert [split.tested for split in tested] == ["site AA", "site BB", "site others"]
    assert sorted(tested[2].test) == ["TCGA_CC_0", "TCGA_CC_1", "TCGA_DD_0"]
    for split in tested:
        assert sorted((*split.train, *split.val, *split.test)) == PATIENTS
    assert _split("site", fold=0, inner_fold=1).val != tested[0].val
    with pytest.raises(ConfigError, match="has 3 rotations"):
        _split("site", fold=3)


def test_names_without_a_site_are_refused() -> None:
    slices = tuple(Slice(f"{n}", f"p{n}", n % 2) for n in range(30))
    with pytest.raises(DataError, match="do not tell two sites"):
        split_of(Experiment().replaced({"data.split": "site"}), slices)


def test_folds_of_slices_test_each_slice_once_and_share_patients() -> None:
    splits = [_split("slice", fold=fold) for fold in range(10)]
    tested = Counter(int(i) for split in splits for i in split.indices(SLICES, "test"))
    assert tested == dict.fromkeys(range(len(SLICES)), 1)
    patients = [{SLICES[i].patient for i in splits[0].indices(SLICES, part)} for part in PARTS]
    assert patients[0] & patients[2]
    assert Experiment().replaced({"data.split": "slice"}).is_leaky


@pytest.mark.parametrize("name", ["split.yaml", "split.json"])
def test_a_file_names_the_patients_of_each_rotation(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, _thirds(), name)
    for fold, parts in enumerate(_thirds()):
        split = _split(path, fold=fold)
        assert {part: list(getattr(split, part)) for part in PARTS} == parts
    with pytest.raises(ConfigError, match="names its own val"):
        _split(path, inner_fold=1)


def _changed(change: str) -> list[dict[str, list[str]]]:
    thirds = _thirds()
    if change == "unknown":
        thirds[0]["train"].append("TCGA_AA_00")
    elif change == "leak":
        thirds[0]["train"].append(thirds[0]["test"][0])
    elif change == "missing":
        thirds[1]["val"].pop()
    elif change == "twice":
        thirds[1]["test"].append(thirds[0]["test"][0])
        thirds[1]["train"].remove(thirds[0]["test"][0])
    return thirds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("unknown", "rotation 0: the dataset has no patient TCGA_AA_00; did you mean TCGA_AA_0?"),
        ("leak", "is there twice"),
        ("missing", "(1 patients) are in no part"),
        ("twice", "is tested in rotations 0 and 1"),
    ],
)
def test_a_file_that_does_not_fit_lists_every_problem(
    tmp_path: Path, change: str, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _split(_write(tmp_path, _changed(change)))
    assert any(said in problem for problem in error.value.problems)


def test_patients_that_are_left_out_are_named(tmp_path: Path) -> None:
    thirds = _thirds()[:1]
    dropped = thirds[0]["train"].pop()
    assert dropped not in _split(_write(tmp_path, [{**thirds[0], "unused": [dropped]}])).train


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"train": ["a"], "val": ["b"]}, "test"),
        ({"train": ["a"], "val": ["b"], "test": ["c"], "tset": []}, "tset"),
        ([], "0 rotations"),
        ("text", "expected train"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, tree: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        _split(_write(tmp_path, tree))
    assert said in str(error.value)
    with pytest.raises(ConfigError, match="must be patient, site"):
        _split("patients")
    with pytest.raises(DataError, match=r"cannot read .*none\.yaml"):
        _split(str(tmp_path / "none.yaml"))
