"""Calibration: of the pixels with predicted probability p, a share of p should be tumour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.analysis.scores import Floats
from study.storage.schema import Row

_UNSURE = 0.05


@dataclass(frozen=True)
class Calibration:
    """One variant's test pixels in K bins of predicted probability, over all finished trials.

    Attributes:
        variant: Name of the variant.
        pixels: int64 (K,), pixels in each bin.
        predicted: float64 (K,), mean predicted probability of a bin's pixels; NaN without pixels.
        observed: float64 (K,), share of a bin's pixels that is tumour; NaN without pixels.
        error: Expected calibration error: mean over pixels of |observed - predicted| of their bin
            (Naeini 2015, Guo 2017). Nearly all pixels are certain background, which lowers it.
        error_unsure: The same over the bins from a probability of 0.05; NaN without pixels.
    """

    variant: str
    pixels: NDArray[np.int64]
    predicted: Floats
    observed: Floats
    error: float
    error_unsure: float


def calibrate(rows: Sequence[Row]) -> list[Calibration]:
    """Return the calibration of each variant, in the order of the rows.

    Args:
        rows: Rows of calibration.csv, values as text.
    """
    columns = ["from", "pixels", "probability_sum", "tumour_pixels"]
    table = pd.DataFrame(list(rows), columns=["variant", *columns])
    table = table.astype(dict.fromkeys(columns, np.float64))
    return [_calibrate(variant, own) for variant, own in table.groupby("variant", sort=False)]


def _calibrate(variant: str, bins: pd.DataFrame) -> Calibration:
    starts, position = np.unique(bins["from"], return_inverse=True)
    columns = ("pixels", "probability_sum", "tumour_pixels")
    sums: list[NDArray[Any]] = [np.bincount(position, bins[column]) for column in columns]
    pixels, predicted, tumour = sums
    gap, unsure = np.abs(tumour - predicted), starts >= _UNSURE
    return Calibration(
        variant,
        pixels.astype(np.int64),
        _divide(predicted, pixels),
        _divide(tumour, pixels),
        float(_divide(gap.sum(), pixels.sum())),
        float(_divide(gap[unsure].sum(), pixels[unsure].sum())),
    )


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
