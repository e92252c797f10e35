"""Two-stage training: first with a frozen encoder, then of the whole network.

`train_two_stage` trains in one call. `Training` runs epoch by epoch, for a caller that reports to
a scheduler or trains several networks in turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from brainseg.config import Experiment, OptimizerConfig, StageConfig
from brainseg.data.input_store import open_inputs
from brainseg.data.inputs import StoreInputs, name_channels
from brainseg.data.loader import Batches
from brainseg.data.resident import ResidentBatches, keeps_resident
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import check_share, split_of
from brainseg.errors import DivergedError
from brainseg.metrics import Counts, dice, summarise
from brainseg.model.device import Compute, build_scaler, fix_algorithms
from brainseg.model.encoders import describe_weights
from brainseg.model.model_file import ModelHeader, Tensors, save_model
from brainseg.model.networks import build_model, calibrate_encoder, set_training
from brainseg.training.checkpoint import CheckpointFolder, EpochState
from brainseg.training.epoch import EpochReport, Example, train_epoch, validate
from brainseg.training.optimizer import average_weights, build_optimizer, learning_rate

_NUM_EXAMPLES = 4
_DROPOUT_STREAM = 1


@dataclass(frozen=True)
class TrainResult:
    """The best weights of a training and its history.

    Attributes:
        weights: Weights and buffers of the epoch with the lowest val loss, on the CPU.
        history: One row per epoch, see `EpochReport.row`.
        header: The header of the model file.
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
    """Train a network through both stages and return its best weights.

    torch's global random state is left as it was.

    Args:
        experiment: Everything that determines the numbers.
        data: The dataset.
        on_epoch: Called after each epoch, once its checkpoint is written.
        compute: Device and loader workers.
        checkpoints: Folder of epoch checkpoints. If it holds one, training continues after it and
            gives the same numbers as an uninterrupted run. None writes no checkpoints.

    Raises:
        DivergedError: If a loss is no longer finite.
        BrainsegError: If data, weights or checkpoints cannot be used.
    """
    with torch.random.fork_rng():
        training = Training(experiment, data, compute=compute, checkpoints=checkpoints)
        for report in training.epochs():
            on_epoch(report)
    return training.result()


class Training:
    """A two-stage training that is run epoch by epoch.

    Several trainings may take turns: each epoch seeds torch's global random state, so that none
    depends on what was trained in between.

        training = Training(experiment, data)
        for report in training.epochs():
            print(report.row)
        training.result().save("model.safetensors")

    Args:
        experiment: Everything that determines the numbers.
        data: The dataset.
        compute: Device and loader workers.
        checkpoints: Folder of epoch checkpoints, see `train_two_stage`.

    Raises:
        BrainsegError: If data or weights cannot be used.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: SliceStore,
        *,
        compute: Compute | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        compute = compute or Compute()
        experiment = name_channels(experiment, data)
        self._experiment = experiment
        self._data = data
        self._device = compute.torch_device()
        self._batch_parts = compute.batch_parts
        self._checkpoints: CheckpointFolder | None = None
        if checkpoints is not None:
            self._checkpoints = CheckpointFolder(checkpoints, experiment, data.fingerprint)
        self._split = split_of(experiment, data.slices)
        check_share(experiment, data.slices, self._split)
        self._train_batches = self._batches("train", compute.workers)
        self._val_batches = self._batches("val", compute.workers)
        model = build_model(experiment.model, experiment.seed, experiment.input_channels)
        self._model = model.to(self._device)
        self._examples = self._choose_examples()
        self._history: list[dict[str, float]] = []
        self._best_weights: Tensors = {}
        fix_algorithms(self._device)

    def epochs(self) -> Iterator[EpochReport]:
        """Train; after each epoch, write its checkpoint and yield its report.

        Epochs of the checkpoint that training continues after are reported first.

        Raises:
            DivergedError: If a loss is no longer finite.
            CheckpointError: If the checkpoint is of another experiment or dataset.
            StorageError: If a checkpoint cannot be written.
        """
        state = self._checkpoints.latest() if self._checkpoints else None
        if state is not None:
            self._history, self._best_weights = state.history, state.best_model
            self._model.load_state_dict(state.model)
            for row in self._history:
                yield EpochReport(row, self._experiment.num_epochs, replayed=True)
        elif self._experiment.model.calibrate_encoder:
            images = (batch[0] for batch in self._train_batches.epoch(0, 0))
            calibrate_encoder(self._model, images, self._device)
        last_stage, last_epoch = (state.stage, state.epoch) if state else (0, 0)
        for number, config in enumerate(self._experiment.stages, start=1):
            first = last_epoch + 1 if number == last_stage else 1
            if number < last_stage or first > config.epochs:
                continue
            set_training(self._model, freeze_encoder=config.freeze_encoder)
            steps = self._train_batches.num_steps
            stage = _Stage(
                number, config, self._experiment.optimizer, self._model, self._device, steps
            )
            if state is not None and number == last_stage:
                stage.restore(state)
            for epoch in range(first, config.epochs + 1):
                if self._is_over():
                    return
                yield self._run_epoch(stage, epoch)

    def result(self) -> TrainResult:
        """Return the weights with the lowest val loss of the epochs so far, at least one."""
        header = ModelHeader(
            experiment=self._experiment,
            fingerprint=self._data.fingerprint,
            synthetic=self._data.synthetic,
            channels=self._data.channels,
            described=self._data.described,
            weights=describe_weights(self._experiment.model),
            best=self._best(),
            metrics={k: v for k, v in self._best_row().items() if k.startswith("val_")},
        )
        return TrainResult(self._best_weights, self._history, header)

    def _best_row(self) -> dict[str, float]:
        return min(self._history, key=lambda row: row["val_loss"])

    def _best(self) -> dict[str, float]:
        row = self._best_row()
        return {key: row[key] for key in ("stage", "epoch", "val_loss")}

    def _batches(self, part: str, workers: int) -> Batches | ResidentBatches:
        indices, augmented = self._split.indices(self._data.slices, part), part == "train"
        if keeps_resident(self._experiment, self._data, self._device):
            return ResidentBatches(
                self._data,
                indices,
                self._experiment,
                augmented=augmented,
                device=self._device,
                threads=max(workers, 1),
            )
        return Batches(
            self._data,
            indices,
            self._experiment,
            augmented=augmented,
            workers=workers,
            pinned=self._device.type == "cuda",
        )

    def _is_over(self) -> bool:
        """Return whether the history so far ends the training early, see `StoppingConfig`."""
        rule, history = self._experiment.stopping, self._history
        if rule.minutes is not None:
            spent = sum(row["seconds"] for row in history)
            if history and spent >= 60 * rule.minutes:
                return True
        last = max(n for n, stage in enumerate(self._experiment.stages, start=1) if stage.epochs)
        losses = [row["val_loss"] for row in history if row["stage"] == last]
        if rule.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= rule.patience

    def _run_epoch(self, stage: _Stage, epoch: int) -> EpochReport:
        started = time.perf_counter()
        experiment = self._experiment
        seeds = np.random.SeedSequence((experiment.seed, stage.number, epoch, _DROPOUT_STREAM))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        stage.set_learning_rate(epoch, 0)
        learning_rate = stage.optimizer.param_groups[0]["lr"]
        set_training(self._model, freeze_encoder=stage.config.freeze_encoder)
        trained = train_epoch(
            self._model,
            self._train_batches.epoch(stage.number, epoch),
            experiment,
            self._device,
            stage.optimizer,
            stage.scaler,
            self._batch_parts,
            lambda step: stage.set_learning_rate(epoch, step),
            stage.update_average,
        )
        network = (self._model if stage.average is None else stage.average.module).eval()
        batches = self._val_batches.epoch(0, 0)
        validated = validate(network, batches, experiment, self._device, self._examples)
        for loss in (trained.loss, validated.loss):
            if not math.isfinite(loss):
                raise DivergedError(stage.number, epoch, loss)
        if stage.scheduler is not None:
            stage.scheduler.step(validated.loss)
        is_best = all(validated.loss < row["val_loss"] for row in self._history)
        if is_best:
            self._best_weights = _copy_weights(network)
        row: dict[str, float] = {
            "stage": stage.number,
            "epoch": epoch,
            "step": len(self._history) + 1,
            "learning_rate": learning_rate,
            "train_loss": trained.loss,
            "train_dice": float(dice(trained.counts.sum(axis=0))),
            "val_loss": validated.loss,
            **self._val_scores(validated.counts),
            "is_best": float(is_best),
            "seconds": time.perf_counter() - started,
        }
        self._history.append(row)
        if self._checkpoints is not None:
            self._checkpoints.save(self._state(stage, epoch))
        return EpochReport(row, self._experiment.num_epochs, self._draw_examples(validated.masks))

    def _val_scores(self, counts: Counts) -> dict[str, float]:
        indices = self._split.indices(self._data.slices, "val")
        scores = summarise(counts, [self._data.slices[index].patient for index in indices])
        scores["dice"] = scores.pop("dice_global")
        best = max([row["val_dice"] for row in self._history] + [scores["dice"]])
        return {f"val_{key}": value for key, value in scores.items()} | {"best_val_dice": best}

    def _state(self, stage: _Stage, epoch: int) -> EpochState:
        return EpochState(
            stage=stage.number,
            epoch=epoch,
            history=self._history,
            best=self._best(),
            model=self._model.state_dict(),
            best_model=self._best_weights,
            optimizer=stage.optimizer.state_dict(),
            scheduler=stage.scheduler.state_dict() if stage.scheduler else {},
            scaler=stage.scaler.state_dict(),
            average=stage.average.state_dict() if stage.average else {},
        )

    def _choose_examples(self) -> frozenset[int]:
        """The slice with most tumour of each of the first few validation patients."""
        slices, largest = self._data.slices, dict[str, int]()
        for index in self._split.indices(slices, "val").tolist():
            patient = slices[index].patient
            other = largest.setdefault(patient, index)
            if slices[index].tumour_pixels > slices[other].tumour_pixels:
                largest[patient] = index
        return frozenset(list(largest.values())[:_NUM_EXAMPLES])

    @cached_property
    def _inputs(self) -> StoreInputs:
        return open_inputs(self._data, self._experiment)

    def _draw_examples(self, predicted: dict[int, NDArray[np.bool_]]) -> tuple[Example, ...]:
        return tuple(
            Example(
                name=self._data.slices[index].name,
                image=self._inputs.picture(index),
                true=self._inputs.mask(index) > 0,
                predicted=mask,
            )
            for index, mask in predicted.items()
        )


class _Stage:
    """A fresh optimizer, schedule, average and gradient scaler for one stage.

    The model must be on the device and in the mode of the stage: frozen parameters are left out.
    """

    def __init__(
        self,
        number: int,
        config: StageConfig,
        settings: OptimizerConfig,
        model: torch.nn.Module,
        device: torch.device,
        steps_per_epoch: int,
    ) -> None:
        self.number = number
        self.config = config
        self._settings = settings
        self._model = model
        self._steps = steps_per_epoch
        self.optimizer = build_optimizer(model, settings, config.learning_rate)
        self.scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        if settings.schedule == "plateau":
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer,
                mode="min",
                factor=settings.plateau_factor,
                patience=settings.plateau_patience,
            )
        self.average: AveragedModel | None = None
        if settings.average_decay is not None:
            self.average = average_weights(model, settings.average_decay)
        self.scaler = build_scaler(device)

    def set_learning_rate(self, epoch: int, step: int) -> None:
        """Set the learning rate of a step, from 0, of an epoch, from 1."""
        place = (epoch - 1) * self._steps + step
        rate = learning_rate(self.config, self._settings, place, self._steps)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def update_average(self) -> None:
        """Let the average follow the weights, after a step."""
        if self.average is not None:
            self.average.update_parameters(self._model)

    def restore(self, state: EpochState) -> None:
        self.optimizer.load_state_dict(state.optimizer)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    # Restore the memory layout too: another layout may round differently.
                    values[name] = torch.empty_like(parameter).copy_(value)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state.scheduler)
        if self.average is not None:
            self.average.load_state_dict(state.average)
        # A disabled scaler, of a processor or a GPU with bfloat16, has written none.
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)


def _copy_weights(model: torch.nn.Module) -> Tensors:
    """Weights and buffers, copied to the CPU, contiguous."""
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
