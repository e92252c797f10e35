from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainseg.config import Experiment
from brainseg.data.store_builder import Slice
from brainseg.inference.evaluation import PLAIN, Evaluation, PartEvaluation
from brainseg.metrics import Counts
from brainseg.storage.files import read_csv, write_text
from study.spec.grid import load_grid
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.probability_maps import (
    LEVELS,
    collect_ensembles,
    load_probabilities,
    save_probabilities,
)
from study.storage.schema import TRIAL_TABLES
from study.storage.trial_folder import TrialFolder

TRUE = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
SLICES = (Slice("a_1", "a", 2), Slice("b_1", "b", 0))


def _evaluation(probabilities: list[float]) -> Evaluation:
    """Two test slices of 2 x 2 pixels; the first has the given probabilities, the second none."""
    levels = np.zeros((2, 2, 2), np.uint8)
    levels[0] = (np.reshape(probabilities, (2, 2)) * 256).astype(np.uint8)
    counts: dict[str, Counts] = {PLAIN: np.zeros((2, 4), np.int64)}
    part = PartEvaluation(SLICES, counts, {}, list(levels), list(TRUE), [], {}, np.zeros((20, 3)))
    return Evaluation(part, part, 0.5)


def _finish(study: Path, job: TrialJob, probabilities: list[float]) -> None:
    folder = TrialFolder(study / job.path)
    folder.path.mkdir(parents=True)
    save_probabilities(folder.probabilities, _evaluation(probabilities))
    write_text(folder.model, "weights")
    folder.write_success(job, {"val_loss": 0.5}, {name: [] for name in TRIAL_TABLES})


def _jobs(**counts: int) -> list[TrialJob]:
    spec = StudySpec(grid="lite", variants=load_grid("lite").variants, experiment=Experiment())
    return spec.model_copy(update=counts).jobs()


def test_probabilities_are_read_back_as_they_were(tmp_path: Path) -> None:
    evaluation = _evaluation([0.1, 0.5, 0.49, 0.99])
    for name in ("one.npz", "two.npz"):
        save_probabilities(tmp_path / name, evaluation)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    maps = load_probabilities(tmp_path / "one.npz", "test")
    assert (maps.slices, maps.patients) == (["a_1", "b_1"], ["a", "b"])
    assert maps.volumes == ["a/", "b/"]
    assert np.array_equal(maps.true, TRUE)
    assert np.array_equal(
        np.stack(maps.levels) >= LEVELS // 2, np.stack(evaluation.test.levels) >= 128
    )
    assert maps.levels[0].tolist() == [[6, 32], [31, 63]]


def test_seeds_of_a_fold_vote_by_their_mean(tmp_path: Path) -> None:
    jobs = _jobs(seeds=2)
    votes = [[0.9, 0.2, 0.9, 0.1], [0.3, 0.6, 0.2, 0.1]]  # the mean: .6, .4, .55, .1
    for job, vote in zip((jobs[0], jobs[2]), votes, strict=True):
        _finish(tmp_path, job, vote)
    collect_ensembles(tmp_path, jobs)
    rows = [row for row in read_csv(tmp_path / "ensemble.csv") if row["part"] == "test"]
    assert [(r["variant"], r["seed"], r["setting"]) for r in rows] == [
        ("raw-lite0", "all", "2 seeds")
    ] * 2
    assert [[int(r[key]) for key in ("TP", "FP", "FN", "TN")] for r in rows] == [
        [1, 1, 1, 1],
        [0, 0, 0, 4],
    ]
    assert [float(r["Dice"]) for r in rows] == pytest.approx([0.5, 1])


def test_one_seed_is_no_ensemble(tmp_path: Path) -> None:
    jobs = _jobs(folds=2)
    for job in jobs:
        _finish(tmp_path, job, [0.9] * 4)
    collect_ensembles(tmp_path, jobs)
    assert read_csv(tmp_path / "ensemble.csv") == []
