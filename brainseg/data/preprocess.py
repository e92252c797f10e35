"""Deterministic filters and resizing, from uint8 to uint8, the same in training and prediction.

Order: median filter and CLAHE on the L channel of LAB (Zuiderveld 1994) at the slice's own size,
then resizing. `brainseg.model.networks.normalise` then turns batches into floats.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.config import PreprocessConfig


def preprocess(image: NDArray[np.uint8], config: PreprocessConfig, size: int) -> NDArray[np.uint8]:
    """Filter and resize one slice.

    Args:
        image: uint8 (H, W, 3).
        config: The filters.
        size: Side of the result in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    if config.enabled:
        image = _apply_clahe(_smooth(image, config.median_kernel), config)
    return resize(image, size)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image to a square by bilinear interpolation, unless it has that size."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a mask to a square by nearest neighbours, which gives no values but 0 and 1."""
    if mask.shape == (size, size):
        return mask
    return np.asarray(cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST), np.uint8)


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad a slice with 0, the value of air, instead of stretching it.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (S, S, 3), S the longer side, with the slice in the middle.
    """
    height, width = image.shape[:2]
    if height == width:
        return image
    top, left = _margins(height, width)
    square = np.zeros((max(height, width), max(height, width), 3), np.uint8)
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
    return image if kernel == 1 else np.asarray(cv2.medianBlur(image, kernel), np.uint8)


def _apply_clahe(image: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    grid = (config.tile_grid, config.tile_grid)
    lab[:, :, 0] = cv2.createCLAHE(config.clip_limit, grid).apply(lab[:, :, 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
