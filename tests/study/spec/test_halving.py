from __future__ import annotations

import numpy as np
import pytest
from ray.tune.schedulers.async_hyperband import _Bracket

from study.spec.halving import BRACKETS, FACTOR, Halving, expected_passes, num_survivors


@pytest.mark.parametrize("longest", [4, 12, 20, 27, 81])
@pytest.mark.parametrize("first", [2, 3, 7])
@pytest.mark.parametrize("bracket", [0, 1, 2])
def test_rungs_are_those_of_tune(first: int, longest: int, bracket: int) -> None:
    theirs = [epoch for epoch, _ in _Bracket(first, longest + 1, FACTOR, bracket)._rungs]
    expected = sorted(epoch for epoch in theirs if epoch < longest)
    assert Halving(first, longest, 3).rungs(bracket) == expected


@pytest.mark.parametrize("scheduler", BRACKETS)
@pytest.mark.parametrize("stage_epochs", [(0, 10), (1, 20), (5, 20), (30, 45)])
def test_no_rung_lies_before_two_unfrozen_epochs(
    scheduler: str, stage_epochs: tuple[int, int]
) -> None:
    halving = Halving.of(scheduler, stage_epochs)
    for bracket in range(halving.brackets):
        assert all(epoch >= stage_epochs[0] + 2 for epoch in halving.rungs(bracket))


def test_as_many_pass_a_rung_as_expected() -> None:
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(2000):
        values = rng.random(20)
        for position, value in enumerate(values):
            before = values[:position]
            quantile = np.percentile(before, (1 - 1 / FACTOR) * 100) if position else value
            passed += bool(value >= quantile)
    assert passed / 2000 == pytest.approx(expected_passes(20), rel=0.01)


def test_halving_saves_and_never_costs() -> None:
    asha, hyperband = (Halving.of(name, (1, 20)) for name in ("asha", "hyperband"))
    assert asha.rungs() == [3, 12]
    assert asha.expected_epochs(40) < hyperband.expected_epochs(40) < 40 * 20
    assert 0.3 < asha.expected_epochs(40) / 800 < 0.4
    assert Halving.of("none", (1, 20)).expected_epochs(40) == 800
    assert Halving.of("asha", (5, 6)).expected_epochs(40) == 240
    assert asha.expected_epochs(0) == 0
    rounds = Halving.of("halving", (1, 20))
    assert (rounds.rungs(), rounds.in_rounds, asha.in_rounds) == ([3, 9], True, False)
    assert rounds.expected_epochs(40) == 40 * 3 + 13 * 6 + 4 * 11
    assert rounds.expected_epochs(0) == 0
    assert [num_survivors(n) for n in (0, 1, 3, 20, 40)] == [0, 1, 1, 7, 13]
    assert sum(hyperband.chances()) == pytest.approx(1)
