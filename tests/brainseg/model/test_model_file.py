from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from brainseg.config import Experiment
from brainseg.errors import CheckpointError
from brainseg.model.model_file import ModelHeader, load_model, save_model


def _header() -> ModelHeader:
    return ModelHeader(
        experiment=Experiment().replaced({"data.size": 64}),
        fingerprint="f" * 64,
        synthetic=True,
        weights="no pretrained weights",
        best={"stage": 2, "epoch": 3, "val_loss": 0.25},
        metrics={"val_dice": 0.5},
    )


def test_a_model_file_holds_weights_and_header(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", {"w": torch.ones(2)}, _header())
    weights, header = load_model(tmp_path / "m.safetensors")
    assert header == _header()
    assert torch.equal(weights["w"], torch.ones(2))
    assert header.versions["torch"].startswith(torch.__version__.split("+")[0])


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        load_model(path)


def test_weights_of_a_type_that_networks_do_not_compute_with_are_refused(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.safetensors", torch.ones(4).to(torch.float8_e4m3fn)
    save_model(path, {"a": torch.ones(2), "w": weights}, _header())
    with pytest.raises(CheckpointError, match=r"m\.safetensors holds torch.float8_e4m3fn in w;"):
        load_model(path)


def test_a_header_written_before_a_key_was_added_is_read() -> None:
    old = json.loads(_header().model_dump_json())
    del old["experiment"]["model"]["batchnorm_momentum"]
    assert ModelHeader.model_validate(old) == _header()
