"""What the test part says of a model, slice by slice; what may be chosen, validation chooses.

Beside the network as it is, three optional stages are counted, each alone: the mean over flipped
views, the threshold that validation liked best, and only the largest component of each slice.

Shapes: N slices of a part, B slices of a batch, S pixels along a side.
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

from brainseg.data.patients import missing_sequences
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
class PartPass:
    """What a network says of one part of the split.

    Attributes:
        slices: The N slices.
        counts: Stage -> int64 (N, 4), TP, FP, FN, TN.
        by_threshold: Threshold -> int64 (N, 4), of the network as it is.
        levels: uint8 (N, S, S), probability p as the whole part of 256 p; 128 is p = 0.5.
        true: bool (N, S, S).
        hd95: float64 (N,), in pixels at the network's own size, without any optional stage; NaN
            where it is not defined, see `hausdorff_95`.
        bins: float64 (20, 3), of the pixels in each twentieth of the probability from 0 to 1:
            how many, the sum of their probabilities, how many are tumour.
    """

    slices: tuple[Slice, ...]
    counts: dict[str, Counts]
    by_threshold: dict[float, Counts]
    levels: NDArray[np.uint8]
    true: Mask
    hd95: NDArray[np.float64]
    bins: NDArray[np.float64]

    @property
    def patients(self) -> list[str]:
        """The N patients."""
        return [item.patient for item in self.slices]


@dataclass(frozen=True)
class Evaluation:
    """A model on validation and test.

    Attributes:
        val: The validation part, which chose the threshold.
        test: The test part.
        threshold: Chosen on validation, in (0, 1).
    """

    val: PartPass
    test: PartPass
    threshold: float

    def tables(self, data: SliceStore) -> dict[str, list[Row]]:
        """Return rows of the files `scores`, `slices`, `stages` and `calibration`."""
        return {
            "scores": patient_rows(self),
            "slices": slice_rows(self, data),
            "stages": stage_rows(self),
            "calibration": calibration_rows(self),
        }


def evaluate_model(predictor: Predictor, data: SliceStore) -> Evaluation:
    """Open the test part of the split that a network was trained on, after validation has chosen.

    Args:
        predictor: The trained network.
        data: The dataset that it was trained on.

    Raises:
        CheckpointError: If the data are not those it was trained on.
    """
    val = _pass(predictor, data, "val", _THRESHOLDS)
    threshold = _choose(val, predictor.experiment.threshold)
    return Evaluation(val, _pass(predictor, data, "test", (threshold,)), threshold)


def hausdorff_95(predicted: Mask, true: Mask) -> float:
    """Return the 95th percentile Hausdorff distance of two masks in pixels.

    The larger of both directions' 95th percentiles of the distance from a boundary pixel of one
    mask to the nearest one of the other; a boundary pixel is one with a neighbour to its side,
    above or below that is outside. The definition of MONAI and of Taha and Hanbury 2015.

    Args:
        predicted: bool (S, S).
        true: bool (S, S).

    Returns:
        At least 0; NaN where either mask is empty: there is no distance to nothing, and a slice
        missed or invented as a whole is what Dice, recall and precision count.
    """
    if not (predicted.any() and true.any()):
        return float("nan")
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true)]
    to_predicted, to_true = (ndimage.distance_transform_edt(~edge) for edge in edges)
    there = np.percentile(to_true[edges[0]], 95)
    return float(max(there, np.percentile(to_predicted[edges[1]], 95)))


def keep_largest(mask: Mask) -> Mask:
    """Return the largest of a mask's components, pixels joined at corners too.

    Args:
        mask: bool (S, S); of equal components the first from the top is kept.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:
        return mask
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest)


def slice_rows(evaluation: Evaluation, data: SliceStore) -> list[Row]:
    """Return a row per test slice: patient, slice, TP, FP, FN, TN, Dice, hd95, and what it holds.

    `tumour_pixels` are those of the slice as stored, before resizing; `missing` the sequences
    that are a copy of FLAIR.
    """
    counts = evaluation.test.counts[PLAIN]
    number_of = {item.name: number for number, item in enumerate(data.slices)}
    return [
        {
            "patient": item.patient,
            "slice": item.name,
            **_count_cells(row, "{:.6f}"),
            "hd95": "" if np.isnan(distance) else f"{distance:.3f}",
            "tumour_pixels": item.tumour_pixels,
            "missing": missing_sequences(data.image(number_of[item.name])),
        }
        for item, row, distance in zip(
            evaluation.test.slices, counts, evaluation.test.hd95, strict=True
        )
    ]


def patient_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per test patient: TP, FP, FN, TN, Dice, and the mean hd95 of its slices.

    The mean is over the slices that have one; a patient without any has an empty cell.
    """
    names = np.array(evaluation.test.patients)
    rows = []
    for patient, counts in sum_by_patient(evaluation.test.counts[PLAIN], names.tolist()).items():
        distances = evaluation.test.hd95[names == patient]
        known = distances[~np.isnan(distances)]
        hd95 = float(known.mean()) if len(known) else ""
        rows.append({"patient": patient, **_count_cells(counts), "hd95": hd95})
    return rows


def stage_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per stage, part and patient: TP, FP, FN, TN, Dice, with and without a stage."""
    value = evaluation.threshold
    rows = []
    for stage in (PLAIN, FLIPS, THRESHOLD, LARGEST):
        for part, judged in (("val", evaluation.val), ("test", evaluation.test)):
            is_threshold = stage == THRESHOLD
            counts = judged.by_threshold[value] if is_threshold else judged.counts[stage]
            setting = f"{value:.2f}" if is_threshold else ""
            head = {"stage": stage, "setting": setting, "part": part}
            for patient, sums in sum_by_patient(counts, judged.patients).items():
                rows.append({**head, "patient": patient, **_count_cells(sums, "{:.6f}")})
    return rows


def calibration_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per twentieth of the probability: its test pixels, their sum, their tumour."""
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


def _pass(
    predictor: Predictor, data: SliceStore, part: str, thresholds: Sequence[float]
) -> PartPass:
    """Run over a part once; also count at each of some thresholds."""
    numbers = predictor.numbers(data, part)
    usual, size = predictor.experiment.threshold, predictor.experiment.data.size
    counts: dict[str, list[torch.Tensor]] = {PLAIN: [], FLIPS: [], LARGEST: []}
    by_threshold: dict[float, list[torch.Tensor]] = {value: [] for value in thresholds}
    levels = np.empty((len(numbers), size, size), np.uint8)
    true = np.empty(levels.shape, np.bool_)
    hd95: list[float] = []
    bins = np.zeros((NUM_BINS, 3))
    for logits, masks in predictor.views(data, numbers):
        plain = is_tumour(logits[0], usual)
        largest = np.stack([keep_largest(mask) for mask in plain.numpy()])
        probabilities = torch.sigmoid(logits)
        counts[PLAIN].append(count_pixels(plain, masks))
        counts[FLIPS].append(count_pixels(probabilities.mean(dim=0) >= usual, masks))
        counts[LARGEST].append(count_pixels(torch.from_numpy(largest), masks))
        for value, rows in by_threshold.items():
            rows.append(count_pixels(is_tumour(logits[0], value), masks))
        bins += _bin_pixels(probabilities[0].numpy(), masks.numpy())
        here = slice(len(hd95), len(hd95) + len(masks))
        levels[here], true[here] = _quantise(probabilities[0].numpy()), masks.numpy()
        hd95 += [hausdorff_95(*pair) for pair in zip(plain.numpy(), masks.numpy(), strict=True)]
    return PartPass(
        tuple(data.slices[number] for number in numbers),
        {stage: torch.cat(rows).numpy() for stage, rows in counts.items()},
        {value: torch.cat(rows).numpy() for value, rows in by_threshold.items()},
        levels,
        true,
        np.array(hd95),
        bins,
    )


def _choose(val: PartPass, usual: float) -> float:
    """The threshold of the highest mean Dice per patient; of equal ones the nearest to usual."""

    def merit(value: float) -> tuple[float, float]:
        sums = np.stack(list(sum_by_patient(val.by_threshold[value], val.patients).values()))
        return float(dice(sums).mean()), -abs(value - usual)

    return max(val.by_threshold, key=merit)


def _bin_pixels(probabilities: NDArray[np.float32], masks: Mask) -> NDArray[np.float64]:
    flat = probabilities.ravel().astype(np.float64)
    number = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    weights = (None, flat, masks.ravel())
    return np.stack([np.bincount(number, w, NUM_BINS) for w in weights], axis=1)


def _quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.minimum(probabilities * _LEVELS, _LEVELS - 1).astype(np.uint8)


def _count_cells(counts: Counts, form: str = "") -> Row:
    score = float(dice(counts))
    names = ("TP", "FP", "FN", "TN")
    cells: Row = dict(zip(names, counts.tolist(), strict=True))
    return cells | {"Dice": form.format(score) if form else score}
