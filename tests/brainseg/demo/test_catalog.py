from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.data.split import split_by_patient
from brainseg.demo.catalog import (
    find_models,
    newest_study,
    unseen_slices,
    write_examples,
)
from brainseg.errors import CheckpointError
from brainseg.model.model_file import load_model, save_model


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


def test_validation_ranks_models_and_the_newest_study_is_the_default(
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


def test_a_card_describes_the_model_and_its_limits(study: Path) -> None:
    model = find_models(study)[0]
    card = model.describe()
    for text in ("mobilenet_v2", "SYNTHETIC", "0.800 global", "not for clinical use", "CLAHE"):
        assert text in card
    model.path.with_suffix(".md").write_text("## Limits\nthe study's own words")
    assert model.describe().endswith("the study's own words")


def test_examples_are_of_patients_that_the_model_was_not_trained_on(
    model_file: Path, data: SliceStore, tmp_path: Path
) -> None:
    header = load_model(model_file)[1]
    unknown = {data.slices[number].patient for number in unseen_slices(data, header)}
    assert unknown == set(split_by_patient(data.slices, 0, 44).test)
    examples = write_examples(data, header, tmp_path)
    assert [sample.label for sample in examples.slices] == [
        *("large tumour", "medium tumour", "small tumour"),
        "no tumour",
    ]
    masks = [cv2.imread(str(sample.mask), -1) for sample in examples.slices]
    sizes = [int(np.count_nonzero(np.asarray(mask))) for mask in masks]
    assert sizes[0] > sizes[1] > sizes[3] == 0
    assert examples.about == "Generated phantoms, SYNTHETIC"
    assert len(examples.patient) == 12


@pytest.mark.parametrize(("channels", "count"), [(1, 4), (4, 4), (2, 0)])
def test_slices_of_other_channels_are_examples_if_a_file_can_hold_them(
    model_file: Path, tmp_path: Path, channels: int, count: int
) -> None:
    rng = np.random.default_rng(0)
    names = [f"c{number}" for number in range(channels)]
    for patient in range(12):
        for number in range(2):
            own = tmp_path / "data" / f"p{patient:02}"
            own.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((32, 32), np.uint8)
            mask[4 : 8 + patient, 8:20] = 255 * number
            cv2.imwrite(str(own / f"{number}_mask.png"), mask)
            for name in names:
                image = rng.integers(0, 255, (32, 32), np.uint8)
                cv2.imwrite(str(own / f"{number}_{name}.png"), image)
    images = ", ".join(f"{name}: '{{patient}}/{{name}}_{name}.png'" for name in names)
    text = f"images: {{{images}}}\nmasks: '{{patient}}/{{name}}_mask.png'\n"
    (tmp_path / "data" / "dataset.yaml").write_text(text)
    data = open_dataset(tmp_path / "data")
    header = load_model(model_file)[1]
    foreign = write_examples(data, header, tmp_path / "none")
    assert not foreign.slices
    assert not foreign.patient
    assert re.match(
        r"None: .* the channels c0.*, not those of the model\. .*--data", foreign.about
    )
    header = header.model_copy(update={"channels": data.channels})
    examples = write_examples(data, header, tmp_path / "examples")
    assert len(examples.slices) == len({sample.image for sample in examples.slices}) == count
    for sample in examples.slices:
        found = cv2.imread(str(sample.image), cv2.IMREAD_UNCHANGED)
        assert found is not None
        assert found.reshape(32, 32, -1).shape[2] == channels
