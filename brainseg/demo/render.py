"""Renders predictions and messages as HTML fragments.

Pictures are embedded in the HTML, so that no file is left on the disk; each has a description for
readers who cannot see it. Jinja2 escapes all text.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from brainseg.inference.overlay import (
    BOTH,
    PREDICTED,
    TRUE,
    draw_differences,
    draw_outlines,
    draw_probabilities,
    encode_picture,
)
from brainseg.inference.predictor import Prediction
from brainseg.metrics import Counts, count_pixels, dice, iou, precision, recall

Mask = NDArray[np.bool_]

ASSETS = Path(__file__).parent / "assets"

_SCORES = {"Dice": dice, "IoU": iou, "precision": precision, "recall": recall}
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(ASSETS),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


@dataclass(frozen=True)
class PredictedSlice:
    """A slice and the prediction of each model.

    Attributes:
        name: The file's name.
        image: uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.
        true: The true mask, bool (H, W); None if it is not known.
        predictions: Model -> its prediction.
    """

    name: str
    image: NDArray[np.uint8]
    true: Mask | None
    predictions: dict[str, Prediction]

    def counts(self, model: str) -> Counts | None:
        """Return int64 (4,), TP, FP, FN, TN of a model; None without a true mask."""
        if self.true is None:
            return None
        predicted = self.predictions[model].mask
        counts: Counts = count_pixels(predicted[None], self.true[None])[0]
        return counts


def render(fragment: str, *values: Any) -> str:
    """Return a fragment of `assets/fragments.html.j2` as HTML.

    Args:
        fragment: The name of the macro.
        values: Its arguments; they are escaped.
    """
    macros = _ENVIRONMENT.get_template("fragments.html.j2").module
    return str(getattr(macros, fragment)(*values))


def render_slice(item: PredictedSlice, synthetic: Collection[str]) -> str:
    """Return the pictures, scores and masks of a slice as HTML, one column per model.

    Args:
        item: The slice.
        synthetic: The models that were trained on generated phantoms.
    """
    results = [_result(item, model, model in synthetic) for model in item.predictions]
    return render("slice", item.name, results)


def render_patient(model: str, counts: Counts) -> str:
    """Return a patient's scores as HTML.

    Args:
        model: The name of the model.
        counts: int64 (N, 4), TP, FP, FN, TN of the patient's slices.
    """
    total = counts.sum(axis=0)
    return render("patient", model, len(counts), float(dice(total)), float(iou(total)))


def _result(item: PredictedSlice, model: str, is_synthetic: bool) -> dict[str, Any]:
    """Return what the fragment `slice` shows of one model."""
    probabilities, mask = item.predictions[model]
    highest, counts = float(probabilities.max()), item.counts(model)
    outlines, legend = [(mask, PREDICTED)], [("predicted", PREDICTED)]
    if item.true is not None:
        outlines.insert(0, (item.true, TRUE))
        legend.append(("true", TRUE))
    pictures = [
        _picture(
            draw_outlines(item.image, *outlines),
            f"{item.name} with the outline predicted by {model}"
            + ("" if item.true is None else " and the true one"),
            legend,
        ),
        _picture(
            draw_probabilities(probabilities.astype(np.float32)),
            f"tumour probability of each pixel of {item.name}, at most {highest:.2f}",
            [],
        ),
    ]
    if item.true is not None and counts is not None:
        tp, fp, fn, _ = counts.tolist()
        pictures.append(
            _picture(
                draw_differences(item.image, mask, item.true),
                f"{item.name}: {tp} tumour pixels found, {fp} false, {fn} missed by {model}",
                [
                    (f"found {tp:,}", BOTH),
                    (f"false {fp:,}", PREDICTED),
                    (f"missed {fn:,}", TRUE),
                ],
            )
        )
    return {
        "model": model,
        "synthetic": is_synthetic,
        "area": int(mask.sum()),
        "share": mask.mean(),
        "highest": highest,
        "mask": _embed(mask * np.uint8(255)),
        "mask_name": f"{item.name.rpartition('.')[0] or item.name}_mask.png",
        "scores": {} if counts is None else {n: float(f(counts)) for n, f in _SCORES.items()},
        "is_empty": counts is not None and not counts[:3].any(),
        "pictures": pictures,
    }


def _picture(
    picture: NDArray[np.uint8], alt: str, legend: list[tuple[str, tuple[int, int, int]]]
) -> dict[str, Any]:
    return {"source": _embed(picture), "alt": alt, "legend": legend}


def _embed(picture: NDArray[np.uint8]) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_picture(picture)).decode('ascii')}"
