from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from generated import FACTS, generate_study

from brainseg.config import Experiment
from brainseg.errors import DataError, StudyError
from brainseg.storage.files import read_csv, write_csv, write_text
from study.analysis.protocol import register
from study.analysis.scores import read_matrix
from study.spec.grid import load_grid
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.schema import EXTERNAL_TABLES, TRIAL_TABLES, Row
from study.storage.study_folder import read_spec, read_study, write_study
from study.storage.tables import collect, external_folder, read_tables
from study.storage.trial_folder import TrialFolder

JOBS = StudySpec(
    grid="lite", variants=load_grid("lite").variants, experiment=Experiment(), seeds=2
).jobs()


def _finish(study: Path, job: TrialJob, dice: float) -> None:
    (study / "trials").mkdir(exist_ok=True)
    folder = TrialFolder(study / job.path)
    folder.begin()
    history = [
        {"stage": s, "epoch": 1, "step": s, "val_loss": 1 - dice, "val_dice": dice, "seconds": 2}
        for s in (1, 2)
    ]
    folder.write_history(history)
    write_text(folder.model, job.name)
    keys = ["dice_global", "iou", "accuracy", "precision", "recall", "dice_patient", "dice_slice"]
    values: dict[str, Any] = {f"test_{key}": dice for key in keys}
    values |= {"val_loss": 1 - dice, "seconds": 4, "epochs": 2, "weights": "none"}
    counts = {"TP": 5, "FP": 6, "FN": 7, "TN": 8, "Dice": 10 / 23, "hd95": ""}
    tables: dict[str, list[Row]] = {name: [] for name in TRIAL_TABLES}
    tables["scores"] = [{"patient": "p1", **counts}, {"patient": "p2", **counts}]
    folder.write_success(job, values, tables)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two seeds of raw finished, one of preprocessed diverged, the other never ended."""
    _finish(tmp_path, JOBS[0], 0.8)
    _finish(tmp_path, JOBS[2], 0.9)
    failed = TrialFolder(tmp_path / JOBS[1].path)
    failed.write_failure(JOBS[1], "diverged", "loss is nan, in stage 1")
    collect(tmp_path, JOBS)
    return tmp_path


def test_every_requested_trial_has_a_row(study: Path) -> None:
    rows = read_csv(study / "trials.csv")
    assert [(row["variant"], row["seed"], row["status"]) for row in rows] == [
        ("raw-lite0", "44", "finished"),
        ("raw-lite0", "45", "finished"),
        ("preprocessed-lite0", "44", "diverged"),
        ("preprocessed-lite0", "45", "unfinished"),
    ]
    assert rows[2]["error"] == "loss is nan, in stage 1"


def test_scores_are_sorted_and_hold_no_times(study: Path) -> None:
    rows = read_csv(study / "scores.csv")
    assert list(rows[0]) == list(TRIAL_TABLES["scores"].names_in([]))
    keys = [(row["variant"], row["fold"], row["seed"], row["patient"]) for row in rows]
    assert keys == [("raw-lite0", "0", seed, p) for seed in ("44", "45") for p in ("p1", "p2")]
    assert rows[0]["TP"] == "5"


def test_a_variants_model_is_the_one_of_the_lowest_val_loss(study: Path) -> None:
    models = list((study / "models").iterdir())
    assert [model.name for model in models] == ["raw-lite0.safetensors"]
    assert models[0].read_text() == JOBS[2].name


def test_collecting_again_changes_nothing(study: Path) -> None:
    names = ["trials.csv", *(f"{table}.csv" for table in TRIAL_TABLES)]
    before = {name: (study / name).read_bytes() for name in names}
    collect(study, JOBS)
    assert before == {name: (study / name).read_bytes() for name in before}


def test_a_half_written_result_is_no_result(study: Path) -> None:
    path = study / JOBS[0].path / "result.json"
    path.write_text(path.read_text()[:40])
    assert not TrialFolder(path.parent).is_finished()


def test_an_external_variant_has_a_row_per_fold_and_seed_or_is_missed(study: Path) -> None:
    with pytest.raises(StudyError, match="give --predictions nn=DIR again"):
        collect(study, JOBS, ["nn"])
    folder = external_folder(study, "nn")
    folder.mkdir(parents=True)
    counts = {"fold": 0, "patient": "p1", "TP": 1, "FP": 0, "FN": 1, "TN": 9, "Dice": 2 / 3}
    for name, row in (
        ("trials", {"fold": 0, "test_dice_global": 2 / 3}),
        ("scores", counts),
        ("slices", {**counts, "slice": "p1_1", "tumour_pixels": 2}),
    ):
        write_csv(folder / f"{name}.csv", [row], EXTERNAL_TABLES[name].names)
    rows = collect(study, JOBS, ["nn"])
    assert [(r["variant"], r["seed"], r["status"]) for r in rows[4:]] == [
        ("nn", 44, "external"),
        ("nn", 45, "external"),
    ]
    scores = [row for row in read_csv(study / "scores.csv") if row["variant"] == "nn"]
    assert [(row["seed"], row["TP"]) for row in scores] == [("44", "1"), ("45", "1")]
    matrix = read_matrix(read_csv(study / "scores.csv"), read_csv(study / "trials.csv"))
    assert matrix.num_trials == 4
    assert matrix.without(["nn"]).variants == ("raw-lite0", "preprocessed-lite0")


def test_a_variant_that_joined_the_study_may_have_no_rows_yet(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "small", grid="lite")
    spec, record = read_spec(study), read_study(study)
    more = spec.model_copy(update={"variants": {**spec.variants, "more": {"threshold": 0.4}}})
    write_study(study, more, {**FACTS, "protocol": register(record["protocol"], more, 4)})
    assert {row["variant"] for row in read_tables(study)["trials"]} == set(spec.variants)
    trials = study / "trials.csv"
    text = trials.read_text()
    trials.write_text("".join(line for line in text.splitlines(True) if "prepro" not in line))
    with pytest.raises(DataError, match="no row for variant preprocessed-lite0"):
        read_tables(study)
