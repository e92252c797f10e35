"""Deterministic filters and resizing, from uint8 to uint8, the same in training and prediction.

`brainseg.data.inputs` applies them in order; `brainseg.model.networks.normalise` then turns
batches into floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.config import FILTERS, PreprocessConfig
from brainseg.errors import ConfigError
from brainseg.plugins import FILTER_GROUP, describe_error, load_function

_RESCALED = (0.5, 99.5)


def apply_filters(image: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    """Apply the configured filters in their order, apart from the one that adds a channel.

    Args:
        image: uint8 (H, W, C).
        config: The filters and their parameters.

    Returns:
        uint8 (H, W, C).

    Raises:
        ConfigError: If a user's own filter fails, or returns another shape or type.
    """
    shape = image.shape
    for name in config.filters:
        if name == "median":
            image = _smooth(image, config.median_kernel)
        elif name == "clahe":
            image = _apply_clahe(image, config)
        elif name == "unsharp":
            blurred = cv2.GaussianBlur(image, (0, 0), config.unsharp_sigma)
            amount = config.unsharp_amount
            image = np.asarray(cv2.addWeighted(image, 1 + amount, blurred, -amount, 0), np.uint8)
        elif name == "laplacian":
            image = _subtract_laplacian(image)
        elif name not in FILTERS:
            image = _apply_own(image, name)
        image = image.reshape(shape)  # OpenCV drops an axis of length 1
    return image


@lru_cache(maxsize=32)
def _load_own(name: str) -> Callable[..., Any]:
    return load_function(name, FILTER_GROUP, "preprocess.filters")


def _apply_own(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    function = _load_own(name)
    try:
        filtered = np.asarray(function(image.copy()))
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"preprocess.filters: {name} fails: {describe_error(error)}") from error
    if filtered.shape != image.shape or filtered.dtype != np.uint8:
        raise ConfigError(
            f"preprocess.filters: {name} returns {filtered.dtype} {filtered.shape} for uint8 "
            f"{image.shape}; it must keep both"
        )
    return filtered


def detect_edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the magnitude of the Sobel gradient of the mean over channels, uint8 (H, W).

    The filter `sobel`; a step between 0 and 255 gives 255.

    Args:
        image: uint8 (H, W, C).
    """
    grey = image.mean(axis=2, dtype=np.float32)
    steps = [cv2.Sobel(grey, cv2.CV_32F, dx, dy, ksize=3) / 4 for dx, dy in ((1, 0), (0, 1))]
    strength: NDArray[np.float32] = np.hypot(*steps)
    return strength.round().clip(0, 255).astype(np.uint8)


def rescale(images: Sequence[NDArray[Any]]) -> list[NDArray[np.uint8]]:
    """Rescale the values of one scan to bytes.

    Each channel goes from its 0.5th to its 99.5th percentile over the values that are not 0; from
    0 if these are equal, so that a channel of one value stays apart from air.

    Args:
        images: (H, W, C) each.

    Returns:
        uint8 (H, W, C) each.
    """
    scaled = [np.nan_to_num(image.astype(np.float32)) for image in images]
    for channel in range(scaled[0].shape[2]):
        values = np.concatenate([image[:, :, channel].ravel() for image in scaled])
        values = values[values != 0]
        low, high = np.percentile(values, _RESCALED) if values.size else (0.0, 1.0)
        if high <= low:
            low = 0.0
        for image in scaled:
            image[:, :, channel] = (image[:, :, channel] - low) / max(high - low, 1e-6) * 255
    return [image.round().clip(0, 255).astype(np.uint8) for image in scaled]


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image to a square by bilinear interpolation, unless it has that size."""
    if image.shape[:2] == (size, size):
        return image
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(size, size, *image.shape[2:])


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a mask to a square by nearest neighbours, which gives no values but 0 and 1."""
    if mask.shape == (size, size):
        return mask
    return np.asarray(cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST), np.uint8)


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad a slice with 0, the value of air, instead of stretching it.

    Args:
        image: uint8 (H, W, C), or a mask, uint8 (H, W).

    Returns:
        uint8 (S, S, C) or (S, S), S the longer side, with the slice in the middle.
    """
    height, width = image.shape[:2]
    if height == width:
        return image
    top, left = _margins(height, width)
    square = np.zeros((max(height, width), max(height, width), *image.shape[2:]), np.uint8)
    square[top : top + height, left : left + width] = image
    return square


def fit_back(map_: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Undo padding and resizing of a slice for a map that a network computed of it.

    Args:
        map_: float32 (S, S), S the network's size.
        height: Height of the slice in pixels.
        width: Width of the slice in pixels.

    Returns:
        float32 (height, width).
    """
    side = max(height, width)
    if map_.shape != (side, side):
        resized = cv2.resize(map_, (side, side), interpolation=cv2.INTER_LINEAR)
        map_ = np.asarray(resized, np.float32)
    top, left = _margins(height, width)
    return np.ascontiguousarray(map_[top : top + height, left : left + width])


def _margins(height: int, width: int) -> tuple[int, int]:
    """Rows above, and columns to the left of, a slice in the middle of its square."""
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2


def _smooth(image: NDArray[np.uint8], kernel: int) -> NDArray[np.uint8]:
    if kernel == 1:
        return image
    if image.shape[2] == 2:  # which OpenCV does not take
        return np.stack([cv2.medianBlur(part, kernel) for part in np.moveaxis(image, 2, 0)], 2)
    return np.asarray(cv2.medianBlur(image, kernel), np.uint8)


def _apply_clahe(image: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    """Equalise L of LAB of three channels as published (Zuiderveld 1994), else each channel."""
    clahe = cv2.createCLAHE(config.clip_limit, (config.tile_grid, config.tile_grid))
    if image.shape[2] != 3:
        return np.stack([clahe.apply(part) for part in np.moveaxis(image, 2, 0)], axis=2)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = clahe.apply(lab[:, :, 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _subtract_laplacian(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sharpen a slice by its Laplacian (Gonzalez and Woods, Digital Image Processing, 3.6)."""
    laplacian = cv2.Laplacian(image, cv2.CV_16S).reshape(image.shape)
    return np.asarray((image.astype(np.int16) - laplacian).clip(0, 255), np.uint8)
