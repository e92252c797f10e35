"""A small phantom dataset and the real experiment, shrunk; the cache in a temporary folder."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hostile_cases import Answer, assert_answered
from processes import Study
from s3 import CREDENTIALS, Store

from brainseg.config import Experiment
from brainseg.data.layouts import find_root
from brainseg.data.phantom import generate_phantom
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.explore.exploration import Exploration, explore
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.storage.files import write_text
from brainseg.training.trainer import train_two_stage

# Ray starts trials at niceness 15: beside other tests they would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, which one process would otherwise run alone at the end."""
    first = "test_whole_study.py"
    items.sort(key=lambda item: (item.path.name != first, item.path.parent.name != "whole"))


REAL_DATA = os.environ.get("BRAINSEG_DATA", "")

TINY = {
    "data.size": 32,
    "model.encoder": "mobilenet_v2",
    "model.encoder_weights": "none",
    "stages.0.epochs": 1,
    "stages.0.learning_rate": 1e-3,
    "stages.1.epochs": 2,
    "stages.1.learning_rate": 1e-3,
    "optimizer.batch_size": 8,
}


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAINSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BRAINSEG_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An S3 server, and the keys to it."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in CREDENTIALS.items():
            patch.setenv(key, value)
        store = Store(tmp_path_factory.mktemp("moto") / "moto.txt")
        yield store
        store.end()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "machine"))
    return tmp_path / "machine"


@pytest.fixture
def answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Answer:
    """Run a case of tests/hostile; fail unless it was answered as its row says."""
    return functools.partial(assert_answered, folder=tmp_path, capfd=capfd, patch=monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> None:
    """Spare the collector what was imported: 0.3 s each time that a trial gives memory back."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantom"
    return generate_phantom(root, patients=12, slices=6, size=32)


@pytest.fixture(scope="session")
def data(phantom_root: Path, _cache: None) -> SliceStore:
    return open_dataset(phantom_root)


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    """Two patients with five slices each, for tests that change files."""
    return generate_phantom(tmp_path / "data", patients=2, slices=5, size=32, seed=5)


@pytest.fixture(scope="session")
def exploration(data: SliceStore) -> Exploration:
    return explore(data, seed=44)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return Experiment().replaced(TINY)


@pytest.fixture(scope="session")
def model_file(
    data: SliceStore, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A network trained for a moment on the phantoms: it finds something, and errs."""
    few = tiny.replaced({"stages.1.epochs": 4, "preprocess.filters": ["median", "clahe"]})
    result = train_two_stage(few, data, compute=Compute(device="cpu"))
    return result.save(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="session")
def predictor(model_file: Path) -> Predictor:
    return Predictor.load(model_file, Compute("cpu"))


@pytest.fixture
def patient(data: SliceStore) -> Path:
    """The folder of one patient's slices."""
    return sorted(path for path in data.root.iterdir() if path.is_dir())[0]


@pytest.fixture(scope="session")
def real_root() -> Path:
    if not REAL_DATA:
        pytest.skip("no real slices: set BRAINSEG_DATA to the kaggle_3m folder")
    return find_root(REAL_DATA)[0]


@pytest.fixture(scope="session")
def real_data(real_root: Path, _cache: None) -> SliceStore:
    return open_dataset(real_root)


@pytest.fixture(scope="session")
def unhurried(tiny: Experiment) -> Experiment:
    """Enough epochs to be hit in a chosen one."""
    return tiny.replaced({"stages.0.epochs": 2, "stages.1.epochs": 4})


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, phantom_root: Path, unhurried: Experiment
) -> Study:
    """A study that was left alone, to compare with."""
    study = Study(tmp_path_factory.mktemp("undisturbed"), phantom_root, unhurried)
    study.finish()
    return study


@pytest.fixture
def study(tmp_path: Path, phantom_root: Path, unhurried: Experiment) -> Iterator[Study]:
    """The same study, not started yet."""
    study = Study(tmp_path / "study", phantom_root, unhurried)
    yield study
    study.end()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated study of four variants with its report; one of its trials failed."""
    from generated import generate_study

    from study.report.build import write_report

    study = generate_study(tmp_path_factory.mktemp("generated") / "study", failed=(3,))
    write_report(study)
    return study


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A generated study of two variants without a report, to be changed."""
    from generated import generate_study

    return generate_study(tmp_path / "small", grid="lite", patients=20)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a report's figures by an empty one: drawing takes most of a report's time."""
    from study.report.figures import FigureWriter

    def draw(writer: FigureWriter) -> str:
        for suffix in ("svg", "png"):
            write_text(writer._results.folder / "figures" / f"one.{suffix}", "<svg/>")
        return "figures/one.png"

    for name in vars(FigureWriter):
        if not name.startswith("_") and name != "save":
            monkeypatch.setattr(FigureWriter, name, draw)
