from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from brainseg.config import Experiment
from brainseg.errors import CheckpointError, CheckpointWarning, StorageError
from brainseg.storage.files import hash_file
from brainseg.training.checkpoint import CheckpointFolder, EpochState


def _state(stage: int, epoch: int, best_epoch: int = 1) -> EpochState:
    tensors = {"weight": torch.full((3, 2), float(10 * stage + epoch))}
    return EpochState(
        stage=stage,
        epoch=epoch,
        history=[{"stage": stage, "epoch": epoch, "val_loss": 0.1 + 0.2}],
        best={"stage": 1, "epoch": best_epoch, "val_loss": 1 / 3},
        model=tensors,
        best_model={"weight": torch.ones((3, 2))},
        optimizer={
            "state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 1e-4, "betas": [0.9, 0.999], "params": [0]}],
        },
        scheduler={"best": 0.5, "num_bad_epochs": 2, "mode_worse": float("inf")},
        scaler={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path, Experiment(), "f" * 64)


def test_a_state_is_read_as_it_was_written(folder: CheckpointFolder) -> None:
    folder.save(_state(1, 1))
    back, state = folder.latest(), _state(1, 1)
    assert back is not None
    assert (back.history, back.best, back.scheduler) == (
        state.history,
        state.best,
        state.scheduler,
    )
    assert torch.equal(back.model["weight"], state.model["weight"])
    assert back.optimizer["param_groups"] == state.optimizer["param_groups"]
    assert torch.equal(back.optimizer["state"][0]["exp_avg"], torch.ones(2))


def test_the_newest_two_are_kept_across_the_change_of_stage(
    folder: CheckpointFolder, tmp_path: Path
) -> None:
    for stage, epoch in ((1, 1), (1, 2), (2, 1)):
        folder.save(_state(stage, epoch))
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["stage1-epoch0002", "stage2-epoch0001"]


def test_an_empty_folder_has_no_latest_checkpoint(folder: CheckpointFolder) -> None:
    assert folder.latest() is None


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["state.safetensors", "best.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    folder: CheckpointFolder, name: str, damage: str
) -> None:
    folder.save(_state(1, 1))
    newest = folder.save(_state(1, 2, best_epoch=2)) / name
    if damage == "flip":
        _flip(newest)
    elif damage == "remove":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[: 10 if damage == "truncate" else 0])
    with pytest.warns(UserWarning, match="stage1-epoch0002 is damaged"):
        state = folder.latest()
    assert state is not None
    assert state.epoch == 1


def test_a_checkpoint_without_a_manifest_is_skipped(folder: CheckpointFolder) -> None:
    folder.save(_state(1, 1))
    (folder.save(_state(1, 2)) / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="never completed"):
        state = folder.latest()
    assert state is not None
    assert state.epoch == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", '{"state.json": "0"}', '{"state.json": NaN}', "[" * 100_000, "\0" * 99],
)
def test_a_checkpoint_with_another_manifest_is_skipped(
    folder: CheckpointFolder, text: str
) -> None:
    folder.save(_state(1, 1))
    (folder.save(_state(1, 2)) / "manifest.json").write_text(text)
    with pytest.warns(CheckpointWarning, match="stage1-epoch0002 is damaged"):
        state = folder.latest()
    assert state is not None
    assert state.epoch == 1


def test_a_manifest_names_no_file_elsewhere(folder: CheckpointFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    path = folder.save(_state(1, 1)) / "manifest.json"
    sums = json.loads(path.read_text()) | {"../secret": hash_file(tmp_path / "secret")}
    path.write_text(json.dumps(sums))
    with pytest.warns(CheckpointWarning, match=r"\.\./secret"):
        assert folder.latest() is None


@pytest.mark.parametrize(
    "change",
    [
        *({"stage": "one"}, {"epoch": None}, {"history": 3}, {"history": [[]]}, {"best": []}),
        *({"optimizer": []}, {"experiment": 1}, {"scheduler": 0}, {"fingerprint": 7}),
    ],
    ids=str,
)
def test_a_checkpoint_with_another_record_is_skipped(
    folder: CheckpointFolder, change: dict[str, Any]
) -> None:
    folder.save(_state(1, 1))
    path = folder.save(_state(1, 2))
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | change))
    sums = json.loads((path / "manifest.json").read_text())
    sums["state.json"] = hash_file(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(sums))
    with pytest.warns(CheckpointWarning, match="stage1-epoch0002 is damaged"):
        state = folder.latest()
    assert state is not None
    assert state.epoch == 1


def test_best_weights_are_not_shared_between_checkpoints(folder: CheckpointFolder) -> None:
    first = folder.save(_state(1, 1)) / "best.safetensors"
    second = folder.save(_state(1, 2)) / "best.safetensors"
    assert first.stat().st_ino != second.stat().st_ino


def test_after_damage_new_checkpoints_are_kept(folder: CheckpointFolder, tmp_path: Path) -> None:
    folder.save(_state(1, 1))
    _flip(folder.save(_state(2, 5)) / "state.json")
    with pytest.warns(UserWarning, match="stage2-epoch0005 is damaged"):
        assert folder.latest() is not None
    assert folder.save(_state(1, 2)).exists()
    state = folder.latest()
    assert state is not None
    assert (state.stage, state.epoch) == (1, 2)


def test_a_resume_ignores_where_the_encoder_weights_were(tmp_path: Path) -> None:
    old, new = (
        Experiment().replaced({"model.encoder_weights": path})
        for path in ("/old/w.safetensors", "/new/w.safetensors")
    )
    CheckpointFolder(tmp_path, old, "f").save(_state(1, 1))
    assert CheckpointFolder(tmp_path, new, "f").latest() is not None
    random = Experiment().replaced({"model.encoder_weights": "none"})
    with pytest.raises(CheckpointError, match="another experiment"):
        CheckpointFolder(tmp_path, random, "f").latest()


def test_other_experiments_and_other_data_are_refused(
    folder: CheckpointFolder, tmp_path: Path
) -> None:
    folder.save(_state(1, 1))
    with pytest.raises(CheckpointError, match="another experiment: seed: 44 -> 45"):
        CheckpointFolder(tmp_path, Experiment().replaced({"seed": 45}), "f" * 64).latest()
    with pytest.raises(CheckpointError, match="was trained on data ffffffffffff"):
        CheckpointFolder(tmp_path, Experiment(), "e" * 64).latest()


def test_a_checkpoint_of_another_version_is_refused_and_kept(
    folder: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Experiment.model_dump
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "model_dump", lambda *a, **b: {**whole(*a, **b), "renamed": 1})
        path = folder.save(_state(1, 1))
    said = "by another version of brainseg: unknown key renamed; that version continues it"
    with pytest.raises(CheckpointError, match=said):
        folder.latest()
    assert path.is_dir()


def test_a_write_that_fails_leaves_the_previous_one(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(_state(1, 1))

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    waited: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr("brainseg.storage.files._sync", full)
        patch.setattr("brainseg.storage.files.time.sleep", waited.append)
        with pytest.raises(StorageError, match=r"cannot write the checkpoint .*No space left"):
            folder.save(_state(1, 2))
    assert sum(waited) == 20
    state = folder.latest()
    assert state is not None
    assert state.epoch == 1


def test_a_manifest_lists_every_file(folder: CheckpointFolder) -> None:
    path = folder.save(_state(1, 1))
    listed = json.loads((path / "manifest.json").read_text())
    assert {*listed, "manifest.json"} == {file.name for file in path.iterdir()}


def test_a_checkpoint_written_before_a_key_was_added_is_read(
    folder: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_key(model: BaseModel, **options: Any) -> dict[str, Any]:
        record = whole(model, **options)
        del record["model"]["batchnorm_momentum"]
        return record

    whole = Experiment.model_dump
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "model_dump", without_key)
        CheckpointFolder(tmp_path, Experiment(), "f" * 64).save(_state(1, 1))
    assert "batchnorm_momentum" not in (tmp_path / "stage1-epoch0001" / "state.json").read_text()
    assert folder.latest() is not None
