"""What is measured of every slice of a dataset, in one pass over the slice store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from brainseg.overlay import FLAIR
from brainseg.patients import missing_sequences
from brainseg.store import SliceStore

SEQUENCES = ("pre-contrast", "FLAIR", "post-contrast")
AIR = 10
"""Levels below this are air and noise around the head, left out of comparisons of tissue."""

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]


class Component(NamedTuple):
    """A connected part of a mask, pixels joined at corners too: its slice, area and box."""

    slice: int
    area: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Survey:
    """Measures of N slices of S x S pixels, in the order of the store.

    Attributes:
        area: int64 (N,), tumour pixels.
        centre: float64 (N, 2), x and y of the tumour's centre of mass from 0 to 1 of the side;
            NaN without tumour.
        histograms: uint32 (N, 3, 256), pixels per level of each sequence.
        tumour_histogram: int64 (3, 256), of the tumour pixels of all slices.
        tissue_histogram: int64 (3, 256), of all other pixels of the slices with tumour.
        components: Of all masks.
        missing: Sequences that are a copy of FLAIR in that slice; nothing for a black slice.
        outside: int64 (N,), tumour pixels without any signal below them.
        digests: Of each image's pixels.
        heat: int64 (S, S), how many masks hold each pixel.
        mean_flair: float64 (S, S), level from 0 to 255.
    """

    area: Counts
    centre: Reals
    histograms: NDArray[np.uint32]
    tumour_histogram: Counts
    tissue_histogram: Counts
    components: tuple[Component, ...]
    missing: tuple[str, ...]
    outside: Counts
    digests: tuple[bytes, ...]
    heat: Counts
    mean_flair: Reals

    @property
    def has_tumour(self) -> NDArray[np.bool_]:
        """bool (N,)."""
        return self.area > 0

    @property
    def means(self) -> Reals:
        """float64 (N, 3), mean level of each sequence over the whole slice."""
        means = self.histograms @ np.arange(256) / self.histograms.sum(axis=2)
        return np.asarray(means, np.float64)

    @property
    def spreads(self) -> Reals:
        """float64 (N, 3), standard deviation of the levels over the whole slice."""
        squares = self.histograms @ np.arange(256.0) ** 2 / self.histograms.sum(axis=2)
        return np.asarray(np.sqrt(np.maximum(squares - self.means**2, 0)), np.float64)


class _Measure(NamedTuple):
    """What is measured of one slice; the field names are the survey's."""

    centre: tuple[float, float]
    histograms: NDArray[np.uint32]
    tumour: NDArray[np.uint32]
    components: list[Component]
    missing: str
    outside: int
    digest: bytes


def survey(data: SliceStore) -> Survey:
    """Measure all slices, with progress; slices are read from the store as they are needed."""
    area = np.array([item.tumour_pixels for item in data.slices], np.int64)
    heat = np.zeros((data.size, data.size), np.int64)
    flair = np.zeros((data.size, data.size), np.int64)
    measures = []
    for number, measure in enumerate(_measure_all(data)):
        measures.append(measure)
        flair += data.pixels[number, :, :, FLAIR]
        if area[number]:
            heat += data.pixels[number, :, :, 3]
    histograms = np.stack([measure.histograms for measure in measures])
    tumour = np.stack([measure.tumour for measure in measures]).sum(axis=0, dtype=np.int64)
    return Survey(
        area=area,
        centre=np.array([measure.centre for measure in measures]),
        histograms=histograms,
        tumour_histogram=tumour,
        tissue_histogram=histograms[area > 0].sum(axis=0, dtype=np.int64) - tumour,
        components=tuple(part for measure in measures for part in measure.components),
        missing=tuple(measure.missing for measure in measures),
        outside=np.array([measure.outside for measure in measures], np.int64),
        digests=tuple(measure.digest for measure in measures),
        heat=heat,
        mean_flair=flair / len(data.slices),
    )


def _measure_all(data: SliceStore) -> Iterator[_Measure]:
    # OpenCV and hashlib leave Python's lock while they work, so threads share the cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        numbers = range(len(data.slices))
        measures = pool.map(lambda number: _measure(data, number), numbers)
        yield from tqdm(
            measures, total=len(numbers), desc="measuring slices", unit="slice", disable=None
        )


def _measure(data: SliceStore, number: int) -> _Measure:
    image, mask = data.image(number), data.mask(number)
    centre, tumour, components, outside = (np.nan, np.nan), np.zeros((3, 256), np.uint32), [], 0
    if data.slices[number].tumour_pixels:
        moments = cv2.moments(mask, binaryImage=True)
        side = data.size
        x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
        centre = (x + 0.5) / side, (y + 0.5) / side
        tumour = _histograms(image, mask)
        components = _components(mask, number)
        outside = int((image.max(axis=2)[mask > 0] == 0).sum())
    return _Measure(
        centre=centre,
        histograms=_histograms(image, None),
        tumour=tumour,
        components=components,
        missing=missing_sequences(image) if image.any() else "",
        outside=outside,
        digest=hashlib.blake2b(image.tobytes(), digest_size=16).digest(),
    )


def _histograms(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> NDArray[np.uint32]:
    parts = [cv2.calcHist([image], [channel], mask, [256], [0, 256]) for channel in range(3)]
    return np.stack([part.ravel() for part in parts]).astype(np.uint32)


def _components(mask: NDArray[np.uint8], number: int) -> list[Component]:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return [
        Component(number, int(area), int(left), int(top), int(width), int(height))
        for left, top, width, height, area in stats[1:]
    ]
