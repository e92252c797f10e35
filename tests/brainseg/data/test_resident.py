"""Slices on the device: the loader's order and bytes, albumentations' warps within tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from batches import equal_batches
from numpy.typing import NDArray

from brainseg.config import AugmentConfig, Experiment
from brainseg.data import resident
from brainseg.data.augment import Augmenter
from brainseg.data.inputs import StoreInputs
from brainseg.data.loader import Batch, Batches, Key
from brainseg.data.resident import ResidentBatches, keeps_resident, prepared_bytes
from brainseg.data.slice_store import SliceStore
from brainseg.data.warp import Parameters, draw, warp
from brainseg.errors import CheckpointError
from brainseg.model.device import Compute
from brainseg.training.trainer import Training, TrainResult, train_two_stage

CPU = torch.device("cpu")
Slices = tuple[torch.Tensor, torch.Tensor]
SIDE = 96
KEYS: list[Key] = [(2, 3, index) for index in range(12)]
FLIPS = {"warp_probability": 0.0}
ROTATION = {"flip_probability": 0.0, "elastic_alpha": 0.0, "warp_probability": 1.0}
ELASTIC = {"flip_probability": 0.0, "rotation_degrees": 0.0, "warp_probability": 1.0}
BOTH = {"flip_probability": 0.5, "warp_probability": 1.0}


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """A smooth picture that goes on to its border, uint8 (SIDE, SIDE, 3)."""
    noise = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    low, high = smooth.min(), smooth.max()
    return np.asarray((smooth - low) / (high - low) * 255, np.uint8)


@pytest.fixture(scope="module")
def mask(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (image[:, :, 0] > 150).astype(np.uint8)


def _drawn_by(augmenter: Augmenter, side: int = SIDE) -> Parameters:
    """The parameters that albumentations drew for its last slice."""
    flip_h, flip_v, rotate, elastic = (
        change.get_applied_params() for change in augmenter._pipeline.transforms
    )
    angle, displacement = 0.0, torch.zeros((1, 2, side, side))
    if rotate:
        angle = float(np.degrees(np.arctan2(rotate["matrix"][0, 1], rotate["matrix"][0, 0])))
    if elastic:
        steps = np.arange(side)
        displacement[0, 0] = torch.from_numpy(elastic["map_x"] - steps)
        displacement[0, 1] = torch.from_numpy(elastic["map_y"] - steps[:, None])
    return Parameters(
        torch.tensor([bool(flip_h)]),
        torch.tensor([bool(flip_v)]),
        torch.tensor([angle], dtype=torch.float32),
        displacement,
    )


def _in_turn(images: torch.Tensor, masks: torch.Tensor, drawn: Parameters) -> Slices:
    """Rotate, then displace, each with its own interpolation, as albumentations does."""
    still = torch.zeros_like(drawn.displacement)
    images, masks = warp(images, masks, replace(drawn, displacement=still))
    no = torch.zeros_like(drawn.flip_h)
    displaced = Parameters(no, no, torch.zeros_like(drawn.angle), drawn.displacement)
    return warp(images, masks, displaced)


def _differences(
    config: AugmentConfig,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    apply: Callable[[torch.Tensor, torch.Tensor, Parameters], Slices] = warp,
) -> tuple[float, float, float]:
    """Mean and largest difference in grey levels, and share of mask pixels that differ."""
    augmenter = Augmenter(config, seed=1)
    levels, pixels = [], []
    for key in KEYS:
        expected, expected_mask = augmenter(image, mask, key)
        slices = torch.from_numpy(image)[None], torch.from_numpy(mask)[None]
        found, found_mask = apply(*slices, _drawn_by(augmenter))
        assert found.dtype == found_mask.dtype == torch.uint8
        levels.append(np.abs(found[0].numpy().astype(int) - expected))
        pixels.append(found_mask[0].numpy() != expected_mask)
    return float(np.mean(levels)), float(np.max(levels)), float(np.mean(pixels))


def test_flips_are_those_of_albumentations_exactly(
    image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    assert _differences(AugmentConfig(**FLIPS), image, mask) == (0, 0, 0)
    augmenter = Augmenter(AugmentConfig(**FLIPS), seed=1)
    assert len({augmenter(image, mask, key)[0].tobytes() for key in KEYS}) == 4


# With OpenCV 5 the differences are 0.00001 levels in the mean and 1 at most. OpenCV 4 rounds
# places to 1/32 of a pixel.
@pytest.mark.parametrize("values", [ROTATION, ELASTIC], ids=["rotation", "elastic"])
def test_one_warp_is_that_of_albumentations(
    values: dict[str, float], image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    mean, largest, share = _differences(AugmentConfig(**values), image, mask)
    assert mean < 0.3
    assert largest < 12
    assert share < 0.005


def test_both_warps_are_those_of_albumentations_but_for_one_interpolation(
    image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    mean, _, share = _differences(AugmentConfig(**BOTH), image, mask)
    assert mean < 1.0
    assert share < 0.03
    mean, largest, share = _differences(AugmentConfig(**BOTH), image, mask, _in_turn)
    assert mean < 0.3
    assert largest < 12
    assert share < 0.005


def test_a_slice_is_displaced_after_it_is_rotated() -> None:
    spot = torch.zeros((1, 65, 65, 1), dtype=torch.uint8)
    spot[0, 32, 42] = 255
    shift = torch.zeros((1, 2, 65, 65))
    shift[:, 0] = 5.0  # each pixel is taken from 5 to its right
    no = torch.tensor([False])
    found, mask = warp(spot, spot[..., 0] // 255, Parameters(no, no, torch.tensor([90.0]), shift))
    # Counterclockwise, the spot goes from the right to the top, and from there to the left.
    assert found[0, :, :, 0].nonzero().tolist() == [[22, 27]]
    assert mask[0].nonzero().tolist() == [[22, 27]]


def test_flips_and_angles_are_the_loaders_own(
    image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    for strength in (0.7, 1.0, 2.0):
        config = AugmentConfig(strength=strength)
        drawn = draw(config, 44, KEYS, SIDE, CPU)
        augmenter = Augmenter(config, seed=44)
        for place, key in enumerate(KEYS):
            augmenter(image, mask, key)
            theirs = _drawn_by(augmenter)
            assert drawn.flip_h[place] == theirs.flip_h[0]
            assert drawn.flip_v[place] == theirs.flip_v[0]
            assert float(drawn.angle[place]) == pytest.approx(float(theirs.angle[0]), abs=1e-4)
            assert bool(drawn.displacement[place].any()) == bool(theirs.displacement.any())


def test_displacements_have_the_spread_and_smoothness_of_albumentations() -> None:
    config = AugmentConfig(**ELASTIC, elastic_sigma=3.0)
    keys: list[Key] = [(1, 1, index) for index in range(150)]
    black = np.zeros((48, 48, 3), np.uint8)
    augmenter, theirs = Augmenter(config, seed=1), []
    for key in keys:
        augmenter(black, black[:, :, 0], key)
        theirs.append(_drawn_by(augmenter, 48).displacement[0])
    expected = torch.stack(theirs)
    found = draw(config, 1, keys, 48, CPU).displacement
    assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.03)
    assert float(found.mean()) == pytest.approx(0, abs=0.1)
    likeness = [
        float((field[..., 3:] * field[..., :-3]).mean() / field.square().mean())
        for field in (found, expected)
    ]
    assert likeness[0] == pytest.approx(likeness[1], abs=0.01)


def test_a_draw_does_not_depend_on_the_batch() -> None:
    config = AugmentConfig(strength=2)
    whole = draw(config, 44, KEYS, 48, CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (len(KEYS), 48, 48, 4), dtype=np.uint8)
    slices = torch.from_numpy(pixels)
    images, masks = warp(slices[..., :3], slices[..., 3] // 128, whole)
    for chosen in ([5], [11, 0, 7], list(range(11, -1, -1))):
        drawn = draw(config, 44, [KEYS[place] for place in chosen], 48, CPU)
        for name in ("flip_h", "flip_v", "angle", "displacement"):
            assert torch.equal(getattr(drawn, name), getattr(whole, name)[chosen])
        part, part_masks = warp(slices[chosen][..., :3], slices[chosen][..., 3] // 128, drawn)
        assert torch.equal(part, images[chosen])
        assert torch.equal(part_masks, masks[chosen])
    for seed, key in ((45, KEYS[0]), (44, (1, 3, 0)), (44, (2, 4, 0)), (44, (2, 3, 1))):
        other = draw(config, seed, [key], 48, CPU)
        assert not torch.equal(other.displacement[0], whole.displacement[0])


def _content(batches: Batches | ResidentBatches, stage: int = 1, epoch: int = 2) -> list[Batch]:
    return list(batches.epoch(stage, epoch))


def _both(
    data: SliceStore, experiment: Experiment, *, augmented: bool, threads: int = 1
) -> tuple[Batches, ResidentBatches]:
    indices = np.arange(1, len(data.slices), 2)
    return (
        Batches(data, indices, experiment, augmented=augmented),
        ResidentBatches(
            data, indices, experiment, augmented=augmented, device=CPU, threads=threads
        ),
    )


@pytest.mark.parametrize("share", [None, 0.6])
def test_the_order_of_an_epoch_is_the_loaders(
    data: SliceStore, tiny: Experiment, share: float | None
) -> None:
    loader, kept = _both(data, tiny.replaced({"data.tumour_share": share}), augmented=True)
    assert kept.num_steps == loader.num_steps
    for stage, epoch in ((0, 0), (1, 1), (2, 3)):
        orders = [
            [indices.tolist() for *_, indices in _content(batches, stage, epoch)]
            for batches in (loader, kept)
        ]
        assert orders[0] == orders[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preprocess.filters": ["median", "clahe", "sobel"], "preprocess.intensities": "zscore"},
        {"data.context": 1, "data.context_channels": ["FLAIR"], "preprocess.crop": "brain"},
    ],
    ids=["plain", "filters", "context"],
)
def test_validation_slices_are_the_loaders_bytes(
    data: SliceStore, tiny: Experiment, changes: dict[str, object]
) -> None:
    experiment = tiny.replaced(changes)
    loader, kept = _both(data, experiment, augmented=False, threads=3)
    assert equal_batches(_content(kept), _content(loader))
    inputs = StoreInputs(data, experiment)
    slice_bytes = inputs.image(0).nbytes + inputs.mask(0).nbytes
    assert prepared_bytes(experiment, data) == len(data.slices) * slice_bytes


def test_training_slices_of_strength_0_are_the_loaders_bytes(
    data: SliceStore, tiny: Experiment
) -> None:
    still = tiny.replaced({"augment.strength": 0})
    loader, kept = _both(data, still, augmented=True)
    assert equal_batches(_content(kept), _content(loader))


def test_training_slices_without_elastic_are_close_to_the_loaders(
    data: SliceStore, tiny: Experiment
) -> None:
    rigid = tiny.replaced({"augment.elastic_alpha": 0})
    loader, kept = _both(data, rigid, augmented=True)
    for ours, theirs in zip(_content(kept), _content(loader), strict=True):
        assert (ours[0].float() - theirs[0].float()).abs().mean() < 0.5
        assert (ours[1] != theirs[1]).float().mean() < 0.005
    assert not equal_batches(_content(kept), _content(_both(data, tiny, augmented=True)[1]))


def test_keeping_slices_leaves_torchs_random_state_alone(
    data: SliceStore, tiny: Experiment
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _content(_both(data, tiny, augmented=True)[1])
    assert torch.equal(torch.rand(3), expected)


def test_auto_keeps_slices_on_a_gpu_if_the_dataset_is_small(
    data: SliceStore, tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    auto, always = (tiny.replaced({"data.resident": value}) for value in ("auto", "always"))
    assert not keeps_resident(tiny, data, gpu)
    assert keeps_resident(always, data, CPU)
    assert keeps_resident(auto, data, gpu)
    assert not keeps_resident(auto, data, CPU)
    monkeypatch.setattr(resident, "LARGEST", prepared_bytes(auto, data) - 1)
    assert not keeps_resident(auto, data, gpu)
    assert isinstance(Training(auto, data, compute=Compute("cpu"))._train_batches, Batches)


def _losses(result: TrainResult) -> list[list[float]]:
    return [[row["train_loss"], row["val_loss"]] for row in result.history]


@pytest.mark.slow
def test_a_resumed_training_on_resident_slices_gives_the_same_bits(
    data: SliceStore, tiny: Experiment, tmp_path: Path
) -> None:
    always = tiny.replaced(
        {"data.resident": "always", "stages.0.epochs": 0, "model.calibrate_encoder": False}
    )
    alone = train_two_stage(always, data, compute=Compute("cpu", workers=2))
    training = Training(always, data, compute=Compute("cpu"), checkpoints=tmp_path)
    assert isinstance(training._train_batches, ResidentBatches)
    assert isinstance(training._val_batches, ResidentBatches)
    next(training.epochs())
    del training
    resumed = train_two_stage(always, data, compute=Compute("cpu"), checkpoints=tmp_path)
    assert _losses(resumed) == _losses(alone)
    assert all(torch.equal(alone.weights[key], resumed.weights[key]) for key in alone.weights)
    loaded = always.replaced({"data.resident": "never"})
    with pytest.raises(CheckpointError, match=r"data\.resident: always -> never"):
        train_two_stage(loaded, data, compute=Compute("cpu"), checkpoints=tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_numbers_and_warps_alike(
    image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    gpu = torch.device("cuda")
    here, there = (draw(AugmentConfig(strength=2), 44, KEYS, SIDE, d) for d in (CPU, gpu))
    for name in ("flip_h", "flip_v", "angle", "displacement"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name))
    images = torch.from_numpy(image).repeat(len(KEYS), 1, 1, 1)
    masks = torch.from_numpy(mask).repeat(len(KEYS), 1, 1)
    expected, expected_mask = warp(images, masks, here)
    found, found_mask = warp(images.to(gpu), masks.to(gpu), there)
    assert (found.cpu().int() - expected.int()).abs().max() <= 1
    assert (found_mask.cpu() != expected_mask).float().mean() < 0.001
