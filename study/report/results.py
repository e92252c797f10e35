"""Read the files of a study and analyse them: everything that a report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from brainseg.config import Experiment
from brainseg.document import NONE, Table
from brainseg.errors import DataError
from brainseg.metrics import COUNT_NAMES
from study.analysis.bootstrap import Estimate
from study.analysis.calibration import Calibration, calibrate
from study.analysis.comparison import Comparison, compare
from study.analysis.conclusion import Conclusion, conclude
from study.analysis.leak import Leak, measure_leaks
from study.analysis.postprocessing import PostprocessingEffect, compare_postprocessing
from study.analysis.rankings import Ranking, rank_by_other_metrics
from study.analysis.scores import ScoreMatrix, read_matrix, read_slices
from study.analysis.selection import Choice, find_choices
from study.analysis.subgroups import (
    Breakdown,
    SliceErrors,
    average_slices,
    break_down,
    count_slice_errors,
)
from study.spec.grid import LEAKY
from study.spec.trial_job import trial_name
from study.storage.schema import EXAMPLES, FINISHED, Row
from study.storage.study_folder import read_split, read_study
from study.storage.tables import read_tables
from study.storage.trial_folder import TrialFolder

SYNTHETIC = "SYNTHETIC DATA (generated phantoms): these scores say nothing about patients."
NO_WEIGHTS = "no pretrained weights"
_WIDE = "(wide)"
WIDE = "Wide: too few patients for an interval that says anything."
"""The footnote of tables with an interval that `format_estimate` calls wide."""
WORST_PATIENT, WORST_SLICE = "worst patient", "worst slice"


@dataclass(frozen=True)
class StudyResults:
    """The files of a study and their analysis.

    Attributes:
        folder: The study's folder.
        about: study.json.
        split: split.json; empty if the file is missing.
        trials: The rows of trials.csv.
        patients: Patient -> row of patients.csv.
        postprocessing: The rows of stages.csv and ensemble.csv.
        calibration: The rows of calibration.csv.
        examples: The rows of examples.csv whose picture exists.
        slices: slices.csv as the table of `read_slices`.
        history: The rows of each trial's history.csv with its variant, fold and seed.
        matrix: scores.csv as arrays, without leaky variants.
        leaks: What the leaky variants are worth.
        averaged: Of two compared studies that share no seed: the number of seeds over which the
            scores of each were averaged.
        diagonal: Of the largest slice, in pixels: the worst distance. inf if it is not known.
        experiments: Variant -> experiment of its first finished trial.
    """

    folder: Path
    about: Mapping[str, Any]
    split: Mapping[str, Any]
    trials: Sequence[Row]
    patients: Mapping[str, Row]
    postprocessing: Sequence[Row]
    calibration: Sequence[Row]
    examples: Sequence[Row]
    slices: pd.DataFrame
    history: pd.DataFrame
    matrix: ScoreMatrix
    leaks: Sequence[Leak] = ()
    averaged: tuple[int, ...] = ()
    diagonal: float = math.inf
    experiments: Mapping[str, Experiment] = field(default_factory=dict)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of the variants."""
        factors, external = self.about.get("factors"), self.external
        return compare(self.matrix, factors, external=external, diagonal=self.diagonal)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """The ranks by other metrics and in other ways, the study's own ranking first."""
        slices = {variant: found.point for variant, found in self.slice_dice.items()}
        return rank_by_other_metrics(self.matrix, self.comparison, slices)

    @cached_property
    def conclusion(self) -> Conclusion:
        """The comparison in words."""
        return conclude(
            self.matrix,
            self.comparison,
            self.about["synthetic"],
            self.choices,
            self.rankings,
            self.leaks,
            self.external,
            self.averaged,
        )

    @cached_property
    def choices(self) -> list[Choice]:
        """On which patients the settings of some variants were chosen."""
        searched, chosen_on = self.split.get("search", ()), self.about.get("chosen_on")
        return find_choices(self.matrix, self.comparison, searched, chosen_on, self.external)

    @cached_property
    def breakdowns(self) -> list[Breakdown]:
        """Scores by group of patients or slices; empty without slices.csv."""
        return break_down(self.slices, self.patients) if len(self.slices) else []

    @cached_property
    def slice_dice(self) -> dict[str, Estimate]:
        """Variant -> Dice/slice; empty without slices.csv."""
        return average_slices(self.slices) if len(self.slices) else {}

    @cached_property
    def slice_errors(self) -> list[SliceErrors]:
        """False alarms and missed tumours of each variant; empty without slices.csv."""
        return count_slice_errors(self.slices) if len(self.slices) else []

    @cached_property
    def effects_of_postprocessing(self) -> list[PostprocessingEffect]:
        """What each post-processing step changes."""
        return compare_postprocessing(self.postprocessing)

    @cached_property
    def calibrations(self) -> list[Calibration]:
        """The calibration of each variant's probabilities."""
        return calibrate(self.calibration)

    @property
    def external(self) -> list[str]:
        """The variants that were not trained here: other tools' predictions."""
        return list(self.about.get("external", ()))

    @property
    def points(self) -> tuple[str, ...]:
        """What limits the conclusion, a sentence each."""
        if not self.external:
            return self.conclusion.caveats
        return (
            *self.conclusion.caveats,
            f"External, not trained here: {', '.join(self.external)}. The masks were read from "
            "files and scored like all others. That these patients did not train the tool cannot "
            "be checked here; its interval covers the choice of patients, not another training "
            "of it.",
        )

    @property
    def variants(self) -> list[str]:
        """The names of the variants, best first."""
        return [item.variant for item in self.comparison.variants]

    @property
    def labels(self) -> tuple[str, ...]:
        """Warnings that stand beside every number: synthetic data, random first weights."""
        origins = str(self.about["weights"]).split(", ")
        found = ["SYNTHETIC"] if self.about["synthetic"] else []
        if NO_WEIGHTS in origins:
            found.append(NO_WEIGHTS if len(origins) == 1 else f"{NO_WEIGHTS} in some variants")
        return tuple(found)

    def trials_of(self, variant: str, status: str | None = None) -> list[Row]:
        """Return the rows of a variant's trials, or of those with one status."""
        rows = [row for row in self.trials if row["variant"] == variant]
        return [row for row in rows if status in (None, row["status"])]

    def folder_of(self, row: Row) -> TrialFolder:
        """Return the folder of a trial, given by its row of trials.csv."""
        return _folder_of(self.folder, row)

    def experiment_of(self, row: Row) -> Experiment:
        """Return the experiment of a trial, by study.json where its own file is missing.

        Args:
            row: The trial's row of trials.csv.

        Raises:
            DataError: If the file in the trial's folder holds something else.
            ConfigError: If there is no such file, and study.json holds a key that does not exist.
        """
        return _experiment_of(self.folder, self.about, row)


def format_estimate(estimate: Estimate | None, style: str = ".3f") -> str:
    """Return an estimate as `0.812 (0.790 to 0.831)`, a missing one as a dash.

    `(wide)` stands for an interval that says nothing, see `Estimate.is_wide`.

    Args:
        estimate: A number with or without an interval.
        style: Format of each number, such as `.1f` or, for a difference, `+.3f`.
    """
    if estimate is None or math.isnan(estimate.point):
        return NONE
    style = style.replace(".", "z.")  # no negative zero
    point = format(estimate.point, style)
    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return point
    if estimate.is_wide:
        return f"{point} {_WIDE}"
    return f"{point} ({estimate.low:{style}} to {estimate.high:{style}})"


def has_wide(table: Table) -> bool:
    """Return whether a table has an interval that `format_estimate` calls wide."""
    return any(cell.endswith(_WIDE) for row in table.rows for cell in row.values())


def read_results(folder: Path) -> StudyResults:
    """Read the files of a study.

    Args:
        folder: A folder with study.json and trials.csv. Other files may be missing; the report
            then leaves out what they hold.

    Raises:
        DataError: If a file is not as the study writes it, or a picture is outside the folder: a
            study may come from a stranger.
        StudyError: If the tables contradict each other.
    """
    about = read_study(folder)
    tables = read_tables(folder)
    honest = {name: _without_leaky(tables[name]) for name in tables.keys() - {"patients"}}
    slices = read_slices(honest["slices"])
    finished = [row for row in honest["trials"] if row["status"] == FINISHED]
    first = {row["variant"]: row for row in reversed(finished)}
    return StudyResults(
        folder=folder,
        about=about,
        split=read_split(folder),
        trials=tables["trials"],
        patients={row["patient"]: row for row in tables["patients"]},
        postprocessing=honest["stages"] + honest["ensemble"],
        calibration=honest["calibration"],
        examples=[row for row in honest["examples"] if _has_picture(folder, row["picture"])],
        slices=slices,
        history=pd.DataFrame(
            [epoch for row in honest["trials"] for epoch in _read_history(folder, row)]
        ),
        matrix=read_matrix(honest["scores"], honest["trials"]),
        leaks=measure_leaks(tables["scores"], about["variants"]),
        diagonal=_measure_diagonal(slices),
        experiments={name: _experiment_of(folder, about, row) for name, row in first.items()},
    )


def _measure_diagonal(slices: pd.DataFrame) -> float:
    """Return the diagonal of the largest slice, taken as square: its sides are in no table."""
    pixels = slices[list(COUNT_NAMES)].sum(axis=1)
    return math.sqrt(2 * pixels.max()) if len(slices) else math.inf


def _experiment_of(study: Path, about: Mapping[str, Any], row: Row) -> Experiment:
    trial = _folder_of(study, row)
    if (trial.path / "experiment.yaml").exists():
        return trial.read_experiment()
    shared = Experiment.model_validate(about["experiment"])
    return shared.replaced(about["variants"].get(row["variant"], {}), "study.json")


def _has_picture(folder: Path, name: str) -> bool:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{folder / EXAMPLES.file}, column picture: found {name[:80]!r}, which is outside the "
            "study: only pictures of the study are shown"
        )
    return path.is_file()


def _without_leaky(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not str(row["variant"]).startswith(LEAKY)]


def _folder_of(study: Path, row: Row) -> TrialFolder:
    return TrialFolder(study / "trials" / trial_name(row["variant"], row["fold"], row["seed"]))


def _read_history(folder: Path, row: Row) -> list[Row]:
    cell = {"variant": row["variant"], "fold": int(row["fold"]), "seed": int(row["seed"])}
    return [cell | epoch for epoch in _folder_of(folder, row).read_history()]
