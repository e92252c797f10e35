from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.config import PreprocessConfig
from brainseg.data.preprocess import apply_filters, rescale, resize_mask

RAW, FILTERED = PreprocessConfig(), PreprocessConfig(filters=("median", "clahe"))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_raw_slices_are_unchanged(image: NDArray[np.uint8]) -> None:
    assert np.array_equal(apply_filters(image, RAW), image)


def test_filters_are_median_then_clahe_on_lightness(image: NDArray[np.uint8]) -> None:
    lightness, a, b = cv2.split(cv2.cvtColor(cv2.medianBlur(image, 3), cv2.COLOR_RGB2LAB))
    equalised = cv2.createCLAHE(3.0, (8, 8)).apply(lightness)
    expected = cv2.cvtColor(cv2.merge((equalised, a, b)), cv2.COLOR_LAB2RGB)
    assert np.array_equal(apply_filters(image, FILTERED), expected)


def test_filters_are_deterministic_and_do_not_change_their_input(image: NDArray[np.uint8]) -> None:
    before = image.copy()
    assert np.array_equal(apply_filters(image, FILTERED), apply_filters(image, FILTERED))
    assert np.array_equal(image, before)


def test_a_higher_clip_limit_gives_more_contrast() -> None:
    noise = np.random.default_rng(0).normal(100, 5, (256, 256, 1)).repeat(3, axis=2)
    faint = noise.astype(np.uint8)
    limits = [
        PreprocessConfig(filters=("median", "clahe"), clip_limit=limit)
        for limit in (1.0, 3.0, 8.0)
    ]
    spreads = [float(apply_filters(faint, config).std()) for config in limits]
    assert spreads == sorted(spreads)
    assert spreads[0] < spreads[2] / 1.5


def test_a_resized_mask_is_not_blended() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    assert set(np.unique(resize_mask(mask, 32))) <= {0, 1}
    assert resize_mask(mask, 32).shape == (32, 32)


def test_a_channel_of_one_value_is_not_erased_when_it_is_rescaled() -> None:
    label = np.zeros((32, 32, 2), np.uint16)
    label[4:28, 4:28] = 1, 700
    label[9, 9, 1] = 701
    (found,) = rescale([label])
    assert np.array_equal(found[:, :, 0] == 255, label[:, :, 0] > 0)
    assert np.array_equal(found[:, :, 1] == 255, label[:, :, 1] > 0)
    assert set(np.unique(found)) == {0, 255}
    flat = rescale([np.zeros((4, 4, 1), np.uint16)])[0]
    assert not flat.any()
