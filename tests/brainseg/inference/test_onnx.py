from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from brainseg import export
from brainseg.config import Experiment
from brainseg.data.description import to_bytes
from brainseg.data.slice_store import SliceStore
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference import onnx as onnx_export
from brainseg.inference.onnx import describe_input, export_onnx
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader, load_model, save_model

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


def _rescale_as_described(volume: NDArray[np.uint16]) -> NDArray[np.uint8]:
    values = volume.astype(np.float32)
    for channel in range(values.shape[3]):
        own = values[..., channel]
        low, high = np.percentile(own[own != 0], (0.5, 99.5))
        values[..., channel] = (own - low) / (high - low) * 255
    return values.round().clip(0, 255).astype(np.uint8)


def _cut_as_described(volume: NDArray[np.uint8], seen: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest square around the foreground, within the padded slices."""
    places = np.nonzero(seen.any(axis=0))
    (top, left), (bottom, right) = ([int(fun(p)) for p in places] for fun in (np.min, np.max))
    height, width = bottom - top + 1, right - left + 1
    side, whole = max(height, width), volume.shape[1]
    top, left = top - (side - height) // 2, left - (side - width) // 2
    top, left = (min(max(start, 0), whole - side) for start in (top, left))
    return slice(top, top + side), slice(left, left + side)


def test_scans_of_16_bits_that_are_not_square_are_prepared_as_described(
    model_file: Path, data: SliceStore
) -> None:
    """z-scores, a crop and flips, with the graph's own network instead of onnxruntime."""
    weights, header = load_model(model_file)
    changes = {"preprocess.intensities": "zscore", "preprocess.crop": "brain", "flips": True}
    changes |= {"preprocess.filters": [], "threshold": 0.4}
    experiment = header.experiment.replaced(changes)
    header = header.model_copy(update={"experiment": experiment, "described": True})
    predictor = Predictor(weights, header, CPU)
    text = describe_input(header)
    for words in (
        *("to its 99.5th percentile", "the bytes 128 + 32 z", "a tenth of the volume's"),
        *("log(p / (1 - p))", "cut square, with -100 around it", "the padding cut off"),
    ):
        assert words in text
    scan = [data.image(n)[4:-3].astype(np.uint16) * 150 for n in range(6)]
    expected = predictor.predict(to_bytes(scan), patients=["scan"] * 6)

    volume = _rescale_as_described(np.stack(scan))
    height, width = volume.shape[1:3]
    top = (width - height) // 2
    inside = volume.max(axis=3) >= max(1, volume.max() / 10)
    values = volume[inside]
    square = np.pad(volume, ((0, 0), (top, width - height - top), (0, 0), (0, 0)))
    scores = 128 + 32 * (square - values.mean(axis=0)) / values.std(axis=0)
    rows, columns = _cut_as_described(
        square, np.pad(inside, ((0, 0), (top, width - height - top), (0, 0)))
    )
    cut = scores.round().clip(0, 255).astype(np.uint8)[:, rows, columns]
    size = experiment.data.size
    slices = torch.from_numpy(np.stack([cv2.resize(image, (size, size)) for image in cut]))
    graph = onnx_export._Probabilities(predictor.network)
    views = [graph(slices.flip(axes)).flip(axes) for axes in ((), (1,), (2,), (1, 2))]
    mean = torch.stack(views).mean(dim=0).detach().numpy().clip(1e-6, 1 - 1e-6)
    for map_, prediction in zip(np.log(mean / (1 - mean)), expected, strict=True):
        whole = np.full((width, width), -100, np.float32)
        whole[rows, columns] = cv2.resize(map_, cut.shape[1:3])
        found = 1 / (1 + np.exp(-whole[top : top + height]))
        assert np.allclose(found, prediction.probabilities, atol=1e-4)
        assert np.array_equal(found >= 0.4, prediction.mask)


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


def test_a_model_of_other_channels_than_the_slices_asks_for_its_data_before_it_is_traced(
    model_file: Path, data: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, header = load_model(model_file)
    named = header.experiment.replaced({"data.channels": ["T1", "T2", "PD"]})
    header = header.model_copy(update={"experiment": named, "channels": ("T1", "T2", "PD")})
    path = tmp_path / "model.safetensors"
    save_model(path, weights, header)
    assert export.main([str(path), "--onnx", "--data", str(data.root)]) == 2
    said = capsys.readouterr()
    assert "takes the channels T1, T2, PD, the slices" in said.err
    assert "have pre-contrast, FLAIR, post-contrast: give --data" in said.err
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
    def describe(changes: dict[str, object]) -> str:
        header = ModelHeader(
            experiment=Experiment().replaced(changes),
            fingerprint="f" * 64,
            synthetic=True,
            weights="none",
            best={},
            metrics={},
            channels=("T1", "T2", "PD"),
        )
        return describe_input(header)

    raw = describe({})
    assert "no filters" in raw
    assert raw.startswith("Channels T1, T2, PD as uint8")  # not those of the LGG slices
    assert "256 x 256" in raw
    changes = {
        "preprocess.filters": ["median", "clahe"],
        "preprocess.clip_limit": 2.5,
        "data.size": 128,
    }
    text = describe(changes)
    assert "clip limit 2.5" in text
    assert "128 x 128" in text
