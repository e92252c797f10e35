"""Measures every slice of a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from brainseg.data.about import shown_channel
from brainseg.data.patients import missing_in
from brainseg.data.slice_store import SliceStore

AIR = 10
"""Levels below this are air and noise around the head; comparisons of tissue leave them out."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurements:
    """Measurements of N slices of C channels, each within a square of S x S pixels.

    S is the longest side of any slice; smaller slices lie in the middle of the square.

    Attributes:
        channels: Names of the C channels.
        shown: Index of the channel that pictures show: FLAIR of three, else the first.
        slices: A row per slice in the order of the store: name, patient, tumour_pixels; x and y,
            the tumour's centre of mass as a fraction of the side, NaN without tumour; outside, the
            tumour pixels without any signal; missing, the sequences that are a copy of FLAIR,
            empty for a black slice; digest, of the image's pixels.
        components: A row per connected part of a mask, pixels that touch at a corner included: the
            index of its slice; area, left, top, width and height in pixels of the slice.
        histograms: uint32 (N, C, 256), pixels per level of each channel.
        tumour_histogram: int64 (C, 256), of the tumour pixels of all slices.
        tissue_histogram: int64 (C, 256), of the other pixels of the slices with tumour.
        heat: int64 (S, S), the number of masks that hold each pixel.
        mean_image: float64 (S, S), the mean level of the shown channel, from 0 to 255.
    """

    channels: tuple[str, ...]
    shown: int
    slices: pd.DataFrame
    components: pd.DataFrame
    histograms: NDArray[np.uint32]
    tumour_histogram: NDArray[np.int64]
    tissue_histogram: NDArray[np.int64]
    heat: NDArray[np.int64]
    mean_image: NDArray[np.float64]

    @property
    def has_tumour(self) -> NDArray[np.bool_]:
        """bool (N,), True for slices with tumour."""
        return np.asarray(self.slices["tumour_pixels"] > 0)

    @property
    def tumour_areas(self) -> NDArray[np.int64]:
        """int64, the tumour pixels of each slice with tumour."""
        return np.asarray(self.slices["tumour_pixels"], np.int64)[self.has_tumour]

    @property
    def means(self) -> NDArray[np.float64]:
        """float64 (N, C), the mean level of each channel over the whole slice."""
        means = self.histograms @ np.arange(256) / self.histograms.sum(axis=2)
        return np.asarray(means, np.float64)

    @property
    def spreads(self) -> NDArray[np.float64]:
        """float64 (N, C), the standard deviation of the levels over the whole slice."""
        squares = self.histograms @ np.arange(256.0) ** 2 / self.histograms.sum(axis=2)
        return np.asarray(np.sqrt(np.maximum(squares - self.means**2, 0)), np.float64)


def measure_slices(data: SliceStore) -> Measurements:
    """Measure all slices in one pass over the slice store, with a progress bar."""
    heat, total = np.zeros((2, data.size, data.size), np.int64)
    shown = shown_channel(len(data.channels))
    rows, components, histograms, tumour_histograms = [], [], [], []
    for index, (row, parts, histogram, tumour_histogram) in enumerate(_measure_all(data)):
        rows.append(row)
        components += parts
        histograms.append(histogram)
        tumour_histograms.append(tumour_histogram)
        (height, width), (top, left) = data.shapes[index], _corner(data, index)
        within = slice(top, top + height), slice(left, left + width)
        total[within] += data.image(index)[:, :, shown]
        heat[within] += data.mask(index)
    slices, counts = pd.DataFrame(rows), np.stack(histograms)
    tumour = np.stack(tumour_histograms).sum(axis=0, dtype=np.int64)
    with_tumour = counts[slices["tumour_pixels"].to_numpy() > 0].sum(axis=0, dtype=np.int64)
    columns = ["slice", "area", "left", "top", "width", "height"]
    return Measurements(
        slices=slices,
        components=pd.DataFrame(components, columns=columns).astype(np.int64),
        histograms=counts,
        tumour_histogram=tumour,
        tissue_histogram=with_tumour - tumour,
        heat=heat,
        mean_image=total / len(data.slices),
        channels=data.channels,
        shown=shown,
    )


_Measured = tuple[Row, list[Row], NDArray[np.uint32], NDArray[np.uint32]]


def _measure_all(data: SliceStore) -> Iterator[_Measured]:
    # OpenCV and hashlib release Python's lock while they work, so that threads share the cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        indices = range(len(data.slices))
        measured = pool.map(lambda index: _measure(data, index), indices)
        yield from tqdm(
            measured, total=len(indices), desc="measuring slices", unit="slice", disable=None
        )


def _corner(data: SliceStore, index: int) -> tuple[int, int]:
    """Return the rows above and the columns to the left of a slice in its square."""
    height, width = data.shapes[index]
    return (data.size - height) // 2, (data.size - width) // 2


def _measure(data: SliceStore, index: int) -> _Measured:
    """Return a slice's row, its components, its histograms and those of its tumour."""
    item, image, mask = data.slices[index], data.image(index), data.mask(index)
    row = {
        "name": item.name,
        "patient": item.patient,
        "scan": item.scan,
        "tumour_pixels": item.tumour_pixels,
        "x": np.nan,
        "y": np.nan,
        "outside": 0,
        "missing": missing_in(data, index) if image.any() else "",
        "digest": hashlib.blake2b(image.tobytes(), digest_size=16).digest(),
    }
    if not item.tumour_pixels:
        return row, [], _histograms(image, None), np.zeros((image.shape[2], 256), np.uint32)
    moments = cv2.moments(mask, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    top, left = _corner(data, index)
    row |= {"x": (x + left + 0.5) / data.size, "y": (y + top + 0.5) / data.size}
    row["outside"] = int((image.max(axis=2)[mask > 0] == 0).sum())
    boxes = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:]
    parts = [
        {"slice": index, "area": area, "left": left, "top": top, "width": width, "height": height}
        for left, top, width, height, area in boxes.tolist()
    ]
    return row, parts, _histograms(image, None), _histograms(image, mask)


def _histograms(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> NDArray[np.uint32]:
    parts = [
        cv2.calcHist([image], [channel], mask, [256], [0, 256])
        for channel in range(image.shape[2])
    ]
    return np.stack([part.ravel() for part in parts]).astype(np.uint32)
