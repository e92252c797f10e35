"""What the demo does, without its page: that one is met in test_browser.py."""

from __future__ import annotations

import base64
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.demo import __main__ as demo
from brainseg.demo.catalog import (
    describe_source,
    find_models,
    newest_study,
    unknown_slices,
    write_patient,
    write_samples,
)
from brainseg.demo.handlers import MAX_SLICES, NO_SECOND, Desk
from brainseg.demo.render import show_alert
from brainseg.errors import CheckpointError, ConfigError
from brainseg.inference.overlay import encode_picture
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.model_file import load_model, save_model

CPU = Compute(device="cpu")


@pytest.fixture(scope="module")
def study(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants whose validation and test scores disagree on which one is better."""
    folder = tmp_path_factory.mktemp("results") / "pair"
    weights, header = load_model(model_file)
    for name, val, test in (("steady", 0.8, 0.1), ("lucky", 0.7, 0.9)):
        metrics = {"val_dice": val, "test_dice_global": test}
        path = folder / "models" / f"{name}.safetensors"
        save_model(path, weights, header.model_copy(update={"metrics": metrics}))
    return folder


@pytest.fixture(scope="module")
def desk(study: Path) -> Desk:
    return Desk(find_models(study), CPU)


@pytest.fixture
def files(data: SliceStore, tmp_path: Path) -> list[str]:
    """The slices and masks of one patient, in no order."""
    return [str(path) for path in write_patient(data, None, tmp_path)][::-1]


def _masks(html: str) -> list[NDArray[np.bool_]]:
    links = re.findall(r'href="data:image/png;base64,([^"]+)"', html)
    raw = [np.frombuffer(base64.b64decode(link), np.uint8) for link in links]
    return [np.asarray(cv2.imdecode(content, -1)) > 0 for content in raw]


def test_the_page_shows_the_masks_of_predict_and_of_the_evaluation(
    desk: Desk, model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    predictor = Predictor.load(model_file, CPU)
    numbers = split_by_patient(data.slices, 0, 44).indices(data.slices, "test").tolist()
    counts, _ = predictor.evaluate(data, "test")
    for number, (tp, fp, fn, _) in zip(numbers, counts.tolist(), strict=True):
        image, mask = tmp_path / "slice.png", tmp_path / "true.png"
        image.write_bytes(encode_picture(data.image(number)))
        mask.write_bytes(encode_picture(data.mask(number) * np.uint8(255)))
        html = desk.outline(str(image), str(mask), "steady", NO_SECOND)
        assert np.array_equal(_masks(html)[0], predictor.masks([data.image(number)])[0])
        for text in (f"found {tp:,}", f"invented {fp:,}", f"missed {fn:,}"):
            assert text in html


def test_two_models_stand_side_by_side(desk: Desk, files: list[str]) -> None:
    image = next(name for name in files if "_mask" not in name)
    html = desk.outline(image, None, "steady", "lucky")
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["steady", "lucky"]
    assert html.count("<img alt=") == 4  # no differences without a true mask
    assert desk.outline(image, None, "steady", "steady").count("<h3>") == 1
    assert "SYNTHETIC" in html


def test_a_patients_slices_come_in_natural_order_with_their_masks(
    desk: Desk, files: list[str]
) -> None:
    seen, notes = desk.outline_patient(files, "steady", "lucky")
    assert [item.name.split("_")[-1] for item in seen] == [f"{n}.tif" for n in range(1, 7)]
    assert all(item.true is not None for item in seen)
    assert notes.count("all 6 slices together: Dice") == 2
    largest = seen[desk.find_largest(seen) - 1]
    areas = [item.predictions["steady"].mask.sum() for item in seen]
    assert largest.predictions["steady"].mask.sum() == max(areas)
    assert largest.name in desk.show_slice(seen, desk.find_largest(seen))
    for number in (0, 7):
        assert "outline them again" in desk.show_slice(seen, number)
    assert "outline them again" in desk.show_slice(None, 1)


def test_bad_slices_of_a_patient_are_named_and_the_others_shown(
    desk: Desk, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.tif").write_text("no image")
    seen, notes = desk.outline_patient([*files, str(tmp_path / "bad.tif")], "steady", NO_SECOND)
    assert len(seen) == 6
    assert "bad.tif: not a TIFF, PNG or JPEG image" in notes
    assert 'role="alert"' in notes


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "There are no slices yet"), (MAX_SLICES + 1, f"at most {MAX_SLICES} at a time")],
)
def test_too_few_or_too_many_slices_get_a_message(
    desk: Desk, files: list[str], number: int, message: str
) -> None:
    image = next(name for name in files if "_mask" not in name)
    seen, notes = desk.outline_patient([image] * number, "steady", NO_SECOND)
    assert not seen
    assert message in notes


def test_too_many_pixels_get_a_message(
    desk: Desk, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainseg.demo.handlers.MAX_PIXELS", 3000)
    seen, notes = desk.outline_patient(files, "steady", NO_SECOND)
    assert not seen
    assert "more than 3,000 pixels together" in notes


def test_messages_cannot_smuggle_html_in(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.tif"
    path.write_text("no image")
    html = desk.outline(str(path), None, "steady", NO_SECOND)
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    assert "&lt;b&gt;" in show_alert(["<b>"])


def test_the_best_model_is_validations_and_the_newest_study_is_taken(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [model.name for model in find_models(study)] == ["steady", "lucky"]
    monkeypatch.chdir(tmp_path)
    assert find_models(None) == []
    for age, name in ((100, "new"), (200, "old")):
        shutil.copytree(study, tmp_path / "results" / name)
        for path in (tmp_path / "results" / name / "models").iterdir():
            stamp = path.stat().st_mtime - age
            os.utime(path, (stamp, stamp))
    (tmp_path / "results" / "empty").mkdir()
    assert newest_study(tmp_path / "results") == tmp_path / "results" / "new"
    assert find_models(None)[0].path.parts[:2] == ("results", "new")


def test_models_are_named_after_their_trial_or_file(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tmp_path / "trials" / "raw-fold0-seed44"
    trial.mkdir(parents=True)
    shutil.copyfile(model_file, trial / "model.safetensors")
    assert [model.name for model in find_models(tmp_path)] == ["raw-fold0-seed44"]
    shutil.copyfile(model_file, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_models(Path("model.safetensors"))[0].name == "model"


def test_a_folder_without_models_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished model"):
        find_models(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot read the model file"):
        find_models(tmp_path / "model.safetensors")


def test_a_card_says_what_the_model_is_and_is_not_for(study: Path) -> None:
    model = find_models(study)[0]
    card = model.describe()
    for text in ("mobilenet_v2", "SYNTHETIC", "0.800 global", "not for clinical use", "CLAHE"):
        assert text in card
    model.path.with_suffix(".md").write_text("## Limits\nthe study's own words")
    assert model.describe().endswith("the study's own words")


def test_examples_are_of_patients_that_the_model_does_not_know(
    model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    header = load_model(model_file)[1]
    unknown = {data.slices[number].patient for number in unknown_slices(data, header)}
    assert unknown == set(split_by_patient(data.slices, 0, 44).test)
    samples = write_samples(data, header, tmp_path)
    assert [sample.label for sample in samples] == [
        *("large tumour", "middling tumour", "small tumour"),
        "no tumour",
    ]
    masks = [cv2.imread(str(sample.mask), -1) for sample in samples]
    sizes = [int(np.count_nonzero(np.asarray(mask))) for mask in masks]
    assert sizes[0] > sizes[1] > sizes[3] == 0
    assert describe_source(data, header) == "Generated phantoms, SYNTHETIC"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_other_machines_need_a_password(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="BRAINSEG_DEMO_PASSWORD"):
        demo.check_host(host, None)
    demo.check_host(host, "secret")
    assert demo.main(["--host", host]) == 2
    assert "shows the page to other machines" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none(host: str) -> None:
    demo.check_host(host, None)


def test_without_gradio_a_sentence_says_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    monkeypatch.delitem(__import__("sys").modules, "brainseg.demo.page", raising=False)
    assert demo.main([str(study), "--device", "cpu"]) == 2
    assert 'pip install "brainseg[demo]"' in capsys.readouterr().err
