from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainseg.config import Experiment
from brainseg.data.loader import Batches
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.errors import CheckpointError, DivergedError
from brainseg.inference.evaluation import PLAIN, evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.metrics import summarise
from brainseg.model.device import Compute
from brainseg.model.model_file import Tensors
from brainseg.model.networks import build_model, calibrate_encoder
from brainseg.training import checkpoint as checkpoint
from brainseg.training import trainer
from brainseg.training.checkpoint import EpochState
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import Training, TrainResult, train_two_stage

GOLDEN = Path(__file__).parents[2] / "golden" / "two_stage_losses.json"
CPU = Compute(device="cpu")


def _equal(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _losses(result: TrainResult) -> list[list[float]]:
    return [[row["train_loss"], row["val_loss"]] for row in result.history]


@pytest.fixture(scope="module")
def quiet(data: SliceStore, tiny: Experiment) -> TrainResult:
    return train_two_stage(tiny, data, compute=CPU)


class _KilledError(Exception):
    """Stands for the end of a process at a chosen epoch."""


def _train_until(step: int, experiment: Experiment, data: SliceStore, folder: Path) -> None:
    def stop(report: EpochReport) -> None:
        if report.row["step"] == step:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_two_stage(experiment, data, stop, compute=CPU, checkpoints=folder)


def test_golden_losses_of_both_stages(data: SliceStore, tiny: Experiment) -> None:
    # Processors round differently and training multiplies that; with ResNet18 and a small second
    # learning rate, AVX-512, AVX2 and SSE differ by up to 1.1 %.
    steady = tiny.replaced({"model.encoder": "resnet18", "stages.1.learning_rate": 1e-5})
    found = _losses(train_two_stage(steady, data, compute=CPU))
    if os.environ.get("BRAINSEG_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert [pytest.approx(row, rel=2e-2) for row in expected] == found


def test_the_same_seed_gives_the_same_bits(
    quiet: TrainResult, data: SliceStore, tiny: Experiment
) -> None:
    torch.rand(5)  # what happened before must not matter
    again = train_two_stage(tiny, data, compute=Compute("cpu", workers=1))
    assert _losses(again) == _losses(quiet)
    assert _equal(again.weights, quiet.weights)


@pytest.mark.slow
def test_trainings_that_take_turns_give_the_same_bits(
    quiet: TrainResult, data: SliceStore, tiny: Experiment
) -> None:
    other = tiny.replaced({"inner_fold": 1})
    alone = train_two_stage(other, data, compute=CPU)
    pairs = zip(*(Training(e, data, compute=CPU).epochs() for e in (tiny, other)), strict=True)
    reports = [*zip(*pairs, strict=True)]
    for found, expected in zip(reports, (quiet, alone), strict=True):
        losses = [[report.row["train_loss"], report.row["val_loss"]] for report in found]
        assert losses == _losses(expected)
    assert _losses(alone) != _losses(quiet)


@pytest.mark.slow
def test_another_seed_gives_other_numbers(
    quiet: TrainResult, data: SliceStore, tiny: Experiment
) -> None:
    other = train_two_stage(tiny.replaced({"seed": 45}), data, compute=CPU)
    assert _losses(other) != _losses(quiet)


def test_training_does_not_change_the_callers_random_state(
    data: SliceStore, tiny: Experiment
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_two_stage(tiny.replaced({"stages.1.epochs": 0}), data, compute=CPU)
    assert torch.equal(torch.rand(2), expected)


def test_the_encoder_is_bit_equal_after_stage_one_and_not_after_stage_two(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    efficient = tiny.replaced({"model.encoder": "efficientnet-b0", "stages.1.epochs": 1})
    batches = Batches(
        data,
        split_by_patient(data.slices, 0, 44).indices(data.slices, "train"),
        efficient,
        augmented=True,
    )
    model = build_model(efficient.model, efficient.seed)
    calibrate_encoder(model, (images for images, _, _ in batches.epoch(0, 0)), torch.device("cpu"))
    start = model.state_dict()
    states = {}

    def keep(report: EpochReport) -> None:
        folder = checkpoint.CheckpointFolder(tmp_path, efficient, data.fingerprint)
        state = folder.latest()
        assert state is not None
        states[report.row["stage"]] = state.model

    train_two_stage(efficient, data, keep, compute=CPU, checkpoints=tmp_path)
    encoder = [key for key in start if key.startswith("encoder.")]
    assert any("running_mean" in key for key in encoder)
    assert all(torch.equal(start[key], states[1][key]) for key in encoder)
    assert sum(not torch.equal(start[key], states[2][key]) for key in encoder) > 100


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="at the change of stage", marks=pytest.mark.slow),
        pytest.param(2, id="within stage two"),
    ],
)
def test_a_resumed_training_gives_the_same_bits(
    quiet: TrainResult, data: SliceStore, tiny: Experiment, tmp_path: Path, step: int
) -> None:
    _train_until(step, tiny, data, tmp_path)
    reports: list[EpochReport] = []
    resumed = train_two_stage(tiny, data, reports.append, compute=CPU, checkpoints=tmp_path)
    assert [report.replayed for report in reports] == [n < step for n in range(3)]
    assert _losses(resumed) == _losses(quiet)
    assert resumed.header.best == quiet.header.best
    assert _equal(resumed.weights, quiet.weights)


def test_a_checkpoint_without_a_scaler_is_resumed_where_gradients_are_scaled(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(*, scaled: bool) -> trainer._Stage:
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        monkeypatch.setattr(trainer, "build_scaler", lambda device: scaler)
        network = torch.nn.Conv2d(3, 1, 1)
        return trainer._Stage(
            1, tiny.stages[0], tiny.optimizer, network, torch.device("cpu"), steps_per_epoch=1
        )

    def state(of: trainer._Stage) -> EpochState:
        assert of.scheduler is not None
        states = of.optimizer.state_dict(), of.scheduler.state_dict(), of.scaler.state_dict()
        return EpochState(1, 1, [], {}, {}, {}, *states)

    before, after = stage(scaled=False), stage(scaled=True)
    assert state(before).scaler == {}
    after.restore(state(before))
    after.restore(replace(state(before), scaler={**after.scaler.state_dict(), "scale": 128.0}))
    assert after.scaler.state_dict()["scale"] == 128.0


@pytest.mark.slow
def test_a_resume_keeps_the_momentum_of_batchnorm(
    quiet: TrainResult, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    fast = tiny.replaced({"model.batchnorm_momentum": 0.5})
    alone = train_two_stage(fast, data, compute=CPU)
    _train_until(2, fast, data, tmp_path)
    resumed = train_two_stage(fast, data, compute=CPU, checkpoints=tmp_path)
    assert _losses(resumed) == _losses(alone) != _losses(quiet)
    assert _equal(resumed.weights, alone.weights)


@pytest.mark.slow
def test_a_resume_that_forgets_the_optimizer_is_noticed(
    quiet: TrainResult,
    data: SliceStore,
    tiny: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _train_until(2, tiny, data, tmp_path)
    whole = checkpoint._join_optimizer
    monkeypatch.setattr(
        checkpoint,
        "_join_optimizer",
        lambda record, tensors: {**whole(record, tensors), "state": {}},
    )
    resumed = train_two_stage(tiny, data, compute=CPU, checkpoints=tmp_path)
    assert _losses(resumed) != _losses(quiet)


def test_checkpoints_of_another_experiment_are_refused(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    _train_until(1, tiny, data, tmp_path)
    with pytest.raises(CheckpointError, match=r"stages\.1\.epochs: 2 -> 3"):
        train_two_stage(tiny.replaced({"stages.1.epochs": 3}), data, checkpoints=tmp_path)


def test_the_weights_of_the_lowest_val_loss_are_kept(
    data: SliceStore, tiny: Experiment, quiet: TrainResult
) -> None:
    lowest = min(quiet.history, key=lambda row: row["val_loss"])
    assert quiet.header.best["val_loss"] == lowest["val_loss"]
    val = evaluate_model(Predictor.of(quiet, CPU), data).val
    scores = summarise(val.counts[PLAIN], val.patients)
    assert scores["dice_global"] == lowest["val_dice"]  # slices have the network's size


def test_an_encoder_that_is_not_calibrated_keeps_the_statistics_of_its_weights(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    plain = tiny.replaced({"model.calibrate_encoder": False})
    start = build_model(plain.model, plain.seed).state_dict()
    _train_until(1, plain, data, tmp_path)
    state = checkpoint.CheckpointFolder(tmp_path, plain, data.fingerprint).latest()
    assert state is not None
    encoder = [key for key in start if key.startswith("encoder.")]
    assert all(torch.equal(start[key], state.model[key]) for key in encoder)


@pytest.mark.slow
def test_a_higher_momentum_lets_the_statistics_follow_random_weights(
    data: SliceStore, tiny: Experiment
) -> None:
    unfrozen = {"model.encoder": "efficientnet-b0", "stages.0.epochs": 0}
    own, fast = (
        _losses(train_two_stage(tiny.replaced(unfrozen | changes), data, compute=CPU))
        for changes in ({}, {"model.batchnorm_momentum": 0.1})
    )
    assert [train for train, _ in fast] == [train for train, _ in own]
    assert fast[-1][1] < own[-1][1] / 5


def test_a_diverged_training_says_where(data: SliceStore, tiny: Experiment) -> None:
    wild = tiny.replaced({"stages.0.learning_rate": 1e10})
    with pytest.raises(DivergedError, match="in stage 1, epoch 1") as caught:
        train_two_stage(wild, data, compute=CPU)
    assert (caught.value.stage, caught.value.epoch) == (1, 1)


def test_reports_carry_every_metric_and_examples(data: SliceStore, tiny: Experiment) -> None:
    reports: list[EpochReport] = []
    short = tiny.replaced({"stages.1.epochs": 0})
    train_two_stage(short, data, reports.append, compute=CPU)
    expected = "train_loss train_dice val_loss val_dice val_dice_patient val_iou learning_rate"
    assert set(expected.split()) <= reports[0].row.keys()
    assert len(reports[0].examples) >= 1
    assert reports[0].examples[0].image.shape == (32, 32, 3)
    assert reports[0].examples[0].true.any()


@pytest.mark.gpu
def test_a_gpu_trains_in_mixed_precision(data: SliceStore, tiny: Experiment) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = train_two_stage(tiny, data, compute=Compute("cuda", workers=1))
    assert all(torch.isfinite(torch.tensor(row)).all() for row in _losses(result))
