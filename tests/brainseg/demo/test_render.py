from __future__ import annotations

import numpy as np

from brainseg.demo.render import PredictedSlice, render, render_patient, render_slice
from brainseg.inference.predictor import Prediction

EVIL = "<img src=x onerror=alert(1)>"
MASK = np.eye(32, dtype=bool)


def _slice(mask: np.ndarray, true: np.ndarray | None) -> PredictedSlice:  # type: ignore[type-arg]
    prediction = Prediction(mask.astype(np.float16), mask)
    image = np.zeros((32, 32, 3), np.uint8)
    return PredictedSlice(f"{EVIL}.tif", image, true, {EVIL: prediction})


def test_names_and_messages_are_escaped() -> None:
    item = _slice(MASK, MASK)
    patient = render_patient(EVIL, np.array([[1, 0, 0, 0]]))
    for html in (render("alert", [EVIL]), render("hint", EVIL), render_slice(item, ()), patient):
        assert "<img src=x" not in html
        assert "&lt;img src=x" in html


def test_the_heading_names_the_channels_of_the_model() -> None:
    assert "with the channels T2, like those" in render("heading", "T2", False)
    assert "channels pre, post, as in the LGG" in render("heading", "pre, post", True)


def test_scores_need_a_true_mask() -> None:
    assert "<dl" not in render_slice(_slice(MASK, None), ())
    html = render_slice(_slice(MASK, MASK), ())
    assert html.count("<dd>1.0000</dd>") == 4
    assert "32 pixels" in html
    assert "found 32" in html


def test_an_empty_slice_explains_its_scores() -> None:
    html = render_slice(_slice(~MASK & MASK, ~MASK & MASK), ())
    assert "No tumour predicted" in html
    assert "all scores are 1 by definition" in html


def test_models_trained_on_phantoms_are_marked() -> None:
    item = _slice(MASK, None)
    assert "SYNTHETIC" in render_slice(item, {EVIL})
    assert "SYNTHETIC" not in render_slice(item, ())
