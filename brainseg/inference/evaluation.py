"""Evaluates a network on the validation and test parts of its split.

Three kinds of post-processing are counted beside the plain prediction, each alone: the mean over
flipped views, the threshold with the best validation score, and the largest component per slice.
Settings are chosen on the validation part; the test part is evaluated once.

Everything is counted at the slice's own size, against the original mask: the network's logits are
brought back to it, as in prediction. (Epoch by epoch, training validates at the network's size.)

Shapes: N slices of a part, of H x W pixels each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from brainseg.data.patients import missing_in
from brainseg.data.slice_store import Slice, SliceStore
from brainseg.inference.predictor import Predictor
from brainseg.metrics import Counts, count_pixels, dice, sum_by_patient
from brainseg.training.epoch import is_tumour

PLAIN, FLIPS, THRESHOLD, LARGEST = "plain", "flips", "threshold", "largest component"
NUM_BINS = 20
_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_LEVELS = 256
Mask = NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True)
class PartEvaluation:
    """The predictions for one part of the split.

    Attributes:
        slices: The N slices.
        counts: Post-processing -> int64 (N, 4), TP, FP, FN, TN.
        by_threshold: Threshold -> int64 (N, 4), of the plain prediction.
        levels: uint8 (H, W) each, the integer part of 256 times the probability.
        true: bool (H, W) each, the true masks.
        hd95: float64 (N,), the plain prediction's `hausdorff_95` in pixels of the slice.
        bins: float64 (20, 3), calibration of the plain prediction: for each twentieth of the
            probability the number of pixels, the sum of their probabilities, and how many of them
            are tumour.
    """

    slices: tuple[Slice, ...]
    counts: dict[str, Counts]
    by_threshold: dict[float, Counts]
    levels: list[NDArray[np.uint8]]
    true: list[Mask]
    hd95: NDArray[np.float64]
    bins: NDArray[np.float64]

    @property
    def plain(self) -> Counts:
        """The counts without post-processing, int64 (N, 4)."""
        return self.counts[PLAIN]

    @property
    def patients(self) -> list[str]:
        """The patient of each of the N slices."""
        return [item.patient for item in self.slices]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a network.

    Attributes:
        val: The validation part.
        test: The test part.
        threshold: The threshold that validation chose, in (0, 1).
    """

    val: PartEvaluation
    test: PartEvaluation
    threshold: float

    def tables(self, data: SliceStore) -> dict[str, list[Row]]:
        """Return the rows of the CSV files `scores`, `slices`, `stages` and `calibration`."""
        return {
            "scores": patient_rows(self.test),
            "slices": slice_rows(self.test, data),
            "stages": postprocessing_rows(self),
            "calibration": calibration_rows(self),
        }


def evaluate_model(predictor: Predictor, data: SliceStore) -> Evaluation:
    """Choose a threshold on the validation part, then count the test part.

    Args:
        predictor: The trained network.
        data: The dataset that it was trained on.

    Raises:
        CheckpointError: If the data are not those of the training.
    """
    val = _evaluate_part(predictor, data, "val", _THRESHOLDS)
    threshold = _best_threshold(val, predictor.experiment.threshold)
    return Evaluation(val, _evaluate_part(predictor, data, "test", (threshold,)), threshold)


def evaluate_masks(
    data: SliceStore, indices: Sequence[int], predicted: Sequence[Mask]
) -> PartEvaluation:
    """Count masks that were predicted elsewhere; there is no post-processing and no probability.

    Args:
        data: The dataset.
        indices: Of its N slices.
        predicted: bool (H, W) each, in each slice's own size.
    """
    true = [data.mask(index) > 0 for index in indices]
    pairs = list(zip(predicted, true, strict=True))
    return PartEvaluation(
        slices=tuple(data.slices[index] for index in indices),
        counts={PLAIN: np.stack([_count(*pair) for pair in pairs])},
        by_threshold={},
        levels=[],
        true=true,
        hd95=np.array([hausdorff_95(*pair) for pair in pairs]),
        bins=np.zeros((NUM_BINS, 3)),
    )


def hausdorff_95(predicted: Mask, true: Mask) -> float:
    """Return the 95th percentile Hausdorff distance of two masks in pixels.

    Take the distances from the boundary pixels of one mask to the nearest boundary pixel of the
    other, and their 95th percentile; the result is the larger value of both directions. A boundary
    pixel has a pixel outside the mask beside, above or below it. The definition is that of MONAI
    and of Taha and Hanbury 2015.

    Args:
        predicted: bool (S, S).
        true: bool (S, S).

    Returns:
        At least 0; NaN if a mask is empty. Dice, recall and precision count such slices.
    """
    if not (predicted.any() and true.any()):
        return float("nan")
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true)]
    to_predicted, to_true = (ndimage.distance_transform_edt(~edge) for edge in edges)
    forward = np.percentile(to_true[edges[0]], 95)
    return float(max(forward, np.percentile(to_predicted[edges[1]], 95)))


def keep_largest(mask: Mask) -> Mask:
    """Return the largest component of a mask; pixels that touch at a corner are connected.

    Args:
        mask: bool (S, S); of components of equal size the first from the top is kept.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:
        return mask
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest)


def slice_rows(test: PartEvaluation, data: SliceStore) -> list[Row]:
    """Return a row per test slice: patient, slice, TP, FP, FN, TN, Dice, hd95 and content.

    `tumour_pixels` counts the slice as stored, before resizing; `missing` names the sequences that
    are a copy of FLAIR.
    """
    index_of = {item.name: index for index, item in enumerate(data.slices)}
    return [
        {
            "patient": item.patient,
            "slice": item.name,
            **_count_cells(counts, "{:.6f}"),
            "hd95": "" if np.isnan(distance) else f"{distance:.3f}",
            "tumour_pixels": item.tumour_pixels,
            "missing": missing_in(data, index_of[item.name]),
        }
        for item, counts, distance in zip(test.slices, test.plain, test.hd95, strict=True)
    ]


def patient_rows(test: PartEvaluation) -> list[Row]:
    """Return a row per test patient: TP, FP, FN, TN, Dice, and the mean hd95 of its slices.

    Slices without an hd95 are left out of the mean; the cell is empty if no slice has one.
    """
    names = np.array(test.patients)
    rows = []
    for patient, counts in sum_by_patient(test.plain, test.patients).items():
        distances = test.hd95[names == patient]
        known = distances[~np.isnan(distances)]
        hd95 = float(known.mean()) if len(known) else ""
        rows.append({"patient": patient, **_count_cells(counts), "hd95": hd95})
    return rows


def postprocessing_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per post-processing, part and patient: TP, FP, FN, TN, Dice."""
    rows = []
    for stage in (PLAIN, FLIPS, THRESHOLD, LARGEST):
        for name, part in (("val", evaluation.val), ("test", evaluation.test)):
            counts, setting = part.counts.get(stage), ""
            if counts is None:
                counts = part.by_threshold[evaluation.threshold]
                setting = f"{evaluation.threshold:.2f}"
            head = {"stage": stage, "setting": setting, "part": name}
            for patient, sums in sum_by_patient(counts, part.patients).items():
                rows.append({**head, "patient": patient, **_count_cells(sums, "{:.6f}")})
    return rows


def calibration_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per twentieth of the probability: test pixels, probability sum, tumour."""
    return [
        {
            "from": f"{step / NUM_BINS:.2f}",
            "to": f"{(step + 1) / NUM_BINS:.2f}",
            "pixels": int(pixels),
            "probability_sum": f"{total:.3f}",
            "tumour_pixels": int(tumour),
        }
        for step, (pixels, total, tumour) in enumerate(evaluation.test.bins)
    ]


def _evaluate_part(
    predictor: Predictor, data: SliceStore, part: str, thresholds: Sequence[float]
) -> PartEvaluation:
    indices = predictor.part_indices(data, part)
    usual = predictor.experiment.threshold
    counts: dict[str, list[Counts]] = {PLAIN: [], FLIPS: [], LARGEST: []}
    by_threshold: dict[float, list[Counts]] = {value: [] for value in thresholds}
    levels: list[NDArray[np.uint8]] = []
    masks: list[Mask] = []
    hd95: list[float] = []
    bins = np.zeros((NUM_BINS, 3))
    for index, maps in zip(indices, predictor.flipped_logits(data, indices), strict=True):
        logits, true = torch.from_numpy(maps), data.mask(index) > 0
        plain = is_tumour(logits[0], usual).numpy()
        probabilities = torch.sigmoid(logits)
        flips = (probabilities.mean(dim=0) >= usual).numpy()
        for name, mask in ((PLAIN, plain), (FLIPS, flips), (LARGEST, keep_largest(plain))):
            counts[name].append(_count(mask, true))
        for value, rows in by_threshold.items():
            rows.append(_count(is_tumour(logits[0], value).numpy(), true))
        bins += _bin_pixels(probabilities[0].numpy(), true)
        levels.append(_quantise(probabilities[0].numpy()))
        masks.append(true)
        hd95.append(hausdorff_95(plain, true))
    return PartEvaluation(
        tuple(data.slices[index] for index in indices),
        {stage: np.stack(rows) for stage, rows in counts.items()},
        {value: np.stack(rows) for value, rows in by_threshold.items()},
        levels,
        masks,
        np.array(hd95),
        bins,
    )


def _count(predicted: Mask, true: Mask) -> Counts:
    return np.asarray(count_pixels(predicted[None], true[None])[0])


def _best_threshold(val: PartEvaluation, usual: float) -> float:
    """Return the threshold with the best mean Dice per patient; of ties the nearest to usual."""

    def merit(value: float) -> tuple[float, float]:
        sums = np.stack(list(sum_by_patient(val.by_threshold[value], val.patients).values()))
        return float(dice(sums).mean()), -abs(value - usual)

    return max(val.by_threshold, key=merit)


def _bin_pixels(probabilities: NDArray[np.float32], masks: Mask) -> NDArray[np.float64]:
    flat = probabilities.ravel().astype(np.float64)
    bins = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    weights = (None, flat, masks.ravel())
    return np.stack([np.bincount(bins, weight, NUM_BINS) for weight in weights], axis=1)


def _quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.minimum(probabilities * _LEVELS, _LEVELS - 1).astype(np.uint8)


def _count_cells(counts: Counts, form: str = "") -> Row:
    score = float(dice(counts))
    names = ("TP", "FP", "FN", "TN")
    cells: Row = dict(zip(names, counts.tolist(), strict=True))
    return cells | {"Dice": form.format(score) if form else score}
