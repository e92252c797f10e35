"""What a prediction leaves: masks, outlines, stacks of a patient's masks, and two tables.

    <folder>_stack.tif           a patient's masks, a page per slice, in natural order
    <name>_mask.<suffix>         0 and 255 (in NIfTI 0 and 1), in the input's own size and format
    <name>_outline.png           the slice's FLAIR sequence with outlines (in NIfTI one per slice)
    predictions.csv              a row per slice
    patients.csv                 a row per patient

A JPEG's mask is a PNG: JPEG would blur it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from brainseg.errors import DataError
from brainseg.inference.overlay import PREDICTED, TRUE, draw_outlines, encode_picture
from brainseg.inference.readers import Scan, Slices
from brainseg.metrics import (
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

_COUNTS = ("TP", "FP", "FN", "TN")
_SCORES = {
    "dice": dice,
    "iou": iou,
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
}
_SLICE_COLUMNS = (
    *("patient", "file", "slice", "height", "width", "area_pixels", "area_share"),
    *("max_probability", "mean_probability", *_COUNTS, *_SCORES),
)
_PATIENT_COLUMNS = ("patient", "slices", "tumour_slices", "area_pixels", *_COUNTS, *_SCORES)


class Results:
    """Writes what is predicted, file by file, and remembers the rows of the tables.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        """Write nothing yet."""
        self._folder = folder
        self.rows: list[Row] = []
        self._stack: list[Mask] = []
        self._stacked = Path()

    def add(
        self,
        scan: Scan,
        slices: Slices,
        masks: Sequence[Mask],
        probabilities: Sequence[NDArray[np.float32]],
    ) -> None:
        """Write one file's masks and outlines.

        Args:
            scan: The file.
            slices: Its N slices.
            masks: Predicted, bool (H, W) each.
            probabilities: float32 (H, W) each.
        """
        target = self._folder / scan.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if slices.volume is not None:
            path = target.with_name(f"{scan.name.name}_mask{scan.suffix}")
            slices.volume.write_mask(np.stack(masks), path)
        else:
            suffix = ".png" if scan.suffix in (".jpg", ".jpeg") else scan.suffix
            path = target.with_name(f"{scan.name.name}_mask{suffix}")
            path.write_bytes(encode_picture(masks[0] * np.uint8(255), suffix))
            self._remember(scan.name.parent, masks[0])
        for number, mask in enumerate(masks):
            true = slices.masks[number] if slices.masks else None
            outlines = ((true, TRUE), (mask, PREDICTED)) if true is not None else None
            picture = draw_outlines(slices.images[number], *(outlines or ((mask, PREDICTED),)))
            tail = f"_{number + 1:03d}" if slices.volume else ""
            path = target.with_name(f"{scan.name.name}{tail}_outline.png")
            path.write_bytes(encode_picture(picture))
            place = number + 1 if slices.volume else ""
            row = {"patient": scan.patient, "file": str(scan.path), "slice": place}
            self.rows.append(row | _describe(mask, probabilities[number], true))

    def finish(self) -> list[Row]:
        """Write the last stack and the tables; return the rows of the patients."""
        self._remember(Path(), None)
        patients = _sum_patients(self.rows)
        write_csv(self._folder / "predictions.csv", self.rows, _SLICE_COLUMNS)
        write_csv(self._folder / "patients.csv", patients, _PATIENT_COLUMNS)
        return patients

    def _remember(self, folder: Path, mask: Mask | None) -> None:
        """Collect the masks of a folder; write the last folder's once another one begins."""
        if (folder != self._stacked or mask is None) and len(self._stack) > 1:
            pages = [page * np.uint8(255) for page in self._stack]
            if len({page.shape for page in pages}) == 1 and self._stacked.name:
                path = self._folder / self._stacked / f"{self._stacked.name}_stack.tif"
                if not cv2.imwritemulti(str(path), pages):
                    raise DataError(f"OpenCV cannot write {path.name}")
        if folder != self._stacked or mask is None:
            self._stack, self._stacked = [], folder
        if mask is not None:
            self._stack.append(mask)


def summary_lines(rows: Sequence[Row], patients: Sequence[Row]) -> list[str]:
    """Return what a user wants to know first: how many slices, how much tumour, which Dice.

    Args:
        rows: Of the slices.
        patients: Of the patients, as `Results.finish` returns them.
    """
    tumour = sum(row["area_pixels"] > 0 for row in rows)
    numbers = _plural(len(rows), "slice"), _plural(len(patients), "patient")
    lines = [f"{numbers[0]} of {numbers[1]}, tumour found in {tumour}"]
    counts, names = _counts_of(rows)
    if len(counts):
        scores, truths = summarise(counts, names), _plural(len(counts), "true mask")
        lines += [
            f"Dice {scores['dice_global']:.4f} global, {scores['dice_patient']:.4f} per patient, "
            f"{scores['dice_slice']:.4f} per slice with tumour ({truths})",
            "Scores on patients that the model was trained on say nothing about new ones.",
        ]
    return lines


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _counts_of(rows: Sequence[Row]) -> tuple[Counts, list[str]]:
    """Return int64 (N, 4) TP, FP, FN, TN of the rows with a true mask, and their N patients."""
    known = [row for row in rows if "TP" in row]
    counts = np.array([[row[name] for name in _COUNTS] for row in known], np.int64)
    return counts.reshape(-1, 4), [row["patient"] for row in known]


def _describe(mask: Mask, probabilities: NDArray[np.float32], true: Mask | None) -> Row:
    row: Row = {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "area_pixels": int(mask.sum()),
        "area_share": f"{mask.mean():.6f}",
        "max_probability": f"{probabilities.max():.4f}",
        "mean_probability": f"{probabilities[mask].mean():.4f}" if mask.any() else "",
    }
    if true is None:
        return row
    pair = torch.from_numpy(mask)[None], torch.from_numpy(true)[None]
    return row | _score(count_pixels(*pair)[0].numpy())


def _score(counts: Counts) -> Row:
    cells: Row = dict(zip(_COUNTS, counts.tolist(), strict=True))
    return cells | {name: f"{float(score(counts)):.6f}" for name, score in _SCORES.items()}


def _sum_patients(rows: Sequence[Row]) -> list[Row]:
    """Sum over each patient's slices; scores only where all of them have true masks."""
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
        counts, judged = _counts_of(own)
        is_known = len(judged) == len(own)
        patients.append(total | (_score(counts.sum(axis=0)) if is_known else {}))
    return patients
