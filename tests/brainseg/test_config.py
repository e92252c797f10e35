from __future__ import annotations

from pathlib import Path

import pytest

from brainseg.config import Experiment, differences, load_experiment, parse_changes, valid_keys
from brainseg.errors import ConfigError


def test_yaml_feeds_straight_back(tmp_path: Path) -> None:
    experiment = Experiment().replaced({"data.size": 128, "stages.1.learning_rate": 3e-5})
    (tmp_path / "e.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "e.yaml") == experiment


def test_a_record_written_before_a_key_was_added_differs_in_nothing() -> None:
    record = Experiment().model_dump(mode="json")
    del record["model"]["batchnorm_momentum"]
    theirs = Experiment.model_validate(record)
    assert theirs == Experiment()
    assert differences(Experiment(), theirs) == []
    ours = Experiment().replaced({"model.batchnorm_momentum": 0.1})
    assert differences(ours, theirs) == ["model.batchnorm_momentum: None -> 0.1"]


def test_a_file_keeps_the_defaults_of_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("data:\n  size: 64\n")
    assert load_experiment(tmp_path / "e.yaml") == Experiment().replaced({"data.size": 64})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.sise", 64, "did you mean data.size"),
        ("stages.2.epochs", 1, "unknown key stages.2.epochs"),
        ("data.size", 100, "data.size is 100: expected a multiple of 32"),
        ("model.encoder_weights", "weights.pth", "imagenet, none, or the path"),
        ("stages.0.learning_rate", -1, "expected above 0"),
        ("fold", 10, "fold is 10"),
        ("augment.strength", 2.5, "expected at most 2"),
        ("data", 3, "data is 3"),
        ("stages.-1.epochs", 3, "unknown key stages.-1.epochs"),
        ("augment.elastic_sigma", 0.5, "expected at least 1"),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        Experiment().replaced({key: value})


def test_rules_about_several_keys_name_them() -> None:
    with pytest.raises(ConfigError, match=r"stages\.0\.epochs and stages\.1\.epochs"):
        Experiment().replaced({"stages.0.epochs": 0, "stages.1.epochs": 0})
    with pytest.raises(
        ConfigError, match="dice_weight, bce_weight, focal_weight and tversky_weight"
    ):
        Experiment().replaced({"loss.dice_weight": 0, "loss.bce_weight": 0})


def test_an_unknown_key_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment().replaced({"nonsense": 1})
    assert all(key in str(caught.value) for key in valid_keys())
    assert "stages.0.epochs" in valid_keys()


def test_an_unknown_key_in_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("data:\n  colour: 1\n")
    with pytest.raises(ConfigError, match=r"e\.yaml: unknown key data\.colour"):
        load_experiment(tmp_path / "e.yaml")


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", ""])
def test_a_file_that_is_no_mapping_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"e\.yaml"):
        load_experiment(tmp_path / "e.yaml")


def test_changes_are_yaml_values() -> None:
    changes = parse_changes(
        ["data.size=128", "preprocess.filters=[median, clahe]", "stages.1.epochs=0"]
    )
    assert changes == {
        "data.size": 128,
        "preprocess.filters": ["median", "clahe"],
        "stages.1.epochs": 0,
    }
    assert Experiment().replaced(parse_changes(["stages.0.learning_rate=1e-3"])).stages[
        0
    ].learning_rate == pytest.approx(1e-3)


def test_a_change_without_a_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_changes(["data.size"])


def test_null_weights_are_none() -> None:
    changes = parse_changes(["model.encoder_weights=null"])
    assert Experiment().replaced(changes).model.encoder_weights == "none"


def test_differences_name_key_and_both_values() -> None:
    ours = Experiment().replaced({"stages.0.epochs": 7})
    assert differences(ours, Experiment()) == ["stages.0.epochs: 5 -> 7"]


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().seed = 3  # type: ignore[misc]
