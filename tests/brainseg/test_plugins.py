from __future__ import annotations

from pathlib import Path

import pytest

from brainseg import check
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.plugins import absolute, fingerprint, load
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
    keys = {"model.architecture": absolute(mine), "model.encoder": "own"}
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
        ("./mine.py:number", 1, "is no function"),
        ("./mine.py:nothing", 1, "has no attribute"),
    ],
)
def test_the_check_tells_what_a_study_could_not_use(
    mine: str, reference: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (check.main([reference]) == 0) == (code == 0)
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_a_changed_file_is_another_network(mine: str) -> None:
    before = fingerprint(mine)
    first = load(mine, "brainseg.networks", "model.architecture")
    Path("mine.py").write_text(Path("mine.py").read_text() + "\n# changed\n")
    assert fingerprint(mine) != before
    assert load(mine, "brainseg.networks", "model.architecture") is not first


@pytest.mark.parametrize("reference", ["./mine.py:", "./none.py:build", "./mine.py:a b"])
def test_a_faulty_reference_is_refused(mine: str, reference: str) -> None:
    with pytest.raises(ConfigError, match="expected FILE"):
        absolute(reference)
