"""What each post-processing step changes: flips, a threshold, the largest component, an ensemble.

Each step is compared with the same networks without it, on the same test patients. Whether a step
is used is decided on validation, trial by trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.bootstrap import Estimate, estimate_group_mean
from study.storage.schema import ALL_SEEDS, Row

PLAIN = "plain"


@dataclass(frozen=True)
class PostprocessingEffect:
    """What one post-processing step changes in one variant's Dice/patient.

    Attributes:
        variant: Name of the variant.
        step: Name of the step.
        settings: Range of the settings over trials, such as a threshold or a number of seeds.
        num_trials: Trials (of an ensemble: folds) that were evaluated with the step.
        num_chosen: Trials in which the step raised the mean Dice/patient on validation.
        val_difference: With the step minus without, on validation, mean over trials.
        always: The same difference on the test patients, mean over patients.
        as_chosen: Likewise, but 0 where validation did not choose the step.
    """

    variant: str
    step: str
    settings: str
    num_trials: int
    num_chosen: int
    val_difference: float
    always: Estimate
    as_chosen: Estimate


def compare_postprocessing(rows: Sequence[Row]) -> list[PostprocessingEffect]:
    """Compare each post-processing step with the same networks without it.

    Args:
        rows: Rows of stages.csv and ensemble.csv, values as text. An ensemble is compared with the
            mean of its members' scores.

    Returns:
        Step by step, and for each step variant by variant, in the order of the rows.
    """
    keys = ["variant", "fold", "part", "patient"]
    table = pd.DataFrame(list(rows), columns=[*keys, "seed", "stage", "setting", "Dice"])
    table["Dice"] = table["Dice"].astype(np.float64)
    plain = table[table["stage"] == PLAIN]
    members = plain.groupby(keys)["Dice"].agg(_mean).reset_index().assign(seed=ALL_SEEDS)
    paired = table[table["stage"] != PLAIN].merge(
        pd.concat([plain, members])[[*keys, "seed", "Dice"]],
        on=[*keys, "seed"],
        suffixes=("", "_plain"),
    )
    paired["change"] = paired["Dice"] - paired["Dice_plain"]
    return [
        _effect(variant, step, own)
        for step, of_step in paired.groupby("stage", sort=False)
        for variant, own in of_step.groupby("variant", sort=False)
    ]


def _effect(variant: str, step: str, rows: pd.DataFrame) -> PostprocessingEffect:
    val, test = rows[rows["part"] == "val"], rows[rows["part"] == "test"]
    gains = val.groupby(["fold", "seed"], sort=False)["change"].agg(_mean).rename("gain")
    test = test.join(gains, on=["fold", "seed"])
    test["as_chosen"] = test["change"].where(test["gain"] > 0, 0.0)
    always, as_chosen = (
        estimate_group_mean(
            test.pivot(index="seed", columns="patient", values=values).to_numpy(), (-1, 1)
        )
        for values in ("change", "as_chosen")
    )
    found = sorted(set(rows["setting"]) - {""})
    settings = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else ""
    chosen = int((gains > 0).sum())
    return PostprocessingEffect(
        variant, step, settings, len(gains), chosen, _mean(gains), always, as_chosen
    )


def _mean(values: pd.Series) -> float:
    """Return NumPy's mean; that of groupby differs in its last digit."""
    return float(values.to_numpy().mean())
