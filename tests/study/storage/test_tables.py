from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brainseg.config import Experiment
from brainseg.errors import StudyError
from brainseg.storage.files import write_text
from study.spec.grid import Trial, plan_trials
from study.storage.study_folder import (
    Question,
    check_folder,
    locked,
    move_aside,
    read_study,
    write_study,
)
from study.storage.tables import TABLES, Row, TrialFolder, collect
from study.tune.progress import Progress

TRIALS = plan_trials("lite", Experiment(), folds=1, seeds=2)
FACTS = {
    "first_seed": 44,
    "data": "d",
    "synthetic": True,
    "weights": "no pretrained weights",
    "versions": {"torch": "2"},
}

COUNTS = {"patients": 12, "slices": 72, "tumour_slices": 30}
SAME = Question("lite", Experiment(), "", "f" * 64, COUNTS, seeds=2)


def _finish(study: Path, trial: Trial, dice: float) -> None:
    (study / "trials").mkdir(exist_ok=True)
    folder = TrialFolder(study / "trials" / trial.name)
    folder.begin()
    history = [
        {"stage": s, "epoch": 1, "step": s, "val_loss": 1 - dice, "val_dice": dice, "seconds": 2}
        for s in (1, 2)
    ]
    folder.write_history(history)
    write_text(folder.model, trial.name)
    keys = ["dice_global", "iou", "accuracy", "precision", "recall", "dice_patient", "dice_slice"]
    values: dict[str, Any] = {f"test_{key}": dice for key in keys}
    values |= {"val_loss": 1 - dice, "seconds": 4, "epochs": 2, "weights": "none"}
    counts = {"TP": 5, "FP": 6, "FN": 7, "TN": 8, "Dice": dice, "hd95": ""}
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    tables["scores"] = [{"patient": "p1", **counts}, {"patient": "p2", **counts}]
    folder.write_success(trial, values, tables)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two seeds of raw finished, one of preprocessed diverged, the other never ended."""
    _finish(tmp_path, TRIALS[0], 0.8)
    _finish(tmp_path, TRIALS[2], 0.9)
    failed = TrialFolder(tmp_path / "trials" / TRIALS[1].name)
    failed.write_failure(TRIALS[1], "diverged", "loss is nan, in stage 1")
    write_study(tmp_path, SAME, FACTS)
    collect(tmp_path, TRIALS)
    return tmp_path


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_requested_trial_has_a_row(study: Path) -> None:
    rows = _rows(study / "trials.csv")
    assert [(row["variant"], row["seed"], row["status"]) for row in rows] == [
        ("raw-lite0", "44", "finished"),
        ("raw-lite0", "45", "finished"),
        ("preprocessed-lite0", "44", "diverged"),
        ("preprocessed-lite0", "45", "unfinished"),
    ]
    assert rows[2]["error"] == "loss is nan, in stage 1"


def test_scores_are_sorted_and_hold_no_times(study: Path) -> None:
    rows = _rows(study / "scores.csv")
    counts = ["TP", "FP", "FN", "TN", "Dice", "hd95"]
    assert list(rows[0]) == ["variant", "fold", "seed", "patient", *counts]
    keys = [(row["variant"], row["fold"], row["seed"], row["patient"]) for row in rows]
    assert keys == [("raw-lite0", "0", seed, p) for seed in ("44", "45") for p in ("p1", "p2")]
    assert rows[0]["TP"] == "5"


def test_a_variants_model_is_the_one_of_the_lowest_val_loss(study: Path) -> None:
    models = list((study / "models").iterdir())
    assert [model.name for model in models] == ["raw-lite0.safetensors"]
    assert models[0].read_text() == TRIALS[2].name


def test_collecting_again_changes_nothing(study: Path) -> None:
    names = ["trials.csv", *(f"{table}.csv" for table in TABLES)]
    before = {name: (study / name).read_bytes() for name in names}
    collect(study, TRIALS)
    assert before == {name: (study / name).read_bytes() for name in before}


def test_a_half_written_result_is_no_result(study: Path) -> None:
    path = study / "trials" / TRIALS[0].name / "result.json"
    path.write_text(path.read_text()[:40])
    assert not TrialFolder(path.parent).is_finished()


def test_the_same_study_continues_and_another_is_refused(study: Path) -> None:
    assert check_folder(study, SAME)
    other = replace(SAME, base=Experiment().replaced({"data.size": 128}))
    with pytest.raises(StudyError, match=r"another study \(data\.size: 256 -> 128\)"):
        check_folder(study, other)


def test_a_dataset_that_changed_is_refused_with_the_difference(study: Path) -> None:
    other = replace(SAME, fingerprint="a" * 64, counts=COUNTS | {"slices": 71})
    with pytest.raises(StudyError, match=r"fingerprint: f+\.\.\. -> a+\.\.\.; slices: 72 -> 71\)"):
        check_folder(study, other)


def test_a_study_may_grow_but_not_shrink(study: Path) -> None:
    assert check_folder(study, replace(SAME, folds=3))
    with pytest.raises(StudyError, match="seeds: 2 -> 1, which may only grow"):
        check_folder(study, replace(SAME, seeds=1))


def test_a_study_of_another_version_is_refused_in_a_line(study: Path) -> None:
    path = study / "study.json"
    path.write_text(path.read_text().replace('"data": {', '"data": {"colour": 1,'))
    with pytest.raises(StudyError, match="of another version"):
        check_folder(study, SAME)


def test_the_same_weights_elsewhere_are_the_same_study(tmp_path: Path) -> None:
    here, there = (
        replace(SAME, base=SAME.base.replaced({"model.encoder_weights": path}), weights_hash="abc")
        for path in ("/a/w.safetensors", "/b/w.safetensors")
    )
    write_study(tmp_path, here, FACTS)
    assert there.changes_from(read_study(tmp_path)) == []


def test_a_study_begun_before_a_key_was_added_is_the_same_study(tmp_path: Path) -> None:
    write_study(tmp_path, SAME, FACTS)
    path = tmp_path / "study.json"
    record = json.loads(path.read_text())
    del record["experiment"]["model"]["batchnorm_momentum"]
    path.write_text(json.dumps(record))
    assert check_folder(tmp_path, SAME)
    other = replace(SAME, base=SAME.base.replaced({"model.batchnorm_momentum": 0.1}))
    with pytest.raises(StudyError, match=r"model\.batchnorm_momentum: None -> 0\.1"):
        check_folder(tmp_path, other)


def test_fresh_moves_the_old_study_aside(study: Path) -> None:
    aside = move_aside(study)
    assert aside is not None
    assert not study.exists()
    assert (aside / "study.json").exists()
    assert move_aside(study) is None


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(StudyError, match=r"no readable study\.json"):
        check_folder(tmp_path, SAME)
    assert not check_folder(tmp_path / "new", SAME)


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
    write_study(study, replace(SAME, folds=3), FACTS)
    again = read_study(study)
    assert again["starts"][0] == first["starts"][0]
    assert len(again["starts"]) == 2
    assert again["folds"] == 3
    assert (first["metric"], first["mode"]) == ("val_dice", "max")


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, json.dumps([1]))
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, json.dumps([2]))
    assert json.loads(path.read_text()) == [1]


def test_progress_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    names = [trial.name for trial in TRIALS[:2]]
    progress = Progress(names, 40, Console(width=100, highlight=False))
    row = {"stage": 2, "epoch": 7, "epochs": 20, "val_dice": 0.7, "train_loss": 0.4}
    row |= {"val_loss": 0.3, "seconds": 12.3, "replayed": False}
    progress.epoch(names[1], {**row, "epoch": 6, "replayed": True})
    progress.epoch(names[1], row)
    resumed, header, line = capsys.readouterr().out.splitlines()
    assert resumed.endswith("goes on after epoch 6")
    assert header.startswith("trial ")
    assert re.fullmatch(
        r"preprocessed-lite0 +7/20 +all +0\.700 +0\.400 +0\.300 +12 s +\d+ s", line
    )
    assert len(line) + len("efficientnet-b0") - len("lite0") < 80
