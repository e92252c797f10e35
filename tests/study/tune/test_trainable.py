"""The trainable in this process: candidates that train, are validated and never tested."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors.torch import save_file

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.inference.evaluation import evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.encoders import smp
from brainseg.storage.files import hash_file
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import Training, train_two_stage
from study.spec.study_spec import SCORE
from study.spec.trial_job import TrialJob
from study.storage.trial_folder import TrialFolder
from study.tune.trainable import average, run_job
from study.tune.tuner import to_config


@pytest.fixture
def job(data: SliceStore, tiny: Experiment, tmp_path: Path) -> TrialJob:
    return _in(
        tmp_path / "study",
        TrialJob(
            variant="raw",
            fold=0,
            seed=44,
            experiment=tiny.replaced({"stages.1.epochs": 1}),
            candidate=3,
            num_inner_folds=2,
            data=str(data.root),
            fingerprint=data.fingerprint,
            synthetic=True,
        ),
    )


def _in(study: Path, job: TrialJob) -> TrialJob:
    (study / job.path).mkdir(parents=True)
    return job.model_copy(update={"study": str(study)})


def _folder(job: TrialJob) -> TrialFolder:
    return TrialFolder(Path(job.study) / job.path)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Tune would be told."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    return told


@pytest.mark.slow
def test_inner_folds_train_in_turn_as_they_would_alone(
    job: TrialJob, data: SliceStore, reported: list[dict[str, Any]]
) -> None:
    run_job(to_config(job))
    alone = [train_two_stage(e, data, compute=Compute("cpu")) for e in job.experiments]
    curves = [[row["val_dice"] for row in result.history] for result in alone]
    assert curves[0] != curves[1]
    assert [row["val_dice"] for row in reported] == [fmean(p) for p in zip(*curves, strict=True)]
    assert [row["epoch"] for row in reported] == [1, 2]
    row = _folder(job).read()
    assert row is not None
    assert (row["status"], row["epochs"]) == ("finished", 2)
    assert row[SCORE] == max(epoch["val_dice"] for epoch in reported) == reported[-1][SCORE]
    assert not _folder(job).checkpoints.exists()
    assert not _folder(job).model.exists()
    run_job(to_config(job))
    assert len(reported) == 2, "what has its result is not trained again"


@pytest.mark.slow
def test_a_candidate_goes_on_after_its_last_epoch_with_the_same_numbers(
    job: TrialJob,
    data: SliceStore,
    reported: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_job(to_config(job))
    quiet = [row["val_loss"] for row in reported]
    reported.clear()
    other = _in(tmp_path / "other", job)
    # Epochs that are replayed do not shorten what is there.
    _folder(other).write_history(_folder(job).read_history())
    seen: list[int] = []

    def report(row: dict[str, Any]) -> None:
        reported.append(row)
        seen.append(len(_folder(other).read_history()))

    monkeypatch.setattr("ray.tune.report", report)
    checkpoints = _folder(other).checkpoints
    checkpoints.mkdir()
    for experiment in other.experiments:
        path = checkpoints / f"inner{experiment.inner_fold}"
        next(Training(experiment, data, checkpoints=path).epochs())
    run_job(to_config(other))
    assert [row["replayed"] for row in reported] == [True, False]
    assert [row["val_loss"] for row in reported] == quiet
    assert seen == [2, 2]


def test_the_test_part_is_never_opened(
    job: TrialJob,
    data: SliceStore,
    reported: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: set[int] = set()
    for name in ("image", "mask"):
        read = getattr(SliceStore, name)

        def watched(self: SliceStore, number: int, read: Any = read) -> Any:
            opened.add(int(number))
            return read(self, number)

        monkeypatch.setattr(SliceStore, name, watched)
    short = job.experiment.replaced({"stages.1.epochs": 0})
    run_job(to_config(job.model_copy(update={"experiment": short})))
    split = split_by_patient(data.slices, 0, 44)
    test = set(split.indices(data.slices, "test").tolist())
    assert opened == set(range(len(data.slices))) - test
    result = train_two_stage(short, data, compute=Compute("cpu"))
    evaluate_model(Predictor.of(result, Compute("cpu")), data)
    assert test <= opened  # what opens it is noticed


def test_weights_that_are_not_those_of_the_study_are_refused(
    job: TrialJob, tmp_path: Path, reported: list[dict[str, Any]]
) -> None:
    """Another file may have come to their place, or another node may have another one."""
    path = tmp_path / "w.safetensors"
    encoder = smp.encoders.get_encoder(job.experiment.model.encoder, weights=None)
    save_file(encoder.state_dict(), path)
    changes = {"model.encoder_weights": str(path), "stages.1.epochs": 0}
    update = {"experiment": job.experiment.replaced(changes), "weights_hash": "0" * 64}
    run_job(to_config(job.model_copy(update=update)))
    row = _folder(job).read()
    assert row is not None
    assert row["status"] == "failed"
    assert f"{path} does not hold the weights of this study" in str(row["error"])
    assert reported == []
    run_job(to_config(job.model_copy(update=update | {"weights_hash": hash_file(path)})))
    assert len(reported) == 1


def test_a_mean_over_folds_takes_one_epoch_for_all() -> None:
    rows = [{"val_dice": dice, SCORE: 0.9, "seconds": 2.0} for dice in (0.4, 0.6)]
    reports = [
        EpochReport(row, 3, replayed=replayed)
        for row, replayed in zip(rows, (True, False), strict=True)
    ]
    mean = average(reports, best=0.45)
    assert mean.row["val_dice"] == 0.5
    assert mean.row[SCORE] == 0.5  # not 0.9, each fold's own best
    assert mean.row["is_best"] == 1
    assert mean.row["seconds"] == 4
    assert not mean.replayed
    assert average(reports, best=0.7).row[SCORE] == 0.7


def test_a_diverged_candidate_has_a_row_and_no_score(
    job: TrialJob, reported: list[dict[str, Any]]
) -> None:
    wild = job.experiment.replaced({"stages.0.learning_rate": 1e10})
    run_job(to_config(job.model_copy(update={"experiment": wild})))
    row = _folder(job).read()
    assert row is not None
    assert row["status"] == "diverged"
    assert SCORE not in row
    assert reported == []
