"""The candidates of a search, ranked: candidates.csv, best.yaml, the winner, and what it cost.

best_grid.yaml is the winner beside the experiment that it changes, as a grid that a study runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import yaml
from scipy import stats

from brainseg.config import Experiment, valid_keys
from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import write_csv, write_text
from study.spec.grid import DECIDED, WINNER, Changes, parse_winner
from study.spec.search_space import VARIANT
from study.spec.study_spec import SCORE, StudySpec
from study.spec.trial_job import TrialJob, candidate_path, search_path
from study.storage.schema import (
    CANDIDATES,
    FINISHED,
    KEY,
    RUNG,
    STOPPED,
    UNFINISHED,
    Row,
    Table,
    read_table,
)
from study.storage.study_folder import read_split
from study.storage.trial_folder import TrialFolder, candidate_folder, read_params

TOP = 5


@dataclass(frozen=True)
class Spent:
    """What a search took, and what it would have taken without stopping any candidate.

    Attributes:
        epochs: Epochs trained.
        epochs_in_full: Without stopping; a failed candidate counts the epochs that it trained.
        seconds: Seconds of training.
        seconds_in_full: Without stopping; a stopped candidate's missing epochs are taken to last
            as long as its unfrozen ones.
    """

    epochs: int
    epochs_in_full: int
    seconds: float
    seconds_in_full: float


@dataclass(frozen=True)
class Agreement:
    """How well the scores at a rung predict the final ones, over candidates run in full.

    Attributes:
        rung: Epoch.
        candidates: How many were compared.
        spearman: Rank correlation; NaN with fewer than three candidates.
        kendall: Rank correlation, tau-b; likewise.
        rank: Rank at the rung, from 1, of the candidate that is best in the end.
    """

    rung: int
    candidates: int
    spearman: float
    kendall: float
    rank: int


def leaderboard_folder(study: Path, spec: StudySpec) -> Path:
    """Return where candidates.csv and best.yaml of a search are: the study's folder if it is the
    only search, otherwise its own.
    """
    return study / search_path(spec.group) if spec.group else study


def read_leaderboard(study: Path, spec: StudySpec) -> list[Row]:
    """Return the rows of candidates.csv, in order; none if it was not written yet.

    Raises:
        DataError: If it is not as `write_leaderboard` writes it.
    """
    path = leaderboard_folder(study, spec) / "candidates.csv"
    rows = read_table(path, candidates_table(spec))
    drawn = len(read_candidates(study, spec))
    for index, row in enumerate(rows):
        if row["candidate"] != str(index) or index >= drawn:
            raise DataError(
                f"{path} has candidate {row['candidate']} in the place of {index}; expected the "
                f"{drawn} candidates in {search_path(spec.group)}/candidates, from 0"
            )
    return rows


def read_candidates(study: Path, spec: StudySpec) -> list[Changes]:
    """Return the parameters of the candidates that a search has drawn, in order.

    Raises:
        DataError: If a file is missing, or the search could not have drawn what it holds.
    """
    all_params = read_params(study, spec.group)
    for index, params in enumerate(all_params):
        try:
            spec.search_space.check(params)
        except ConfigError as error:
            path = study / candidate_path(index, spec.group) / "params.json"
            raise DataError(f"{path}, {error}: put back what the search drew") from error
    return all_params


def write_leaderboard(study: Path, spec: StudySpec, heading: str) -> list[Row]:
    """Write candidates.csv, best.yaml, best_grid.yaml and top-1.yaml to top-5.yaml of a search.

    Args:
        study: The study's folder.
        spec: One of `StudySpec.searches`.
        heading: What a reader must know beside a score; written into the YAML files.

    Returns:
        A row per candidate that was drawn, in order, with the columns of `candidates_table`.
    """
    folder, group = leaderboard_folder(study, spec), spec.group
    all_params = read_candidates(study, spec)
    rows = [_row(study, spec, index, params) for index, params in enumerate(all_params)]
    write_csv(folder / "candidates.csv", rows, candidates_table(spec).names)
    for rank, row in enumerate(ranked(rows)[:TOP], 1):
        text = _to_yaml(spec, row, all_params[row["candidate"]], rank, heading)
        write_text(study / search_path(group) / f"top-{rank}.yaml", text)
        if rank == 1:
            write_text(folder / "best.yaml", text)
            grid = _to_grid(study, spec, rows, all_params[row["candidate"]], heading)
            write_text(folder / "best_grid.yaml", grid)
    return rows


def candidates_table(spec: StudySpec) -> Table:
    """Return the table candidates.csv; it has no times, so that equal searches are equal."""
    names = {RUNG: [f"{SCORE}@{rung}" for rung in spec.rungs], KEY: spec.search_space.ranges}
    columns = (
        replace(column, name=name)
        for column in CANDIDATES.columns
        for name in names.get(column.name, [column.name])
    )
    return replace(CANDIDATES, columns=tuple(columns))


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the candidates that ran in full, best first; of equal ones the earlier first."""
    full = [row for row in rows if row["status"] == FINISHED]
    return sorted(full, key=lambda row: (-float(row[SCORE]), int(row["candidate"])))


def winner_jobs(study: Path, spec: StudySpec) -> list[TrialJob]:
    """Return the trials of the search's winner, trained in full with the study's own seeds.

    There are none if the winner is an unchanged variant, which the grid trains anyway. Trials of a
    former winner stay in the study if they have ended; a variant's name contains its candidate's
    index, so that winners do not overwrite each other.

    Args:
        study: The study's folder.
        spec: One of `StudySpec.searches`.
    """
    group = spec.group
    all_params = read_candidates(study, spec)
    best = ranked([_row(study, spec, index, params) for index, params in enumerate(all_params)])
    current = best[0]["candidate"] if best else None
    if current is not None and spec.search_space.is_variant(all_params[current]):
        current = None
    names = {path.name.rpartition("-fold")[0] for path in (study / "trials").glob(f"{WINNER}*")}
    winners = [found for found in map(parse_winner, names) if found]
    former = {index for name, index in winners if name == group}
    return [
        job
        for index in [*sorted(former - {current}), *([] if current is None else [current])]
        for job in spec.retrained(index, all_params[index])
        if index == current or TrialFolder(study / job.path).status != UNFINISHED
    ]


def count_open(study: Path, spec: StudySpec) -> int:
    """Return how many candidates of one of `StudySpec.searches` have yet to end."""
    group = spec.group
    drawn = range(len(read_params(study, group)))
    ended = sum(candidate_folder(study, index, group).status != UNFINISHED for index in drawn)
    return spec.own_search.candidates - ended


def measure_spent(study: Path, rows: Sequence[Row], group: str = "") -> Spent:
    """Add up what the candidates took.

    Args:
        study: The study's folder.
        rows: Of candidates.csv.
        group: The search that the candidates belong to.
    """
    epochs = full = 0
    seconds = seconds_full = 0.0
    for row in rows:
        history = candidate_folder(study, int(row["candidate"]), group).read_history()
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

    A stopped candidate has no score at the end, so a search that stops compares survivors only,
    which says less.

    Args:
        rows: Of candidates.csv.
        rungs: Epochs.
    """
    found = []
    for rung in rungs:
        full = [row for row in ranked(rows) if row[f"{SCORE}@{rung}"] not in ("", None)]
        if not full:
            continue
        then = [float(row[f"{SCORE}@{rung}"]) for row in full]
        last = [float(row[SCORE]) for row in full]
        is_enough = len(full) > 2 and len(set(then)) > 1 and len(set(last)) > 1
        spearman = float(stats.spearmanr(then, last).statistic) if is_enough else float("nan")
        kendall = float(stats.kendalltau(then, last).statistic) if is_enough else float("nan")
        rank = 1 + sum(value > then[0] for value in then)
        found.append(Agreement(rung, len(full), spearman, kendall, rank))
    return found


def _row(study: Path, spec: StudySpec, index: int, params: Changes) -> Row:
    folder = candidate_folder(study, index, spec.group)
    result = folder.read() or {"status": UNFINISHED, "error": "stopped before its end"}
    history = {int(epoch["step"]): epoch.get(SCORE, "") for epoch in folder.read_history()}
    row = {
        "candidate": index,
        "status": result["status"],
        "epochs": len(history),
        "planned_epochs": spec.candidate(index, params).num_epochs,
        SCORE: result.get(SCORE, ""),
        **{f"{SCORE}@{rung}": history.get(rung, "") for rung in spec.rungs},
    }
    return row | params | {"error": result["error"]}


def _to_grid(
    study: Path, spec: StudySpec, rows: Sequence[Row], params: Changes, heading: str
) -> str:
    """Return the grid of the winner and the variant that it changes, with the search's record."""
    space, variant = spec.search_space, params[VARIANT]
    best, spent = ranked(rows)[0], measure_spent(study, rows, spec.group)
    # All of it: the grid means the same whatever it is run with, and its hash freezes all.
    shared = {key: spec.experiment.value(key) for key in valid_keys() if key not in DECIDED}
    variants = {"protocol": dict(spec.variants[variant])}
    if not space.is_variant(params):
        drawn = {key: value for key, value in params.items() if key != VARIANT}
        variants["winner"] = space.shared(variant) | drawn
    tree = {
        "description": f"The winner of the search of {study.name}, beside the variant {variant}.",
        "defaults": {"folds": spec.folds, "seeds": spec.seeds},
        "variants": variants,
        "shared": shared,
    }
    if "winner" in variants and (splits := read_split(study).get("search")):
        judged = {name for split in splits for name in split["val"]}
        trained = {name for split in splits for name in split["train"]}
        if spec.chosen_on is not None:  # what the search began with was chosen too
            judged |= set(spec.chosen_on.judged)
            trained |= set(spec.chosen_on.trained)
        chosen = {
            "variants": ["winner"],
            "judged": sorted(judged),
            "trained": sorted(trained - judged),
        }
        tree["chosen_on"] = chosen
    of = f" of {spec.group}" if spec.group else ""
    search = spec.own_search
    text = json.dumps(search.model_dump(mode="json")["space"], sort_keys=True)
    first = spec.experiment.seed  # which no grid decides
    seed = "" if first == Experiment().seed else f" --set seed={first}"
    return (
        f"# Winner of the search{of} of {study.name}: candidate {best['candidate']} of "
        f"{search.candidates},\n"
        f"# val Dice {float(best[SCORE]):.4f} (global, best epoch: an optimistic figure).\n"
        f"# Trained: {spent.epochs:,} epochs of {spent.epochs_in_full:,} in full; sampler "
        f"{search.sampler}, scheduler {search.scheduler}, seed {spec.training_seed}.\n"
        f"# SHA-256 of the space: {hashlib.sha256(text.encode()).hexdigest()}\n"
        f"# {heading}\n"
        f"# Chosen by validation alone; run it with: python -m study.run --grid THIS_FILE{seed}\n"
        f"{yaml.safe_dump(tree, sort_keys=False, width=99)}"
    )


def _to_yaml(spec: StudySpec, row: Row, params: Changes, rank: int, heading: str) -> str:
    group = f" of {spec.group}" if spec.group else ""
    return (
        f"# Rank {rank} of {spec.own_search.candidates} candidates{group}: "
        f"candidate {row['candidate']}, "
        f"val Dice {float(row[SCORE]):.4f} (global, best epoch: an optimistic figure).\n"
        f"# {heading}\n"
        "# Chosen by validation alone; run it with: python -m study.run --config THIS_FILE\n"
        f"{spec.search_space.experiment(params).to_yaml()}"
    )
