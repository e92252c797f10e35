"""SYNTHETIC score matrices drawn from known distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from study.analysis.scores import Floats, ScoreMatrix


def matrix_of(dice: Floats | list[list[list[float]]], num_folds: int = 1) -> ScoreMatrix:
    """Return the matrix of a Dice per variant, seed and patient; TP, FP, FN fit it.

    Patient p is in fold p mod num_folds. Variants are called a, b, ...; seeds 44, 45, ...
    """
    dice = np.asarray(dice, dtype=np.float64)
    num_variants, num_seeds, num_patients = dice.shape
    counts = np.stack([dice, 1 - dice, 1 - dice, 0 * dice], axis=-1) * 1_000
    folds = np.arange(num_patients) % num_folds
    return ScoreMatrix(
        variants=tuple("abcdefgh"[:num_variants]),
        seeds=tuple(range(44, 44 + num_seeds)),
        patients=tuple(f"p{number:03}" for number in range(num_patients)),
        folds=np.where(np.isnan(dice).all(axis=0), -1, folds),
        counts=counts,
        dice=dice,
        num_trials=num_variants * num_seeds * num_folds,
        missing=_missing(dice, num_folds),
    )


def _missing(dice: Floats, num_folds: int) -> tuple[str, ...]:
    return tuple(
        f"{'abcdefgh'[v]}-fold{fold}-seed{44 + s}"
        for v in range(dice.shape[0])
        for s in range(dice.shape[1])
        for fold in range(num_folds)
        if np.isnan(dice[v, s, fold::num_folds]).all()
    )


@dataclass(frozen=True)
class DiceModel:
    """A distribution of Dice; standard deviations are on its logit scale.

    Attributes:
        patient: Between patients.
        interaction: Between variants on one patient.
        run: Between training runs, the same for all patients of a fold.
        noise: What is left.
        failures: Share of patients on whom every variant gets a tenth of its Dice.
        centre: logit of a typical patient's Dice.
    """

    patient: float = 1.0
    interaction: float = 0.25
    run: float = 0.1
    noise: float = 0.25
    failures: float = 0.04
    centre: float = 1.9

    def dice(
        self, rng: np.random.Generator, shape: tuple[int, int, int], num_folds: int = 1
    ) -> Floats:
        """Draw (V, S, P); all variants are equally good."""
        num_variants, num_seeds, num_patients = shape
        fold = np.arange(num_patients) % num_folds
        z = self.centre + self.patient * rng.standard_normal(num_patients)
        z = z + self.interaction * rng.standard_normal((num_variants, 1, num_patients))
        z = z + self.run * rng.standard_normal((num_variants, num_seeds, num_folds))[..., fold]
        z = z + self.noise * rng.standard_normal(shape)
        failed = rng.random(num_patients) < self.failures
        dice: Floats = np.where(failed, 0.1, 1.0) / (1 + np.exp(-z))
        return dice

    def mean(self) -> float:
        """Return the expected Dice of a patient, from a million of them."""
        return float(self.dice(np.random.default_rng(9), (1, 1, 1_000_000), 1_000_000).mean())


def draw_dice(*shape: int, num_folds: int = 1, seed: int = 1) -> Floats:
    """Draw Dice (V, S, P) from the default `DiceModel`."""
    v, s, p = shape
    return DiceModel().dice(np.random.default_rng(seed), (v, s, p), num_folds)
