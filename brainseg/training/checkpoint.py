"""Epoch checkpoints: everything that the next epoch depends on, so that a resume is exact.

Nothing here is a pickle: tensors are safetensors, the rest JSON. A write goes aside, is flushed to
disk and renamed, so a crash leaves the previous state; an epoch checkpoint carries the SHA-256 of
its files, and one that does not match is passed over for the one before.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from brainseg.config import Experiment, differences
from brainseg.errors import CheckpointError, CheckpointWarning
from brainseg.model.model_file import Tensors, save_tensors, versions
from brainseg.storage.files import hash_file, retry_storage, write_folder, write_text

_MANIFEST = "manifest.json"
_BEST = "best.safetensors"
_KEPT = 2


@dataclass
class EpochState:
    """Everything that the next epoch depends on, at the end of an epoch.

    Attributes:
        stage: 1 or 2, of the epoch that has ended.
        epoch: From 1, within the stage.
        history: One row per epoch so far.
        best: Stage, epoch and val loss of the best weights.
        model: Weights and BatchNorm buffers.
        best_model: The same of the best epoch.
        optimizer: `torch.optim.Optimizer.state_dict()`.
        scheduler: `ReduceLROnPlateau.state_dict()`.
        scaler: `GradScaler.state_dict()`.
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


class CheckpointFolder:
    """The epoch checkpoints of one training run; the newest two are kept.

    Args:
        folder: Made when first written to.
        experiment: Of the run; a checkpoint of another one is refused.
        fingerprint: Of the dataset; likewise.
    """

    def __init__(self, folder: Path, experiment: Experiment, fingerprint: str) -> None:
        """Touch nothing yet."""
        self._folder = folder
        self._identity = {"experiment": experiment.model_dump(mode="json")}
        self._experiment = experiment
        self._fingerprint = fingerprint

    def save(self, state: EpochState) -> Path:
        """Write a checkpoint durably and drop all but the newest two.

        Raises:
            StorageError: If the disk refuses; earlier checkpoints are as they were.
        """
        final = self._folder / f"stage{state.stage}-epoch{state.epoch:04d}"
        retry_storage(lambda: self._write(final, state), f"the checkpoint {final}")
        for old in self._list()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> EpochState | None:
        """Load the newest checkpoint that is whole; damaged ones are named in a warning.

        Returns:
            The state, or None if there is none at all.

        Raises:
            CheckpointError: If it belongs to another experiment or dataset.
        """
        for folder in reversed(self._list()):
            try:
                _verify(folder)
                return self._read(folder)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                message = f"{folder} is damaged and passed over: {error}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
                # Out of the way, or it would count as the newest again.
                folder.rename(folder.with_name(f"damaged-{folder.name}-{os.getpid()}"))
        return None

    def _list(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(f for f in self._folder.iterdir() if f.name.startswith("stage"))

    def _write(self, final: Path, state: EpochState) -> None:
        # Only the run's own folder is made: if the one above is gone, the storage is.
        self._folder.mkdir(exist_ok=True)
        with write_folder(final) as folder:
            self._fill(folder, state)
            shutil.rmtree(final, ignore_errors=True)

    def _fill(self, folder: Path, state: EpochState) -> None:
        optimizer, optimizer_tensors = _split_optimizer(state.optimizer)
        tensors = {f"model.{key}": value for key, value in state.model.items()}
        save_tensors(tensors | optimizer_tensors, folder / "state.safetensors")
        save_tensors(state.best_model, folder / _BEST)
        record = {
            "format": 1,
            "stage": state.stage,
            "epoch": state.epoch,
            "history": state.history,
            "best": state.best,
            "optimizer": optimizer,
            "scheduler": state.scheduler,
            "scaler": state.scaler,
            "fingerprint": self._fingerprint,
            "versions": versions(),
            **self._identity,
        }
        write_text(folder / "state.json", json.dumps(record))
        sums = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
        write_text(folder / _MANIFEST, json.dumps(sums))

    def _read(self, folder: Path) -> EpochState:
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self._check_identity(folder, record)
        tensors = load_file(folder / "state.safetensors")
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
        return EpochState(
            stage=record["stage"],
            epoch=record["epoch"],
            history=record["history"],
            best=record["best"],
            model=model,
            best_model=load_file(folder / _BEST),
            optimizer=_join_optimizer(record["optimizer"], tensors),
            scheduler=record["scheduler"],
            scaler=record["scaler"],
        )

    def _check_identity(self, folder: Path, record: Mapping[str, Any]) -> None:
        theirs = Experiment.model_validate(record["experiment"])
        ours = self._experiment
        if _is_path(ours) and _is_path(theirs):
            # The weights are in the checkpoint: where their file was does not matter any more.
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


def _is_path(experiment: Experiment) -> bool:
    return experiment.model.encoder_weights not in ("imagenet", "none")


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Part AdamW's state into what is JSON and what is tensors."""
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
    """Compare each file with its checksum.

    Raises:
        ValueError: If one differs, or the manifest, which is written last, is not there.
    """
    for name, expected in _read_manifest(folder).items():
        if hash_file(folder / name) != expected:
            raise ValueError(f"{name} does not match its checksum")


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise ValueError("it was never completed") from error
