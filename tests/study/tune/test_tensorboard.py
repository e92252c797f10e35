from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brainseg.config import Experiment
from brainseg.training.epoch import EpochReport, Example
from study.spec.trial_job import TrialJob
from study.tune.tensorboard import LiveCurves, outline_slices

JOB = TrialJob(variant="raw", fold=0, seed=44, experiment=Experiment(), synthetic=True)
KEYS = ("train_loss", "val_loss", "train_dice", "val_dice", "val_dice_patient", "learning_rate")


def _example() -> Example:
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    return Example("a_1", np.full((32, 32, 3), 90, np.uint8), mask, ~mask)


def _report(step: int, *, replayed: bool = False) -> EpochReport:
    row = {key: step / 10 for key in KEYS} | {"step": step}
    return EpochReport(row, 3, () if replayed else (_example(),), replayed)


def test_epochs_become_curves_and_pictures_of_one_run(tmp_path: Path) -> None:
    with LiveCurves(tmp_path, JOB) as curves:
        for report in (_report(1, replayed=True), _report(2), _report(3)):
            curves.write(report)
    (run,) = tmp_path.iterdir()
    assert run.name == "raw-fold0-seed44 SYNTHETIC"
    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    assert [e.step for e in events.Scalars("Dice/val (global)")] == [2, 3]
    assert [e.value for e in events.Scalars("loss/val")] == pytest.approx([0.2, 0.3])
    assert len(events.Images(tags["images"][0])) == 2
    assert "_hparams_/experiment" in events.summary_metadata


def test_a_disk_that_refuses_costs_the_curves_and_not_the_trial(tmp_path: Path) -> None:
    (tmp_path / JOB.run_name).write_text("a file where the run's folder should be")
    with (
        LiveCurves(tmp_path, JOB) as curves,
        pytest.warns(UserWarning, match="no live curves of epoch 1"),
    ):
        curves.write(_report(1))


def test_slices_are_drawn_two_in_a_row() -> None:
    assert outline_slices([_example()] * 3, side=64).shape == (128, 128, 3)
