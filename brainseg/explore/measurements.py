"""Measures every slice of a dataset, and tests columns of data.csv against tumour size."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from brainseg.data.about import shown_channel
from brainseg.data.layouts import natural_key
from brainseg.data.patients import missing_in
from brainseg.data.slice_store import SliceStore
from brainseg.errors import DataError
from brainseg.storage.files import read_csv

AIR = 10
"""Levels below this are air and noise around the head; comparisons of tissue leave them out."""

_PATIENT = "Patient"
_MAX_CODES = 10
_MIN_GROUP = 3

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


@dataclass(frozen=True)
class Covariate:
    """A column of patients' data, tested against tumour size.

    Attributes:
        name: The name of the column.
        patients: A row per patient whose cell is not empty: value, as text, and tumour size.
        is_continuous: True for a quantity such as age, False for names or codes of groups.
        test: Spearman for a quantity; Kruskal-Wallis over groups of at least 3 patients, empty if
            there are fewer than two such groups.
        p_value: The p-value of the test; NaN without a test.
        adjusted: The p-value adjusted for the number of tested columns (Benjamini and Hochberg
            1995); NaN without a test.
    """

    name: str
    patients: pd.DataFrame
    is_continuous: bool
    test: str = ""
    p_value: float = np.nan
    adjusted: float = np.nan

    @property
    def groups(self) -> dict[str, list[float]]:
        """Value -> tumour sizes of the patients with it, values in natural order."""
        groups = self.patients.groupby("value")["size"].apply(list).to_dict()
        return {value: groups[value] for value in sorted(groups, key=natural_key)}


def read_patient_table(path: Path) -> pd.DataFrame:
    """Read data.csv: a row per patient, cells as text; an empty table if there is no such file.

    Raises:
        DataError: If it cannot be read, or has no column `Patient`.
    """
    table = pd.DataFrame(read_csv(path)).fillna("")
    if _PATIENT not in table:
        if path.exists():
            raise DataError(f"{path}: no rows with a column {_PATIENT}")
        return pd.DataFrame()
    return table.drop_duplicates(_PATIENT, keep="last").set_index(_PATIENT)


def compare_covariates(table: pd.DataFrame, sizes: pd.Series) -> list[Covariate]:
    """Test each column against tumour size, in the order of the table.

    Args:
        table: A row per patient, cells as text. Columns with fewer than two values are left out.
        sizes: Tumour size by patient; patients that only one of both has are left out.
    """
    known = table[table.index.isin(sizes.index)]
    found = []
    for name in known:
        values = known[name].str.strip()
        values = values[values != ""]
        if values.nunique() > 1:
            patients = pd.DataFrame({"value": values, "size": sizes[values.index]})
            found.append(_test(name, patients))
    p_values = [covariate.p_value for covariate in found if covariate.test]
    adjusted = iter(_adjust(p_values))
    return [replace(c, adjusted=next(adjusted)) if c.test else c for c in found]


def _test(name: str, patients: pd.DataFrame) -> Covariate:
    numbers = pd.to_numeric(patients["value"], errors="coerce")
    if patients["value"].nunique() > _MAX_CODES and np.isfinite(numbers).all():
        p_value = stats.spearmanr(numbers, patients["size"]).pvalue
        return Covariate(name, patients, True, "Spearman", float(p_value))
    codes = Covariate(name, patients, False)
    groups = [group for group in codes.groups.values() if len(group) >= _MIN_GROUP]
    if len(groups) < 2:
        return codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if all sizes are equal, the p-value is NaN
        return replace(codes, test="Kruskal-Wallis", p_value=float(stats.kruskal(*groups).pvalue))


def _adjust(p_values: list[float]) -> list[float]:
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.nan_to_num(p_values, nan=1.0))]
