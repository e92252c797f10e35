"""Pixel counts (TP, FP, FN, TN) of slices and the scores derived from them.

Pixels of NumPy arrays are counted without importing torch, those of tensors on their device.

Empty masks: without tumour and without a prediction, every score is 1. Otherwise, a score whose
ratio is 0/0 is 0: precision if nothing is predicted, recall if there is no tumour.

Three ways to average Dice: `dice_global` sums the counts of all slices (the published one),
`dice_patient` sums the counts of each patient and averages over patients, `dice_slice` averages
over the slices with tumour.

To add a score that the report compares: one of pixel counts is a function here and a key of
`summarise`, one of masks is computed in `brainseg/inference/mask_metrics.py`. Its column goes
into `SCORES` of `study/storage/schema.py`, its values per patient into
`study/analysis/scores.py`, and its name into a table of `study/report/sections.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Masks = TypeVar("Masks", NDArray[Any], "torch.Tensor")

Counts = NDArray[np.int64 | np.float64]
"""(..., 4): TP, FP, FN, TN in pixels; int64, or float64 for means over seeds."""

COUNT_NAMES = ("TP", "FP", "FN", "TN")
"""Columns of tables for the last axis of `Counts`."""


def count_pixels(predicted_BHW: Masks, masks_BHW: Masks) -> Masks:
    """Count the pixels of each slice.

    Args:
        predicted_BHW: Predicted masks, bool or 0/1; an array or a tensor.
        masks_BHW: True masks, bool or 0/1; of the same kind, on the same device.

    Returns:
        TP, FP, FN, TN: int64 (B, 4) of the same kind, on the same device.
    """
    predicted, true = predicted_BHW != 0, masks_BHW != 0
    tp = (predicted & true).sum((1, 2))
    fp, fn = predicted.sum((1, 2)) - tp, true.sum((1, 2)) - tp
    tn = predicted.shape[1] * predicted.shape[2] - tp - fp - fn
    stack: Any = np.stack
    if not isinstance(predicted, np.ndarray):
        import torch

        stack = torch.stack
    return cast("Masks", stack([tp, fp, fn, tn], 1))


def dice(counts: Counts) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN), in [0, 1], over the last axis (Dice 1945)."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(2 * tp, 2 * tp + fp + fn, fp + fn + tp)


def iou(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FP + FN), in [0, 1], over the last axis (Jaccard 1912)."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp + fn, tp + fp + fn)


def accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return (TP + TN) / all, in [0, 1], over the last axis."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    return _ratio(tp + tn, tp + fp + fn + tn, tp + fp + fn)


def precision(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FP), in [0, 1], over the last axis."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fp, tp + fp + fn)


def recall(counts: Counts) -> NDArray[np.float64]:
    """Return TP / (TP + FN), in [0, 1], over the last axis."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    return _ratio(tp, tp + fn, tp + fp + fn)


def volume_similarity(counts: Counts) -> NDArray[np.float64]:
    """Return 1 - |FN - FP| / (2 TP + FP + FN), in [0, 1] (Taha and Hanbury 2015)."""
    tp, fp, fn, _ = np.moveaxis(counts, -1, 0)
    both = 2 * tp + fp + fn
    return _ratio(both - np.abs(fn - fp), both, both)


def sum_by_patient(counts: Counts, patients: Sequence[str]) -> dict[str, Counts]:
    """Sum the counts of each patient's slices.

    Args:
        counts: int64 (N, 4).
        patients: The N patients of the slices.

    Returns:
        Patient -> int64 (4,), patients in alphabetical order.
    """
    names = np.asarray(patients)
    return {str(name): counts[names == name].sum(axis=0) for name in np.unique(names)}


def summarise(counts: Counts, patients: Sequence[str]) -> dict[str, float]:
    """Return every score of a set of slices by its name.

    Args:
        counts: int64 (N, 4).
        patients: The N patients of the slices.

    Returns:
        dice_global, iou, accuracy, precision, recall (of all pixels together), dice_patient,
        dice_slice. Without any slice with tumour, dice_slice is 1 if none is predicted, else 0.
    """
    total = counts.sum(axis=0)
    by_patient = np.stack(list(sum_by_patient(counts, patients).values()))
    with_tumour = counts[counts[:, 0] + counts[:, 2] > 0]
    return {
        "dice_global": float(dice(total)),
        "iou": float(iou(total)),
        "accuracy": float(accuracy(total)),
        "precision": float(precision(total)),
        "recall": float(recall(total)),
        "dice_patient": float(dice(by_patient).mean()),
        "dice_slice": float(dice(with_tumour if len(with_tumour) else total[None]).mean()),
    }


def _ratio(
    part: NDArray[Any], whole: NDArray[Any], tumour_or_prediction: NDArray[Any]
) -> NDArray[np.float64]:
    ratio = np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)
    return np.where(np.asarray(tumour_or_prediction) == 0, 1.0, ratio)
