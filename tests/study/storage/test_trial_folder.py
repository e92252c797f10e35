from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainseg.config import Experiment
from brainseg.errors import DataError
from study.spec.study_spec import SCORE
from study.spec.trial_job import TrialJob
from study.storage.trial_folder import TrialFolder, candidate_folder, read_params

JOB = TrialJob(variant="raw", fold=0, seed=44, experiment=Experiment(), candidate=7)
EPOCH = {"stage": 2, "epoch": 1, "val_loss": 0.5, "val_dice": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    folder = TrialFolder(tmp_path / JOB.path)
    folder.path.mkdir(parents=True)
    return folder


def test_parameters_survive_on_the_disk(tmp_path: Path) -> None:
    drawn: list[dict[str, Any]] = [
        {"variant": "raw", "augment.strength": 0.5},
        {"variant": "preprocessed"},
    ]
    for index, params in enumerate(drawn):
        candidate_folder(tmp_path, index).write_params(params)
    assert read_params(tmp_path) == drawn


def test_a_stopped_candidate_keeps_its_history_and_no_checkpoints(folder: TrialFolder) -> None:
    folder.checkpoints.mkdir()
    folder.write_history(
        [
            {"step": step, "seconds": seconds, SCORE: score, **EPOCH}
            for step, seconds, score in ((1, 2.5, 0.1), (2, 2.0, 0.3))
        ]
    )
    folder.write_stopped(JOB)
    row = folder.read()
    assert row is not None
    assert (row["status"], row["epochs"], row["seconds"]) == ("stopped", 2, 4.5)
    assert row[SCORE] == 0.3
    assert not folder.checkpoints.exists()
    assert folder.status == "stopped"


def test_a_stopped_candidate_without_a_history_is_refused_by_name(folder: TrialFolder) -> None:
    with pytest.raises(DataError, match=r"history\.csv has no epoch.*put the file back"):
        folder.write_stopped(JOB)
    assert folder.status == "unfinished"


def test_what_is_complete_outlives_a_new_start(folder: TrialFolder, tmp_path: Path) -> None:
    """As when the process that wrote the result died before it told so."""
    trial = TrialFolder(tmp_path / "trials" / "raw-fold0-seed44")
    trial.path.mkdir(parents=True)
    for one in (folder, trial):
        one.write_success(JOB, {SCORE: 0.5}, {})
        one.begin()
    assert folder.is_complete
    assert not trial.is_complete, "a trial leaves a model, a candidate leaves none"
    assert [one.status for one in (folder, trial)] == ["finished", "unfinished"]
    trial.write_success(JOB, {SCORE: 0.5}, {})
    trial.model.touch()
    trial.begin()
    assert trial.is_complete


def test_what_ends_a_trial_is_committed(tmp_path: Path) -> None:
    seen: list[str] = []
    path = tmp_path / JOB.path
    folder = TrialFolder(path, lambda: seen.append(TrialFolder(path).status))
    folder.write_params({"variant": "raw"})
    folder.write_failure(JOB, "diverged", "the loss is nan,\n in stage 1")
    folder.write_success(JOB, {SCORE: 0.5}, {})
    assert seen == ["unfinished", "diverged", "finished"]


def test_a_failure_says_why_in_one_line_and_a_new_start_forgets_it(folder: TrialFolder) -> None:
    folder.write_failure(JOB, "failed", "the loss is nan,\n in stage 1", trace="Traceback")
    row = folder.read()
    assert row is not None
    assert row["error"] == "the loss is nan, in stage 1"
    folder.begin()
    assert folder.status == "unfinished"
    assert (folder.path / "traceback.txt").read_text() == "Traceback"


def test_halved_batches_stay_halved(folder: TrialFolder) -> None:
    assert folder.batch_parts == 1
    folder.halve_batches("out of memory")
    assert TrialFolder(folder.path).batch_parts == 2
