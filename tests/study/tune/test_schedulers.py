"""Schedulers that record their decisions: asked in any order, rebuilt at any moment."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stubs import BASE, build_search

from study.spec.study_spec import SCORE, StudySpec
from study.tune.schedulers import CONTINUE, PAUSE, STOP, Decisions, build_scheduler
from study.tune.trainable import JOB

EPOCHS = 14


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return build_search(tmp_path, 30)


def _trial(number: int) -> Any:
    return SimpleNamespace(config={JOB: {"candidate": number}})


def _result(epoch: int, value: float, epochs: int = EPOCHS) -> dict[str, Any]:
    return {"epoch": epoch, SCORE: value, "epochs": epochs}


def _reports(seed: int, candidates: int = 20) -> list[tuple[int, int, float]]:
    """Reports of candidates that run four at a time, in mixed order, their curves rising."""
    rng = random.Random(seed)
    merits = [rng.random() for _ in range(candidates)]
    queues = {
        number: [(e, merit + 0.3 * rng.random() + e / 40) for e in range(1, EPOCHS + 1)]
        for number, merit in enumerate(merits)
    }
    order, running, waiting = [], list(range(4)), list(range(4, candidates))
    while running:
        number = rng.choice(running)
        epoch, value = queues[number].pop(0)
        order.append((number, epoch, value))
        if not queues[number]:
            running.remove(number)
            running += waiting[:1]
            waiting = waiting[1:]
    return order


def _decide(
    spec: StudySpec, path: Path, reports: list[tuple[int, int, float]], restarts: int = 0
) -> dict[tuple[int, int], str]:
    """Feed reports of candidates that are not stopped; start anew so many times."""
    decided: dict[tuple[int, int], str] = {}
    scheduler = build_scheduler(spec, Decisions(path))
    for position, (number, epoch, value) in enumerate(reports):
        if restarts and position % (len(reports) // restarts) == 7:
            scheduler = build_scheduler(spec, Decisions(path))
            for known_epoch in range(1, epoch):  # a resumed candidate reports its past again
                if (number, known_epoch) in decided:
                    again = scheduler.on_trial_result(
                        None, _trial(number), _result(known_epoch, 0)
                    )
                    assert again == decided[number, known_epoch]
        if STOP not in (decided.get((number, e)) for e in range(1, epoch)):
            answer = scheduler.on_trial_result(None, _trial(number), _result(epoch, value))
            decided[number, epoch] = answer
    return decided


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_rebuilt_scheduler_decides_as_if_nothing_had_happened(
    tmp_path: Path, scheduler: str
) -> None:
    spec = build_search(tmp_path, 30, scheduler=scheduler)
    for seed in range(3):
        reports = _reports(seed)
        quiet = _decide(spec, tmp_path / f"quiet{seed}.csv", reports)
        assert STOP in quiet.values()
        killed = _decide(spec, tmp_path / f"killed{seed}.csv", reports, restarts=20)
        assert killed == quiet
        left, right = (tmp_path / f"{name}{seed}.csv" for name in ("quiet", "killed"))
        assert left.read_bytes() == right.read_bytes()


def test_a_scheduler_that_forgets_is_noticed(tmp_path: Path, spec: StudySpec) -> None:
    reports = _reports(0)
    quiet = _decide(spec, tmp_path / "quiet.csv", reports)
    half = len(reports) // 2
    _decide(spec, tmp_path / "killed.csv", reports[:half])
    (tmp_path / "killed.csv").unlink()
    rest = _decide(spec, tmp_path / "killed.csv", reports[half:])
    assert any(rest[key] != quiet[key] for key in rest if key in quiet)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("frozen", [0, 1, 4])
def test_nobody_is_stopped_before_two_unfrozen_epochs(
    tmp_path: Path, scheduler: str, frozen: int
) -> None:
    text = f"stages.0.epochs: {{choices: [{frozen}, 1]}}" if frozen != 1 else (
        "augment.strength: {low: 0.0, high: 2.0}"
    )  # fmt: skip
    spec = build_search(tmp_path, 30, text=text, scheduler=scheduler)
    longest = max(frozen, 1)
    decided = _decide(spec, tmp_path / "decisions.csv", _reports(1))
    stopped = [epoch for (_, epoch), answer in decided.items() if answer == STOP]
    assert stopped
    assert min(stopped) >= longest + 2


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_without_unfrozen_epochs_nobody_is_stopped(tmp_path: Path, scheduler: str) -> None:
    base = BASE.replaced({"stages.0.epochs": 5, "stages.1.epochs": 0})
    spec = build_search(tmp_path, 8, base=base, scheduler=scheduler)
    decider = build_scheduler(spec, Decisions(tmp_path / "decisions.csv"))
    for number in range(8):
        for epoch in range(1, 6):
            answer = decider.on_trial_result(None, _trial(number), _result(epoch, -number, 5))
            assert answer == CONTINUE


def test_a_candidate_at_its_last_epoch_goes_on_to_write_its_result(
    tmp_path: Path, spec: StudySpec
) -> None:
    scheduler = build_scheduler(spec, Decisions(tmp_path / "decisions.csv"))
    for number, epochs in ((0, EPOCHS), (1, EPOCHS), (2, 3)):
        answer = scheduler.on_trial_result(None, _trial(number), _result(3, 1 - number, epochs))
        assert answer == (STOP if number == 1 else CONTINUE)


def test_an_epoch_that_nobody_decided_is_decided_though_it_is_replayed(
    tmp_path: Path, spec: StudySpec
) -> None:
    path = tmp_path / "decisions.csv"
    scheduler = build_scheduler(spec, Decisions(path))
    assert scheduler.on_trial_result(None, _trial(0), _result(3, 0.9)) == CONTINUE
    scheduler = build_scheduler(spec, Decisions(path))
    replayed = _result(3, 0.1) | {"replayed": True}
    assert scheduler.on_trial_result(None, _trial(1), replayed) == STOP
    assert Decisions(path).is_stopped(1)


def test_a_decision_that_was_cut_off_is_no_decision(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    decisions = Decisions(path)
    decisions.add(0, 3, 0.5, CONTINUE)
    decisions.add(1, 3, 0.1, STOP)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:-cut])
        again = Decisions(path)
        assert not again.is_stopped(1)
        again.add(1, 3, 0.1, STOP)
        assert Decisions(path).is_stopped(1)
    assert list(Decisions(path))[-1] == (1, 3, 0.1, STOP)


def test_brackets_depend_on_the_candidate_and_not_on_global_random_numbers(
    tmp_path: Path,
) -> None:
    spec = build_search(tmp_path, 30, scheduler="hyperband")
    decided = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002 - what Tune draws brackets with
        decided.append(_decide(spec, tmp_path / f"decisions{seed}.csv", _reports(0)))
    assert decided[0] == decided[1]
    rungs = {epoch for (_, epoch), answer in decided[0].items() if answer == STOP}
    assert rungs == {spec.halving.start(bracket) for bracket in (0, 1)}


def _come(path: Path, values: list[float], epoch: int = 3) -> Decisions:
    decisions = Decisions(path)
    for number, value in enumerate(values):
        decisions.add(number, epoch, value, PAUSE)
    return decisions


def test_in_rounds_a_candidate_ends_at_a_rung_and_the_best_go_on(tmp_path: Path) -> None:
    spec = build_search(tmp_path, 8, scheduler="halving")
    path = tmp_path / "decisions.csv"
    decisions = Decisions(path)
    scheduler = build_scheduler(spec, decisions)
    values = [0.1, 0.8, 0.3, 0.7, 0.2, 0.6, 0.5, 0.4]
    for number, value in enumerate(values):
        answers = [
            scheduler.on_trial_result(None, _trial(number), _result(epoch, value))
            for epoch in (1, 2, 3)
        ]
        assert answers == [CONTINUE, CONTINUE, STOP]
        assert decisions.waits_at(number) == 3
    for _ in range(2):
        assert decisions.end_round(range(8)) == [0, 2, 4, 6, 7]
        assert [n for n in range(8) if decisions.waits_at(n) is None] == [1, 3, 5]
        scheduler = build_scheduler(spec, decisions)
        for epoch in (1, 2, 3):  # they report their past again
            assert scheduler.on_trial_result(None, _trial(1), _result(epoch, 0)) == CONTINUE
        decisions = Decisions(path)  # and all begins again, before any has gone further
    decisions.end_round(range(8))
    scheduler = build_scheduler(spec, decisions)
    for epoch in range(4, 10):
        answer = scheduler.on_trial_result(None, _trial(3), _result(epoch, 0.9))
    assert (answer, decisions.waits_at(3)) == (STOP, 9)
    assert decisions.waits_at(1) is None
    assert Decisions(path).get(3, 3) == CONTINUE
    assert scheduler.on_trial_result(None, _trial(9), _result(3, 0.1, epochs=3)) == CONTINUE


def test_the_lowest_rung_ends_first_and_one_of_few_goes_on(tmp_path: Path) -> None:
    decisions = _come(tmp_path / "decisions.csv", [0.5, 0.7])
    decisions.add(2, 3, 0.9, PAUSE)
    decisions.add(2, 9, 0.9, PAUSE)
    assert decisions.end_round([0, 1, 2]) == [0, 1]  # the best of this rung has gone on before
    assert decisions.waits_at(2) == 9
    assert decisions.end_round([2]) == []
    assert decisions.waits_at(2) is None


def test_of_equal_candidates_the_earlier_go_on(tmp_path: Path) -> None:
    decisions = _come(tmp_path / "decisions.csv", [0.5] * 8)
    assert decisions.end_round(range(8)) == [3, 4, 5, 6, 7]
