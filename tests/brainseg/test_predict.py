from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from predictions import run_predict

from brainseg import predict
from brainseg.data.slice_store import SliceStore
from brainseg.inference.overlay import encode_picture


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


def test_files_that_are_skipped_are_named_in_a_line(
    model_file: Path,
    data: SliceStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    scans = Path("scans")
    (scans / "deep").mkdir(parents=True)
    for name in ("a.png", "a_mask.png", "deep/b.tif"):
        pixels = data.mask(2) * 255 if "mask" in name else data.image(2)
        (scans / name).write_bytes(encode_picture(pixels, name[-4:]))
    assert run_predict(model_file, "scans", out=tmp_path / "none") == 0
    assert "skipped" not in capsys.readouterr().err
    skipped = ["b.dcm", "deep/c.gif", "lone_mask.png", "\x1b[2J.xyz", *(f"{n}.h5" for n in "defg")]
    for name in (*skipped, "README.txt", ".hidden"):
        (scans / name).touch()
    assert run_predict(model_file, "scans", out=tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert re.search(
        rf"^8 files in {tmp_path}/scans are skipped, since they are no TIFF, PNG, JPEG or NIfTI "
        r"files, nor masks of one: \\x1b\[2J\.xyz, b\.dcm, d\.h5, deep/c\.gif, e\.h5 \.\.\.$",
        err,
        re.MULTILINE,
    ), err


def test_a_folder_that_cannot_be_read_is_named(
    model_file: Path,
    patient: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in" / "locked").mkdir(parents=True)
    (tmp_path / "in" / patient.name).symlink_to(patient)
    scan = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert run_predict(model_file, tmp_path / "in", patient, out=tmp_path / "out") == 3
    assert f"not predicted: {tmp_path}/in/locked: Permission denied" in capsys.readouterr().err
