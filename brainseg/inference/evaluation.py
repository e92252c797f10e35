"""Evaluates a network on the validation and test parts of its split.

The plain prediction is the experiment's own. Four kinds of post-processing are counted beside it,
each alone, unless the experiment has it: the mean over flipped views, the threshold with the best
validation score, and the largest component of each slice or of each volume.
Settings are chosen on the validation part; the test part is evaluated once.

Everything is counted at the slice's own size, against the original mask: the network's logits are
brought back to it, as in prediction. (Epoch by epoch, training validates at the network's size.)

Shapes: N slices of a part, of H x W pixels each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.config import Experiment
from brainseg.data.description import Spacing
from brainseg.data.patients import missing_in
from brainseg.data.slice_store import SliceStore
from brainseg.data.store_builder import Slice
from brainseg.inference.mask_metrics import (
    LesionCounts,
    Mask,
    OutlineScores,
    compare_outlines,
    count_lesions,
    keep_components,
)
from brainseg.inference.predictor import Predictor
from brainseg.metrics import COUNT_NAMES, Counts, count_pixels, dice, sum_by_patient
from brainseg.training.epoch import is_tumour

PLAIN, FLIPS, THRESHOLD = "plain", "flips", "threshold"
LARGEST, LARGEST_3D = "largest component", "largest 3-D component"
NUM_BINS = 20
_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_LEVELS = 256
Row = dict[str, Any]
Owner = TypeVar("Owner", str, tuple[str, str])


@dataclass(frozen=True)
class PartEvaluation:
    """The predictions for one part of the split.

    Attributes:
        slices: The N slices.
        counts: Post-processing -> int64 (N, 4), TP, FP, FN, TN.
        by_threshold: Threshold -> int64 (N, 4), of the plain prediction.
        levels: uint8 (H, W) each, the integer part of 256 times the probability.
        true: bool (H, W) each, the true masks.
        outlines: N distances between the outlines of the plain prediction and of the true mask.
        lesions: Patient -> the lesions that the plain prediction found, missed and invented.
        bins: float64 (20, 3), calibration of the plain prediction: for each twentieth of the
            probability the number of pixels, the sum of their probabilities, and how many of them
            are tumour.
    """

    slices: tuple[Slice, ...]
    counts: dict[str, Counts]
    by_threshold: dict[float, Counts]
    levels: list[NDArray[np.uint8]]
    true: list[Mask]
    outlines: list[OutlineScores]
    lesions: dict[str, LesionCounts]
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
    data: SliceStore,
    indices: Sequence[int],
    predicted: Sequence[Mask],
    spacing: Spacing | None = None,
) -> PartEvaluation:
    """Count masks that were predicted elsewhere; there is no post-processing and no probability.

    Args:
        data: The dataset.
        indices: Of its N slices.
        predicted: bool (H, W) each, in each slice's own size.
        spacing: Of all slices, as in `data.spacing_mm`; None takes that of the dataset's headers.
    """
    true = [data.mask(index) > 0 for index in indices]
    pairs = list(zip(predicted, true, strict=True))
    return PartEvaluation(
        slices=tuple(data.slices[index] for index in indices),
        counts={PLAIN: np.stack([_count(*pair) for pair in pairs])},
        by_threshold={},
        levels=[],
        true=true,
        outlines=_outlines(data, indices, predicted, true, spacing),
        lesions=_lesions([data.slices[index] for index in indices], predicted, true),
        bins=np.zeros((NUM_BINS, 3)),
    )


def slice_rows(test: PartEvaluation, data: SliceStore) -> list[Row]:
    """Return a row per test slice: patient, slice, TP, FP, FN, TN, Dice, outlines and content.

    `tumour_pixels` counts the slice as stored, before resizing; `missing` names the sequences that
    are a copy of FLAIR.
    """
    index_of = {(item.patient, item.name): n for n, item in enumerate(data.slices)}
    return [
        {
            "patient": item.patient,
            "slice": item.name,
            **_count_cells(counts, "{:.6f}"),
            **outline_cells([outline], "{:.3f}"),
            "tumour_pixels": item.tumour_pixels,
            "missing": missing_in(data, index_of[item.patient, item.name]),
        }
        for item, counts, outline in zip(test.slices, test.plain, test.outlines, strict=True)
    ]


def patient_rows(test: PartEvaluation) -> list[Row]:
    """Return a row per test patient: TP, FP, FN, TN, Dice, outlines and lesions.

    For the outlines see `outline_cells_of_patient`.
    """
    rows, positions = [], _positions(test.patients)
    for patient, counts in sum_by_patient(test.plain, test.patients).items():
        outlines = [test.outlines[n] for n in positions[patient]]
        lesions = {f"lesions_{k}": n for k, n in vars(test.lesions[patient]).items()}
        cells = {**_count_cells(counts), **outline_cells_of_patient(outlines), **lesions}
        rows.append({"patient": patient, **cells})
    return rows


def outline_cells_of_patient(outlines: Sequence[OutlineScores]) -> Row:
    """Return `outline_cells` of all slices of a patient.

    Where there is no tumour and none is predicted, `hd95_worst` and `nsd` are the best possible
    value, as Dice is.
    """
    cells = outline_cells(outlines)
    for unit in ("", "_mm"):
        if cells.get(f"nsd{unit}") == "":
            cells |= {f"hd95_worst{unit}": 0.0, f"nsd{unit}": 1.0}
    return cells


def outline_cells(outlines: Sequence[OutlineScores], form: str = "{}") -> Row:
    """Return hd95 and hd95_worst, means over slices, and nsd, the share of all boundary pixels.

    Where the spacing of the slices is known, hd95_mm, hd95_worst_mm and nsd_mm follow.

    Args:
        outlines: Of some slices.
        form: Format of a distance.
    """
    cells = _distance_cells(outlines, form)
    in_mm = [scores.in_mm for scores in outlines if scores.in_mm is not None]
    if not in_mm:
        return cells
    return cells | {f"{key}_mm": cell for key, cell in _distance_cells(in_mm, form).items()}


def postprocessing_rows(evaluation: Evaluation) -> list[Row]:
    """Return a row per post-processing, part and patient: TP, FP, FN, TN, Dice."""
    rows = []
    known = {*evaluation.test.counts, THRESHOLD}
    for step in filter(known.__contains__, (PLAIN, FLIPS, THRESHOLD, LARGEST, LARGEST_3D)):
        for name, part in (("val", evaluation.val), ("test", evaluation.test)):
            counts, setting = part.counts.get(step), ""
            if counts is None:
                counts = part.by_threshold[evaluation.threshold]
                setting = f"{evaluation.threshold:.2f}"
            head = {"stage": step, "setting": setting, "part": name}
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
    experiment = predictor.experiment
    slices = tuple(data.slices[index] for index in indices)
    counts: dict[str, list[Counts]] = {}
    by_threshold: dict[float, list[Counts]] = {value: [] for value in thresholds}
    levels: list[NDArray[np.uint8]] = []
    predicted: list[Mask] = []
    masks: list[Mask] = []
    bins = np.zeros((NUM_BINS, 3))
    maps = zip(slices, indices, predictor.part_logits(data, indices), strict=True)
    for _, members in itertools.groupby(maps, key=lambda item: item[0].volume):
        own = list(members)
        true = [data.mask(index) > 0 for _, index, _ in own]
        alone, flips = zip(*(torch.from_numpy(pair) for *_, pair in own), strict=True)
        found = _post_process(alone, flips, experiment)
        for step, masks_of_step in found.items():
            counts.setdefault(step, []).extend(map(_count, masks_of_step, true))
        logits = flips if experiment.flips else alone
        for value, rows in by_threshold.items():
            rows.extend(map(_count, _masks(logits, value, experiment), true))
        for map_, mask in zip(logits, true, strict=True):
            probabilities = torch.sigmoid(map_).numpy()
            bins += _bin_pixels(probabilities, mask)
            levels.append(_quantise(probabilities))
        predicted += found[PLAIN]
        masks += true
    return PartEvaluation(
        slices,
        {step: np.stack(rows) for step, rows in counts.items()},
        {value: np.stack(rows) for value, rows in by_threshold.items()},
        levels,
        masks,
        _outlines(data, indices.tolist(), predicted, masks, experiment.data.spacing_mm),
        _lesions(slices, predicted, masks),
        bins,
    )


def _outlines(
    data: SliceStore,
    indices: Sequence[int],
    predicted: Sequence[Mask],
    true: Sequence[Mask],
    spacing: Spacing | None,
) -> list[OutlineScores]:
    return [
        compare_outlines(found, mask, spacing or data.spacing(index))
        for index, found, mask in zip(indices, predicted, true, strict=True)
    ]


def _post_process(
    alone: Sequence[torch.Tensor], flips: Sequence[torch.Tensor], experiment: Experiment
) -> dict[str, list[Mask]]:
    """Return a volume's masks as the experiment predicts them, and with each step it has not.

    Args:
        alone: Logits (H, W) of each slice.
        flips: Likewise, averaged over flips.
        experiment: The training run.
    """
    plain = _masks(flips if experiment.flips else alone, experiment.threshold, experiment)
    found = {PLAIN: plain}
    if not experiment.flips:
        found[FLIPS] = _masks(flips, experiment.threshold, experiment)
    for step, place in ((LARGEST, "slice"), (LARGEST_3D, "volume")):
        if experiment.largest_component != place:
            found[step] = keep_components(plain, [""] * len(plain), place)
    return found


def _masks(logits: Sequence[torch.Tensor], threshold: float, experiment: Experiment) -> list[Mask]:
    """Return a volume's masks at a threshold."""
    found = [is_tumour(one, threshold).numpy() for one in logits]
    return keep_components(found, [""] * len(found), experiment.largest_component)


def _lesions(
    slices: Sequence[Slice], predicted: Sequence[Mask], true: Sequence[Mask]
) -> dict[str, LesionCounts]:
    """Return patient -> the lesions of all volumes."""
    found: dict[str, LesionCounts] = {}
    for (patient, _), own in _positions([item.volume for item in slices]).items():
        counts = count_lesions([predicted[n] for n in own], [true[n] for n in own])
        found[patient] = found[patient] + counts if patient in found else counts
    return found


def _positions(owners: Sequence[Owner]) -> dict[Owner, list[int]]:
    """Return the positions of each owner's slices."""
    found: dict[Owner, list[int]] = {}
    for position, owner in enumerate(owners):
        found.setdefault(owner, []).append(position)
    return found


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
    cells: Row = dict(zip(COUNT_NAMES, counts.tolist(), strict=True))
    return cells | {"Dice": form.format(score) if form else score}


def _distance_cells(outlines: Sequence[OutlineScores], form: str) -> Row:
    surface, within = (sum(getattr(o, n) for o in outlines) for n in ("surface", "surface_within"))
    cells: Row = {}
    for name in ("hd95", "hd95_worst"):
        known = [value for value in (getattr(o, name) for o in outlines) if not np.isnan(value)]
        cells[name] = form.format(float(np.mean(known))) if known else ""
    return cells | {"nsd": f"{within / surface:.6f}" if surface else ""}
