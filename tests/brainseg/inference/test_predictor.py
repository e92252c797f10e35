from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import brainseg
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.errors import CheckpointError, DataError
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.training.trainer import TrainResult, train_two_stage

CPU = Compute(device="cpu")


@pytest.fixture(scope="module")
def result(data: SliceStore, tiny: Experiment) -> TrainResult:
    short = tiny.replaced({"stages.1.epochs": 1, "preprocess.enabled": True})
    return train_two_stage(short, data, compute=CPU)


def test_five_lines_of_python(
    data: SliceStore, tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the README and the package's docstring, on phantoms."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    assert "Experiment()" in example
    assert '"data/kaggle_3m"' in example
    example = example.replace("Experiment()", 'load_experiment("tiny.yaml")')
    example = example.replace('"data/kaggle_3m"', repr(str(data.root)))
    example = example.replace("import Experiment", "import load_experiment")
    names: dict[str, object] = {}
    exec(example, names)
    masks = names["masks"]
    assert isinstance(masks, list)
    assert masks[0].shape == (32, 32)
    assert (tmp_path / "model.safetensors").exists()


def test_a_saved_model_predicts_what_training_saw(
    result: TrainResult, data: SliceStore, tmp_path: Path
) -> None:
    loaded = Predictor.load(result.save(tmp_path / "m.safetensors"), CPU)
    counts, patients = loaded.evaluate(data, "val")
    again, _ = Predictor.of(result, CPU).evaluate(data, "val")
    assert np.array_equal(counts, again)
    assert set(patients) <= set(data.patients)


def test_masks_have_the_inputs_own_sizes(result: TrainResult) -> None:
    generator = np.random.default_rng(0)
    sizes = [(32, 32), (50, 40), (33, 70)]
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    predictor = Predictor.of(result, CPU)
    assert [mask.shape for mask in predictor.masks(images)] == sizes
    maps = predictor.probabilities(images)
    assert all(0 <= map_.min() <= map_.max() <= 1 for map_ in maps)


@pytest.mark.parametrize(
    "image",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3))],
    ids=["grey", "four channels", "float"],
)
def test_another_kind_of_image_is_refused(result: TrainResult, image: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match="expected HxWx3 of uint8"):
        Predictor.of(result, CPU).masks([image])


def test_other_data_cannot_be_evaluated(result: TrainResult, data: SliceStore) -> None:
    import dataclasses

    other = dataclasses.replace(data, fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match="was trained on data"):
        Predictor.of(result, CPU).evaluate(other, "test")


def test_loading_leaves_the_callers_random_numbers_alone(result: TrainResult) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Predictor.of(result, CPU)
    assert torch.equal(torch.rand(2), expected)


def test_the_public_names_are_importable() -> None:
    assert all(getattr(brainseg, name) for name in brainseg.__all__)
    with pytest.raises(AttributeError, match="no attribute nonsense"):
        brainseg.nonsense  # noqa: B018
