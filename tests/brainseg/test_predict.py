from __future__ import annotations

from pathlib import Path

import pytest
from predictions import run_predict

from brainseg import predict
from brainseg.data.slice_store import SliceStore


def test_an_existing_folder_is_not_written_into(
    model_file: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert run_predict(model_file, patient, out=tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_usage_and_a_missing_model(tmp_path: Path, patient: Path, data: SliceStore) -> None:
    assert predict.main(["model", "input", "--out", "x", "--threshold", "1.5"]) == 2
    assert run_predict(tmp_path / "none.safetensors", patient, out=tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_device_is_a_usage_error(
    model_file: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model_file), str(patient), "--out", str(tmp_path / "o"), "--device", "abacus"]
    assert predict.main(arguments) == 2
    assert "abacus" in capsys.readouterr().err
