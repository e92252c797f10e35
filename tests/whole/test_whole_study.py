"""Whole studies of tiny trials through real Ray, and what they leave behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from brainseg import predict
from brainseg.cli import FINISHED, KNOWN_ERROR, SOME_FAILED
from brainseg.config import Experiment
from brainseg.data.layouts import patient_of
from brainseg.model.model_file import load_model
from brainseg.storage.files import read_csv
from study.run import main
from study.storage.schema import TRIAL_TABLES

VARIANTS: dict[str, dict[str, Any]] = {
    "raw": {"preprocess.filters": []},
    "preprocessed": {"preprocess.filters": ["median", "clahe"]},
    "wild": {"stages.1.learning_rate": 1e10},
    "strong": {"augment.strength": 2.0},
}


def _write_grid(folder: Path, variants: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "four.yaml"
    path.write_text(
        yaml.safe_dump({"description": "Four.", "variants": variants}, sort_keys=False)
    )
    return path


@pytest.fixture(scope="module")
def command(
    phantom_root: Path, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(tiny.to_yaml())
    where = ["--data", str(phantom_root), "--storage", str(folder / "results")]
    _write_grid(folder, VARIANTS)
    return ["--grid", str(folder / "four.yaml"), "--config", str(folder / "tiny.yaml"), *where]


@pytest.fixture(scope="module")
def study(command: list[str]) -> Path:
    """Four trials, two at once; one of them diverges in stage 2."""
    assert main(command) == SOME_FAILED
    return Path(command[-1]) / "four-synthetic"


def test_every_trial_has_a_row_and_the_failed_one_its_reason(study: Path) -> None:
    rows = {row["variant"]: row for row in read_csv(study / "trials.csv")}
    assert [row["status"] for row in rows.values()] == [
        "finished",
        "finished",
        "diverged",
        "finished",
    ]
    assert "in stage 2, epoch" in rows["wild"]["error"]
    assert rows["raw"]["weights"] == "no pretrained weights"
    assert rows["raw"]["epochs"] == "3"


def test_scores_are_per_variant_and_test_patient_in_order(study: Path) -> None:
    import json

    tested = json.loads((study / "split.json").read_text())["rotations"][0]["test"]
    rows = read_csv(study / "scores.csv")
    expected = [(v, p) for v in ("raw", "preprocessed", "strong") for p in sorted(tested)]
    assert [(row["variant"], row["patient"]) for row in rows] == expected


def test_each_model_carries_its_experiment_and_scores(study: Path) -> None:
    names = {path.stem for path in (study / "models").iterdir()}
    assert names == {"raw", "preprocessed", "strong"}
    _, header = load_model(study / "models" / "preprocessed.safetensors")
    assert header.synthetic
    assert header.experiment.preprocess.filters == ("median", "clahe")
    assert "test_dice_global" in header.metrics


def test_live_curves_lie_in_the_studys_own_folder(study: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = study / "tensorboard" / "raw-fold0-seed44 SYNTHETIC"
    events = EventAccumulator(str(run))
    events.Reload()
    assert len(events.Scalars("loss/val")) == 3
    assert {"loss/train", "Dice/val (global)", "learning rate"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 1


def test_a_report_and_its_picture_are_written(study: Path) -> None:
    text = (study / "report.md").read_text()
    assert "SYNTHETIC" in text
    assert "diverged" in text
    assert (study / "figures" / "learning_curves.png").exists()
    assert "SYNTHETIC" in (study / "report.html").read_text()
    assert (study / "models" / "raw.md").exists()


def test_the_test_leaves_its_slices_stages_and_pictures(study: Path) -> None:
    names = ("slices", "stages", "calibration", "examples")
    variants = {
        name: {row["variant"] for row in read_csv(study / f"{name}.csv")} for name in names
    }
    assert variants == {key: {"raw", "preprocessed", "strong"} for key in names}
    scores = {(r["variant"], r["patient"]): int(r["TP"]) for r in read_csv(study / "scores.csv")}
    summed = dict.fromkeys(scores, 0)
    for row in read_csv(study / "slices.csv"):
        summed[row["variant"], row["patient"]] += int(row["TP"])
    assert summed == scores
    assert all((study / row["picture"]).exists() for row in read_csv(study / "examples.csv"))
    assert len(read_csv(study / "patients.csv")) == 12


@pytest.mark.slow
def test_the_same_command_keeps_what_is_finished(
    study: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.glob("trials/*/model.safetensors")}
    scores = (study / "scores.csv").read_bytes()
    assert main(command) == SOME_FAILED
    told = capsys.readouterr()
    assert "to run" not in told.out
    assert "--retry-failed runs failed trials again" in told.err
    assert main([*command, "--retry-failed"]) == SOME_FAILED
    assert "Trials: 4, 1 to run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (study / "scores.csv").read_bytes() == scores


@pytest.mark.slow
def test_an_equal_study_has_byte_equal_scores_and_equal_weights(
    study: Path, command: list[str]
) -> None:
    import torch

    two = {name: VARIANTS[name] for name in ("preprocessed", "raw")}
    grid = _write_grid(study.parents[1] / "again", two)
    again = ["--grid", str(grid), *command[2:], "--name", "again", "--concurrent", "1"]
    assert main([*again, "--cpus-per-trial", "1"]) == FINISHED
    folder = study.with_name("again")
    for variant in two:
        scores = [path / "trials" / f"{variant}-fold0-seed44" for path in (study, folder)]
        for name in (*(f"{table}.csv" for table in TRIAL_TABLES), "probabilities.npz"):
            assert (scores[0] / name).read_bytes() == (scores[1] / name).read_bytes()
        weights = [load_model(path / "model.safetensors")[0] for path in scores]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    shutil.rmtree(folder)


@pytest.mark.slow
def test_predictions_read_back_score_like_the_variant_that_made_them(
    study: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(study, tmp_path / "results" / study.name)
    rotation = json.loads((study / "split.json").read_text())["rotations"][0]
    root = Path(command[command.index("--data") + 1])
    folders = [str(f) for f in root.glob("*/") if patient_of(f.name) in rotation["test"]]
    assert len(folders) == len(rotation["test"])
    model, out = study / "models" / "raw.safetensors", tmp_path / "predicted"
    assert predict.main([str(model), *folders, "--out", str(out), "--device", "cpu"]) == FINISHED
    again = [*command[:-1], str(tmp_path / "results"), "--predictions", f"other={out}"]
    assert main(again) == SOME_FAILED  # the one that diverged
    for table, but in (("scores", ()), ("slices", ())):
        rows = read_csv(copied / f"{table}.csv")
        (ours, theirs) = (
            [
                {k: v for k, v in r.items() if k not in ("variant", *but)}
                for r in rows
                if r["variant"] == variant
            ]
            for variant in ("raw", "other")
        )
        assert ours == theirs
    trial = read_csv(copied / "trials.csv")[-1]
    assert (trial["variant"], trial["status"]) == ("other", "external")
    report = (copied / "report.md").read_text()
    assert "other (external)" in report
    assert "External, not trained here: other." in report
    assert "3 of 4 trials finished" in report
    capsys.readouterr()
    next(out.rglob("*_mask.tif")).unlink()
    assert main(again) == KNOWN_ERROR
    assert ": no mask" in capsys.readouterr().err
    assert main(again[:-2]) == KNOWN_ERROR
    assert "give --predictions other=DIR again" in capsys.readouterr().err
