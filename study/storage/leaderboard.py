"""Candidates' folders -> candidates.csv, the winner, best.yaml; what stopping saved, and whom.

Reads and writes files only: neither Ray nor torch is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from scipy import stats

from brainseg.storage.files import write_csv, write_text
from study.spec.grid import WINNER, Trial
from study.spec.search_space import VARIANT, Changes
from study.storage.candidates import (
    FINISHED,
    SCORE,
    STOPPED,
    Search,
    candidate_folder,
    read_params,
)
from study.storage.tables import Row, TrialFolder

TABLE = "candidates.csv"
TOP = 5
_WINNER = re.compile(rf"{WINNER}(\d+)-fold")


@dataclass(frozen=True)
class Spent:
    """What a search took, and what it would have taken without stopping anybody.

    Attributes:
        epochs: Trained.
        epochs_in_full: Of all candidates that did not fail, run in full, and of those that did.
        seconds: Trained.
        seconds_in_full: The same for all in full; the missing epochs of a stopped candidate as
            long as its unfrozen ones.
    """

    epochs: int
    epochs_in_full: int
    seconds: float
    seconds_in_full: float


@dataclass(frozen=True)
class Agreement:
    """How well the scores at a rung tell those at the end, among candidates run in full.

    Attributes:
        rung: Epoch.
        candidates: How many.
        spearman: Rank correlation; NaN with fewer than three.
        kendall: Rank correlation, tau-b; likewise.
        place: At the rung, of the one that is best at the end; 1 is the first.
    """

    rung: int
    candidates: int
    spearman: float
    kendall: float
    place: int


def write_standings(study: Path, search: Search, heading: str) -> list[Row]:
    """Write candidates.csv, best.yaml and search/top-1.yaml to top-5.yaml.

    Args:
        study: The study's folder.
        search: What was asked.
        heading: What a reader must know beside a score; written into the YAML files.

    Returns:
        A row per candidate that was drawn, in order, with the columns of `columns`.
    """
    all_params = read_params(study)
    rows = [_row(study, search, number, params) for number, params in enumerate(all_params)]
    write_csv(study / TABLE, rows, columns(search))
    for place, row in enumerate(ranked(rows)[:TOP], 1):
        text = _yaml(search, row, all_params[row["candidate"]], place, heading)
        write_text(study / "search" / f"top-{place}.yaml", text)
        if place == 1:
            write_text(study / "best.yaml", text)
    return rows


def columns(search: Search) -> list[str]:
    """Return the columns of candidates.csv; none is a time, so that equal searches are equal."""
    rungs = [f"{SCORE}@{rung}" for rung in search.rungs]
    head = ["candidate", "status", "epochs", "planned_epochs", SCORE, *rungs]
    return [*head, VARIANT, *search.space.ranges, "error"]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the candidates that ran in full, best first; of equal ones the earlier first."""
    full = [row for row in rows if row["status"] == FINISHED]
    return sorted(full, key=lambda row: (-float(row[SCORE]), int(row["candidate"])))


def winner_trials(study: Path, search: Search, folds: int, seeds: int) -> list[Trial]:
    """Return the trials of the winner, trained in full with the study's own seeds.

    There are none if the winner is a variant as it is, which the grid trains anyway. A former
    winner's trials stay in the study as far as they have ended; another one's never take their
    place, since a variant is named after its candidate.

    Args:
        study: The study's folder.
        search: What was asked.
        folds: Rotations 0 to folds - 1.
        seeds: How many, counted up from the study's first.
    """
    all_params = read_params(study)
    rows = [_row(study, search, number, params) for number, params in enumerate(all_params)]
    best = ranked(rows)
    current = best[0]["candidate"] if best else None
    if current is not None and is_variant(search, all_params[current]):
        current = None
    names = [path.name for path in (study / "trials").glob(f"{WINNER}*")]
    former = {int(found[1]) for name in names if (found := _WINNER.match(name))}
    trials = []
    for number in sorted(former - {current}) + ([] if current is None else [current]):
        for trial in _retrained(search, number, all_params[number], folds, seeds):
            if number == current or TrialFolder(study / trial.path).read() is not None:
                trials.append(trial)
    return trials


def is_variant(search: Search, params: Changes) -> bool:
    """Return whether a candidate is one of the grid's variants as it is."""
    variant = search.space.base.replaced(dict(search.space.variants[params[VARIANT]]))
    return search.experiment(params) == variant


def count_ended(study: Path) -> int:
    """Return how many candidates have a result."""
    numbers = range(len(read_params(study)))
    return sum(candidate_folder(study, number).read() is not None for number in numbers)


def measure_spent(study: Path, rows: Sequence[Row]) -> Spent:
    """Add up what the candidates took.

    Args:
        study: The study's folder.
        rows: Of candidates.csv.
    """
    epochs = full = 0
    seconds = seconds_full = 0.0
    for row in rows:
        history = candidate_folder(study, int(row["candidate"])).read_history()
        missing = int(row["planned_epochs"]) - len(history) if row["status"] == STOPPED else 0
        took = sum(epoch["seconds"] for epoch in history)
        unfrozen = [epoch["seconds"] for epoch in history if epoch["stage"] == 2]
        epochs, full = epochs + len(history), full + len(history) + missing
        seconds, seconds_full = seconds + took, seconds_full + took
        if missing and unfrozen:
            seconds_full += missing * fmean(unfrozen)
    return Spent(epochs, full, seconds, seconds_full)


def measure_agreement(rows: Sequence[Row], rungs: Sequence[int]) -> list[Agreement]:
    """Compare scores at each rung with those at the end.

    Whom a rung stops has no end: with stopping, only survivors can be compared, which says less.

    Args:
        rows: Of candidates.csv.
        rungs: Epochs.
    """
    found = []
    for rung in rungs:
        full = [row for row in ranked(rows) if row[f"{SCORE}@{rung}"] not in ("", None)]
        then = [float(row[f"{SCORE}@{rung}"]) for row in full]
        last = [float(row[SCORE]) for row in full]
        if not full:
            continue
        is_enough = len(full) > 2 and len(set(then)) > 1 and len(set(last)) > 1
        spearman = float(stats.spearmanr(then, last).statistic) if is_enough else float("nan")
        kendall = float(stats.kendalltau(then, last).statistic) if is_enough else float("nan")
        place = 1 + sum(value > then[0] for value in then)
        found.append(Agreement(rung, len(full), spearman, kendall, place))
    return found


def _retrained(
    search: Search, number: int, params: Changes, folds: int, seeds: int
) -> list[Trial]:
    experiment, variant = search.experiment(params), f"{WINNER}{number:04d}"
    return [
        Trial(variant, fold, seed, experiment.replaced({"fold": fold, "seed": seed}))
        for seed in range(search.seed, search.seed + seeds)
        for fold in range(folds)
    ]


def _row(study: Path, search: Search, number: int, params: Changes) -> Row:
    folder = candidate_folder(study, number)
    result = folder.read() or {"status": "unfinished", "error": "stopped before its end"}
    history = {int(epoch["step"]): epoch[SCORE] for epoch in folder.read_history()}
    stages = search.experiment(params).stages
    row = {
        "candidate": number,
        "status": result["status"],
        "epochs": len(history),
        "planned_epochs": sum(stage.epochs for stage in stages),
        SCORE: result.get(SCORE, ""),
        **{f"{SCORE}@{rung}": history.get(rung, "") for rung in search.rungs},
    }
    return row | params | {"error": result["error"]}


def _yaml(search: Search, row: Row, params: Changes, place: int, heading: str) -> str:
    return (
        f"# Place {place} of {search.candidates} candidates: candidate {row['candidate']}, "
        f"val Dice {float(row[SCORE]):.4f} (global, best epoch: an optimistic figure).\n"
        f"# {heading}\n"
        "# Chosen by validation alone; run it with: python -m study.run --config THIS_FILE\n"
        f"{search.experiment(params).to_yaml()}"
    )
