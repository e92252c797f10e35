from __future__ import annotations

from pathlib import Path

import pytest

from brainseg.config import Experiment
from brainseg.errors import StudyError
from study.spec.grid import load_grid
from study.spec.study_spec import StudySpec
from study.storage.study_folder import (
    changed_lines,
    check_folder,
    default_name,
    grid_copies,
    keep_grid,
    locked,
    move_aside,
    read_spec,
    read_study,
    write_study,
)

FACTS = {
    "first_seed": 44,
    "weights": "no pretrained weights",
    "cpus_per_trial": 1,
    "gpus_per_trial": 0.5,
    "versions": {"torch": "2"},
}
SPEC = StudySpec(
    grid="lite",
    variants=load_grid("lite").variants,
    experiment=Experiment(),
    fingerprint="f" * 64,
    seeds=2,
    synthetic=True,
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    write_study(folder, SPEC, FACTS)
    return folder


def test_a_study_is_named_after_its_grid_or_its_file() -> None:
    assert default_name("lite", None, synthetic=True) == "lite-synthetic"
    assert default_name("one", Path("results/best.yaml"), synthetic=False) == "best"


def test_the_same_study_continues_and_another_is_refused(study: Path) -> None:
    assert check_folder(study, SPEC)
    other = SPEC.model_copy(update={"experiment": Experiment().replaced({"data.size": 128})})
    with pytest.raises(StudyError, match=r"another study \(data\.size: 256 -> 128\)"):
        check_folder(study, other)
    assert read_spec(study) == SPEC


def test_a_study_of_another_version_is_refused_in_a_line(study: Path) -> None:
    path = study / "study.json"
    path.write_text(path.read_text().replace('"data": {', '"data": {"colour": 1,'))
    with pytest.raises(StudyError, match=r"experiment\.data\.colour: .* of another version"):
        check_folder(study, SPEC)


def test_fresh_moves_the_old_study_aside(study: Path) -> None:
    aside = move_aside(study)
    assert aside is not None
    assert not study.exists()
    assert (aside / "study.json").exists()
    assert move_aside(study) is None


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(StudyError, match=r"no readable study\.json"):
        check_folder(tmp_path, SPEC)
    assert not check_folder(tmp_path / "new", SPEC)


def test_a_start_that_was_killed_before_study_json_begins_again(study: Path) -> None:
    (study / "study.json").rename(study / ".study.json.4711")
    (study / "patients.csv").touch()
    assert not check_folder(study, SPEC)
    (study / "trials").mkdir()
    with pytest.raises(StudyError, match=r"no readable study\.json"):
        check_folder(study, SPEC)


def test_two_drivers_cannot_hold_one_study_even_if_it_is_moved(study: Path) -> None:
    with locked(study):
        with pytest.raises(StudyError, match="is being run by process"), locked(study):
            pass
        move_aside(study)
        with pytest.raises(StudyError, match="is being run by process"), locked(study):
            pass
    with locked(study):
        assert not study.exists()


def test_every_start_is_remembered(study: Path) -> None:
    first = read_study(study)
    write_study(study, SPEC.model_copy(update={"folds": 3}), FACTS)
    again = read_study(study)
    assert again["starts"][0] == first["starts"][0]
    assert len(again["starts"]) == 2
    assert again["folds"] == 3
    assert (first["metric"], first["mode"]) == ("val_dice", "max")


def test_a_users_own_grid_is_copied_and_a_changed_one_is_shown(tmp_path: Path) -> None:
    assert keep_grid(tmp_path, "") == []  # a grid that comes with the program
    assert grid_copies(tmp_path) == []
    text = "description: Two.\nvariants: {a: {}, b: {seed: 1}}\n"
    assert keep_grid(tmp_path, text) == []
    assert keep_grid(tmp_path, text) == []
    assert [path.name for path in grid_copies(tmp_path)] == ["grid.yaml"]
    other = text.replace("Two", "Both")
    assert keep_grid(tmp_path, other) == ["-description: Two.", "+description: Both."]
    first, last = grid_copies(tmp_path)
    assert (first.read_text(), last.read_text()) == (text, other)
    assert first.name.startswith("grid.2")
    assert changed_lines(other, other) == []


def test_the_copy_of_a_grid_has_neither_secrets_nor_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    keep_grid(tmp_path, "a: /home/someone/x.safetensors\nb: s3://me:hunter2@bucket/x\n")
    text = (tmp_path / "grid.yaml").read_text()
    assert "a: ~/x.safetensors" in text
    assert "hunter2" not in text


def test_a_link_out_of_the_study_is_no_copy_of_a_grid(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    study = tmp_path / "study"
    study.mkdir()
    (study / "grid.yaml").symlink_to(tmp_path / "secret")
    assert grid_copies(study) == []
