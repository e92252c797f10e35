from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from brainseg import check
from brainseg.cli import FINISHED, KNOWN_ERROR, USAGE
from brainseg.config import Experiment, PreprocessConfig
from brainseg.data.description import read_description, write_manifest
from brainseg.data.inputs import describe_preparation
from brainseg.data.preprocess import apply_filters
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import CheckpointError, ConfigError, DataError
from brainseg.explore import __main__ as explore
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.plugins import absolute_reference, fingerprint, load_function
from brainseg.training.trainer import train_two_stage

NETWORK = """
import torch


class Mine(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.ENCODER = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.decoder = torch.nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, slices):
        return self.decoder(torch.relu(self.ENCODER(slices)))


def build(channels):
    return Mine(channels)


def careless(channels):
    torch.seed()
    return Mine(channels)


def broken(channels):
    return 1 / 0


number = 3
"""
CPU = Compute("cpu")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(NETWORK.replace("ENCODER", "encoder"))
    Path("bare.py").write_text(NETWORK.replace("ENCODER", "first"))
    return "./mine.py:build"


def test_a_network_from_a_file_is_trained_saved_and_loaded_only_if_allowed(
    mine: str, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    keys = {"model.architecture": absolute_reference(mine), "model.encoder": "own"}
    experiment = tiny.replaced({**keys, "stages.1.epochs": 1})
    path = train_two_stage(experiment, data, compute=CPU).save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.py:build.*--allow-code"):
        Predictor.load(path, CPU)
    (found,) = Predictor.load(path, CPU, allow_code=True).masks([data.image(0)])
    assert found.shape == data.mask(0).shape


@pytest.mark.parametrize(
    ("reference", "code", "said"),
    [
        ("./mine.py:build", 0, "resume       stopped, resumed, saved and loaded: equal bits"),
        ("./bare.py:build", 0, "the network has no encoder"),
        ("./mine.py:careless", 1, "FAILED  determinism"),
        ("./mine.py:broken", 1, "ZeroDivisionError"),
        ("./mine.py:number", 1, "is not a function"),
        ("./mine.py:nothing", 1, "has no attribute"),
    ],
)
def test_the_check_tells_what_a_study_could_not_use(
    mine: str, reference: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (check.main([reference]) == 0) == (code == 0)
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_a_network_is_checked_at_the_size_that_the_user_names(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("mine.py").read_text()
    large = "    def forward(self, slices):\n        assert slices.shape[2] == 128\n"
    Path("mine.py").write_text(text.replace("    def forward(self, slices):\n", large))
    assert check.main([mine, "--set", "data.size=128"]) == 0
    assert "maps of 128 px" in capsys.readouterr().out


def test_a_changed_file_is_another_network(mine: str) -> None:
    before = fingerprint(mine)
    first = load_function(mine, "brainseg.networks", "model.architecture")
    Path("mine.py").write_text(Path("mine.py").read_text() + "\n# changed\n")
    assert fingerprint(mine) != before
    assert load_function(mine, "brainseg.networks", "model.architecture") is not first


@pytest.mark.parametrize(
    ("reference", "kind"),
    [("./mine.py:", ConfigError), ("./none.py:build", DataError), ("./mine.py:a b", ConfigError)],
)
def test_a_faulty_reference_is_refused(mine: str, reference: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="expected FILE"):
        absolute_reference(reference)


FILTER = """
import numpy as np


def invert(image):
    return 255 - image


def noisy(image):
    return np.random.default_rng().integers(0, 255, image.shape, np.uint8)


def grey(image):
    return image.mean(axis=2)
"""


def test_a_filter_from_a_file_is_one_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: SliceStore, tiny: Experiment
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILTER)
    image, path = data.image(0), absolute_reference("./mine.py:invert")
    config = PreprocessConfig(filters=("median", path))
    plain = apply_filters(image, PreprocessConfig(filters=("median",)))
    assert np.array_equal(apply_filters(image, config), 255 - plain)
    experiment = tiny.replaced({"preprocess.filters": [path], "stages.1.epochs": 1})
    assert experiment.filters == "mine.py:invert"
    assert "the filter mine.py:invert" in describe_preparation(experiment)
    result = train_two_stage(experiment, data, compute=CPU)
    saved = result.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.py:invert\. It would be run"):
        Predictor.load(saved, CPU)
    found = Predictor.load(saved, CPU, allow_code=True).probabilities([image])
    assert np.array_equal(found[0], Predictor.of(result, CPU).probabilities([image])[0])
    for name, words in (("grey", "returns float64"), ("absent", "has no attribute")):
        bad = PreprocessConfig(filters=(absolute_reference(f"./mine.py:{name}"),))
        with pytest.raises(ConfigError, match=words):
            apply_filters(image, bad)
    with pytest.raises(ConfigError, match="did you mean median"):
        tiny.replaced({"preprocess.filters": ["medain"]})


@pytest.mark.parametrize(
    ("name", "code"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in (("invert", 0), ("noisy", 1))],
)
def test_a_filter_is_checked_against_all_that_a_study_asks_of_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILTER)
    flags = [
        "--set",
        "model.encoder=mobilenet_v2",
        "--set",
        f"preprocess.filters=[./mine.py:{name}]",
    ]
    assert check.main(flags) == code
    out = capsys.readouterr().out
    assert ("gives other bytes the second time" in out) == bool(code)


LAYOUT = """
def find(root):
    for image in sorted(root.glob("scans/*/*_t2.png")):
        patient = image.parent.name
        yield {"image": image, "mask": image.parent / "seg.png", "patient": patient, "age": 40}


def apart(root):
    for row in find(root):
        yield {"T2": row["image"], "mask": row["mask"], "patient": row["patient"], "age": 40}


def nothing(root):
    return []
"""


def test_a_layout_from_a_file_becomes_a_list_that_needs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(LAYOUT)
    rng = np.random.default_rng(3)
    for number in range(12):
        folder = Path("set/scans") / f"p{number:02d}"
        folder.mkdir(parents=True)
        image = rng.integers(0, 255, (48, 48, 3), np.uint8)
        cv2.imwrite(str(folder / "a_t2.png"), image)
        cv2.imwrite(str(folder / "seg.png"), (image[:, :, 0] > 250).astype(np.uint8) * 255)
    command = ["--data", "set", "--layout"]
    assert explore.main([*command, "./mine.py:nothing"]) == USAGE
    assert "gave 0 rows" in capsys.readouterr().err
    assert explore.main([*command, "./mine.py:find"]) == FINISHED
    Path("mine.py").unlink()
    assert explore.main(["--data", "set", "--check"]) == FINISHED
    assert "patients    12" in capsys.readouterr().out
    dataset = open_dataset(Path("set"))
    assert dataset.covariates["p03"] == {"age": "40"}
    assert dataset.channels == ("channel 1", "channel 2", "channel 3")
    Path("mine.py").write_text(LAYOUT)
    for name in ("dataset.yaml", "manifest.csv"):
        Path("set", name).unlink()
    described = read_description(write_manifest("./mine.py:apart", Path("set")))
    assert described is not None
    assert described.channel_names == ("T2",)  # not age, whose cells name no files
    assert explore.main([*command, "./mine.py:find"]) == USAGE
    assert "is there already" in capsys.readouterr().err
    assert explore.main(["--data", "none", "--layout", "./mine.py:find"]) == KNOWN_ERROR
    assert "there is no folder none" in capsys.readouterr().err
    assert explore.main(["--layout", "./mine.py:find"]) == USAGE
    assert "--layout needs --data" in capsys.readouterr().err
