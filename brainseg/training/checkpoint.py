"""Epoch checkpoints: everything that the next epoch depends on, so that a resume is exact.

A checkpoint is a folder of safetensors and JSON files; nothing is unpickled. It is written under
another name, flushed to disk and renamed, so that a crash leaves the previous one intact. The
manifest, written last, holds the SHA-256 of each file; a checkpoint that differs is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from brainseg.config import Experiment, differences
from brainseg.errors import CheckpointError, CheckpointWarning
from brainseg.model.model_file import Tensors, save_tensors, versions
from brainseg.storage.files import (
    check_record,
    hash_file,
    read_json,
    retry_storage,
    write_folder,
    write_text,
)
from brainseg.storage.values import explain

_MANIFEST, _RECORD = "manifest.json", "state.json"
_STATE, _BEST = "state.safetensors", "best.safetensors"
_RECORDED = ("stage", "epoch", "history", "best", "scheduler", "scaler")
_NUM_KEPT = 2


class _Record(BaseModel):
    """What state.json holds."""

    model_config = ConfigDict(strict=True)

    stage: int
    epoch: int
    history: list[dict[str, float]]
    best: dict[str, float]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    optimizer: dict[str, Any]
    fingerprint: str
    experiment: dict[str, Any]


@dataclass
class EpochState:
    """The state of a training at the end of an epoch.

    Attributes:
        stage: Stage of the epoch, 1 or 2.
        epoch: Epoch within the stage, from 1.
        history: One row per epoch so far, see `EpochReport.row`.
        best: Stage, epoch and val loss of the best weights.
        model: Current weights and buffers.
        best_model: Weights and buffers of the best epoch.
        optimizer: `torch.optim.Optimizer.state_dict()`.
        scheduler: `ReduceLROnPlateau.state_dict()`; other schedules have no state.
        scaler: `GradScaler.state_dict()`; empty if it was disabled.
        average: The moving average of the weights; empty if there is none.
    """

    stage: int
    epoch: int
    history: list[dict[str, float]]
    best: dict[str, float]
    model: Tensors
    best_model: Tensors
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    average: Tensors = field(default_factory=dict)


class CheckpointFolder:
    """The epoch checkpoints of one training run, of which the newest two are kept.

    Args:
        folder: The folder; made with the first checkpoint.
        experiment: Experiment of the run.
        fingerprint: Fingerprint of its dataset.
    """

    def __init__(self, folder: Path, experiment: Experiment, fingerprint: str) -> None:
        self._folder = folder
        self._experiment = experiment
        self._fingerprint = fingerprint

    def save(self, state: EpochState) -> Path:
        """Write a checkpoint, delete all but the newest two, and return the new one's folder.

        Raises:
            StorageError: If the disk refuses; earlier checkpoints are as they were.
        """
        final = self._folder / f"stage{state.stage}-epoch{state.epoch:04d}"
        retry_storage(lambda: self._write(final, state), f"the checkpoint {final}")
        for old in self._list()[:-_NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> EpochState | None:
        """Load the newest intact checkpoint; warn of damaged ones with `CheckpointWarning`.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            CheckpointError: If it belongs to another experiment, dataset or version.
        """
        for folder in reversed(self._list()):
            try:
                _verify(folder)
                return self._read(folder)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                message = f"{folder} is damaged and skipped: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
                # Renamed, or it would count as the newest again.
                folder.rename(folder.with_name(f"damaged-{folder.name}-{os.getpid()}"))
        return None

    def _list(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(f for f in self._folder.iterdir() if f.name.startswith("stage"))

    def _write(self, final: Path, state: EpochState) -> None:
        # Only the run's own folder is made: if the one above is gone, the storage is.
        self._folder.mkdir(exist_ok=True)
        optimizer, tensors = _split_optimizer(state.optimizer)
        tensors |= {f"model.{key}": value for key, value in state.model.items()}
        tensors |= {f"average.{key}": value for key, value in state.average.items()}
        record = {
            "format": 1,
            **{key: getattr(state, key) for key in _RECORDED},
            "optimizer": optimizer,
            "fingerprint": self._fingerprint,
            "versions": versions(),
            "experiment": self._experiment.model_dump(mode="json"),
        }
        with write_folder(final) as folder:
            save_tensors(tensors, folder / _STATE)
            save_tensors(state.best_model, folder / _BEST)
            write_text(folder / _RECORD, json.dumps(record))
            sums = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
            write_text(folder / _MANIFEST, json.dumps(sums))
            shutil.rmtree(final, ignore_errors=True)

    def _read(self, folder: Path) -> EpochState:
        # Plateaus count from an infinite loss.
        record = read_json(folder / _RECORD, finite=False)
        check_record(folder / _RECORD, record, _Record)
        self._check_identity(folder, record)
        tensors = load_file(folder / _STATE)
        return EpochState(
            **{key: record[key] for key in _RECORDED},
            model=_below("model.", tensors),
            average=_below("average.", tensors),
            best_model=load_file(folder / _BEST),
            optimizer=_join_optimizer(record["optimizer"], tensors),
        )

    def _check_identity(self, folder: Path, record: Mapping[str, Any]) -> None:
        try:
            theirs = Experiment.model_validate(record["experiment"])
        except ValidationError as error:  # the checksums hold: these are the bytes that were saved
            raise CheckpointError(
                f"{folder} was written by another version of brainseg: "
                f"{explain(error).rstrip('.')}; that version continues it, another folder begins "
                "anew"
            ) from error
        ours = self._experiment
        if _is_path(ours) and _is_path(theirs):
            # The checkpoint holds the weights: their file may have been moved.
            path = theirs.model.encoder_weights
            ours = ours.replaced({"model.encoder_weights": path})
        changed = differences(ours, theirs)
        if changed:
            raise CheckpointError(f"{folder} is of another experiment: {'; '.join(changed)}")
        if record["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"{folder} was trained on data {record['fingerprint'][:12]}, "
                f"these are {self._fingerprint[:12]}"
            )


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _is_path(experiment: Experiment) -> bool:
    return experiment.model.encoder_weights not in ("imagenet", "none")


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """The optimizer's state as a JSON record and tensors."""
    tensors = {
        f"optimizer.{parameter}.{name}": value
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    return {"param_groups": state["param_groups"]}, tensors


def _join_optimizer(record: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, parameter, name = key.split(".")
            state.setdefault(int(parameter), {})[name] = value
    return {"state": state, **record}


def _verify(folder: Path) -> None:
    """Raise ValueError if the manifest is missing or a file does not match its checksum."""
    manifest = folder / _MANIFEST
    if not manifest.exists():
        raise ValueError("it was never completed")
    sums = read_json(manifest)
    missing = {_RECORD, _STATE, _BEST} - sums.keys()
    if missing:
        raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
    for name, expected in sums.items():
        if Path(name).name != name or hash_file(folder / name) != expected:
            raise ValueError(f"{name} does not match its checksum")
