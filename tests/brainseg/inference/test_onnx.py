from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from brainseg import export
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference import onnx as onnx_export
from brainseg.inference.onnx import describe_input, export_onnx
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute

CPU = Compute(device="cpu")


@pytest.fixture(scope="module")
def exported(model_file: Path, data: SliceStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason='needs pip install -e ".[export]"')
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    arguments = [str(model_file), "--onnx", str(path), "--data", str(data.root)]
    assert export.main(arguments) == 0
    return path


@pytest.mark.slow
def test_following_the_metadata_gives_the_masks_of_predict(
    exported: Path, model_file: Path, data: SliceStore
) -> None:
    """What a reader without brainseg would write from the file's own description."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    settings = json.loads(about["settings"])
    assert settings["filters"] == ["median", "clahe"]
    assert about["synthetic"] == "trained on generated phantoms"
    assert "not for clinical use" in about["use"]
    slices = []
    for index in range(5):
        image = cv2.medianBlur(data.image(index), settings["median_kernel"])
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        tiles = (settings["tile_grid"], settings["tile_grid"])
        lab[:, :, 0] = cv2.createCLAHE(settings["clip_limit"], tiles).apply(lab[:, :, 0])
        slices.append(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
    maps = session.run(None, {"slices": np.stack(slices)})[0]
    expected = Predictor.load(model_file, CPU).predict([data.image(n) for n in range(5)])
    for map_, prediction in zip(maps, expected, strict=True):
        assert np.allclose(map_, prediction.probabilities, atol=1e-4)
        assert np.array_equal(map_ >= 0.5, prediction.mask)


@pytest.mark.slow
def test_the_model_file_is_whole_in_the_metadata(exported: Path, model_file: Path) -> None:
    import onnx

    header = Predictor.load(model_file, CPU).header
    props = {item.key: item.value for item in onnx.load(exported).metadata_props}
    assert type(header).model_validate_json(props["brainseg"]) == header


@pytest.mark.slow
def test_a_difference_beyond_rounding_writes_nothing(
    exported: Path, model_file: Path, data: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    path = exported.with_name("other.onnx")
    with pytest.raises(CheckpointError, match="nothing was written"):
        export_onnx(Predictor.load(model_file, CPU), path, data)
    assert list(path.parent.iterdir()) == [exported]


def test_an_existing_file_is_kept(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("precious")
    assert export.main([str(model_file), "--onnx", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_a_missing_folder_is_told_before_the_network_is_traced(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(model_file), "--onnx", str(tmp_path / "no" / "model.onnx")]) == 2
    said = capsys.readouterr()
    assert "there is no folder" in said.err
    assert "tracing" not in said.out


def test_a_missing_package_is_named(
    model_file: Path, data: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r'in the checkout, pip install -e "\.\[export\]"'):
        export_onnx(Predictor.load(model_file, CPU), tmp_path / "model.onnx", data)


def test_the_description_names_what_changes() -> None:
    raw = describe_input(Experiment())
    assert "no filters" in raw
    assert "256 x 256" in raw
    changes = {
        "preprocess.filters": ["median", "clahe"],
        "preprocess.clip_limit": 2.5,
        "data.size": 128,
    }
    text = describe_input(Experiment().replaced(changes))
    assert "clip limit 2.5" in text
    assert "128 x 128" in text
