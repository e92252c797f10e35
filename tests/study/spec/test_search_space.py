from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FixedTrial

from brainseg.config import Experiment
from brainseg.errors import ConfigError
from study.spec.grid import load_grid, shipped_grids
from study.spec.search_space import VARIANT, SearchSpace, load_space

NAMES = [grid.name for grid in shipped_grids()]
SEARCH = Path(__file__).parents[3] / "configs" / "search.yaml"
BASE = Experiment()


def _space(tmp_path: Path, text: str, grid: str = "lite", base: Experiment = BASE) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path, load_grid(grid).variants, base)


def _suggest(space: SearchSpace, **params: Any) -> dict[str, Any]:
    """Return the keys in which a drawn candidate differs from the base."""
    trial = FixedTrial(params)
    space.suggest(trial)
    drawn = {key: value for key, value in trial.params.items() if key != VARIANT}
    assert space.experiment(trial.params) == space.base.replaced(
        space.shared(params[VARIANT]) | drawn
    )
    return space.shared(params[VARIANT]) | drawn


@pytest.mark.parametrize("grid", NAMES)
def test_the_shipped_space_holds_the_protocol_and_the_setting_tried_by_hand(grid: str) -> None:
    space = load_space(SEARCH, load_grid(grid).variants, BASE)
    for values in ((1e-4, 1e-5), (1e-3, 5e-4)):
        for stage, value in enumerate(values):
            assert space.ranges[f"stages.{stage}.learning_rate"].holds(value)
    for variant in load_grid(grid).variants:
        assert space.baseline(variant)[VARIANT] == variant


def test_raw_slices_have_no_clip_limit(tmp_path: Path) -> None:
    space = _space(
        tmp_path, "preprocess.clip_limit: {low: 1.0, high: 8.0, when: preprocess.filters=clahe}"
    )
    assert _suggest(space, variant="raw-lite0") == load_grid("lite").variants["raw-lite0"]
    drawn = _suggest(space, variant="preprocessed-lite0", **{"preprocess.clip_limit": 2.5})
    assert drawn["preprocess.clip_limit"] == 2.5
    assert "preprocess.clip_limit" not in space.baseline("raw-lite0")


def test_what_the_grid_decides_is_not_varied_and_the_rest_is(tmp_path: Path) -> None:
    text = (
        "preprocess.clip_limit: {low: 1.0, high: 8.0, when: preprocess.filters=clahe}\n"
        "model.calibrate_encoder: {choices: [true, false]}\n"
        "model.encoder: {choices: [resnet50, resnet18]}\n"
    )
    lite = _space(tmp_path, text)
    assert set(lite.fixed) == {"model.encoder"}
    one = _space(tmp_path, text, grid="one")
    params = {"model.calibrate_encoder": False, "model.encoder": "resnet18"}
    drawn = _suggest(one, variant="configured", **params)
    assert drawn == params
    assert [e.model.encoder for e in one.networks()] == ["resnet50", "resnet18"]


def test_the_networks_are_those_that_can_be_drawn() -> None:
    ranges = {
        "model.architecture": {"choices": ["unet", "fpn"]},
        "model.decoder_attention": {
            "choices": ["none", "scse"],
            "when": "model.architecture=unet",
        },
        "model.encoder": {"choices": ["resnet18", "mobilenet_v2"]},
        "data.context": {"choices": [0, 1], "when": "optimizer.batch_size=8"},
        "optimizer.batch_size": {"choices": [4, 8, 16]},
    }
    variants = {"r50": {"model.encoder": "resnet50"}, "plain": {}}
    base = BASE.replaced({"model.encoder": "resnet18"})
    space = load_space(ranges, variants, base)
    heads = [("unet", "none"), ("unet", "scse"), ("fpn", "none")]
    expected = {
        (encoder, *head, context)
        for encoder in ("resnet50", "resnet18", "mobilenet_v2")
        for head in heads
        for context in (0, 1)
    }
    assert {
        (m.encoder, m.architecture, m.decoder_attention, e.data.context)
        for e in space.networks()
        for m in (e.model,)
    } == expected


def test_a_key_that_one_variant_decides_varies_in_the_others(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("augment.strength: {low: 0.0, high: 2.0}")
    space = load_space(path, {"free": {}, "weak": {"augment.strength": 0.5}}, BASE)
    assert _suggest(space, variant="weak") == {"augment.strength": 0.5}
    assert _suggest(space, variant="free", **{"augment.strength": 1.5})["augment.strength"] == 1.5


def test_an_experiment_is_placed_in_a_space_as_the_candidate_nearest_to_it(
    tmp_path: Path,
) -> None:
    text = (
        "stages.1.learning_rate: {low: 0.00001, high: 0.003, log: true}\n"
        "preprocess.clip_limit: {low: 1.0, high: 8.0, when: preprocess.filters=clahe}\n"
    )
    space = _space(tmp_path, text)
    changes = {"stages.1.learning_rate": 1e-3, "preprocess.clip_limit": 2.0, "threshold": 0.4}
    for variant, own in load_grid("lite").variants.items():
        placed = space.nearest_params(BASE.replaced({**own, **changes}))
        assert placed == {
            "variant": variant,
            "stages.1.learning_rate": 1e-3,
            **({"preprocess.clip_limit": 2.0} if variant == "preprocessed-lite0" else {}),
        }
    lite = load_grid("lite").variants["raw-lite0"]
    with pytest.raises(ConfigError, match=r"learning_rate: found 0\.01; expected"):
        space.nearest_params(BASE.replaced({**lite, "stages.1.learning_rate": 0.01}))
    with pytest.raises(ConfigError, match=r"no variant has model\.encoder resnet50"):
        space.nearest_params(BASE)


def test_a_variant_that_decides_nothing_is_not_the_place_of_another_ones_experiment(
    tmp_path: Path,
) -> None:
    space = _space(tmp_path, "augment.strength: {low: 0.0, high: 2.0}", "inputs")
    for variant, own in load_grid("inputs").variants.items():
        assert space.nearest_params(BASE.replaced(own))["variant"] == variant
    assert load_grid("inputs").variants["raw"] == {}


def test_every_network_that_context_makes_is_found(tmp_path: Path) -> None:
    text = "augment.strength: {low: 0.0, high: 2.0}\ndata.context: {low: 0, high: 2}"
    space = _space(tmp_path, text, "one")
    assert [e.input_channels for e in space.networks()] == [3, 9, 15]


def test_a_warm_up_longer_than_the_candidates_stage_is_refused(tmp_path: Path) -> None:
    text = (
        "stages.0.epochs: {value: 1}\n"
        "optimizer.schedule: {choices: [plateau, cosine]}\n"
        "optimizer.warmup_epochs: {low: 0.0, high: 2.0, when: optimizer.schedule=cosine}"
    )
    with pytest.raises(ConfigError, match=r"warmup_epochs is 2, more than stages\.0\.epochs, 1"):
        _space(tmp_path, text)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    space = _space(tmp_path, "optimizer.batch_size: {low: 8, high: 64, log: true}")
    drawn = _suggest(space, variant="raw-lite0", **{"optimizer.batch_size": 12})
    assert isinstance(drawn["optimizer.batch_size"], int)
    assert BASE.replaced(drawn).optimizer.batch_size == 12


def test_a_value_is_that_of_all_candidates_and_not_of_the_grid(tmp_path: Path) -> None:
    text = "augment.strength: {low: 0.0, high: 2.0}\nstages.0.epochs: {value: 1}"
    space = _space(tmp_path, text)
    drawn = _suggest(space, variant="raw-lite0", **{"augment.strength": 1.5})
    assert drawn == load_grid("lite").variants["raw-lite0"] | {
        "augment.strength": 1.5,
        "stages.0.epochs": 1,
    }
    assert space.stage_epochs() == (1, 16)
    assert space.base.stages[0].epochs == 5
    assert space.baseline("raw-lite0") == {VARIANT: "raw-lite0", "augment.strength": 1.0}
    assert space.record()["stages.0.epochs"].value == 1


def test_values_that_do_not_go_together_are_told_before_the_search(tmp_path: Path) -> None:
    text = "loss.dice_weight: {choices: [0.0, 0.5]}\nloss.bce_weight: {choices: [0.0, 0.5]}"
    with pytest.raises(ConfigError, match=r"cannot be trained .*cannot all be 0.*bce_weight 0\.0"):
        _space(tmp_path, text).check_draws()
    text = (
        "optimizer.schedule: {choices: [plateau, cosine]}\n"
        "optimizer.warmup_epochs: {low: 0.0, high: 2.0}"
    )
    base = BASE.replaced({"optimizer.schedule": "cosine"})
    with pytest.raises(ConfigError, match=r"it needs constant or cosine.*give a key a when"):
        _space(tmp_path, text, base=base).check_draws()
    load_space(SEARCH, load_grid("lite").variants, BASE).check_draws()


def test_a_key_that_may_be_null_is_searched_with_null_among_its_choices(tmp_path: Path) -> None:
    space = _space(tmp_path, "data.tumour_share: {choices: [null, 0.3, 0.6]}")
    assert space.baseline("raw-lite0") == {VARIANT: "raw-lite0", "data.tumour_share": None}
    drawn = _suggest(space, variant="raw-lite0", **{"data.tumour_share": 0.6})
    assert BASE.replaced(drawn).data.tumour_share == 0.6
    assert space.edges("raw-lite0", {"data.tumour_share": 0.6}) == []


def test_a_warm_up_is_searched_where_the_schedule_has_one(tmp_path: Path) -> None:
    text = (
        "optimizer.schedule: {choices: [plateau, cosine]}\n"
        "optimizer.warmup_epochs: {low: 0.0, high: 2.0, when: optimizer.schedule=cosine}"
    )
    space = _space(tmp_path, text)
    cosine = {"optimizer.schedule": "cosine", "optimizer.warmup_epochs": 1.5}
    drawn = _suggest(space, variant="raw-lite0", **cosine)
    assert BASE.replaced(drawn).optimizer.warmup_epochs == 1.5
    drawn = _suggest(space, variant="raw-lite0", **{"optimizer.schedule": "plateau"})
    assert "optimizer.warmup_epochs" not in drawn


def test_the_longest_stages_are_found(tmp_path: Path) -> None:
    text = "stages.0.epochs: {choices: [2, 8, 5]}\nstages.1.epochs: {low: 10, high: 30}"
    assert _space(tmp_path, text).stage_epochs() == (8, 38)
    assert _space(tmp_path, "augment.strength: {low: 0.0, high: 2.0}").stage_epochs() == (5, 20)


@pytest.mark.parametrize(
    ("key", "values", "value", "words"),
    [
        ("stages.1.learning_rate", "{low: 1.0e-5, high: 1.0e-3, log: true}", 1e-3, "high end"),
        ("stages.1.learning_rate", "{low: 1.0e-5, high: 1.0e-3, log: true}", 1.1e-5, "low end"),
        ("stages.1.learning_rate", "{low: 1.0e-5, high: 1.0e-3, log: true}", 1e-4, None),
        ("augment.strength", "{low: 0.0, high: 1.5}", 1.49, "high end"),
        ("augment.strength", "{low: 0.0, high: 1.5}", 0.01, None),  # below 0 there is nothing
        ("optimizer.batch_size", "{choices: [8, 16, 32]}", 32, "high end"),
        ("optimizer.batch_size", "{choices: [16, 8, 32]}", 16, None),
        ("optimizer.batch_size", "{choices: [16, 2]}", 2, None),
    ],
)
def test_a_winner_at_an_edge_says_that_the_range_is_too_narrow(
    tmp_path: Path, key: str, values: str, value: Any, words: str | None
) -> None:
    found = _space(tmp_path, f"{key}: {values}").edges("raw-lite0", {key: value})
    assert [words in sentence for sentence in found if words] == ([True] if words else [])
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("augment.strenght: {low: 0.0, high: 1.0}", "did you mean augment.strength"),
        ("augment.strength: {low: 1.0, high: 1.0}", "low must be below high"),
        ("augment.strength: {low: 0.5, high: 3.0}", "augment.strength is 3.0"),
        ("augment.strength: {low: 0.0, high: 1.0, log: true}", "needs low above 0"),
        ("augment.strength: {low: 0.5}", "needs low and high, or choices"),
        ("augment.strength: {low: 0.5, high: 1.0, choices: [1]}", "or choices, or value"),
        ("augment.strength: {value: 1.0, choices: [1.0, 2.0]}", "or choices, or value"),
        ("augment.strength: {value: 9.0}", "augment.strength is 9.0"),
        ("augment.strength: {value: 1.0}", "nothing that the grid leaves"),
        ("augment.strength: {choices: [1.0, 2.0], log: true}", "or choices, or value"),
        ("augment.strength: {low: 0.5, hihg: 1.0}", "hihg"),
        ("augment.strength: {choices: [1.0]}", "at least two"),
        ("augment.strength: {low: 0.1, high: 0.5}", "own value 1.0 cannot be drawn"),
        ("optimizer.batch_size: {low: 7.5, high: 16}", "whole numbers"),
        ("model.encoder: {low: 1, high: 2}", "give choices"),
        ("seed: {low: 1, high: 9}", "the search sets it"),
        ("data.size: {choices: [64, 128]}", "no longer compare"),
        ("stopping.patience: {choices: [null, 3]}", "it holds for all variants"),
        ("data.spacing_mm: {low: 0.5, high: 1.0}", "it holds for all variants"),
        ("optimizer.warmup_epochs: {low: 0.0, high: 2.0}", "needs constant or cosine"),
        ("augment.strength: {low: 0.5, high: 1.0, when: threshold}", "not true or false"),
        ("augment.strength: {low: 0.5, high: 1.0, when: thresh=1}", "unknown key thresh"),
        ("model.encoder: {choices: [resnet18, resnet50]}", "nothing that the grid leaves"),
        ("- 1", "holds no ranges"),
        ("a: [", "cannot read"),
    ],
)
def test_a_space_that_cannot_be_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"space\.yaml") as caught:
        _space(tmp_path, text)
    assert words in str(caught.value)
