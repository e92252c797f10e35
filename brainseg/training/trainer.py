"""Two-stage training: the encoder frozen, then everything; the lowest val loss is kept.

Nothing here knows who is listening: `on_epoch` may print, draw, or report to a scheduler.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment, OptimizerConfig, StageConfig
from brainseg.data.loader import Batches
from brainseg.data.preprocess import preprocess, resize_mask
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.errors import DivergedError
from brainseg.metrics import Counts, dice, summarise
from brainseg.model.device import Compute, cuda_dtype
from brainseg.model.encoders import describe_weights
from brainseg.model.model_file import ModelHeader, Tensors, save_model
from brainseg.model.networks import build_model, calibrate_encoder, derive_seed, set_training
from brainseg.training.checkpoint import CheckpointFolder, EpochState
from brainseg.training.epoch import EpochReport, Example, train_epoch, validate

_NUM_EXAMPLES = 4
_DROPOUT_STREAM = 1


@dataclass(frozen=True)
class TrainResult:
    """The kept weights and how they came about.

    Attributes:
        weights: Of the epoch with the lowest val loss, on the CPU.
        history: One row per epoch.
        header: What a model file says of itself.
    """

    weights: Tensors
    history: list[dict[str, float]]
    header: ModelHeader

    def save(self, path: Path | str) -> Path:
        """Write the model file and return its path."""
        save_model(Path(path), self.weights, self.header)
        return Path(path)


def train_two_stage(
    experiment: Experiment,
    data: SliceStore,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    *,
    compute: Compute | None = None,
    checkpoints: Path | None = None,
) -> TrainResult:
    """Train one network through both stages on a split of the data.

    Args:
        experiment: Everything that determines the numbers.
        data: The dataset.
        on_epoch: Called after each epoch, its checkpoint written.
        compute: Device and loader workers.
        checkpoints: Folder of epoch checkpoints. A run that finds one goes on after it, with the
            same numbers as one that was never interrupted; without it nothing is saved.

    Returns:
        The weights with the lowest val loss over both stages.

    Raises:
        DivergedError: If a loss is no longer finite.
        BrainsegError: If data, weights or checkpoints cannot be used.
    """
    # The caller's random numbers go on afterwards as if nothing had been trained.
    with torch.random.fork_rng():
        run = _Run(experiment, data, compute or Compute(), checkpoints)
        for report in run.epochs():
            on_epoch(report)
    return run.result()


def train_epochs(
    experiment: Experiment,
    data: SliceStore,
    *,
    compute: Compute | None = None,
    checkpoints: Path | None = None,
) -> Iterator[EpochReport]:
    """Train as `train_two_stage` does, an epoch each time that a report is asked for.

    Several such trainings may take turns: each epoch sets torch's random numbers anew, so that
    none depends on what was trained in between. Arguments and errors are those of
    `train_two_stage`.

    Yields:
        A report per epoch, its checkpoint written.
    """
    yield from _Run(experiment, data, compute or Compute(), checkpoints).epochs()


class _Run:
    """One training in progress."""

    def __init__(
        self,
        experiment: Experiment,
        data: SliceStore,
        compute: Compute,
        checkpoints: Path | None,
    ) -> None:
        self.experiment = experiment
        self.data = data
        self.device = compute.torch_device()
        self.batch_parts = compute.batch_parts
        self.folder: CheckpointFolder | None = None
        if checkpoints is not None:
            self.folder = CheckpointFolder(checkpoints, experiment, data.fingerprint)
        self.split = split_by_patient(
            data.slices, experiment.fold, experiment.data.split_seed, experiment.inner_fold
        )
        self.train_batches = self._batches("train", compute.workers)
        self.val_batches = self._batches("val", compute.workers)
        self.model = build_model(experiment.model, experiment.seed).to(self.device)
        self.shown = self._choose_examples()
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {"stage": 0, "epoch": 0, "val_loss": math.inf}
        self.best_model: Tensors = {}
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False

    def epochs(self) -> Iterator[EpochReport]:
        state = self.folder.latest() if self.folder else None
        done = (0, 0)
        if state is None and self.experiment.model.calibrate_encoder:
            images = (batch[0] for batch in self.train_batches.epoch(0, 0))
            calibrate_encoder(self.model, images, self.device)
        if state is not None:
            self.history, self.best = state.history, state.best
            self.best_model = state.best_model
            self.model.load_state_dict(state.model)
            done = (state.stage, state.epoch)
            for row in self.history:
                yield EpochReport(row, self.total_epochs, replayed=True)
        for number, config in enumerate(self.experiment.stages, start=1):
            if number < done[0] or config.epochs == 0:
                continue
            set_training(self.model, freeze_encoder=config.freeze_encoder)
            stage = Stage(config, self.experiment.optimizer, self.model, self.device)
            first = 1
            if state is not None and number == done[0]:
                stage.restore(state)
                first = done[1] + 1
            for epoch in range(first, config.epochs + 1):
                yield self._epoch(stage, number, epoch)

    @property
    def total_epochs(self) -> int:
        return sum(stage.epochs for stage in self.experiment.stages)

    def result(self) -> TrainResult:
        kept = next(
            row
            for row in self.history
            if (row["stage"], row["epoch"]) == (self.best["stage"], self.best["epoch"])
        )
        header = ModelHeader(
            experiment=self.experiment,
            fingerprint=self.data.fingerprint,
            synthetic=self.data.synthetic,
            weights=describe_weights(self.experiment.model),
            best=self.best,
            metrics={key: value for key, value in kept.items() if key.startswith("val_")},
        )
        return TrainResult(self.best_model, self.history, header)

    def _batches(self, part: str, workers: int) -> Batches:
        return Batches(
            self.data,
            self.split.numbers(self.data.slices, part),
            self.experiment,
            augmented=part == "train",
            workers=workers,
            pinned=self.device.type == "cuda",
        )

    def _epoch(self, stage: Stage, number: int, epoch: int) -> EpochReport:
        started = time.perf_counter()
        torch.manual_seed(derive_seed(self.experiment.seed, number, epoch, _DROPOUT_STREAM))
        learning_rate = stage.optimizer.param_groups[0]["lr"]
        set_training(self.model, freeze_encoder=stage.config.freeze_encoder)
        batches = self.train_batches.epoch(number, epoch)
        trained = train_epoch(
            self.model,
            batches,
            self.experiment,
            self.device,
            stage.optimizer,
            stage.scaler,
            self.batch_parts,
        )
        self.model.eval()
        batches = self.val_batches.epoch(0, 0)
        validated = validate(self.model, batches, self.experiment, self.device, self.shown)
        for value in (trained.loss, validated.loss):
            if not math.isfinite(value):
                raise DivergedError(number, epoch, value)
        stage.scheduler.step(validated.loss)
        row: dict[str, float] = {
            "stage": number,
            "epoch": epoch,
            "step": len(self.history) + 1,
            "learning_rate": learning_rate,
            "train_loss": trained.loss,
            "train_dice": float(dice(trained.counts.sum(axis=0))),
            "val_loss": validated.loss,
            **self._val_scores(validated.counts),
        }
        self._keep(row)
        row["seconds"] = time.perf_counter() - started
        self.history.append(row)
        self._save(stage, number, epoch)
        return EpochReport(row, self.total_epochs, self._examples(validated.shown))

    def _val_scores(self, counts: Counts) -> dict[str, float]:
        numbers = self.split.numbers(self.data.slices, "val")
        scores = summarise(counts, [self.data.slices[n].patient for n in numbers])
        scores["dice"] = scores.pop("dice_global")
        best = max([row["val_dice"] for row in self.history] + [scores["dice"]])
        return {f"val_{key}": value for key, value in scores.items()} | {"best_val_dice": best}

    def _keep(self, row: dict[str, float]) -> None:
        row["is_best"] = float(row["val_loss"] < self.best["val_loss"])
        if row["is_best"]:
            self.best = {key: row[key] for key in ("stage", "epoch", "val_loss")}
            self.best_model = _copy(self.model)

    def _save(self, stage: Stage, number: int, epoch: int) -> None:
        if self.folder is None:
            return
        state = EpochState(
            stage=number,
            epoch=epoch,
            history=self.history,
            best=self.best,
            model=_copy(self.model),
            best_model=self.best_model,
            optimizer=stage.copy_optimizer(),
            scheduler=stage.scheduler.state_dict(),
            scaler=stage.scaler.state_dict(),
        )
        self.folder.save(state)

    def _examples(self, predicted: dict[int, NDArray[np.bool_]]) -> tuple[Example, ...]:
        size = self.experiment.data.size
        return tuple(
            Example(
                name=self.data.slices[number].name,
                image=preprocess(self.data.image(number), self.experiment.preprocess, size),
                true=resize_mask(self.data.mask(number), size) > 0,
                predicted=mask,
            )
            for number, mask in predicted.items()
        )

    def _choose_examples(self) -> frozenset[int]:
        """The slice with most tumour of each of the first few validation patients."""
        largest: dict[str, int] = {}
        for number in self.split.numbers(self.data.slices, "val").tolist():
            item = self.data.slices[number]
            other = largest.setdefault(item.patient, number)
            if item.tumour_pixels > self.data.slices[other].tumour_pixels:
                largest[item.patient] = number
        return frozenset(list(largest.values())[:_NUM_EXAMPLES])


def _copy(model: torch.nn.Module) -> Tensors:
    """Weights and buffers on the CPU, contiguous as safetensors wants them."""
    contiguous = torch.contiguous_format
    return {
        key: value.detach().to("cpu", copy=True, memory_format=contiguous)
        for key, value in model.state_dict().items()
    }


# --- stage ---


class Stage:
    """Optimizer, scheduler and gradient scaler of one stage, all fresh in each.

    Args:
        config: Of the stage.
        settings: Of the optimizer, the same in both stages.
        model: On `device`, in the mode of the stage: what is frozen is not optimized.
        device: Where to compute.
    """

    def __init__(
        self,
        config: StageConfig,
        settings: OptimizerConfig,
        model: torch.nn.Module,
        device: torch.device,
    ) -> None:
        """Start at the stage's learning rate."""
        self.config = config
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            mode="min",
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
        )
        # bfloat16 has float32's range: only float16 needs its gradients scaled.
        scaled = device.type == "cuda" and cuda_dtype() == torch.float16
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def restore(self, state: EpochState) -> None:
        """Go on from an epoch of this stage."""
        self.optimizer.load_state_dict(state.optimizer)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    # The memory layout of before: other layouts may round differently.
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)

    def copy_optimizer(self) -> dict[str, Any]:
        """Return the optimizer's state, its tensors on the CPU and contiguous."""
        state: dict[str, Any] = self.optimizer.state_dict()
        tensors = {
            number: {
                name: value.detach().to("cpu", memory_format=torch.contiguous_format)
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        return {"state": tensors, "param_groups": state["param_groups"]}
