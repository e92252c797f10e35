from __future__ import annotations

import numpy as np
import pytest
from matrices import matrix_of

from study.analysis.scores import Floats
from study.analysis.variance import COMPONENTS, decompose

TRUTH = {
    "variant": 0.02,
    "patient": 0.10,
    "fold": 0.03,
    "variant x patient": 0.04,
    "variant x fold": 0.02,
    "seed": 0.02,
    "residual": 0.03,
}
"""Standard deviations of the components."""


def _scores(
    seed: int, variants: int = 4, seeds: int = 3, patients: int = 40, folds: int = 10
) -> Floats:
    rng, fold = np.random.default_rng(seed), np.arange(patients) % folds
    shapes = {
        "variant": (variants, 1, 1),
        "patient": (1, 1, patients),
        "fold": (1, 1, folds),
        "variant x patient": (variants, 1, patients),
        "variant x fold": (variants, 1, folds),
        "seed": (variants, seeds, folds),
        "residual": (variants, seeds, patients),
    }
    dice = np.full((variants, seeds, patients), 0.5)
    for name, shape in shapes.items():
        part = rng.normal(0, TRUTH[name], shape)
        dice = dice + (part[..., fold] if shape[-1] == folds != patients else part)
    return dice


def _mean_shares(num_studies: int, failed: bool) -> dict[str, float]:
    sums = dict.fromkeys(COMPONENTS, 0.0)
    for seed in range(num_studies):
        dice = _scores(seed)
        if failed:
            dice[0, 0, 1::10] = np.nan
            dice[2, 1, 3::10] = np.nan
        for name, share in decompose(matrix_of(dice, 10)).items():
            sums[name] += share / num_studies
    return sums


@pytest.mark.parametrize("failed", [False, True], ids=["whole", "two trials failed"])
def test_shares_agree_with_the_components_that_were_drawn(failed: bool) -> None:
    total = sum(spread**2 for spread in TRUTH.values())
    found = _mean_shares(25, failed)
    for name, spread in TRUTH.items():
        assert found[name] == pytest.approx(spread**2 / total, abs=0.03), name


def test_two_way_layout_by_hand() -> None:
    # Rows 1 2 / 3 6: mean 3; mean squares 9 (variants), 4 (patients), 1 (residual). With 2 levels
    # each: variant (9 - 1) / 2 = 4, patient (4 - 1) / 2 = 1.5, residual 1.
    shares = decompose(matrix_of([[[0.1, 0.2]], [[0.3, 0.6]]]))
    assert shares["variant"] == pytest.approx(4 / 6.5)
    assert shares["patient"] == pytest.approx(1.5 / 6.5)
    assert shares["residual"] == pytest.approx(1 / 6.5)


def _estimable(dice: Floats, folds: int) -> set[str]:
    shares = decompose(matrix_of(dice, folds))
    assert tuple(shares) == COMPONENTS
    estimable = {name: share for name, share in shares.items() if not np.isnan(share)}
    assert sum(estimable.values()) == pytest.approx(1)
    return set(estimable)


def test_components_that_cannot_be_separated_are_nan() -> None:
    everything = set(COMPONENTS)
    assert _estimable(_scores(1), 10) == everything
    one_seed = _estimable(_scores(1, seeds=1), 10)
    assert one_seed == {"variant", "patient", "fold", "variant x fold", "residual"}
    one_fold = _estimable(_scores(1, folds=1), 1)
    assert one_fold == {"variant", "patient", "variant x patient", "seed", "residual"}
    neither = _estimable(_scores(1, seeds=1, folds=1), 1)
    assert neither == {"variant", "patient", "residual"}
    one_variant = _estimable(_scores(1, variants=1), 10)
    assert one_variant == {"patient", "fold", "seed", "residual"}
    one_patient_a_fold = _estimable(_scores(1, patients=10), 10)
    assert one_patient_a_fold == {"variant", "patient", "variant x patient", "residual"}


def test_shares_of_equal_cells_are_nan() -> None:
    for dice in (np.full((2, 2, 3), 0.5), np.full((2, 1, 1), np.nan), np.full((1, 1, 1), 0.5)):
        assert np.isnan(list(decompose(matrix_of(dice)).values())).all()
