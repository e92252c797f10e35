from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from predictions import read_pixels, run_predict

from brainseg.config import Experiment, PreprocessConfig
from brainseg.data.about import CHANNELS
from brainseg.data.inputs import StoreInputs, Volume
from brainseg.data.layouts import patient_of
from brainseg.data.preprocess import apply_filters, detect_edges
from brainseg.data.slice_store import SliceStore
from brainseg.errors import ConfigError, DataError
from brainseg.inference.evaluation import PLAIN, evaluate_model
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.training.trainer import train_two_stage

CPU = Compute("cpu")
SLOW = [pytest.mark.slow, pytest.mark.exhaustive]
Images = list[NDArray[np.uint8]]

KEYS: dict[str, dict[str, object]] = {
    "percentile": {"preprocess.intensities": "percentile"},
    "zscore": {"preprocess.intensities": "zscore"},
    "crop": {"preprocess.crop": "brain"},
    "context": {"data.context": 1},
    "flair": {"data.context": 1, "data.context_channels": ["FLAIR"], "data.channels": ["FLAIR"]},
    "edges": {"preprocess.filters": ["unsharp", "laplacian", "sobel"]},
    "all": {
        "preprocess.intensities": "percentile",
        "preprocess.filters": ["median", "clahe", "sobel"],
        "preprocess.crop": "brain",
        "data.context": 2,
        "data.context_channels": ["FLAIR", "pre-contrast"],
    },
}
NUM_CHANNELS = {"context": 9, "flair": 3, "edges": 4, "all": 3 + 2 * 2 * 2 + 1}


@pytest.fixture
def images() -> Images:
    """A head of 20 x 12 pixels in three slices of 32 x 32, brighter from slice to slice."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        image = np.zeros((32, 32, 3), np.uint8)
        image[6:26, 10:22] = rng.integers(80, 90, (20, 12, 3)) + 20 * number
        found.append(image)
    return found


def _volume(images: Images, **changes: object) -> Volume:
    experiment = Experiment().replaced({"data.size": 32, **changes})
    return Volume(images.__getitem__, len(images), experiment, CHANNELS)


def test_nothing_changes_by_default(images: Images) -> None:
    assert np.array_equal(_volume(images).image(1), images[1])


def test_neighbours_surround_the_slice_and_repeat_at_the_ends(images: Images) -> None:
    keys = {"data.context": 1, "data.context_channels": ["FLAIR"]}
    first = _volume(images, **keys).image(0)
    expected = [images[0][:, :, 1:2], images[0], images[1][:, :, 1:2]]
    assert np.array_equal(first, np.concatenate(expected, axis=2))
    last = _volume(images, **keys).image(2)
    assert np.array_equal(last[:, :, 4], images[2][:, :, 1])
    assert np.array_equal(last[:, :, 0], images[1][:, :, 1])


def test_percentiles_are_of_the_whole_volume(images: Images) -> None:
    inside = np.stack(images)[:, 6:26, 10:22, 0]
    low, high = np.percentile(inside, [1, 99.5], method="inverted_cdf")
    found = _volume(images, **{"preprocess.intensities": "percentile"}).image(1)[:, :, 0]
    expected = ((images[1][:, :, 0].astype(float) - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(found - expected).max() <= 0.5


def test_percentiles_0_and_100_are_the_least_and_the_greatest_value(images: Images) -> None:
    keys = {"preprocess.intensities": "percentile", "preprocess.percentiles": [0, 100]}
    inside = np.stack([_volume(images, **keys).image(n) for n in range(3)])[:, 6:26, 10:22]
    assert (inside.min(), inside.max()) == (0, 255)


def test_a_channel_may_be_named_more_than_once(images: Images) -> None:
    flair = images[1][:, :, 1]
    found = _volume(images, **{"data.channels": ["FLAIR"] * 3}).image(1)
    assert all(np.array_equal(found[:, :, n], flair) for n in range(3))
    four = [np.dstack([image, image[:, :, 0] + 1]) for image in images]
    experiment = Experiment().replaced({"data.size": 32, "data.channels": ["a", "b", "b", "d"]})
    again = Volume(four.__getitem__, 3, experiment, "abcd").image(1)
    assert np.array_equal(again[:, :, 2], again[:, :, 1])


def test_z_scores_are_of_the_foreground_of_the_volume(images: Images) -> None:
    volume = _volume(images, **{"preprocess.intensities": "zscore"})
    inside = np.stack([volume.image(n) for n in range(3)])[:, 6:26, 10:22].astype(float)
    scores = (inside - 128) / 32
    assert scores.mean(axis=(0, 1, 2)) == pytest.approx(0, abs=0.02)
    assert scores.std(axis=(0, 1, 2)) == pytest.approx(1, abs=0.02)


def test_a_crop_is_the_square_around_the_head_and_is_undone(images: Images) -> None:
    volume = _volume(images, **{"preprocess.crop": "brain", "data.size": 64})
    mask = np.zeros((32, 32), np.uint8)
    mask[6:26, 10:22] = 1
    seen = volume.mask(mask)
    assert seen.shape == (64, 64)
    assert seen.mean() == pytest.approx(20 * 12 / 20**2, abs=0.02)
    logits = np.where(seen > 0, 10, -10).astype(np.float32)
    restored = volume.restore(logits, 32, 32)
    assert np.array_equal(restored > 0, mask > 0)
    assert restored[0, 0] == -100


def test_a_sharper_slice_and_its_edges_by_hand() -> None:
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 100
    edges = detect_edges(step)
    assert edges[4].tolist() == [0, 0, 0, 100, 100, 0, 0, 0]
    sharp = apply_filters(step + 50, PreprocessConfig(filters=("laplacian",)))
    assert sharp[4, :, 0].tolist() == [50, 50, 50, 0, 250, 150, 150, 150]
    config = PreprocessConfig(filters=("unsharp",), unsharp_amount=1.0)
    assert apply_filters(step + 50, config)[4, 4, 0] > 150


@pytest.mark.parametrize("count", [1, 2, 4])
def test_filters_take_any_number_of_channels(count: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 30, count), dtype=np.uint8)
    config = PreprocessConfig(filters=("median", "clahe", "unsharp", "laplacian"))
    assert apply_filters(image, config).shape == image.shape


def test_an_unknown_channel_is_named(data: SliceStore) -> None:
    with pytest.raises(ConfigError, match="names 'T2'; the channels are pre-contrast, FLAIR"):
        StoreInputs(data, Experiment().replaced({"data.channels": ["T2"]}))


@pytest.mark.parametrize(
    "name",
    [name if name == "all" else pytest.param(name, marks=SLOW) for name in KEYS],
)
def test_prediction_from_files_is_what_the_study_scores(
    name: str, data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    """Training, evaluation and the predict command see the same input, whatever it is made of."""
    experiment = tiny.replaced({**KEYS[name], "stages.1.epochs": 1})
    assert experiment.input_channels == NUM_CHANNELS.get(name, 3)
    inputs = StoreInputs(data, experiment)
    assert inputs.image(0).shape == (32, 32, experiment.input_channels)
    result = train_two_stage(experiment, data, compute=CPU)
    predictor = Predictor.of(result, CPU)
    tested = predictor.part_indices(data, "test").tolist()
    counts = evaluate_model(predictor, data).test.counts[PLAIN]
    model = result.save(tmp_path / "model.safetensors")
    patients = {data.slices[index].patient for index in tested}
    folders = [path for path in data.root.iterdir() if patient_of(path.name) in patients]
    assert run_predict(model, *folders, out=tmp_path / "out") == 0
    for index, (tp, fp, _, _) in zip(tested, counts.tolist(), strict=True):
        (path,) = (tmp_path / "out").rglob(f"{data.slices[index].name}_mask.tif")
        mask, true = read_pixels(path) > 0, data.mask(index) > 0
        assert ((mask & true).sum(), (mask & ~true).sum()) == (tp, fp)
    if experiment.needs_volume:
        with pytest.raises(DataError, match="patients="):
            predictor.masks([data.image(0), data.image(1)])


def test_scores_are_counted_at_the_size_of_the_slices(data: SliceStore, tiny: Experiment) -> None:
    large = tiny.replaced({"data.size": 64, "stages.1.epochs": 0})
    test = evaluate_model(Predictor.of(train_two_stage(large, data, compute=CPU), CPU), data).test
    assert {mask.shape for mask in test.true} == {(32, 32)}
    assert test.counts[PLAIN].sum() == len(test.slices) * 32 * 32
    assert replace(data) == data
