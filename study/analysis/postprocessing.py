"""What optional stages change: flips, another threshold, the largest component, an ensemble.

Each is compared with the network as it is, on the same test patients. Whether to use it is a
question to validation, trial by trial. Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from study.analysis.bootstrap import Estimate
from study.analysis.scores import Floats
from study.analysis.subgroups import Estimator
from study.storage.tables import Row

PLAIN = "plain"
_ALL_SEEDS = "all"
_BOUNDS = (-1.0, 1.0)
Scores = Mapping[str, float]
"""Patient -> Dice."""


@dataclass(frozen=True)
class StageEffect:
    """What one stage changes in one variant's Dice/patient.

    Attributes:
        variant: Its name.
        stage: The stage.
        settings: What validation set, over trials: a threshold, a number of seeds.
        num_trials: Trials (of an ensemble: folds) that were judged with the stage.
        num_chosen: Those in which it raised the mean Dice/patient on validation.
        val_difference: With the stage minus without, on validation, mean over trials.
        always: The same on the test patients.
        as_chosen: Likewise, but 0 where validation did not choose the stage.
    """

    variant: str
    stage: str
    settings: str
    num_trials: int
    num_chosen: int
    val_difference: float
    always: Estimate
    as_chosen: Estimate


@dataclass(frozen=True)
class _Unit:
    """One decision: a trial, or the ensemble of a fold."""

    seed: str
    setting: str
    val_difference: float
    test: Scores


def compare_stages(rows: Sequence[Row]) -> list[StageEffect]:
    """Compare each stage with the network as it is.

    Args:
        rows: Of stages.csv and ensemble.csv, values as text.

    Returns:
        Stage by stage, in each all variants in the order of the rows.
    """
    cells: dict[tuple[str, str, str, str, str], dict[str, float]] = {}
    settings: dict[tuple[str, str, str, str], str] = {}
    for row in rows:
        key = (row["variant"], row["stage"], row["fold"], row["seed"])
        cells.setdefault((*key, row["part"]), {})[row["patient"]] = float(row["Dice"])
        settings[key] = row["setting"]
    units: dict[tuple[str, str], list[_Unit]] = {}
    for key in settings:
        variant, stage, fold, seed = key
        if stage == PLAIN:
            continue
        differences = {
            part: _subtract(cells[*key, part], _reference(cells, variant, fold, seed, part))
            for part in ("val", "test")
        }
        val = float(np.mean(list(differences["val"].values())))
        unit = _Unit(seed, settings[key], val, differences["test"])
        units.setdefault((stage, variant), []).append(unit)
    estimator = Estimator()
    stages = list(dict.fromkeys(stage for stage, _ in units))
    return [
        _effect(variant, stage, members, estimator)
        for wanted in stages
        for (stage, variant), members in units.items()
        if stage == wanted
    ]


def _reference(
    cells: Mapping[tuple[str, str, str, str, str], Scores],
    variant: str,
    fold: str,
    seed: str,
    part: str,
) -> Scores:
    """The same networks without the stage; for an ensemble, the mean of its members' scores."""
    if seed != _ALL_SEEDS:
        return cells[variant, PLAIN, fold, seed, part]
    members = [
        scores
        for (v, stage, f, _, p), scores in cells.items()
        if (v, stage, f, p) == (variant, PLAIN, fold, part)
    ]
    return {name: float(np.mean([m[name] for m in members])) for name in members[0]}


def _subtract(with_stage: Scores, without: Scores) -> Scores:
    return {patient: value - without[patient] for patient, value in with_stage.items()}


def _effect(variant: str, stage: str, units: Sequence[_Unit], estimator: Estimator) -> StageEffect:
    chosen = [unit.val_difference > 0 for unit in units]
    used = [
        _Unit(u.seed, u.setting, u.val_difference, u.test if yes else dict.fromkeys(u.test, 0.0))
        for u, yes in zip(units, chosen, strict=True)
    ]
    found = sorted({unit.setting for unit in units if unit.setting})
    settings = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else ""
    return StageEffect(
        variant,
        stage,
        settings,
        len(units),
        sum(chosen),
        float(np.mean([unit.val_difference for unit in units])),
        estimator(_matrix(units), _BOUNDS),
        estimator(_matrix(used), _BOUNDS),
    )


def _matrix(units: Sequence[_Unit]) -> Floats:
    """Return (S, P): seeds, test patients."""
    seeds = sorted({unit.seed for unit in units})
    patients = sorted({patient for unit in units for patient in unit.test})
    place = {patient: position for position, patient in enumerate(patients)}
    values = np.full((len(seeds), len(patients)), np.nan)
    for unit in units:
        for patient, value in unit.test.items():
            values[seeds.index(unit.seed), place[patient]] = value
    return values
