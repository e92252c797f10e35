"""The replay of schedulers: its own halving against Tune's, its arithmetic, and real curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated import generate_study
from stubs import BASE, Drive, build_search

from benchmarks.search import (
    Curves,
    Promotion,
    Rungs,
    Search,
    _EndsAt,
    _OwnScheduler,
    correlation,
    draw_curves,
    judge,
    power_law,
    read_curves,
    run_rounds,
    run_stopping,
)
from brainseg.config import Experiment
from brainseg.errors import ConfigError
from study.spec.halving import ROUND_FACTOR
from study.storage.trial_folder import candidate_folder

SEARCH = Search(candidates=16, frozen=1, longest=14, seed=3)


def _rising(*finals: float) -> Curves:
    """Curves that rise evenly to these ends in eight epochs."""
    return Curves(np.outer(finals, np.arange(1, 9) / 8), frozen=1, seed=0)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_halving_of_the_replay_decides_as_the_projects_own(at_once: int) -> None:
    rng = np.random.default_rng(0)
    curves = Curves(rng.random((SEARCH.candidates, SEARCH.longest)), SEARCH.frozen, SEARCH.seed)
    ours = run_stopping(curves, Rungs([3, 12], 1 / 4, 1, SEARCH.longest), at_once)
    theirs = run_stopping(curves, _OwnScheduler("asha", curves.search), at_once)
    assert ours == theirs
    assert len(set(ours.trained)) == 3
    assert run_stopping(curves, _OwnScheduler("none", curves.search), at_once).trained == [14] * 16


def test_in_rounds_the_best_go_on_whatever_the_order() -> None:
    for finals in (
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    ):
        curves = _rising(*finals)
        replay = run_rounds(curves, [3, 6], 1 / 2, at_once=4)
        by_rank = [epochs for _, epochs in sorted(zip(finals, replay.trained, strict=True))[::-1]]
        assert by_rank == [8, 8, 6, 6, 3, 3, 3, 3]
        assert replay.time == 2 * 3 + 3 + 2
    found = judge(curves, replay, at_once=4)
    assert found["epochs"] == sum(by_rank) / 64
    assert (found["regret"], found["same"], found["kept"]) == (0, 1, 2)
    assert found["time"] == 11 / 16


def test_what_is_promoted_is_among_the_best_of_those_that_were_there() -> None:
    worse = Promotion(_rising(0.8, 0.7, 0.6, 0.5), [3], 1 / 2).run(1)
    assert worse.trained == [8, 8, 3, 3]
    better = Promotion(_rising(0.5, 0.6, 0.7, 0.8), [3], 1 / 2).run(1)
    assert better.trained == [3, 8, 8, 8]
    assert better.time == sum(better.trained)


@pytest.mark.slow
def test_rounds_of_the_replay_train_as_the_projects_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random candidates do not depend on who was stopped."""
    base = BASE.replaced({"augment.strength": 1.0})
    text = "stages.1.learning_rate: {low: 0.00001, high: 0.001, log: true}"
    rows: dict[str, Any] = {}
    for scheduler in ("none", "halving"):
        folder = tmp_path / scheduler
        spec = build_search(
            folder, 12, text=text, base=base, scheduler=scheduler, sampler="random"
        )
        rows[scheduler] = Drive(spec, folder).run(monkeypatch)
    histories = [candidate_folder(tmp_path / "none", n).read_history() for n in range(12)]
    curves = Curves(np.array([[row["val_dice"] for row in h] for h in histories]), 1, 0)
    ours = run_rounds(curves, spec.halving.rungs(), 1 / ROUND_FACTOR, at_once=1)
    assert ours.trained == [row["epochs"] for row in rows["halving"]]
    assert len(set(ours.trained)) == 3


def test_the_regret_is_what_the_chosen_one_lacks() -> None:
    curves = Curves(np.array([[0.1, 0.2, 0.3, 0.9], [0.1, 0.3, 0.4, 0.5]]), frozen=1, seed=0)
    replay = run_rounds(curves, [3], 1 / 2, at_once=1)
    assert replay.trained == [3, 4]
    found = judge(curves, replay, at_once=1)
    assert found["regret"] == pytest.approx(0.4)
    assert found["same"] == 0
    assert correlation(_rising(0.1, 0.3, 0.2), 3) == pytest.approx(1)


def test_a_power_law_finds_its_own_end() -> None:
    epochs = np.arange(1, 6)
    assert power_law(np.array([0.0, *(0.7 - 0.3 / epochs)]), 1, 21) == pytest.approx(
        0.7 - 0.3 / 20
    )


def test_synthetic_curves_are_those_of_their_seed_and_learn_where_nobody_is_stopped() -> None:
    curves = draw_curves(SEARCH)
    assert (draw_curves(SEARCH).dice == curves.dice).all()
    assert curves.dice.shape == (16, 14)
    assert 0 <= curves.dice.min() <= curves.dice.max() <= 1
    stopped = draw_curves(SEARCH, _EndsAt(3))
    assert (stopped.dice[:10] == curves.dice[:10]).all()  # TPE's random ones
    assert (stopped.dice != curves.dice).any()


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_curves_are_read_from_a_search_in_full_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    folder = generate_study(tmp_path / "study", grid="lite", seeds=1, patients=10, slices=4)
    spec = build_search(folder, 6, base=Experiment(), scheduler=scheduler)
    Drive(spec, folder).run(monkeypatch)
    about = json.loads((folder / "study.json").read_text())
    about |= {key: spec.to_record()[key] for key in ("search", "variants", "experiment")}
    (folder / "study.json").write_text(json.dumps(about))
    if scheduler == "asha":
        with pytest.raises(ConfigError, match=r"not trained in full.*--scheduler none"):
            read_curves(folder)
        return
    (curves,) = read_curves(folder)
    assert curves.dice.shape == (6, 20)
    assert curves.frozen == 5
    assert (np.diff(curves.dice) > 0).all()
