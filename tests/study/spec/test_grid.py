from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matrices import draw_dice, matrix_of

from brainseg.config import Experiment
from brainseg.errors import ConfigError
from study.analysis.comparison import compare
from study.cli import parse_options
from study.run import main
from study.spec.grid import LEAKY, Grid, load_grid, shipped_grids
from study.spec.request import build_spec
from study.spec.search_space import load_space

GRID = """
description: Two factors, and one more.
names: "{rate}_{loss}"
defaults: {folds: 2, seeds: 3}
shared: {stages: {"0": {epochs: 1}}}
factors:
  rate:
    low: {stages.1.learning_rate: 0.0001}
    high: {stages.1.learning_rate: 0.001}
  loss:
    dice: {loss: {dice_weight: 1.0, bce_weight: 0.0}}
    both:
variants:
  sharp: {inherits: high_dice, threshold: 0.4}
  batch: {inherits: sharp, optimizer.batch_size: [4, 8]}
"""


def _read(tmp_path: Path, text: str) -> Grid:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_grid(str(path))


def test_baseline_is_the_published_four_in_the_order_of_the_notebook() -> None:
    grid = load_grid("baseline")
    assert list(grid.variants) == [
        "raw-resnet50",
        "preprocessed-resnet50",
        "raw-efficientnet-b0",
        "preprocessed-efficientnet-b0",
    ]
    assert grid.factors["preprocessed-resnet50"] == {
        "encoder": "resnet50",
        "preprocessing": "preprocessed",
    }
    assert grid.published is not None
    assert grid.published.scores.keys() == grid.variants.keys()


def test_factors_multiply_lists_are_products_and_variants_inherit(tmp_path: Path) -> None:
    grid = _read(tmp_path, GRID)
    assert (grid.name, grid.folds, grid.seeds) == ("mine", 2, 3)
    assert grid.shared == {"stages.0.epochs": 1}
    high_dice = {
        "stages.1.learning_rate": 0.001,
        "loss.dice_weight": 1.0,
        "loss.bce_weight": 0.0,
    }
    assert grid.variants == {
        "low_dice": high_dice | {"stages.1.learning_rate": 0.0001},
        "low_both": {"stages.1.learning_rate": 0.0001},
        "high_dice": high_dice,
        "high_both": {"stages.1.learning_rate": 0.001},
        "sharp": high_dice | {"threshold": 0.4},
        "batch-4": high_dice | {"threshold": 0.4, "optimizer.batch_size": 4},
        "batch-8": high_dice | {"threshold": 0.4, "optimizer.batch_size": 8},
    }
    assert grid.factors["low_both"] == {"rate": "low", "loss": "both"}
    assert grid.factors["batch-8"] == {"optimizer.batch_size": "8"}
    assert "sharp" not in grid.factors


def test_lists_in_two_variants_are_two_factors(tmp_path: Path) -> None:
    """Otherwise what the variants differ in besides would be told as an effect of the lists."""
    text = """
description: Two encoders, each with two batch sizes, of which one is common.
variants:
  a: {model.encoder: resnet18, optimizer.batch_size: [4, 8]}
  b: {model.encoder: resnet50, optimizer.batch_size: [8, 16]}
  c: {threshold: [0.4, 0.6]}
"""
    grid = _read(tmp_path, text)
    assert grid.factors["a-8"] == {"base variant": "a", "optimizer.batch_size": "8"}
    assert grid.factors["b-8"] == {"base variant": "b", "optimizer.batch_size": "8"}
    assert grid.factors["c-0.4"] == {"threshold": "0.4"}
    dice = draw_dice(6, 1, 20)
    dice[2:4] += 0.3  # the encoder of b
    matrix = replace(matrix_of(dice), variants=tuple(grid.variants))
    names = [effect.name for effect in compare(matrix, grid.factors).effects]
    assert names == ["threshold: 0.4 -> 0.6"], "each other one needs a combination that is missing"
    whole = text.replace("[8, 16]", "[4, 8]")
    matrix = replace(matrix, variants=tuple(_read(tmp_path, whole).variants))
    names = [effect.name for effect in compare(matrix, _read(tmp_path, whole).factors).effects]
    assert names == [
        "base variant: a -> b",
        "optimizer.batch_size: 4 -> 8",
        "base variant b x optimizer.batch_size 8",
        "threshold: 0.4 -> 0.6",
    ]


ONE = "description: x\nvariants: {a: {threshold: 0.4}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("description: x\nfctors: {}", "unknown key fctors; did you mean factors?"),
        ("- 1", "holds no keys"),
        ("description: [", "cannot read"),
        ("description: x", "nothing to compare"),
        ("description: x\nvariants: {a: {treshold: 0.4}}", "variant a: unknown key treshold; did"),
        ("description: x\nvariants: {a: {threshold: 4}}", "variant a: threshold is 4"),
        ("description: x\nvariants: {../a: {threshold: 0.4}}", "named '../a'"),
        ("description: x\nvariants: {winner-c1: {threshold: 0.4}}", "names of searches' winners"),
        ("description: x\nvariants: {a: {fold: 3}}", "fold cannot vary in a grid"),
        ("description: x\nvariants: {a: {stopping.patience: 3}}", "put it under shared"),
        ("description: x\nvariants: {a: {data.spacing_mm: 0.5}}", "put it under shared"),
        ("description: x\nvariants: {a: {data.split_seed: 3}}", "put it under shared"),
        ("description: x\nvariants: {a: {optimizer.batch_size: []}}", "is an empty list"),
        ("description: x\nvariants: {a: {inherits: b}}", "inherits from b"),
        ("description: x\nfactors: {f: {a: {threshold: 0.4}}}", "has 1 level"),
        (
            "description: x\nfactors: {f: {a: , b: {threshold: 0.4}}, g: {c: , d: "
            "{threshold: 0.3}}}",
            "factor g sets threshold, as another factor does",
        ),
        ("description: x\nnames: a\nfactors: {f: {a: , b: {threshold: 0.4}}}", "lacks {f}"),
        ("description: x\ndefaults: {folds: 11}\nvariants: {a: }", "defaults.folds"),
        (ONE + "search: {per: variant}", "search.candidates"),
        (ONE + "search: {candidates: 4, sampler: best}", "search.sampler"),
        (ONE + "search: {candidates: 4, per: encoder}", "per is encoder; it must be variant"),
        (
            "description: x\nsearch: {candidates: 4, per: f}\n"
            "factors: {f: {a: , b: {threshold: 0.4}}}\nvariants: {c: {threshold: 0.3}}",
            "the variant c has no level of it",
        ),
        (
            "description: x\nsearch: {candidates: 4, per: f}\n"
            "factors: {f: {a: , candidates: {threshold: 0.4}}}",
            "named candidates cannot have a search of its own",
        ),
        (ONE + "published: nothing", "published is nothing, which is unknown"),
        (ONE + "published: ../x", "published is ../x, which is unknown"),
        (
            "description: x\nvariants: {a: {optimizer.batch_size: "
            + str(list(range(2, 1100)))
            + "}}",
            "more than 1,000 variants",
        ),
    ],
)
def test_a_faulty_grid_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        _read(tmp_path, text)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "--set" not in str(error.value)


def test_the_text_of_a_users_own_file_is_kept(tmp_path: Path) -> None:
    text = "description: x  # why\nvariants: {a: {}, b: {threshold: 0.4}}\n"
    (tmp_path / "own.yaml").write_text(text)
    assert load_grid(str(tmp_path / "own.yaml")).text == text
    assert load_grid("lite").text == ""


def test_a_choice_names_variants_of_the_grid(tmp_path: Path) -> None:
    text = (
        "description: x\nvariants: {a: {threshold: 0.4}}\nchosen_on: {variants: [b], judged: [p]}"
    )
    with pytest.raises(
        ConfigError, match="chosen_on names b, which is not a variant; these are: a"
    ):
        _read(tmp_path, text)
    found = _read(tmp_path, text.replace("[b]", "[a]")).chosen_on
    assert found is not None
    assert (found.judged, found.trained) == (("p",), ())


def test_two_names_for_one_experiment_are_refused(tmp_path: Path) -> None:
    grid = _read(tmp_path, "description: x\nvariants: {a: , b: {threshold: 0.5}}")
    with pytest.raises(ConfigError, match="a and b are the same experiment"):
        grid.check_variants(Experiment())
    grid.check_variants(Experiment().replaced({"threshold": 0.4}))


def test_variants_that_test_other_patients_are_refused(tmp_path: Path) -> None:
    text = "description: x\nvariants: {a: {threshold: 0.4}, b: {data.split: site}"
    with pytest.raises(ConfigError, match="the splits patient and site"):
        _read(tmp_path, f"{text}}}").check_variants(Experiment())
    leak = f"description: x\nvariants: {{a: {{}}, {LEAKY}a: {{data.split: slice}}}}"
    _read(tmp_path, leak).check_variants(Experiment())
    site = Experiment().replaced({"data.split": "site"})
    load_grid("leak").check_variants(site)  # --split site holds for all honest variants
    decided = "description: x\nvariants: {a: {data.split: patient}}"
    _read(tmp_path, decided).check_variants(Experiment())
    with pytest.raises(ConfigError, match=r"set data\.split to patient, but the study's is site"):
        _read(tmp_path, decided).check_variants(site)
    alone = leak.replace("a: {}, ", "")
    with pytest.raises(ConfigError, match="all variants are leaky"):
        _read(tmp_path, alone).check_variants(Experiment())


def test_an_unknown_name_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "baselin"]) == 2
    assert "did you mean baseline?" in capsys.readouterr().err


def test_the_list_names_every_grid_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    told = capsys.readouterr().out
    for grid in shipped_grids():
        assert grid.name in told
        assert grid.description.split(",")[0] in told


@pytest.mark.parametrize("key", ["model.encoder", "preprocess.filters", "fold"])
def test_keys_that_the_grid_decides_cannot_be_set(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_grid("baseline").refuse_decided({key: "x"})


def test_the_command_line_overrides_the_grids_folds_and_seeds() -> None:
    args = parse_options(["--grid", "lite", "--folds", "3"])
    assert (args.folds, args.seeds) == (3, None)


def test_a_variants_keys_are_checked_over_the_shared_ones(tmp_path: Path) -> None:
    text = "description: x\nshared: {optimizer.schedule: cosine}\nvariants: {a: {%s}}"
    grid = _read(tmp_path, text % "optimizer.warmup_epochs: 1.0")
    assert grid.variants == {"a": {"optimizer.warmup_epochs": 1.0}}
    with pytest.raises(ConfigError, match="needs constant or cosine"):
        _read(tmp_path, text % "optimizer.warmup_epochs: 1.0, optimizer.schedule: plateau")


def test_the_shipped_search_over_recipes_draws_experiments_that_are_valid() -> None:
    import optuna

    grid = load_grid("recipe-search")
    assert grid.search is not None
    assert isinstance(grid.search.space, dict)
    base = Experiment().replaced(grid.shared)
    space = load_space(grid.search.space, grid.variants, base, "recipe-search")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    conditional = {key for key, values in space.ranges.items() if values.when}
    seen = set()
    for _ in range(200):
        trial = study.ask()
        space.suggest(trial)
        space.check(trial.params)
        assert space.experiment(trial.params).stages[0].epochs == 1
        seen |= {frozenset(conditional & trial.params.keys())}
    assert len(seen) == 2 ** len(conditional) == 8
    assert [e.input_channels for e in space.networks()] == [3, 9, 15]


def test_a_grids_search_can_begin_with_the_best_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{GRID}search: {{candidates: 4, warm_start: results/x}}")
    for flags, expected in (([], "results/x"), (["--warm-start", "results/y"], "results/y")):
        args = parse_options(["--grid", str(tmp_path / "mine.yaml"), *flags])
        search = build_spec(args, Experiment()).search
        assert search is not None
        assert (search.warm_start, search.starts) == (expected, ())
