"""What is measured of every slice of a dataset, in one pass over the slice store."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from brainseg.data.layouts import natural_key
from brainseg.data.patients import missing_sequences
from brainseg.data.slice_store import SliceStore
from brainseg.errors import DataError
from brainseg.inference.overlay import FLAIR
from brainseg.storage.files import read_csv

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


# --- covariates ---

_PATIENT = "Patient"
_MANY_VALUES = 10
_SMALLEST_GROUP = 3


@dataclass(frozen=True)
class Covariate:
    """One column against tumour size.

    Attributes:
        name: Of the column.
        values: Patient -> the cell; patients with an empty cell are left out.
        is_continuous: True for a quantity such as an age, False for names or codes of groups.
        test: Kruskal-Wallis over groups of at least 3 patients, or Spearman; empty if there are
            fewer than two such groups.
        p_value: Of that test; NaN without one.
        adjusted: After Benjamini and Hochberg over all columns (1995); NaN without one.
    """

    name: str
    values: dict[str, str]
    is_continuous: bool
    test: str
    p_value: float
    adjusted: float

    def groups(self, sizes: Mapping[str, float]) -> dict[str, list[float]]:
        """Return value -> tumour sizes of the patients with it, in natural order of values."""
        found: dict[str, list[float]] = {}
        for patient, value in sorted(self.values.items(), key=lambda pair: natural_key(pair[1])):
            found.setdefault(value, []).append(sizes[patient])
        return found


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Read data.csv: patient -> column -> cell; empty where there is no such file.

    Raises:
        DataError: If it has no column `Patient`.
    """
    if not path.exists():
        return {}
    rows = read_csv(path)
    if not rows or _PATIENT not in rows[0]:
        raise DataError(f"{path}: no rows with a column {_PATIENT}")
    return {row.pop(_PATIENT): {name: cell or "" for name, cell in row.items()} for row in rows}


def compare(
    table: Mapping[str, Mapping[str, str]], sizes: Mapping[str, float]
) -> tuple[Covariate, ...]:
    """Test each column against tumour size, in the order of the table.

    Args:
        table: Patient -> column -> cell.
        sizes: Patient -> tumour size; patients that the table lacks are left out.
    """
    columns = list(next(iter(table.values()), {}))
    found = []
    for name in columns:
        values = {p: row[name].strip() for p, row in table.items() if p in sizes}
        values = {patient: value for patient, value in values.items() if value}
        if len(set(values.values())) > 1:
            found.append(_test(name, values, sizes))
    tested = [covariate for covariate in found if covariate.test]
    adjusted = _adjust([covariate.p_value for covariate in tested])
    by_name = dict(zip((covariate.name for covariate in tested), adjusted, strict=True))
    return tuple(
        Covariate(
            c.name, c.values, c.is_continuous, c.test, c.p_value, by_name.get(c.name, np.nan)
        )
        for c in found
    )


def _test(name: str, values: dict[str, str], sizes: Mapping[str, float]) -> Covariate:
    is_continuous = len(set(values.values())) > _MANY_VALUES and all(
        map(_is_number, values.values())
    )
    bare = Covariate(name, values, is_continuous, "", np.nan, np.nan)
    if is_continuous:
        numbers = [float(value) for value in values.values()]
        result = stats.spearmanr(numbers, [sizes[patient] for patient in values])
        return Covariate(name, values, True, "Spearman", float(result.pvalue), np.nan)
    groups = [group for group in bare.groups(sizes).values() if len(group) >= _SMALLEST_GROUP]
    if len(groups) < 2:
        return bare
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all sizes equal: a p-value of NaN says so
        p_value = float(stats.kruskal(*groups).pvalue)
    return Covariate(name, values, False, "Kruskal-Wallis", p_value, np.nan)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _adjust(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.nan_to_num(p_values, nan=1.0))]
