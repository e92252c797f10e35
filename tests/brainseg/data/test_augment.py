from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.config import AugmentConfig
from brainseg.data.augment import Augmenter


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _flips_only(**values: float) -> AugmentConfig:
    return AugmentConfig(warp_probability=0, **values)


def _flips_of(config: AugmentConfig, image: NDArray[np.uint8], calls: int) -> NDArray[np.bool_]:
    """Whether each call flipped horizontally and vertically, bool (calls, 2)."""
    augmenter = Augmenter(config, seed=1)
    options = {
        (h, v): image[:: -1 if v else 1, :: -1 if h else 1].tobytes()
        for h in (False, True)
        for v in (False, True)
    }
    by_bytes = {value: key for key, value in options.items()}
    mask = image[:, :, 0] // 128
    results = [augmenter(image, mask, (1, 1, n))[0].tobytes() for n in range(calls)]
    return np.array([by_bytes[result] for result in results])


def test_flips_happen_every_second_time_and_independently(image: NDArray[np.uint8]) -> None:
    flips = _flips_of(_flips_only(), image, 800)
    assert flips.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.06)
    assert (flips[:, 0] & flips[:, 1]).mean() == pytest.approx(0.25, abs=0.05)
    assert (flips[:, 0] & ~flips[:, 1]).mean() == pytest.approx(0.25, abs=0.05)


def test_strength_zero_changes_nothing(image: NDArray[np.uint8]) -> None:
    augmenter = Augmenter(AugmentConfig(strength=0), seed=1)
    mask = image[:, :, 0] // 128
    for number in range(20):
        changed, changed_mask = augmenter(image, mask, (1, 1, number))
        assert np.array_equal(changed, image)
        assert np.array_equal(changed_mask, mask)


@pytest.mark.parametrize(("strength", "rate"), [(0.5, 0.25), (1, 0.5), (2, 0.5)])
def test_strength_scales_how_often_a_slice_is_flipped(
    image: NDArray[np.uint8], strength: float, rate: float
) -> None:
    flips = _flips_of(_flips_only(strength=strength), image, 600)
    assert flips.mean() == pytest.approx(rate, abs=0.05)


@pytest.mark.parametrize(("strength", "rate"), [(0.5, 0.25), (1, 0.5), (2, 1.0)])
def test_strength_scales_how_often_a_slice_is_rotated(
    image: NDArray[np.uint8], strength: float, rate: float
) -> None:
    config = AugmentConfig(strength=strength, flip_probability=0, elastic_alpha=0)
    augmenter = Augmenter(config, seed=1)
    mask = image[:, :, 0] // 128
    changed = [not np.array_equal(augmenter(image, mask, (1, 1, n))[0], image) for n in range(300)]
    # The elastic transform of amplitude 0 leaves the slice alone, so only rotation shows.
    assert np.mean(changed) == pytest.approx(rate, abs=0.08)


def test_strength_scales_the_largest_rotation() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    spreads = []
    for strength in (1.0, 2.0):
        config = AugmentConfig(strength=strength, flip_probability=0, elastic_alpha=0)
        augmenter = Augmenter(config, seed=1)
        rows = [augmenter(ramp, ramp[:, :, 0] * 0, (1, 1, n))[0] for n in range(200)]
        # Along the middle row a ramp rotated by an angle rises by its sine per pixel.
        slopes = [abs(float(r[32, 44, 0]) - float(r[32, 20, 0])) / 24 for r in rows]
        spreads.append(np.degrees(np.arcsin(max(slopes))))
    assert spreads == pytest.approx([25, 50], abs=4)


def test_image_and_mask_move_together(image: NDArray[np.uint8]) -> None:
    augmenter = Augmenter(AugmentConfig(warp_probability=0), seed=3)
    mask = (image[:, :, 0] > 128).astype(np.uint8)
    for number in range(10):
        changed, changed_mask = augmenter(image, mask, (2, 5, number))
        assert np.array_equal(changed[:, :, 0] > 128, changed_mask > 0)


def test_the_key_and_the_seed_determine_the_change(image: NDArray[np.uint8]) -> None:
    mask = image[:, :, 0] // 128
    augmenter = Augmenter(AugmentConfig(strength=2), seed=1)
    base = augmenter(image, mask, (1, 1, 0))[0]
    augmenter(image, mask, (1, 1, 9))
    assert np.array_equal(augmenter(image, mask, (1, 1, 0))[0], base)
    for key in ((2, 1, 0), (1, 2, 0), (1, 1, 1)):
        assert not np.array_equal(augmenter(image, mask, key)[0], base)
    other = Augmenter(AugmentConfig(strength=2), seed=2)
    assert not np.array_equal(other(image, mask, (1, 1, 0))[0], base)
