"""Deterministic filters from uint8 to uint8, the same in training, prediction and the demo.

Order: median filter, CLAHE on the L channel of LAB (Zuiderveld 1994) at the slice's own size, then
resizing. `model.normalise` then makes a batch of them float.
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
        config: Which filters.
        size: Side of the result in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    if config.enabled:
        image = _equalise(_smooth(image, config.median_kernel), config)
    return resize(image, size)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image by bilinear interpolation; one of the right size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a mask to its nearest pixels: blended labels would be neither tumour nor tissue."""
    if mask.shape == (size, size):
        return mask
    return np.asarray(cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST), np.uint8)


def _smooth(image: NDArray[np.uint8], kernel: int) -> NDArray[np.uint8]:
    return image if kernel == 1 else np.asarray(cv2.medianBlur(image, kernel), np.uint8)


def _equalise(image: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.uint8]:
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    grid = (config.tile_grid, config.tile_grid)
    lab[:, :, 0] = cv2.createCLAHE(config.clip_limit, grid).apply(lab[:, :, 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
