"""Whether a predicted probability is one: of the pixels given p, a share of p should be tumour.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study.analysis.scores import Floats
from study.storage.tables import Row

_SURE = 0.05


@dataclass(frozen=True)
class Calibration:
    """One variant's test pixels by predicted probability, all finished trials together.

    Attributes:
        variant: Its name.
        pixels: int64 (K,), in each of K bins.
        predicted: float64 (K,), mean probability of a bin's pixels; NaN in an empty bin.
        observed: float64 (K,), share of them that is tumour; likewise.
        error: Expected calibration error: mean over pixels of |observed - predicted| of their bin
            (Naeini 2015, Guo 2017). Most pixels are surely background.
        error_unsure: The same over pixels with a probability of 0.05 or more.
    """

    variant: str
    pixels: NDArray[np.int64]
    predicted: Floats
    observed: Floats
    error: float
    error_unsure: float


def calibrate(rows: Sequence[Row]) -> list[Calibration]:
    """Add up the bins of each variant's trials.

    Args:
        rows: Of calibration.csv, values as text.
    """
    bins: dict[str, dict[str, Floats]] = {}
    for row in rows:
        values = [float(row[key]) for key in ("pixels", "probability_sum", "tumour_pixels")]
        own = bins.setdefault(row["variant"], {})
        own[row["from"]] = own.get(row["from"], np.zeros(3)) + values
    return [_calibration(variant, own) for variant, own in bins.items()]


def _calibration(variant: str, bins: dict[str, Floats]) -> Calibration:
    starts = sorted(bins, key=float)
    pixels, total, tumour = np.stack([bins[start] for start in starts], axis=1)
    unsure = np.array([float(start) >= _SURE for start in starts])
    predicted, observed = (
        np.divide(part, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
        for part in (total, tumour)
    )
    gap = np.abs(tumour - total)
    return Calibration(
        variant,
        pixels.astype(np.int64),
        predicted,
        observed,
        _mean(gap, pixels),
        _mean(gap[unsure], pixels[unsure]),
    )


def _mean(gap: Floats, pixels: Floats) -> float:
    return float(gap.sum() / pixels.sum()) if pixels.sum() else np.nan
