"""Draws slices for people: the FLAIR sequence with outlines, differences or probabilities.

Pictures are uint8 (H', W', 3), RGB. Small slices are enlarged by an integer factor, so that
outlines stay thin. The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.data.about import shown_channel

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TRUE, PREDICTED, BOTH = (86, 180, 233), (230, 159, 0), (0, 158, 115)
"""RGB colours: sky blue for the true mask, orange for the predicted one, green for both."""

_SIDE = 512
_WHITE = 99.5  # the percentile that is drawn white: above it are a few bright specks
_MIN_WHITE = 32.0  # a slice without signal stays dark


def draw_outlines(image: Picture, *outlines: tuple[Mask, tuple[int, int, int]]) -> Picture:
    """Draw masks as outlines over a slice's FLAIR sequence.

    Args:
        image: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.
        outlines: Masks, bool (H, W), each with its colour; the last lies on top and is thinner.
    """
    return add_outlines(draw_flair(image), *outlines)


def add_outlines(picture: Picture, *outlines: tuple[Mask, tuple[int, int, int]]) -> Picture:
    """Draw masks as outlines into a picture, in place, and return it.

    Args:
        picture: uint8 (H', W', 3).
        outlines: Masks, bool, of any size, each with its colour.
    """
    height, width = picture.shape[:2]
    for index, (mask, colour) in enumerate(outlines):
        large = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 2 if index == len(outlines) - 1 else 4)
    return picture


def draw_differences(image: Picture, predicted: Mask, true: Mask) -> Picture:
    """Colour tumour pixels: found (`BOTH`), falsely predicted (`PREDICTED`) or missed (`TRUE`).

    Args:
        image: uint8 (H, W, 3).
        predicted: bool (H, W).
        true: bool (H, W).
    """
    picture = draw_flair(image)
    kinds = ((predicted & true, BOTH), (predicted & ~true, PREDICTED), (~predicted & true, TRUE))
    for mask, colour in kinds:
        where = _enlarge(mask.astype(np.uint8), cv2.INTER_NEAREST).astype(bool)
        picture[where] = (0.35 * picture[where] + 0.65 * np.array(colour)).astype(np.uint8)
    return picture


def draw_probabilities(probabilities: NDArray[np.float32]) -> Picture:
    """Draw probabilities, float32 (H, W) in [0, 1], in the colours of inferno."""
    levels = (probabilities * 255).round().astype(np.uint8)
    colours = cv2.applyColorMap(_enlarge(levels, cv2.INTER_LINEAR), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), np.uint8)


def draw_flair(image: Picture) -> Picture:
    """Draw the FLAIR sequence of a slice, uint8 (H, W, C), in grey.

    Without three channels there is no FLAIR to know of: the first channel is drawn.

    Its brightest pixels are white: MRI intensities have no unit, so each slice has its own scale.
    """
    flair = image[:, :, shown_channel(image.shape[2])]
    white = max(float(np.percentile(flair, _WHITE)), _MIN_WHITE)
    window = np.clip(flair * (255 / white), 0, 255).astype(np.uint8)
    grey = _enlarge(window, cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def encode_picture(picture: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Return the bytes of an image file.

    Args:
        picture: uint8 (H, W, 3) RGB, (H, W) or (H, W, 1) grey, or (H, W, 4), whose first three
            channels are RGB.
        suffix: A lossless format of OpenCV, such as `.png` or `.tif`.
    """
    if picture.ndim == 3 and picture.shape[2] > 1:
        code = cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        picture = np.asarray(cv2.cvtColor(picture, code), np.uint8)
    smallest = [cv2.IMWRITE_PNG_COMPRESSION, 9] if suffix == ".png" else []
    return cv2.imencode(suffix, picture, smallest)[1].tobytes()


def _enlarge(plane: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    factor = max(1, _SIDE // max(plane.shape))
    size = (plane.shape[1] * factor, plane.shape[0] * factor)
    return np.asarray(cv2.resize(plane, size, interpolation=interpolation), np.uint8)
