"""Model cards describe the exported models and their limits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from brainseg.config import load_experiment
from brainseg.storage.files import read_csv, write_csv
from study.report.model_cards import write_model_cards
from study.report.results import read_results


def _cards(study: Path, changes: dict[str, Any], **about: Any) -> tuple[str, str]:
    """Return the cards of a variant with these keys, and of the one without."""
    record = json.loads((study / "study.json").read_text())
    record["variants"]["preprocessed-lite0"] |= changes
    (study / "study.json").write_text(json.dumps(record | about))
    for path in (study / "trials").glob("preprocessed-lite0-*/experiment.yaml"):
        path.write_text(load_experiment(path).replaced(changes).to_yaml())
    write_model_cards(read_results(study))
    names = ("preprocessed-lite0", "raw-lite0")
    first, second = ((study / "models" / f"{n}.md").read_text(encoding="utf-8") for n in names)
    return first, second


def test_a_card_says_what_limits_the_model(generated: Path) -> None:
    text = (generated / "models" / "raw-resnet50.md").read_text(encoding="utf-8")
    for words in (
        "Not for clinical use",
        "Weakest group by site:",
        "False alarms on",
        "Calibration error",
        "| Dice/patient | 0.",
        "14 train, 4 val, 2 test patients",
        'Predictor.load("raw-resnet50.safetensors")',
    ):
        assert words in text


def test_a_card_of_a_users_own_code_says_that_it_runs_it(small: Path) -> None:
    own = {"model.architecture": "./mine.py:build", "preprocess.filters": ["./mine.py:sharpen"]}
    changed, plain = _cards(small, own, files={"./mine.py:build": "0" * 64})
    assert "# allow_code=True runs ./mine.py:sharpen, ./mine.py:build: give it only" in changed
    assert '"preprocessed-lite0.safetensors", allow_code=True)' in changed
    assert "allow_code" not in plain


def test_a_card_describes_the_exported_model(generated: Path) -> None:
    model = (generated / "models" / "raw-resnet50.safetensors").read_text()
    fold, seed = re.findall(r"\d+", model.removeprefix("raw-resnet50"))
    text = (generated / "models" / "raw-resnet50.md").read_text(encoding="utf-8")
    assert f"fold {fold}, seed {seed}," in text


@pytest.mark.parametrize(
    "changes",
    [
        {"data.context": 1},
        {"preprocess.intensities": "zscore"},
        {"preprocess.crop": "brain"},
        {"largest_component": "volume"},
    ],
    ids=str,
)
def test_a_card_says_that_a_model_needs_volumes(changes: dict[str, Any], small: Path) -> None:
    volumes, slices = _cards(small, changes)
    assert "needs all slices of a patient" in volumes
    assert ".masks(images, patients=patients)" in volumes
    assert "does not see volumes" not in volumes
    assert "does not see volumes" in slices
    assert ".masks(images)" in slices


def test_a_card_has_its_own_variants_size_and_channels(small: Path) -> None:
    rows = read_csv(small / "trials.csv")
    own = [r | {"size": "96"} if r["variant"] == "preprocessed-lite0" else r for r in rows]
    write_csv(small / "trials.csv", own)
    changes = {"data.size": 96, "data.channels": ["FLAIR"], "data.context": 2}
    card, other = _cards(small, changes | {"data.context_channels": ["FLAIR"]})
    assert "resized to 96 px" in card
    assert "patients · 96 px ·" in card
    assert "256 px" not in card
    assert "sees only these channels, in this order: FLAIR." in card
    assert "on each side that the network sees too: 2." in card
    assert "patients · 256 px ·" in other
    assert "sees only" not in other


def test_a_card_calls_tumour_a_flair_abnormality_only_where_that_is_known(small: Path) -> None:
    assert "tumour (FLAIR abnormality)" in _cards(small, {})[0]
    card, _ = _cards(small, {}, channels=["T1", "T2"])
    assert "FLAIR" not in card
    assert "tumour (as the dataset outlines it)" in card


def test_a_card_of_a_trial_without_its_experiment_takes_that_of_study_json(small: Path) -> None:
    for path in (small / "trials").glob("*/experiment.yaml"):
        path.unlink()
    card, other = _cards(small, {"data.context": 1})
    assert "needs all slices of a patient" in card
    assert "does not see volumes" in other
