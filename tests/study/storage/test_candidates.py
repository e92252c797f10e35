from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stubs import BASE, RANGES, build_search

from brainseg.errors import ConfigError, StudyError
from study.spec.grid import plan_trials
from study.storage.candidates import Candidate, Search, check_search, read_params, write_params
from study.storage.study_folder import Question, check_folder, write_study
from study.storage.tables import TrialFolder

COUNTS = {"patients": 12, "slices": 72, "tumour_slices": 30}
FACTS = {"synthetic": True, "weights": "none", "versions": {}}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return build_search(tmp_path / "space", 20)


def _candidate(search: Search) -> Candidate:
    return search.candidate(7, search.space.baseline("preprocessed-lite0"))


def test_a_candidate_is_its_variant_with_its_parameters(search: Search) -> None:
    params = {**search.space.baseline("preprocessed-lite0"), "preprocess.clip_limit": 5.5}
    candidate = search.candidate(7, params)
    assert (candidate.name, str(candidate.path)) == (
        "candidate-0007",
        "search/candidates/0007",
    )
    changes = {"model.encoder": "timm-tf_efficientnet_lite0", "preprocess.enabled": True}
    expected = BASE.replaced({**changes, "preprocess.clip_limit": 5.5})
    assert search.experiment(params) == expected
    assert candidate.experiment == expected.replaced({"seed": search.training_seed})


@pytest.mark.parametrize("seed", [0, 44, 2**31, 2**32 - 1])
def test_candidates_are_trained_with_a_seed_that_no_trial_has(tmp_path: Path, seed: int) -> None:
    base = BASE.replaced({"seed": seed})
    search = build_search(tmp_path, 5, base=base)
    seeds = {trial.seed for trial in plan_trials("lite", base.replaced({"seed": 0}), 1, 50)}
    assert search.training_seed not in {seed + s for s in seeds}
    assert 0 <= search.training_seed < 2**32


def test_inner_folds_validate_on_other_patients_of_the_same_rotation(search: Search) -> None:
    candidate = replace(_candidate(search), inner_folds=4)
    assert [e.inner_fold for e in candidate.experiments] == [0, 1, 2, 3]
    assert {e.fold for e in candidate.experiments} == {0}
    first = candidate.experiment.replaced({"inner_fold": 7})
    again = replace(candidate, experiment=first).experiments
    assert [e.inner_fold for e in again] == [7, 8, 0, 1]


def test_parameters_survive_on_the_disk(search: Search, tmp_path: Path) -> None:
    drawn = [search.space.baseline(variant) for variant in search.space.variants]
    for number, params in enumerate(drawn):
        write_params(tmp_path, search.candidate(number, params), params)
    assert read_params(tmp_path) == drawn


def test_a_search_is_remembered_whole(search: Search, tmp_path: Path) -> None:
    question = Question("lite", BASE, "", "f" * 64, COUNTS, search=search)
    write_study(tmp_path, question, FACTS)
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["search"]["rungs"] == [3, 12]
    again = Search.of_record(about)
    assert again.to_record() == search.to_record()
    assert again.space.ranges == search.space.ranges


def test_a_search_may_grow_and_nothing_else(search: Search, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    same = Question("lite", BASE, "", "f" * 64, COUNTS, search=search)
    write_study(study, same, FACTS)
    assert check_folder(study, replace(same, search=replace(search, candidates=30)))
    other = build_search(tmp_path / "other", 20, text=RANGES.replace("high: 2.0", "high: 1.5"))
    for changed, words in (
        (replace(search, candidates=10), "search candidates: 20 -> 10, which may only grow"),
        (replace(search, sampler="random"), "search sampler: tpe -> random"),
        (replace(search, scheduler="none"), "search scheduler: asha -> none"),
        (replace(search, folds=2), "search folds: 1 -> 2"),
        (other, "search space augment.strength"),
        (None, "search: 20 candidates -> none"),
    ):
        with pytest.raises(StudyError) as caught:
            check_folder(study, replace(same, search=changed))
        assert words in str(caught.value)


def test_a_search_extends_a_study_that_had_none(search: Search, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    without = Question("lite", BASE, "", "f" * 64, COUNTS)
    write_study(study, without, FACTS)
    assert check_folder(study, replace(without, search=search))


@pytest.mark.parametrize("changes", [{"candidates": 0}, {"folds": 0}, {"folds": 10}])
def test_numbers_out_of_range_are_refused(search: Search, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--search"):
        check_search(replace(search, **changes))  # type: ignore[arg-type]


def test_a_stopped_candidate_keeps_its_history_and_no_checkpoints(
    search: Search, tmp_path: Path
) -> None:
    candidate = _candidate(search)
    folder = TrialFolder(tmp_path / candidate.path)
    folder.path.mkdir(parents=True)
    folder.checkpoints.mkdir()
    folder.write_history([{"step": 1, "seconds": 2.5}, {"step": 2, "seconds": 2.0}])
    folder.write_stopped(candidate, {"epochs": 2})
    row = folder.read()
    assert row is not None
    assert (row["status"], row["epochs"], row["seconds"]) == ("stopped", 2, 4.5)
    assert not folder.checkpoints.exists()
    assert not folder.has_failed()
