"""Writes predictions: masks, outlines, stacks of a patient's masks, and two tables.

    <folder>_stack.tif           a patient's masks, one page per slice, in natural order
    <name>_mask.<suffix>         0 and 255 (NIfTI: 0 and 1), in the input's own size and format
    <name>_outline.png           the slice's FLAIR sequence with outlines (NIfTI: one per slice)
    predictions.csv              a row per slice
    patients.csv                 a row per patient

The mask of a JPEG is a PNG file, because JPEG is lossy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.data.description import Spacing
from brainseg.errors import DataError
from brainseg.inference.evaluation import outline_cells, outline_cells_of_patient
from brainseg.inference.mask_metrics import compare_outlines
from brainseg.inference.overlay import PREDICTED, TRUE, draw_outlines, encode_picture
from brainseg.inference.predictor import Prediction
from brainseg.inference.readers import Scan, Slices
from brainseg.metrics import (
    COUNT_NAMES,
    Counts,
    accuracy,
    count_pixels,
    dice,
    iou,
    precision,
    recall,
    summarise,
)
from brainseg.storage.files import write_csv

Mask = NDArray[np.bool_]
Row = dict[str, Any]

_SCORES = {
    "dice": dice,
    "iou": iou,
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
}
_OUTLINES = "outlines"
"""The key of a row that holds the distances of its outlines; it is no column."""
_DISTANCES = ("hd95", "hd95_worst", "nsd")
_IN_MM = tuple(f"{name}_mm" for name in _DISTANCES)
"""Columns of files that name the spacing of their pixels."""
_SLICE_COLUMNS = (
    *("patient", "file", "slice", "height", "width", "area_pixels", "area_share"),
    *("max_probability", "mean_probability", *COUNT_NAMES, *_SCORES, *_DISTANCES),
)
_PATIENT_COLUMNS = (
    *("patient", "slices", "tumour_slices", "area_pixels", *COUNT_NAMES, *_SCORES, *_DISTANCES),
)


class PredictionWriter:
    """Writes predictions file by file and collects the rows of the tables.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: list[Row] = []
        self._folder = folder
        self._stack: list[Mask] = []
        self._stack_folder = Path()

    def add(self, scan: Scan, slices: Slices, predictions: Sequence[Prediction]) -> None:
        """Write the masks and outlines of one file.

        Args:
            scan: The file.
            slices: Its N slices.
            predictions: The N predictions.
        """
        target = self._folder / scan.name
        target.parent.mkdir(parents=True, exist_ok=True)
        suffix = ".png" if scan.suffix in (".jpg", ".jpeg") else scan.suffix
        path = target.with_name(f"{target.name}_mask{suffix}")
        if slices.volume is not None:
            slices.volume.write_mask(np.stack([p.mask for p in predictions]), path)
        else:
            path.write_bytes(encode_picture(predictions[0].mask * np.uint8(255), suffix))
            self._add_to_stack(scan.name.parent, predictions[0].mask)
        for index, prediction in enumerate(predictions):
            true = slices.masks[index] if slices.masks else None
            outlines = [(prediction.mask, PREDICTED)]
            if true is not None:
                outlines.insert(0, (true, TRUE))
            picture = draw_outlines(slices.images[index], *outlines)
            ending = f"_{index + 1:03d}" if slices.volume else ""
            path = target.with_name(f"{target.name}{ending}_outline.png")
            path.write_bytes(encode_picture(picture))
            number = index + 1 if slices.volume else ""
            row = {"patient": scan.patient, "file": str(scan.path), "slice": number}
            # Not that of the model's experiment: these files may be of another scanner.
            spacing = slices.volume.spacing if slices.volume else None
            self.rows.append(row | _slice_cells(prediction, true, spacing))

    def finish(self) -> list[Row]:
        """Write the last stack and the tables; return a row per patient."""
        self._write_stack()
        patients = _patient_rows(self.rows)
        in_mm = _IN_MM if any(_IN_MM[-1] in row for row in self.rows) else ()
        write_csv(self._folder / "predictions.csv", self.rows, (*_SLICE_COLUMNS, *in_mm))
        write_csv(self._folder / "patients.csv", patients, (*_PATIENT_COLUMNS, *in_mm))
        return patients

    def _add_to_stack(self, folder: Path, mask: Mask) -> None:
        if folder != self._stack_folder:
            self._write_stack()
            self._stack, self._stack_folder = [], folder
        self._stack.append(mask)

    def _write_stack(self) -> None:
        """Write the masks of a folder as one file if there are several, all of one size."""
        is_stack = len(self._stack) > 1 and len({mask.shape for mask in self._stack}) == 1
        if is_stack and self._stack_folder.name:
            name = f"{self._stack_folder.name}_stack.tif"
            pages = [mask * np.uint8(255) for mask in self._stack]
            if not cv2.imwritemulti(str(self._folder / self._stack_folder / name), pages):
                raise DataError(f"OpenCV cannot write {name}")


def summary_lines(rows: Sequence[Row], patients: Sequence[Row]) -> list[str]:
    """Return the main numbers in sentences: slices, slices with tumour, Dice.

    Args:
        rows: The rows of the slices.
        patients: The rows of the patients, as `PredictionWriter.finish` returns them.
    """
    tumour = sum(row["area_pixels"] > 0 for row in rows)
    counted = f"{_plural(len(rows), 'slice')} of {_plural(len(patients), 'patient')}"
    lines = [f"{counted}, tumour found in {tumour}"]
    counts, names = _counts_of(rows)
    if len(counts):
        scores, masks = summarise(counts, names), _plural(len(counts), "true mask")
        lines += [
            f"Dice {scores['dice_global']:.4f} global, {scores['dice_patient']:.4f} per patient, "
            f"{scores['dice_slice']:.4f} per slice with tumour ({masks})",
            "Scores on patients that the model was trained on say nothing about new patients.",
        ]
    return lines


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _slice_cells(prediction: Prediction, true: Mask | None, spacing: Spacing | None) -> Row:
    probabilities, mask = prediction
    cells: Row = {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "area_pixels": int(mask.sum()),
        "area_share": f"{mask.mean():.6f}",
        "max_probability": f"{probabilities.max():.4f}",
        "mean_probability": f"{probabilities[mask].mean():.4f}" if mask.any() else "",
    }
    if true is None:
        return cells
    outlines = compare_outlines(mask, true, spacing)
    cells |= _score_cells(count_pixels(mask[None], true[None])[0])
    return cells | outline_cells([outlines], "{:.3f}") | {_OUTLINES: outlines}


def _patient_rows(rows: Sequence[Row]) -> list[Row]:
    """Sum over each patient's slices; scores only if all of them have a true mask."""
    patients = []
    for patient in dict.fromkeys(row["patient"] for row in rows):
        own = [row for row in rows if row["patient"] == patient]
        areas = [row["area_pixels"] for row in own]
        total: Row = {
            "patient": patient,
            "slices": len(own),
            "tumour_slices": sum(area > 0 for area in areas),
            "area_pixels": sum(areas),
        }
        counts, _ = _counts_of(own)
        if len(counts) == len(own):
            total |= _score_cells(counts.sum(axis=0))
            total |= outline_cells_of_patient([row[_OUTLINES] for row in own])
        patients.append(total)
    return patients


def _counts_of(rows: Sequence[Row]) -> tuple[Counts, list[str]]:
    """Return int64 (N, 4) TP, FP, FN, TN of the N rows with a true mask, and their patients."""
    known = [row for row in rows if "TP" in row]
    counts = np.array([[row[name] for name in COUNT_NAMES] for row in known], np.int64)
    return counts.reshape(-1, 4), [row["patient"] for row in known]


def _score_cells(counts: Counts) -> Row:
    cells: Row = dict(zip(COUNT_NAMES, counts.tolist(), strict=True))
    return cells | {name: f"{float(score(counts)):.6f}" for name, score in _SCORES.items()}
