"""The searcher and the scheduler together, with known curves in place of training."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from stubs import BASE, OPTIMUM, RESOURCES, Drive, KilledError, build_search, history_of

from brainseg.errors import DataError
from brainseg.storage.files import read_csv
from study.spec.halving import num_survivors
from study.spec.search_space import SearchSpace
from study.spec.study_spec import SAMPLERS, SCHEDULERS, SCORE
from study.storage.leaderboard import ranked, write_leaderboard
from study.storage.schema import Row
from study.storage.sync import StudySync
from study.storage.trial_folder import candidate_folder
from study.tune.searcher import SeededSampler, open_journal, run_search


def _best(rows: list[Row]) -> float:
    return float(ranked(rows)[0][SCORE])


def _epochs(rows: list[Row]) -> int:
    return sum(int(row["epochs"]) for row in rows)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was left alone."""
    folder = tmp_path_factory.mktemp("search") / "quiet"
    with pytest.MonkeyPatch.context() as patch:
        rows = Drive(build_search(folder, 14), folder).run(patch)
    assert {row["status"] for row in rows} >= {"finished", "stopped"}
    return folder


def _same(one: Path, other: Path) -> bool:
    files = ("candidates.csv", "best.yaml", "search/decisions.csv")
    return history_of(one) == history_of(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def _kill(folder: Path, step: int, candidates: int, patch: pytest.MonkeyPatch) -> bool:
    """Run until killed before a step; return whether it came that far."""
    try:
        Drive(build_search(folder, candidates), folder, step).run(patch)
    except KilledError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.exhaustive
def test_tpe_finds_the_optimum_and_random_does_not_with_as_many_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regret: dict[str, list[float]] = {"tpe": [], "random": []}
    for seed in range(4):
        base = BASE.replaced({"seed": seed})
        for sampler, candidates in (("tpe", 40), ("random", 60)):
            folder = tmp_path / f"{sampler}{seed}"
            spec = build_search(folder, candidates, sampler=sampler, base=base)
            rows = Drive(spec, folder).run(monkeypatch)
            if sampler == "tpe":
                budget = _epochs(rows)
            while _epochs(rows) > budget:
                rows.pop()
            regret[sampler].append(OPTIMUM - _best(rows))
    assert max(regret["tpe"]) < 0.02
    assert fmean(regret["tpe"]) < fmean(regret["random"]) / 2


def test_the_grids_variants_are_the_first_candidates(quiet: Path) -> None:
    first, second = history_of(quiet)[:2]
    assert first[3] == {
        "variant": "raw-lite0",
        "stages.0.learning_rate": 1e-4,
        "stages.1.learning_rate": 1e-5,
        "augment.strength": 1.0,
    }
    assert second[3] == {**first[3], "variant": "preprocessed-lite0", "preprocess.clip_limit": 3.0}


def test_raw_candidates_have_no_clip_limit(quiet: Path) -> None:
    params = [trial[3] for trial in history_of(quiet)]
    assert {p["variant"] for p in params} == {"raw-lite0", "preprocessed-lite0"}
    for p in params:
        assert ("preprocess.clip_limit" in p) == (p["variant"] == "preprocessed-lite0")


def test_optuna_is_told_how_each_candidate_ended(quiet: Path) -> None:
    states = {"finished": "COMPLETE", "stopped": "PRUNED", "diverged": "FAIL"}
    seen = set()
    for number, state, value, _, epochs in history_of(quiet):
        row = candidate_folder(quiet, number).read()
        assert row is not None
        seen.add(row["status"])
        assert state == states[row["status"]]
        assert value == (row[SCORE] if state != "FAIL" else None)
        assert len(epochs) == row["epochs"]
    assert {"finished", "stopped"} <= seen


def test_a_diverged_candidate_is_failed_and_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "stages.1.learning_rate: {low: 0.00001, high: 1.0, log: true}"
    base = BASE.replaced({"augment.strength": 0.0})
    rows = Drive(build_search(tmp_path, 6, text=text, base=base), tmp_path).run(monkeypatch)
    diverged = [row["candidate"] for row in rows if row["status"] == "diverged"]
    assert diverged
    assert all(rows[number][SCORE] == "" for number in diverged)
    told = history_of(tmp_path)
    assert [trial[0] for trial in told if trial[1] == "FAIL"] == diverged
    assert ranked(rows)


@pytest.mark.slow
def test_a_search_killed_anywhere_goes_on_to_the_same_candidates(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 0
    for step in range(1, 400, 53):
        folder = tmp_path / f"killed{step}"
        if not _kill(folder, step, 14, monkeypatch):
            break
        kills += 1
        Drive(build_search(folder, 14), folder).run(monkeypatch)
        assert _same(folder, quiet), f"killed before step {step}"
    assert kills > 3


@pytest.mark.parametrize(
    ("step", "times"),
    [*(("suggest", times) for times in (0, 1, 9)), *(("_draw", times) for times in (1, 3, 30))],
)
def test_a_search_killed_before_or_while_it_draws_goes_on_to_the_same_candidates(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch, step: str, times: int
) -> None:
    whole, left = getattr(SearchSpace, step), iter(range(times))

    def fail_late(*args: Any) -> Any:
        if next(left, None) is None:
            raise KilledError
        return whole(*args)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(SearchSpace, step, fail_late)
        Drive(build_search(tmp_path, 14), tmp_path).run(patch)
    (drawn,) = [trial[3] for trial in history_of(tmp_path) if trial[1] == "RUNNING"]
    assert bool(drawn) == (step == "_draw")
    rows = Drive(build_search(tmp_path, 14), tmp_path).run(monkeypatch)
    assert len(rows) == 14
    assert _same(tmp_path, quiet)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_search_killed_again_and_again_goes_on_to_the_same_candidates(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kills = tmp_path / "killed", 0
    # At least 32 steps: a candidate's 14 epochs are told again, before it can come any further.
    while _kill(folder, 33 + 5 * kills % 13, 14, monkeypatch):
        kills += 1
    assert kills > 3
    assert _same(folder, quiet)


def test_another_seed_is_noticed(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "other"
    spec = build_search(folder, 14, base=BASE.replaced({"seed": 45}))
    Drive(spec, folder).run(monkeypatch)
    assert not _same(folder, quiet)


def test_forgotten_rungs_are_noticed(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the decisions of before, others would be stopped: the memory is needed."""
    folder = tmp_path / "forgetful"
    assert _kill(folder, 120, 14, monkeypatch)
    (folder / "search" / "decisions.csv").unlink()
    Drive(build_search(folder, 14), folder).run(monkeypatch)
    assert not _same(folder, quiet)


def test_a_larger_number_extends_a_search(
    tmp_path: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "extended"
    for candidates in (1, 5, 14):
        rows = Drive(build_search(folder, candidates), folder).run(monkeypatch)
        assert len(rows) == candidates
        assert all(row["status"] != "unfinished" for row in rows)
    assert _same(folder, quiet)


def test_a_pipe_in_place_of_the_journal_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.log")
    with pytest.raises(DataError, match=r"journal\.log is a pipe"):
        open_journal(tmp_path / "journal.log")


def test_a_lost_or_damaged_journal_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_search(tmp_path, 6)
    rows = Drive(spec, tmp_path).run(monkeypatch)
    expected, journal = history_of(tmp_path), tmp_path / "search" / "journal.log"
    journal.unlink()
    assert Drive(spec, tmp_path).run(monkeypatch) == rows
    assert history_of(tmp_path) == expected
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + b"{nonsense}\n" + b"".join(lines[3:]))
    with pytest.warns(UserWarning, match=r"journal\.log is damaged"):
        Drive(spec, tmp_path).run(monkeypatch)
    assert history_of(tmp_path) == expected
    journal.write_bytes(journal.read_bytes()[:-20])
    journal.with_name("journal.log.lock").symlink_to("nobody")
    Drive(spec, tmp_path).run(monkeypatch)
    assert history_of(tmp_path) == expected


def test_a_candidate_whose_result_was_lost_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_search(tmp_path, 6)
    rows = Drive(spec, tmp_path).run(monkeypatch)
    expected = history_of(tmp_path)
    finished = next(row for row in rows if row["status"] == "finished")
    (candidate_folder(tmp_path, int(finished["candidate"])).path / "result.json").unlink()
    with pytest.warns(UserWarning, match="ended, but its result is gone"):
        assert Drive(spec, tmp_path).run(monkeypatch) == rows
    assert history_of(tmp_path) == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_works_with_every_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, scheduler: str
) -> None:
    spec = build_search(tmp_path, 5, sampler=sampler, scheduler=scheduler)
    rows = Drive(spec, tmp_path).run(monkeypatch)
    assert len(rows) == 5
    assert {row["status"] for row in rows} <= {"finished", "stopped", "diverged"}
    assert scheduler != "none" or all(row["status"] != "stopped" for row in rows)


@pytest.fixture(scope="module")
def in_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search in rounds that was left alone."""
    folder = tmp_path_factory.mktemp("search") / "rounds"
    with pytest.MonkeyPatch.context() as patch:
        Drive(build_search(folder, 14, scheduler="halving"), folder).run(patch)
    return folder


def test_in_rounds_the_best_of_all_at_a_rung_run_on(in_rounds: Path) -> None:
    rows = read_csv(in_rounds / "candidates.csv")
    came = [row for row in rows if row["status"] in ("finished", "stopped")]
    for rung, following in ((3, 9), (9, 14)):
        there = [row for row in came if int(row["epochs"]) >= rung]
        order = sorted(there, key=lambda row: -float(row[f"{SCORE}@{rung}"]))
        gone_on = [row for row in order if int(row["epochs"]) > rung]
        assert gone_on == order[: num_survivors(len(there))]
        assert all(int(row["epochs"]) >= following for row in gone_on)
    halving = build_search(in_rounds, 14, scheduler="halving").halving
    assert _epochs(came) == halving.expected_epochs(len(came))
    states = {row["candidate"]: row["status"] for row in rows}
    told = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "diverged"}
    assert {str(trial[0]): told[trial[1]] for trial in history_of(in_rounds)} == states
    assert not list(in_rounds.glob("search/candidates/*/checkpoints"))


@pytest.mark.slow
def test_a_search_in_rounds_killed_anywhere_goes_on_to_the_same_candidates(
    tmp_path: Path, in_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 0
    for step in (*range(1, 300, 47), *range(130, 200, 7)):
        folder = tmp_path / f"killed{step}"
        spec = build_search(folder, 14, scheduler="halving")
        try:
            Drive(spec, folder, step).run(monkeypatch)
        except KilledError:
            kills += 1
            Drive(spec, folder).run(monkeypatch)
        assert _same(folder, in_rounds), f"killed before step {step}"
    assert kills > 9


def test_each_round_is_a_run_of_tune(
    tmp_path: Path, in_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_search(tmp_path, 14, scheduler="halving")
    drive, samples = Drive(spec, tmp_path), []

    def fit(*args: Any, num_samples: int, search_alg: Any, scheduler: Any, **options: Any) -> None:
        samples.append(num_samples)
        for _ in range(num_samples):
            drive.train(search_alg, scheduler, monkeypatch)

    monkeypatch.setattr("study.tune.searcher.fit", fit)
    progress: Any = None
    for _ in range(2):  # the second time there is nothing left
        assert run_search(spec, StudySync(tmp_path), RESOURCES, progress, 0) == 0
    write_leaderboard(tmp_path, spec, "SYNTHETIC")
    assert _same(tmp_path, in_rounds)
    came = sum(int(row["epochs"]) >= 3 for row in read_csv(in_rounds / "candidates.csv"))
    assert samples == [14, num_survivors(came), num_survivors(num_survivors(came))]


def test_candidates_that_wait_have_told_their_score_at_the_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_search(tmp_path, 4, scheduler="halving")
    drive = Drive(spec, tmp_path)

    def fit(*args: Any, num_samples: int, search_alg: Any, scheduler: Any, **options: Any) -> None:
        for _ in range(num_samples):
            drive.train(search_alg, scheduler, monkeypatch)
        raise KilledError

    monkeypatch.setattr("study.tune.searcher.fit", fit)
    progress: Any = None
    with pytest.raises(KilledError):
        run_search(spec, StudySync(tmp_path), RESOURCES, progress, 0)
    waiting = [trial for trial in history_of(tmp_path) if trial[1] == "RUNNING"]
    assert len(waiting) > 1
    assert all(max(trial[4]) == 3 for trial in waiting)


def test_a_search_in_rounds_that_is_extended_compares_new_candidates_with_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for candidates in (4, 16):
        spec = build_search(tmp_path, candidates, scheduler="halving")
        rows = Drive(spec, tmp_path).run(monkeypatch)
        assert {row["status"] for row in rows} <= {"finished", "stopped", "diverged"}
    came = [row for row in rows if row["epochs"] >= 3]
    best = sorted(came, key=lambda row: -row[f"{SCORE}@3"])[: num_survivors(len(came))]
    later = [row for row in best if row["candidate"] >= 4]
    assert later
    assert all(row["epochs"] > 3 for row in later)


def test_candidates_that_wait_at_a_rung_are_not_bad_ones_to_the_sampler() -> None:
    """They are running to Optuna, and TPE would draw away from them."""
    values = FloatDistribution(0, 1)
    drawn: dict[bool, float] = {}
    for waits in (True, False):
        study = optuna.create_study(direction="maximize")
        for index in range(40):
            x = index / 39
            trial = optuna.trial.create_trial(
                state=TrialState.RUNNING if x > 0.5 else TrialState.PRUNED,
                params={"x": x},
                distributions={"x": values},
                intermediate_values={3: x},
            )
            study.add_trial(trial)
        study.sampler = SeededSampler("tpe", 0, lambda number, waits=waits: waits)  # type: ignore[misc]
        drawn[waits] = fmean(study.ask().suggest_float("x", 0, 1) for _ in range(10))
    assert drawn[True] > 0.75
    assert drawn[False] < 0.6
