"""A study's files, read once and compared: all that a report knows.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from brainseg.storage.files import read_csv
from study.analysis.bootstrap import Estimate
from study.analysis.calibration import Calibration, calibrate
from study.analysis.comparison import Comparison, compare
from study.analysis.conclusion import Conclusion, conclude
from study.analysis.postprocessing import PostprocessingEffect, compare_postprocessing
from study.analysis.scores import ScoreMatrix, read_factors, read_matrix, read_slices
from study.analysis.subgroups import (
    Breakdown,
    SliceErrors,
    average_slices,
    break_down,
    count_slice_errors,
)
from study.storage.tables import Row, TrialFolder

SYNTHETIC = "SYNTHETIC DATA (generated phantoms): these scores say nothing about patients."
NO_WEIGHTS = "no pretrained weights"
History = list[dict[str, float]]


@dataclass(frozen=True)
class Records:
    """What a study left behind.

    Attributes:
        study: Its folder.
        about: study.json.
        split: split.json; empty if there is none.
        trials: Rows of trials.csv.
        patients: Patient -> its row of patients.csv.
        stages: Rows of stages.csv, those of ensemble.csv after them.
        calibration: Rows of calibration.csv.
        examples: Rows of examples.csv whose picture is there.
        slices: slices.csv, as the table of `read_slices`.
        histories: (variant, fold, seed) -> rows of history.csv.
        matrix: scores.csv.
        comparison: Of the matrix.
        conclusion: Of the comparison.
    """

    study: Path
    about: Mapping[str, Any]
    split: Mapping[str, Any]
    trials: Sequence[Row]
    patients: Mapping[str, Row]
    stages: Sequence[Row]
    calibration: Sequence[Row]
    examples: Sequence[Row]
    slices: pd.DataFrame
    histories: Mapping[tuple[str, int, int], History]
    matrix: ScoreMatrix
    comparison: Comparison
    conclusion: Conclusion

    @cached_property
    def breakdowns(self) -> list[Breakdown]:
        """Scores by group of patients and slices; none without slices.csv."""
        return break_down(self.slices, self.patients) if len(self.slices) else []

    @cached_property
    def slice_dice(self) -> dict[str, Estimate]:
        """Variant -> Dice/slice; none without slices.csv."""
        return average_slices(self.slices) if len(self.slices) else {}

    @cached_property
    def alarms(self) -> list[SliceErrors]:
        """How often each variant's slices are wrong as a whole; none without slices.csv."""
        return count_slice_errors(self.slices) if len(self.slices) else []

    @cached_property
    def stage_effects(self) -> list[PostprocessingEffect]:
        """What each post-processing step changes."""
        return compare_postprocessing(self.stages)

    @cached_property
    def calibrations(self) -> list[Calibration]:
        """Whether each variant's probabilities are right."""
        return calibrate(self.calibration)

    @property
    def variants(self) -> list[str]:
        """Names, best first."""
        return [item.variant for item in self.comparison.variants]

    @property
    def labels(self) -> tuple[str, ...]:
        """What must stand beside every number: synthetic data, random first weights."""
        is_random = NO_WEIGHTS in str(self.about["weights"])
        found = (self.about["synthetic"] and "SYNTHETIC", is_random and NO_WEIGHTS)
        return tuple(str(label) for label in found if label)

    def trials_of(self, variant: str) -> list[Row]:
        """Return the rows of one variant's trials."""
        return [row for row in self.trials if row["variant"] == variant]

    def finished(self, variant: str) -> list[Row]:
        """Return the rows of one variant's finished trials."""
        return [row for row in self.trials_of(variant) if row["status"] == "finished"]


def read_records(study: Path) -> Records:
    """Read and compare.

    Args:
        study: A folder with study.json and trials.csv; what else is missing is left out.

    Raises:
        StudyError: If scores.csv contradicts itself.
    """
    about = json.loads((study / "study.json").read_text(encoding="utf-8"))
    trials = read_csv(study / "trials.csv")
    path = study / "split.json"
    split = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    matrix = read_matrix(read_csv(study / "scores.csv"), trials)
    comparison = compare(matrix, read_factors(trials))
    examples = [r for r in read_csv(study / "examples.csv") if (study / r["picture"]).exists()]
    return Records(
        study,
        about,
        split,
        trials,
        {row["patient"]: row for row in read_csv(study / "patients.csv")},
        read_csv(study / "stages.csv") + read_csv(study / "ensemble.csv"),
        read_csv(study / "calibration.csv"),
        examples,
        read_slices(read_csv(study / "slices.csv")),
        {_cell(row): _history(study, row) for row in trials},
        matrix,
        comparison,
        conclude(matrix, comparison, about["synthetic"], split.get("search", ())),
    )


def _cell(row: Row) -> tuple[str, int, int]:
    return row["variant"], int(row["fold"]), int(row["seed"])


def _history(study: Path, row: Row) -> History:
    name = f"{row['variant']}-fold{row['fold']}-seed{row['seed']}"
    return TrialFolder(study / "trials" / name).read_history()
