from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.demo.catalog import (
    TrainedModel,
)
from brainseg.demo.handlers import MAX_SLICES, NO_SECOND, Handlers
from brainseg.inference.evaluation import PLAIN, evaluate_model
from brainseg.inference.overlay import encode_picture
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.model_file import read_header

CPU = Compute(device="cpu")


@pytest.fixture(scope="module")
def handlers(model_file: Path) -> Handlers:
    header = read_header(model_file)
    models = [TrainedModel(name, model_file, header) for name in ("steady", "lucky")]
    return Handlers(models, CPU)


@pytest.fixture
def files(patient: Path) -> list[str]:
    """The slices and masks of one patient, in no order."""
    return sorted(map(str, patient.iterdir()))[::-1]


def _masks(html: str) -> list[NDArray[np.bool_]]:
    links = re.findall(r'href="data:image/png;base64,([^"]+)"', html)
    raw = [np.frombuffer(base64.b64decode(link), np.uint8) for link in links]
    return [np.asarray(cv2.imdecode(content, -1)) > 0 for content in raw]


@pytest.mark.slow
def test_the_page_shows_the_masks_of_predict_and_of_the_evaluation(
    handlers: Handlers, model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    predictor = Predictor.load(model_file, CPU)
    numbers = split_by_patient(data.slices, 0, 44).indices(data.slices, "test").tolist()
    counts = evaluate_model(predictor, data).test.counts[PLAIN]
    for number, (tp, fp, fn, _) in zip(numbers, counts.tolist(), strict=True):
        image, mask = tmp_path / "slice.png", tmp_path / "true.png"
        image.write_bytes(encode_picture(data.image(number)))
        mask.write_bytes(encode_picture(data.mask(number) * np.uint8(255)))
        html = handlers.outline_slice(str(image), str(mask), "steady", NO_SECOND)
        assert np.array_equal(_masks(html)[0], predictor.masks([data.image(number)])[0])
        for text in (f"found {tp:,}", f"false {fp:,}", f"missed {fn:,}"):
            assert text in html


@pytest.mark.slow
def test_two_models_stand_side_by_side(handlers: Handlers, files: list[str]) -> None:
    image = next(name for name in files if "_mask" not in name)
    html = handlers.outline_slice(image, None, "steady", "lucky")
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["steady", "lucky"]
    assert html.count("<img alt=") == 4  # no differences without a true mask
    assert handlers.outline_slice(image, None, "steady", "steady").count("<h3>") == 1
    assert "SYNTHETIC" in html


def test_a_patients_slices_come_in_natural_order_with_their_masks(
    handlers: Handlers, files: list[str]
) -> None:
    seen, notes = handlers.outline_patient(files, "steady", "lucky")
    assert [item.name.split("_")[-1] for item in seen] == [f"{n}.tif" for n in range(1, 7)]
    assert all(item.true is not None for item in seen)
    assert notes.count("all 6 slices together: Dice") == 2
    largest = seen[handlers.find_largest(seen) - 1]
    areas = [item.predictions["steady"].mask.sum() for item in seen]
    assert largest.predictions["steady"].mask.sum() == max(areas)
    assert largest.name in handlers.show_slice(seen, handlers.find_largest(seen))
    for number in (0, 7):
        assert "outline them again" in handlers.show_slice(seen, number)
    assert "outline them again" in handlers.show_slice(None, 1)


def test_bad_slices_of_a_patient_are_named_and_the_others_shown(
    handlers: Handlers, files: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("no image")
    seen, notes = handlers.outline_patient([*files, str(bad)], "steady", NO_SECOND)
    assert len(seen) == 6
    assert "bad.tif: not a TIFF, PNG or JPEG image" in notes
    assert 'role="alert"' in notes


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "There are no slices yet"), (MAX_SLICES + 1, f"at most {MAX_SLICES} at a time")],
)
def test_too_few_or_too_many_slices_get_a_message(
    handlers: Handlers, files: list[str], number: int, message: str
) -> None:
    image = next(name for name in files if "_mask" not in name)
    seen, notes = handlers.outline_patient([image] * number, "steady", NO_SECOND)
    assert not seen
    assert message in notes


def test_too_many_pixels_get_a_message(
    handlers: Handlers, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainseg.demo.handlers.MAX_PIXELS", 3000)
    seen, notes = handlers.outline_patient(files, "steady", NO_SECOND)
    assert not seen
    assert "more than 3,000 pixels together" in notes
