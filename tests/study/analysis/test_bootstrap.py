from __future__ import annotations

import numpy as np
import pytest
from matrices import DiceModel
from scipy import stats

from brainseg import metrics
from study.analysis.bootstrap import (
    Draws,
    Estimate,
    Statistic,
    average_seeds,
    draw,
    estimate,
    estimate_group_mean,
    estimate_mean,
    mean_over_patients,
    of_summed_counts,
)
from study.analysis.scores import Floats


def _rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def _estimate(values: Floats, bounds: tuple[float, float] = (0, 1)) -> Estimate:
    return estimate_mean(values, draw(values.shape[1], values.shape[0], _rng()), bounds)


def test_totals_by_hand() -> None:
    draws = Draws(
        np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 2.0]]), np.ones(2)
    )
    cells = np.array([[1.0, 10.0], [2.0, 20.0]])  # seeds x patients
    assert draws.total(cells).tolist() == [2 * 1 + 2 * 2, 2 * 2 + 2 * 20]
    assert draws.total(np.stack([cells, 2 * cells])).tolist() == [[6, 12], [44, 88]]


def test_a_resample_has_one_patient_fewer_and_all_seeds() -> None:
    draws = draw(7, 3, _rng(), times=50)
    assert (draws.patients.sum(axis=1) == 6).all()
    assert (draws.seeds.sum(axis=1) == 3).all()


def test_seeds_of_a_patient_are_averaged_before_patients() -> None:
    values = np.array([[0.2, 0.9, np.nan], [0.4, np.nan, np.nan]])
    assert average_seeds(values) == pytest.approx([0.3, 0.9])
    assert _estimate(values).point == pytest.approx(0.6)


def test_counts_are_summed_before_the_ratio() -> None:
    counts = np.array([[[9.0, 1, 1, 0], [0, 2, 0, 0]]])
    statistic = of_summed_counts(counts, metrics.dice)
    assert statistic(draw(2, 1, _rng()).observed())[0] == pytest.approx(18 / (18 + 1 + 1 + 2))


def test_a_resample_without_any_cell_has_no_score() -> None:
    counts = np.full((1, 2, 4), np.nan)
    counts[0, 0] = 1
    draws = Draws(np.array([[0.0, 1.0]]), np.ones((1, 1)), np.ones(1))
    assert np.isnan(of_summed_counts(counts, metrics.dice)(draws)[0])
    assert np.isnan(mean_over_patients(counts[..., 0])(draws)[0])


def test_the_spread_agrees_with_scipy() -> None:
    values = _rng().beta(8, 2, 12)
    draws = draw(12, 1, _rng(), times=20_000)
    ours = mean_over_patients(values[None])(draws).std()
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=_rng()).standard_error
    assert ours == pytest.approx(theirs * np.sqrt(12 / 11), rel=0.03)
    assert ours == pytest.approx(values.std(ddof=1) / np.sqrt(12), rel=0.03)


def test_an_interval_is_students_t_in_the_middle_of_the_scale() -> None:
    values = 0.01 * _rng().standard_normal((1, 8))
    interval = stats.t.interval(0.95, 7, values.mean(), values.std(ddof=1) / np.sqrt(8))
    ours = _estimate(values, (-1, 1))
    assert (ours.low, ours.high) == pytest.approx(interval, abs=3e-4)


def test_intervals_enclose_the_point_and_keep_to_the_bounds() -> None:
    for seed in range(20):
        values = _rng(seed).beta(0.5, 0.5, (2, 3))
        ours = _estimate(values)
        assert 0 < ours.low < ours.point < ours.high < 1
        far = _estimate(100 * values, (0, np.inf))
        assert 0 < far.low < far.point < far.high < np.inf


def test_the_interval_of_a_constant_is_a_point() -> None:
    assert _estimate(np.full((2, 5), 0.5)) == Estimate(0.5, 0.5, 0.5)


def test_a_score_at_a_bound_has_no_interval() -> None:
    """No false alarm on five patients does not say that there is none on others."""
    for value in (0.0, 1.0):
        ours = _estimate(np.full((2, 5), value))
        assert ours.point == value
        assert np.isnan([ours.low, ours.high]).all()


def test_one_patient_has_no_interval() -> None:
    ours = _estimate(np.array([[0.4], [0.6]]))
    assert ours.point == pytest.approx(0.5)
    assert np.isnan([ours.low, ours.high]).all()


def test_differing_seeds_widen_the_interval() -> None:
    values = _rng().normal(0.7, 0.05, (3, 20))
    apart = values + np.array([[-0.1], [0.0], [0.1]])
    alike, differing = _estimate(values), _estimate(apart)
    assert differing.point == pytest.approx(alike.point)
    assert differing.high - differing.low > 1.5 * (alike.high - alike.low)


def test_widened_normal_resamples_are_students_t() -> None:
    draws = draw(5, 1, _rng(), times=100_000)
    normal = _rng(2).standard_normal(100_000)
    widened = draws.widen(normal, np.array(0.0), 5)
    assert np.quantile(widened, [0.025, 0.975]) == pytest.approx(
        stats.t.ppf([0.025, 0.975], 4), rel=0.05
    )


def test_a_group_mean_resamples_the_patients_of_the_group_alone() -> None:
    values = _rng().beta(8, 2, (2, 6))
    among_others = np.insert(values, 3, np.nan, axis=1)
    assert estimate_group_mean(among_others) == estimate_group_mean(values)
    assert estimate_group_mean(values).point == pytest.approx(values.mean())
    nobody = estimate_group_mean(np.full((2, 3), np.nan))
    assert np.isnan([nobody.point, nobody.low, nobody.high]).all()


def test_a_group_mean_weighs_patients_by_their_size() -> None:
    values, sizes = np.array([[0.2, np.nan, 0.8]]), np.array([3.0, 5.0, 1.0])
    assert estimate_group_mean(values, sizes=sizes).point == pytest.approx((0.6 + 0.8) / 4)


def _coverage(
    model: DiceModel, num_patients: int, num_seeds: int, num_folds: int, repetitions: int
) -> dict[str, float]:
    """Return score -> share of its intervals that contain the true value."""
    rng = _rng()
    draws = draw(num_patients, num_seeds, rng, times=2_000)
    truth = model.mean()
    hits: dict[str, list[bool]] = {}

    def interval(statistic: Statistic, low: float, high: float) -> Estimate:
        return estimate(statistic, draws, num_patients, (low, high))

    for _ in range(repetitions):
        a, b = model.dice(rng, (2, num_seeds, num_patients), num_folds)
        size = rng.lognormal(8, 1, num_patients)  # unrelated to Dice, so that both have one mean
        counts = np.stack([a, 1 - a, 1 - a, 0 * a], axis=-1) * size[:, None]
        distances = np.exp(
            2 + 0.8 * rng.standard_normal(num_patients) + 0.2 * rng.standard_normal(a.shape)
        )
        estimates = {
            "Dice/patient": (interval(mean_over_patients(a), 0, 1), truth),
            "global Dice": (interval(of_summed_counts(counts, metrics.dice), 0, 1), truth),
            "HD95": (interval(mean_over_patients(distances), 0, np.inf), np.exp(2.34)),
            "difference": (interval(mean_over_patients(a - b), -1, 1), 0.0),
        }
        for name, (found, true) in estimates.items():
            hits.setdefault(name, []).append(found.low <= true <= found.high)
    return {name: float(np.mean(values)) for name, values in hits.items()}


def test_intervals_cover() -> None:
    coverage = _coverage(DiceModel(failures=0), 12, 3, 1, repetitions=300)
    assert coverage["difference"] > 0.91
    assert coverage["Dice/patient"] > 0.86
    assert coverage["global Dice"] > 0.82
    assert coverage["HD95"] > 0.86


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [0.0, pytest.param(0.1, marks=pytest.mark.exhaustive), 0.3],
    ids=lambda run: f"runs {run}",
)
@pytest.mark.parametrize(
    "num_seeds",
    [1, pytest.param(2, marks=pytest.mark.exhaustive), 3],
    ids=lambda seeds: f"{seeds} seeds",
)
@pytest.mark.parametrize(
    ("num_patients", "num_folds"),
    [(5, 1), (12, 1), (40, 10), pytest.param(110, 10, marks=pytest.mark.exhaustive)],
    ids=lambda number: str(number),
)
def test_intervals_cover_by_patients_seeds_and_runs(
    num_patients: int, num_folds: int, num_seeds: int, run: float
) -> None:
    coverage = _coverage(DiceModel(run=run), num_patients, num_seeds, num_folds, repetitions=500)
    shown = "  ".join(f"{name} {share:.1%}" for name, share in coverage.items())
    print(f"\n{num_patients} patients, {num_folds} folds, {num_seeds} seeds, runs {run}: {shown}")
    if run == 0 or (num_seeds == 3 and run == 0.1):
        assert coverage["difference"] > 0.91
    if run <= 0.1:
        assert coverage["Dice/patient"] > 0.86
        assert coverage["global Dice"] > 0.83
        assert coverage["HD95"] > 0.86
