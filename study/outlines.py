"""A slice with its true and its predicted outline, in colours that all readers tell apart."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

TRUE, PREDICTED = (86, 180, 233), (230, 159, 0)
"""RGB: sky blue and orange of Okabe and Ito's palette."""


_WIDTH = 2


def draw_outlines(
    image: NDArray[np.uint8], true: NDArray[np.bool_], predicted: NDArray[np.bool_], side: int
) -> NDArray[np.uint8]:
    """Draw the true outline and over it the predicted one.

    Args:
        image: uint8 (H, W, 3).
        true: bool, of any size.
        predicted: bool, of any size.
        side: Of the picture, in pixels.

    Returns:
        uint8 (side, side, 3).
    """
    # Enlarged first, so that outlines stay thin however small the slices are.
    tile = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    for mask, colour in ((true, TRUE), (predicted, PREDICTED)):
        large = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, colour, _WIDTH)
    return np.asarray(tile, np.uint8)
