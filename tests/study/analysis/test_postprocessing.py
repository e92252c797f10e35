from __future__ import annotations

import pytest

from study.analysis.postprocessing import PostprocessingEffect, compare_postprocessing


def _rows(
    stage: str, seed: str, part: str, dice: dict[str, float], fold: str = "0", setting: str = ""
) -> list[dict[str, str]]:
    head = {"variant": "a", "fold": fold, "seed": seed, "stage": stage, "setting": setting}
    return [
        {**head, "part": part, "patient": patient, "Dice": str(value)}
        for patient, value in dice.items()
    ]


WITHOUT = [
    *_rows("plain", "44", "val", {"v1": 0.5, "v2": 0.7}),
    *_rows("plain", "44", "test", {"t1": 0.6, "t2": 0.8}),
    *_rows("plain", "45", "val", {"v1": 0.6, "v2": 0.6}),
    *_rows("plain", "45", "test", {"t1": 0.4, "t2": 0.6}),
]


def _one(rows: list[dict[str, str]]) -> PostprocessingEffect:
    (effect,) = compare_postprocessing(rows)
    return effect


def test_a_step_counts_only_where_validation_chose_it() -> None:
    rows = [
        *WITHOUT,
        *_rows("flips", "44", "val", {"v1": 0.6, "v2": 0.7}),  # + 0.05: chosen
        *_rows("flips", "44", "test", {"t1": 0.5, "t2": 0.8}),  # - 0.1, 0
        *_rows("flips", "45", "val", {"v1": 0.6, "v2": 0.5}),  # - 0.05: not chosen
        *_rows("flips", "45", "test", {"t1": 0.7, "t2": 0.8}),  # + 0.3, + 0.2
    ]
    effect = _one(rows)
    assert (effect.num_trials, effect.num_chosen) == (2, 1)
    assert effect.val_difference == pytest.approx(0)
    assert effect.always.point == pytest.approx(((-0.1 + 0.3) / 2 + (0 + 0.2) / 2) / 2)
    assert effect.as_chosen.point == pytest.approx(((-0.1 + 0) / 2 + 0) / 2)


def test_the_test_part_does_not_choose_a_step() -> None:
    rows = [
        *WITHOUT,
        *_rows("flips", "44", "val", {"v1": 0.5, "v2": 0.7}),  # no better on validation
        *_rows("flips", "44", "test", {"t1": 1.0, "t2": 1.0}),
    ]
    effect = _one(rows)
    assert effect.num_chosen == 0
    assert effect.as_chosen.point == 0
    assert effect.always.point == pytest.approx(0.3)


def test_an_ensemble_is_compared_with_the_mean_of_its_members() -> None:
    rows = [
        *WITHOUT,
        *_rows("ensemble", "all", "val", {"v1": 0.6, "v2": 0.7}, setting="2 seeds"),
        *_rows("ensemble", "all", "test", {"t1": 0.6, "t2": 0.9}, setting="2 seeds"),
    ]
    effect = _one(rows)
    assert effect.val_difference == pytest.approx((0.05 + 0.05) / 2)
    assert effect.always.point == pytest.approx((0.1 + 0.2) / 2)
    assert (effect.settings, effect.num_trials, effect.num_chosen) == ("2 seeds", 1, 1)


def test_settings_are_given_from_lowest_to_highest() -> None:
    rows = list(WITHOUT)
    for seed, setting in (("44", "0.65"), ("45", "0.40")):
        rows += _rows("threshold", seed, "val", {"v1": 0.6, "v2": 0.7}, setting=setting)
        rows += _rows("threshold", seed, "test", {"t1": 0.6, "t2": 0.7}, setting=setting)
    assert _one(rows).settings == "0.40 to 0.65"


def test_a_study_without_evaluated_steps_has_no_effects() -> None:
    assert compare_postprocessing([]) == []
    assert compare_postprocessing(WITHOUT) == []


def test_steps_are_listed_one_by_one_in_the_order_of_the_rows() -> None:
    def of(variant: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{**row, "variant": variant} for row in rows]

    steps = [
        *_rows("threshold", "44", "val", {"v1": 0.6}),
        *_rows("threshold", "44", "test", {"t1": 0.6}),
        *_rows("flips", "44", "val", {"v1": 0.6}),
        *_rows("flips", "44", "test", {"t1": 0.6}),
    ]
    effects = compare_postprocessing([*of("b", WITHOUT + steps), *of("a", WITHOUT + steps)])
    assert [(effect.step, effect.variant) for effect in effects] == [
        ("threshold", "b"),
        ("threshold", "a"),
        ("flips", "b"),
        ("flips", "a"),
    ]
