from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainseg.config import Experiment, LossConfig, OptimizerConfig, StageConfig
from brainseg.data.loader import Batches
from brainseg.data.resident import ResidentBatches
from brainseg.data.slice_store import SliceStore
from brainseg.errors import ConfigError
from brainseg.model.device import Compute
from brainseg.model.loss import segmentation_loss
from brainseg.training.optimizer import average_weights, learning_rate
from brainseg.training.trainer import Training, TrainResult, train_two_stage

CPU = Compute("cpu")
MARKS = {name: [pytest.mark.slow] for name in ("onecycle", "average", "many")}
RECIPES: dict[str, dict[str, Any]] = {
    "many": {
        **{
            "optimizer.name": "sgd",
            "optimizer.schedule": "cosine",
            "optimizer.warmup_epochs": 0.5,
        },
        **{"optimizer.gradient_clip": 0.5, "data.tumour_share": 0.7, "loss.tversky_weight": 0.5},
    },
    "cosine": {"optimizer.schedule": "cosine", "optimizer.warmup_epochs": 0.5},
    "onecycle": {"optimizer.schedule": "onecycle", "optimizer.gradient_clip": 0.5},
    "constant": {"optimizer.schedule": "constant", "optimizer.warmup_epochs": 1},
    "sgd": {"optimizer.name": "sgd", "stages.0.learning_rate": 0.1},
    "average": {"optimizer.average_decay": 0.9},
    "tumour": {"data.tumour_share": 0.7},
    "loss": {"loss.focal_weight": 1.0, "loss.tversky_weight": 0.5},
}


def _rows(result: TrainResult) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=MARKS.get(name, [pytest.mark.slow, pytest.mark.exhaustive]))
        for name in RECIPES
    ],
)
def test_a_recipe_changes_the_training_and_resumes_in_each_stage_to_equal_bits(
    name: str, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    experiment = tiny.replaced(RECIPES[name])
    whole = train_two_stage(experiment, data, compute=CPU)
    assert _rows(whole) != _rows(train_two_stage(tiny, data, compute=CPU))
    for _ in range(2):  # stopped after the first epoch of each stage
        training = Training(experiment, data, compute=CPU, checkpoints=tmp_path)
        next(report for report in training.epochs() if not report.replayed)
    again = train_two_stage(experiment, data, compute=CPU, checkpoints=tmp_path)
    assert _rows(again) == _rows(whole)
    assert all(torch.equal(whole.weights[key], again.weights[key]) for key in whole.weights)


def test_an_average_keeps_a_frozen_encoder_bit_by_bit(data: SliceStore, tiny: Experiment) -> None:
    frozen = tiny.replaced({**RECIPES["average"], "stages.1.epochs": 0})
    plain = tiny.replaced({"stages.1.epochs": 0})
    averaged, raw = (train_two_stage(e, data, compute=CPU).weights for e in (frozen, plain))
    encoder = [key for key in raw if key.startswith("encoder.")]
    assert all(torch.equal(averaged[key], raw[key]) for key in encoder)
    assert not all(torch.equal(averaged[key], raw[key]) for key in raw)


def test_an_average_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = average_weights(model, 0.25), None
    for step, value in enumerate((1.0, 2.0, 4.0)):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        share = 1 - min(0.25, (1 + step) / (10 + step))
        expected = value if expected is None else expected + share * (value - expected)
    assert average.module.state_dict()["weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_schedules_are_those_of_torch(schedule: str) -> None:
    stage = StageConfig(epochs=5, learning_rate=0.02, freeze_encoder=False)
    settings = OptimizerConfig.model_validate({"schedule": schedule})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    theirs: torch.optim.lr_scheduler.LRScheduler
    if schedule == "cosine":
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    else:
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=50)
    for step in range(50):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(stage, settings, step, 10) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_in_equal_steps_and_needs_a_schedule_that_has_it() -> None:
    stage = StageConfig(epochs=5, learning_rate=0.02, freeze_encoder=False)
    settings = OptimizerConfig(schedule="constant", warmup_epochs=0.3)
    rates = [learning_rate(stage, settings, step, 10) for step in range(5)]
    assert rates == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02])
    with pytest.raises(ConfigError, match="it needs constant or cosine"):
        Experiment().replaced({"optimizer.warmup_epochs": 1})
    long = {"optimizer.warmup_epochs": 6, "optimizer.schedule": "cosine"}
    with pytest.raises(ConfigError, match=r"more than stages\.0\.epochs, 5"):
        Experiment().replaced(long)


def test_slices_with_tumour_have_their_share(data: SliceStore, tiny: Experiment) -> None:
    experiment = tiny.replaced({"data.tumour_share": 0.9})
    indices = np.arange(len(data.slices))
    batches = Batches(data, indices, experiment, augmented=True)
    drawn = [
        int(index)
        for epoch in range(1, 9)
        for batch in batches.epoch(1, epoch)
        for index in batch[2]
    ]
    assert batches.num_steps == len(indices) // 8
    share = np.mean([data.slices[index].tumour_pixels > 0 for index in drawn])
    assert share == pytest.approx(0.9, abs=0.05)
    again = [batch[2].tolist() for batch in batches.epoch(1, 3)]
    assert again == [batch[2].tolist() for batch in batches.epoch(1, 3)]


@pytest.mark.parametrize("resident", [False, True])
def test_a_slice_drawn_twice_in_an_epoch_is_augmented_differently(
    data: SliceStore, tiny: Experiment, resident: bool
) -> None:
    experiment = tiny.replaced({"data.tumour_share": 0.9})
    indices = np.arange(len(data.slices))
    batches: Batches | ResidentBatches = Batches(data, indices, experiment, augmented=True)
    if resident:
        batches = ResidentBatches(
            data, indices, experiment, augmented=True, device=torch.device("cpu")
        )
    images: dict[int, list[bytes]] = {}
    for batch, _, drawn in batches.epoch(1, 1):
        for image, index in zip(batch, drawn.tolist(), strict=True):
            images.setdefault(index, []).append(image.numpy().tobytes())
    repeated = [own for own in images.values() if len(own) > 1]
    assert len(repeated) > 3
    alike = sum(len(own) - len(set(own)) for own in repeated)
    # By chance, a sixteenth of the draws neither flips, nor turns, nor displaces.
    assert alike < 0.3 * sum(len(own) - 1 for own in repeated)


def test_loss_terms_by_hand() -> None:
    logits, masks = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    p = torch.sigmoid(logits).ravel().tolist()

    def only(**changes: float) -> float:
        config = LossConfig.model_validate({"dice_weight": 0, "bce_weight": 0, **changes})
        return float(segmentation_loss(logits, masks, config))

    cross = [-np.log(p[0]), -np.log(1 - p[1])]
    focal = np.mean([(1 - p[0]) ** 3 * cross[0], p[1] ** 3 * cross[1]])
    assert only(focal_weight=1, focal_gamma=3) == pytest.approx(focal, rel=1e-5)
    assert only(focal_weight=1, focal_gamma=0) == pytest.approx(only(bce_weight=1), rel=1e-5)
    tversky = 1 - p[0] / (p[0] + 0.2 * p[1] + 0.8 * (1 - p[0]))
    assert only(tversky_weight=1, tversky_alpha=0.2) == pytest.approx(tversky, rel=1e-5)
    half = only(tversky_weight=1, tversky_alpha=0.5)
    assert half == pytest.approx(only(dice_weight=1), rel=1e-5)


@pytest.mark.slow
def test_patience_ends_the_last_stage_and_a_resume_does_not_go_on(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    # Steps that are too small for float32, and statistics that stay: the val loss is constant.
    still = {"stages.1.learning_rate": 1e-30, "model.batchnorm_momentum": 1e-12}
    experiment = tiny.replaced({**still, "stages.1.epochs": 6, "stopping.patience": 2})
    result = train_two_stage(experiment, data, compute=CPU, checkpoints=tmp_path)
    losses = [row["val_loss"] for row in result.history if row["stage"] == 2]
    assert len(losses) < 6
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    assert len(result.history) == 1 + 3
    again = train_two_stage(experiment, data, compute=CPU, checkpoints=tmp_path)
    assert _rows(again) == _rows(result)


def test_a_time_budget_counts_the_epochs_of_earlier_starts(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    experiment = tiny.replaced({"stopping.minutes": 1e-6, "stages.1.epochs": 5})
    result = train_two_stage(experiment, data, compute=CPU, checkpoints=tmp_path)
    assert len(result.history) == 1
    again = train_two_stage(experiment, data, compute=CPU, checkpoints=tmp_path)
    assert len(again.history) == 1
