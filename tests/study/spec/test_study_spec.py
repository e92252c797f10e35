from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from stubs import BASE, RANGES, build_search

from brainseg.config import Experiment
from study.spec.grid import load_grid, parse_winner
from study.spec.study_spec import StudySpec

SPEC = StudySpec(
    grid="lite",
    variants=load_grid("lite").variants,
    experiment=Experiment(),
    fingerprint="f" * 64,
    seeds=2,
)


def _with(**changes: Any) -> StudySpec:
    return SPEC.model_copy(update=changes)


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return build_search(tmp_path / "space", 20)


def test_all_variants_of_a_fold_and_seed_come_before_the_next() -> None:
    jobs = _with(folds=2).jobs()
    cells = [(job.variant, job.fold, job.seed) for job in jobs]
    assert cells[:2] == [("raw-lite0", 0, 44), ("preprocessed-lite0", 0, 44)]
    assert len(set(cells)) == len(cells) == 8
    assert all(j.experiment.fold == j.fold and j.experiment.seed == j.seed for j in jobs)


def test_variants_differ_from_the_base_in_their_own_keys_alone() -> None:
    base = Experiment().replaced({"data.size": 128})
    spec = StudySpec(grid="baseline", variants=load_grid("baseline").variants, experiment=base)
    for job in spec.jobs():
        assert job.experiment == base.replaced(load_grid("baseline").variants[job.variant])


@pytest.mark.parametrize("changes", [{"folds": 0}, {"folds": 11}, {"seeds": 0}])
def test_numbers_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        StudySpec(grid="lite", variants={}, experiment=Experiment(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"candidates": 0}, {"folds": 0}, {"folds": 10}])
def test_numbers_of_a_search_out_of_range_are_refused(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        build_search(tmp_path, **{"candidates": 1, **changes})  # type: ignore[arg-type]


def test_a_candidate_is_its_variant_with_its_parameters(spec: StudySpec) -> None:
    params = {
        **spec.search_space.baseline("preprocessed-lite0"),
        "preprocess.clip_limit": 5.5,
    }
    job = spec.candidate(7, params)
    assert (job.name, str(job.path)) == ("candidate-0007", "search/candidates/0007")
    changes = {
        "model.encoder": "tu-tf_efficientnet_lite0",
        "preprocess.filters": ["median", "clahe"],
    }
    expected = BASE.replaced({**changes, "preprocess.clip_limit": 5.5})
    assert job.experiment == expected.replaced({"seed": spec.training_seed})
    (retrained,) = spec.retrained(7, params)
    assert retrained.name == "winner-c0007-fold0-seed44"
    assert retrained.experiment == expected


@pytest.mark.parametrize("seed", [0, 44, 2**31, 2**32 - 1])
def test_candidates_are_trained_with_a_seed_that_no_trial_has(tmp_path: Path, seed: int) -> None:
    spec = build_search(tmp_path, 5, base=BASE.replaced({"seed": seed}))
    assert spec.training_seed not in range(seed, seed + 100)
    assert 0 <= spec.training_seed < 2**32


def test_a_spec_is_read_back_from_its_record(spec: StudySpec) -> None:
    record = json.loads(json.dumps(spec.to_record()))
    assert record["search"]["rungs"] == [3, 12]
    again = StudySpec.model_validate({**record, "name": "a field of study.json beside the spec"})
    assert again == spec
    assert again.to_record() == spec.to_record()
    assert again.search_space.ranges == spec.search_space.ranges


def test_a_study_begun_before_a_key_was_added_is_the_same_study() -> None:
    record = SPEC.to_record()
    del record["experiment"]["model"]["batchnorm_momentum"]
    before = StudySpec.model_validate(record)
    assert before.differences(SPEC) == []
    other = _with(experiment=SPEC.experiment.replaced({"model.batchnorm_momentum": 0.1}))
    assert before.differences(other) == ["model.batchnorm_momentum: None -> 0.1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 3, "seeds": 4, "data": "elsewhere"}, None),
        ({"seeds": 1}, "seeds: 2 -> 1, which may only grow"),
        ({"fingerprint": "0" * 64}, "fingerprint: ffffffffffff... -> 000000000000..."),
        ({"patients": 7}, "patients: 0 -> 7"),
        ({"experiment": Experiment().replaced({"data.size": 128})}, "data.size: 256 -> 128"),
        ({"grid": "one"}, "grid: lite -> one"),
        ({"variants": {}}, "is gone"),
        ({"variants": {**SPEC.variants, "more": {"threshold": 0.4}}}, None),
        ({"variants": dict(reversed(SPEC.variants.items()))}, None),
    ],
)
def test_what_differs_is_named_and_what_may_grow_is_not(
    changes: dict[str, Any], words: str | None
) -> None:
    found = SPEC.differences(_with(**changes))
    assert all(words is not None and words in line for line in found)
    assert bool(found) == bool(words)


def test_a_variant_neither_changes_nor_joins_a_search_that_chose_without_it(
    spec: StudySpec,
) -> None:
    first = next(iter(SPEC.variants))
    changed = _with(variants={**SPEC.variants, first: {"threshold": 0.4}})
    (line,) = SPEC.differences(changed)
    assert line.startswith(f"variant {first}: ")
    assert line.endswith('-> {"threshold": 0.4}')
    more = spec.model_copy(update={"variants": {**spec.variants, "more": {"threshold": 0.4}}})
    assert spec.differences(more) == ["variant more is new, and the search chose without it"]
    swapped = dict(reversed(spec.variants.items()))
    (line,) = spec.differences(spec.model_copy(update={"variants": swapped}))
    assert line == f"the search draws among variants in this order: {', '.join(spec.variants)}"
    assert SPEC.differences(_with(variants=dict(reversed(SPEC.variants.items())))) == []


def test_files_of_a_study_may_be_added_and_not_change() -> None:
    assert SPEC.differences(_with(files={"mine.py": "1"})) == []
    assert _with(files={"mine.py": "1"}).differences(_with(files={"mine.py": "2"})) == [
        "files: mine.py is not the same"
    ]


def test_the_same_weights_elsewhere_are_the_same_study() -> None:
    here, there = (
        _with(
            experiment=SPEC.experiment.replaced({"model.encoder_weights": path}),
            weight_files={path: "abc"},
        )
        for path in ("/a/w.safetensors", "/b/w.safetensors")
    )
    assert here.differences(there) == []
    other = {"weight_files": {"/b/w.safetensors": "d"}}
    key, *lines = here.differences(there.model_copy(update=other))
    assert key.startswith("model.encoder_weights")
    told = [f"variant {n}: the weights of its encoder are not the same" for n in SPEC.variants]
    assert lines == told
    changed = {"weight_files": {"/a/w.safetensors": "d"}}
    assert here.differences(here.model_copy(update=changed)) == told
    old = here.model_dump(mode="json", exclude={"weight_files"}) | {"weights_hash": "abc"}
    assert StudySpec.model_validate(old) == here


def test_the_weights_of_each_variant_may_be_elsewhere_if_all_are_the_same() -> None:
    encoders = {"a": "mobilenet_v2", "b": "resnet18"}
    own = {"c": {"model.encoder": "resnet34", "model.encoder_weights": "none"}}

    def study(folder: str, **digests: str) -> StudySpec:
        path = f"{folder}/{{encoder}}.safetensors"
        return _with(
            experiment=SPEC.experiment.replaced({"model.encoder_weights": path}),
            variants={name: {"model.encoder": encoder} for name, encoder in encoders.items()}
            | own,
            weight_files={f"{folder}/{encoders[n]}.safetensors": d for n, d in digests.items()},
        )

    here, swapped = study("/x", a="1", b="2"), study("/x", a="2", b="1")
    assert here.differences(swapped) == [
        "variant a: the weights of its encoder are not the same",
        "variant b: the weights of its encoder are not the same",
    ]
    added = {"d": {"model.encoder": "resnet18", "model.encoder_weights": "/old.safetensors"}}
    moved = study("/x", a="3", b="2").model_dump() | {"variants": {**here.variants, **added}}
    moved["weight_files"] |= {"/old.safetensors": "1"}
    assert here.differences(StudySpec.model_validate(moved)) == [
        "variant a: the weights of its encoder are not the same"
    ]
    assert [job.weights_hash for job in here.jobs()[:3]] == ["1", "2", ""]
    assert here.differences(study("/y", a="1", b="2")) == []
    assert here.differences(study("/y", a="1", b="3")) != []


def test_a_search_may_grow_and_nothing_else(spec: StudySpec, tmp_path: Path) -> None:
    def ask(candidates: int = 20, text: str = RANGES, **options: Any) -> StudySpec:
        return build_search(tmp_path / "space", candidates, text=text, **options)

    assert spec.differences(ask(30)) == []
    without = spec.model_copy(update={"search": None})
    assert without.differences(spec) == []
    for changed, words in (
        (ask(10), "search candidates: 20 -> 10, which may only grow"),
        (ask(sampler="random"), "search sampler: tpe -> random"),
        (ask(scheduler="none"), "search scheduler: asha -> none"),
        (ask(folds=2), "search folds: 1 -> 2"),
        (ask(seeds=2), "search seeds: 1 -> 2"),
        (ask(per="variant"), "search per:  -> variant"),
        (ask(text=RANGES.replace("high: 2.0", "high: 1.5")), "search space augment.strength: "),
        (ask(warm_start="x", starts=({"variant": "raw-lite0"},)), "search warm_start: 0 of none"),
        (without, "search: 20 candidates -> none"),
    ):
        (line,) = spec.differences(changed)
        assert line.startswith(words)


def test_each_variant_or_level_can_have_a_search_of_its_own(spec: StudySpec) -> None:
    assert spec.search is not None
    assert spec.searches == [spec]
    for per, groups in (
        ("variant", {name: [name] for name in spec.variants}),
        ("filters", {"none": ["raw-lite0"], "both": ["preprocessed-lite0"]}),
    ):
        factors = {"raw-lite0": {"filters": "none"}, "preprocessed-lite0": {"filters": "both"}}
        search = spec.search.model_copy(update={"per": per})
        own = spec.model_copy(update={"search": search, "factors": factors})
        assert {s.search.group: list(s.variants) for s in own.searches if s.search} == groups
        read = StudySpec.model_validate(own.to_record())
        assert read.searches == own.searches
        assert own.differences(read) == []
    starts = tuple({"variant": name} for name in spec.variants)
    warm = own.model_copy(update={"search": search.model_copy(update={"starts": starts})})
    assert [s.search.starts for s in warm.searches if s.search] == [(start,) for start in starts]
    raw, preprocessed = own.searches
    params = raw.search_space.baseline("raw-lite0")
    assert "preprocess.clip_limit" not in params
    job = raw.candidate(3, params)
    assert (job.name, str(job.path)) == ("none-candidate-0003", "search/none/candidates/0003")
    assert job.experiment == spec.candidate(3, params).experiment
    assert {job.variant for job in raw.retrained(3, params)} == {"winner-none-c0003"}
    assert parse_winner("winner-none-c0003") == ("none", 3)
    assert parse_winner("winner-c0003") == ("", 3)
    assert parse_winner("winner-c1-c0003") == ("c1", 3)
    assert parse_winner("raw-lite0") is None
    assert len(preprocessed.variants) == 1


def test_a_candidate_can_be_trained_with_several_seeds_on_several_folds(
    spec: StudySpec,
) -> None:
    assert spec.search is not None
    several = spec.search.model_copy(update={"folds": 2, "seeds": 3})
    spec = spec.model_copy(update={"search": several})
    job = spec.candidate(0, spec.search_space.baseline("raw-lite0"))
    first = spec.training_seed
    cells = [(item.inner_fold, item.seed) for item in job.experiments]
    assert cells == [(fold, first + seed) for seed in range(3) for fold in spec.inner_folds]
    assert several.trainings == 6
