from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from stubs import BASE, Drive, build_search

from brainseg.config import Experiment, load_experiment
from brainseg.errors import DataError
from brainseg.storage.files import read_csv
from study.spec.grid import load_grid
from study.spec.search_space import Range
from study.spec.study_spec import SCORE, StudySpec
from study.storage.leaderboard import (
    candidates_table,
    count_open,
    measure_agreement,
    measure_spent,
    ranked,
    read_leaderboard,
    winner_jobs,
    write_leaderboard,
)
from study.storage.schema import Row
from study.storage.trial_folder import candidate_folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudySpec]:
    folder = tmp_path_factory.mktemp("searched")
    spec = build_search(folder, 16)
    with pytest.MonkeyPatch.context() as patch:
        Drive(spec, folder).run(patch)
    return folder, spec


def test_every_candidate_has_a_row_in_order(searched: tuple[Path, StudySpec]) -> None:
    folder, spec = searched
    rows = read_csv(folder / "candidates.csv")
    assert [int(row["candidate"]) for row in rows] == list(range(16))
    assert list(rows[0]) == list(candidates_table(spec).names)
    assert not any("second" in name for name in rows[0])
    for row in rows:
        epochs = int(row["epochs"])
        assert (row["status"] == "finished") == (epochs == int(row["planned_epochs"]) == 14)
        assert (row[f"{SCORE}@12"] != "") == (epochs >= 12)
        assert (row["preprocess.clip_limit"] == "") == (row["variant"] == "raw-lite0")


def test_only_candidates_run_in_full_are_ranked(searched: tuple[Path, StudySpec]) -> None:
    rows = read_csv(searched[0] / "candidates.csv")
    order = ranked(rows)
    assert {row["status"] for row in order} == {"finished"}
    assert [float(r[SCORE]) for r in order] == sorted(float(r[SCORE]) for r in order)[::-1]
    stopped = [row for row in rows if row["status"] == "stopped"]
    stopped[0][SCORE] = "0.99"
    assert ranked(rows)[0] is order[0]


def test_the_best_are_configurations_that_load_as_they_are(
    searched: tuple[Path, StudySpec],
) -> None:
    folder, spec = searched
    order = ranked(read_csv(folder / "candidates.csv"))
    best = load_experiment(folder / "best.yaml")
    assert best == load_experiment(folder / "search" / "top-1.yaml")
    assert best.seed == BASE.seed
    assert f"candidate {order[0]['candidate']}, val Dice" in (folder / "best.yaml").read_text()
    assert "SYNTHETIC" in (folder / "best.yaml").read_text()
    for rank, row in enumerate(order[:5], 1):
        found = load_experiment(folder / "search" / f"top-{rank}.yaml")
        assert str(found.stages[1].learning_rate) == row["stages.1.learning_rate"]
    assert count_open(folder, spec) == 0


def test_the_winner_and_what_it_changes_are_a_grid_that_a_study_runs(
    searched: tuple[Path, StudySpec],
) -> None:
    folder, spec = searched
    row = ranked(read_csv(folder / "candidates.csv"))[0]
    grid = load_grid(str(folder / "best_grid.yaml"))
    base = Experiment().replaced(grid.shared)
    grid.check_variants(base)
    assert base == spec.experiment
    protocol, winner = (base.replaced(grid.variants[name]) for name in ("protocol", "winner"))
    assert protocol == base.replaced(spec.variants[row["variant"]])
    assert winner == load_experiment(folder / "best.yaml")
    text = (folder / "best_grid.yaml").read_text()
    spent = measure_spent(folder, read_csv(folder / "candidates.csv"))
    for words in (
        f"candidate {row['candidate']} of 16,\n# val Dice {float(row[SCORE]):.4f}",
        f"{spent.epochs} epochs of {spent.epochs_in_full} in full",
        "SYNTHETIC",
    ):
        assert words in text
    (found,) = re.findall(r"SHA-256 of the space: ([0-9a-f]{64})", text)
    search = spec.search
    assert search is not None
    wider = {"augment.strength": Range(low=0, high=3)}
    other = search.model_copy(update={"space": search.space | wider})
    write_leaderboard(folder, spec.model_copy(update={"search": other}), "SYNTHETIC")
    assert found not in (folder / "best_grid.yaml").read_text()
    write_leaderboard(folder, spec, "SYNTHETIC")
    assert (folder / "best_grid.yaml").read_text() == text


def test_the_winner_is_trained_with_all_folds_and_seeds_of_the_study(
    searched: tuple[Path, StudySpec],
) -> None:
    folder, spec = searched
    trials = winner_jobs(folder, spec.model_copy(update={"folds": 2, "seeds": 3}))
    best = ranked(read_csv(folder / "candidates.csv"))[0]
    assert {trial.variant for trial in trials} == {f"winner-c{int(best['candidate']):04d}"}
    assert {(t.fold, t.seed) for t in trials} == {(f, s) for f in (0, 1) for s in (44, 45, 46)}
    assert all(t.experiment.seed == t.seed and t.experiment.fold == t.fold for t in trials)
    assert trials[0].experiment == load_experiment(folder / "best.yaml")


def test_a_former_winners_trials_stay_as_far_as_they_have_ended(
    searched: tuple[Path, StudySpec],
) -> None:
    folder, spec = searched
    former = ranked(read_csv(folder / "candidates.csv"))[1]
    path = folder / "trials" / f"winner-c{int(former['candidate']):04d}-fold0-seed44"
    path.mkdir(parents=True)
    spec = spec.model_copy(update={"seeds": 2})
    assert {job.name for job in winner_jobs(folder, spec)}.isdisjoint({path.name})
    result = {"variant": path.name, "fold": 0, "seed": 44, "status": "failed", "error": "x"}
    (path / "result.json").write_text(json.dumps(result))
    names = [job.name for job in winner_jobs(folder, spec)]
    assert names[0] == path.name
    assert len(names) == 3


def test_a_winner_that_is_a_variant_as_it_is_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_search(tmp_path, 2)
    rows = Drive(spec, tmp_path).run(monkeypatch)
    assert spec.search_space.is_variant(spec.search_space.baseline(ranked(rows)[0]["variant"]))
    assert winner_jobs(tmp_path, spec) == []


def test_a_variant_with_a_shorter_stage_is_another_experiment(tmp_path: Path) -> None:
    text = "augment.strength: {low: 0.0, high: 2.0}\nstages.1.epochs: {value: 9}"
    spec = build_search(tmp_path, 2, text=text)
    assert not spec.search_space.is_variant(spec.search_space.baseline("raw-lite0"))


def test_what_stopping_saved_is_counted(searched: tuple[Path, StudySpec]) -> None:
    folder, spec = searched
    rows = read_csv(folder / "candidates.csv")
    spent = measure_spent(folder, rows)
    assert spent.epochs == sum(int(row["epochs"]) for row in rows)
    diverged = [row for row in rows if row["status"] == "diverged"]
    assert spent.epochs_in_full == 14 * (16 - len(diverged))
    assert spent.seconds == spent.epochs  # each stub epoch says that it took a second
    assert spent.seconds_in_full == pytest.approx(spent.epochs_in_full)
    assert spent.epochs < 0.8 * spent.epochs_in_full
    assert spec.rungs == [3, 12]


def _rows(then: list[float], last: list[float]) -> list[Row]:
    return [
        {"candidate": n, "status": "finished", f"{SCORE}@3": a, SCORE: b}
        for n, (a, b) in enumerate(zip(then, last, strict=True))
    ]


@pytest.mark.parametrize(
    ("last", "spearman", "rank"),
    [([0.1, 0.2, 0.3, 0.4], 1.0, 1), ([0.4, 0.3, 0.2, 0.1], -1.0, 4)],
)
def test_agreement_of_a_rung_with_the_end(last: list[float], spearman: float, rank: int) -> None:
    (found,) = measure_agreement(_rows([0.1, 0.2, 0.3, 0.4], last), [3])
    assert found.spearman == pytest.approx(spearman)
    assert found.kendall == pytest.approx(spearman)
    assert (found.rank, found.candidates) == (rank, 4)


def test_two_candidates_agree_on_nothing() -> None:
    (found,) = measure_agreement(_rows([0.1, 0.2], [0.1, 0.2]), [3])
    assert math.isnan(found.spearman)
    assert measure_agreement([], [3]) == []


def test_a_changed_table_of_candidates_is_named(
    searched: tuple[Path, StudySpec], tmp_path: Path
) -> None:
    folder, spec = searched
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    lines = (copy / "candidates.csv").read_text().splitlines(keepends=True)
    assert [row["candidate"] for row in read_leaderboard(copy, spec)] == [
        str(index) for index in range(len(lines) - 1)
    ]
    for changed, said in (
        ([lines[0], *lines[2:]], "has candidate 1 in the place of 0"),
        ([*lines, lines[-1].replace("15,", "16,", 1)], "has candidate 16 in the place of 16"),
        ([lines[0], lines[1].replace("0,", "0,done,", 1)], "line 2: "),
        ([lines[0].replace("@3", "@4"), *lines[1:]], "no column best_val_dice@3"),
    ):
        (copy / "candidates.csv").write_text("".join(changed))
        with pytest.raises(DataError, match=re.escape(said)):
            read_leaderboard(copy, spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variant": "mine"}, "variant: found 'mine'; expected one of raw-lite0"),
        ({"augment.strength": 9}, "augment.strength: found 9; expected 0 to 2"),
        ({"augment.strength": "much"}, "augment.strength: found 'much'"),
        ({"model.encoder": "vgg"}, "'model.encoder' is not varied for "),
    ],
)
def test_parameters_that_no_search_draws_are_named(
    searched: tuple[Path, StudySpec], change: dict[str, Any], said: str
) -> None:
    folder, spec = searched
    path = candidate_folder(folder, 2).path / "params.json"
    text = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(text) | change))
        for read in (read_leaderboard, winner_jobs):
            with pytest.raises(DataError, match=re.escape(f"{path}, {said}")):
                read(folder, spec)
    finally:
        path.write_text(text)


def test_a_candidate_without_a_result_is_unfinished(searched: tuple[Path, StudySpec]) -> None:
    folder, spec = searched
    path = candidate_folder(folder, 3).path / "result.json"
    text = path.read_text()
    try:
        path.unlink()
        row: dict[str, Any] = write_leaderboard(folder, spec, "SYNTHETIC")[3]
        assert row["status"] == "unfinished"
        assert row[SCORE] == ""
    finally:
        path.write_text(text)
        write_leaderboard(folder, spec, "SYNTHETIC")
