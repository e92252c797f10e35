"""One predicted slice as HTML: pictures with alt texts, numbers, and messages.

Pictures travel inside the HTML: nothing is left on the disk, and each has a text for those who do
not see it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
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
from brainseg.metrics import count_pixels, dice, iou, precision, recall
from brainseg.model.model_file import ModelHeader

Mask = NDArray[np.bool_]

_SCORES = {"Dice": dice, "IoU": iou, "precision": precision, "recall": recall}


def draw_panel(
    model: str,
    header: ModelHeader,
    name: str,
    image: NDArray[np.uint8],
    prediction: Prediction,
    true: Mask | None,
) -> str:
    """Draw what one model says of one slice.

    Args:
        model: Its name.
        header: Of the model.
        name: Of the slice.
        image: uint8 (H, W, 3).
        prediction: At the slice's size.
        true: bool (H, W), where the true mask is known.
    """
    mask = prediction.mask
    area = f"<b>{int(mask.sum()):,} pixels ({mask.mean():.2%} of the slice)</b>"
    found = f"Tumour predicted on {area}" if mask.any() else "<b>No tumour predicted</b>"
    highest = f"{float(prediction.probabilities.max()):.2f}"
    outlines = ((true, TRUE), (mask, PREDICTED)) if true is not None else ((mask, PREDICTED),)
    pictures = [
        _picture(
            draw_outlines(image, *outlines),
            f"{name} with the outline predicted by {model}"
            + ("" if true is None else " and the true one"),
            _legend(("predicted", PREDICTED), *((("true", TRUE),) if true is not None else ())),
        ),
        _picture(
            draw_probabilities(prediction.probabilities.astype(np.float32)),
            f"tumour probability of each pixel of {name}, at most {highest}",
            '0 <span class="scale"></span> 1, probability',
        ),
    ]
    numbers = f"<p>{found}, highest probability {highest}. {_link(mask, name)}</p>"
    if true is not None:
        counts = count(mask, true)
        tp, fp, fn, _ = counts.tolist()
        pictures.append(
            _picture(
                draw_differences(image, mask, true),
                f"{name}: {tp} tumour pixels found, {fp} invented, {fn} missed by {model}",
                _legend(
                    (f"found {tp:,}", BOTH),
                    (f"invented {fp:,}", PREDICTED),
                    (f"missed {fn:,}", TRUE),
                ),
            )
        )
        numbers += _spell_scores(counts)
    warning = _SYNTHETIC if header.synthetic else ""
    return (
        f'<section class="panel" aria-label="{escape(model)}"><h3>{escape(model)}</h3>{warning}'
        f'{numbers}<div class="pictures">{"".join(pictures)}</div></section>'
    )


def place_side_by_side(title: str, panels: Sequence[str]) -> str:
    """Return panels under the name of their slice."""
    return (
        f'<div role="region" aria-live="polite" aria-label="result"><h2>{escape(title)}</h2>'
        f'<div class="panels">{"".join(panels)}</div></div>'
    )


def format_patient(model: str, counts: NDArray[np.int64]) -> str:
    """Return a patient's scores as a sentence.

    Args:
        model: Its name.
        counts: int64 (N, 4), TP, FP, FN, TN of the patient's slices.
    """
    total = counts.sum(axis=0)
    return (
        f"<p><b>{escape(model)}</b>, all {len(counts)} slices together: "
        f"Dice {float(dice(total)):.4f}, IoU {float(iou(total)):.4f}.</p>"
    )


def count(mask: Mask, true: Mask) -> NDArray[np.int64]:
    """Return int64 (4,), TP, FP, FN, TN of two masks, bool (H, W)."""
    pair = torch.from_numpy(mask)[None], torch.from_numpy(true)[None]
    return np.asarray(count_pixels(*pair)[0].numpy(), np.int64)


def show_alert(messages: Sequence[str]) -> str:
    """Return error messages that a screen reader reads out at once."""
    lines = "".join(f"<p>{escape(message)}</p>" for message in messages)
    return f'<div role="alert" class="alert">{lines}</div>'


def show_hint(text: str) -> str:
    """Return what to do next."""
    return f'<p class="hint">{escape(text)}</p>'


def _spell_scores(counts: NDArray[np.int64]) -> str:
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{float(score(counts)):.4f}</dd></div>"
        for name, score in _SCORES.items()
    )
    note = "" if counts[:3].any() else "<p>No tumour, none predicted: by definition all are 1.</p>"
    return f'<dl class="scores">{cells}</dl>{note}'


def _picture(picture: NDArray[np.uint8], alt: str, caption: str) -> str:
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,'
        f'{base64.b64encode(encode_picture(picture)).decode()}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def _legend(*entries: tuple[str, tuple[int, int, int]]) -> str:
    return " ".join(
        f'<span class="key" style="border-color: rgb{colour}">{escape(text)}</span>'
        for text, colour in entries
    )


def _link(mask: Mask, name: str) -> str:
    source = base64.b64encode(encode_picture(mask * np.uint8(255))).decode()
    file = escape(f"{name.rpartition('.')[0] or name}_mask.png")
    return f'<a download="{file}" href="data:image/png;base64,{source}">Mask as PNG</a>'


_SYNTHETIC = '<p class="alert">SYNTHETIC: trained on generated phantoms; it knows no patients.</p>'
