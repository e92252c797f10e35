"""The study's CSV files and models/, gathered from the trials' folders.

trials.csv has a row for every trial, also for failed ones; the other tables have finished trials.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainseg.errors import DataError, StudyError
from brainseg.metrics import COUNT_NAMES
from brainseg.storage.files import write_atomically, write_csv
from study.spec.grid import parse_winner
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.schema import (
    EXTERNAL,
    EXTERNAL_TABLES,
    FINISHED,
    STUDY_TABLES,
    TRIAL_TABLES,
    TRIALS,
    UNFINISHED,
    Row,
    read_table,
)
from study.storage.study_folder import read_study
from study.storage.trial_folder import TrialFolder, describe_job

_NOT_ENDED = {"status": UNFINISHED, "error": "stopped before its end"}


def collect(study: Path, jobs: Sequence[TrialJob], external: Iterable[str] = ()) -> list[Row]:
    """Write trials.csv, the joined tables and models/ from the trials' folders.

    Args:
        study: The study's folder.
        jobs: The trials.
        external: Variants that were not trained here. Each has a row for every fold and seed of
            the study, with the same scores for all seeds, so that it pairs with trained variants.

    Returns:
        A row per trial of the study, ordered by variant, fold and seed; one without a result has
        the status `unfinished`. Rows of external variants come last.
    """
    ordered = _in_order(jobs)
    rows: list[Row] = []
    tables: dict[str, list[Row]] = {name: [] for name in TRIAL_TABLES}
    for job in ordered:
        folder = TrialFolder(study / job.path)
        row = folder.read() or describe_job(job) | _NOT_ENDED
        rows.append(row)
        if row["status"] == FINISHED:
            for name, joined in tables.items():
                joined += folder.read_table(name)
    others = [row for name in external for row in _read_external(study, name, jobs, tables)]
    write_csv(study / "trials.csv", [*rows, *others], TRIALS.names)
    for name, joined in tables.items():
        write_csv(study / f"{name}.csv", joined, TRIAL_TABLES[name].names_in(joined))
    for job in _best_of_each(ordered, rows):
        _export_model(TrialFolder(study / job.path).model, study / "models", job.variant)
    return [*rows, *others]


def read_tables(study: Path) -> dict[str, list[Row]]:
    """Read the tables of a study, and check that they are of one study and complete.

    Returns:
        Name in `STUDY_TABLES` -> rows, cells as text; no rows if there is no such file.

    Raises:
        DataError: Naming the file and what is wrong, if a table is not as `collect` writes it.
    """
    record = read_study(study)
    spec, protocols = StudySpec.model_validate(record), record["protocol"]
    tables = {name: read_table(study / table.file, table) for name, table in STUDY_TABLES.items()}
    try:
        _check_trials(tables["trials"], spec, protocols)
        _check_cells(study, tables)
        _check_patients(tables)
        _check_counts(tables["scores"], tables["slices"])
        _check_lengths("stages", tables["stages"], ("stage",))
        _check_lengths("calibration", tables["calibration"], ())
    except _MismatchError as error:
        raise DataError(
            f"{study}/{error}. A table was changed or cut: put back what the study wrote, or run "
            "the study again, which collects the tables from trials/"
        ) from error
    return tables


class _MismatchError(ValueError):
    """A table that contradicts another one, or study.json."""


_Cell = tuple[str, str, str]


def _cell(row: Row) -> _Cell:
    return row["variant"], row["fold"], row["seed"]


def _name(cell: _Cell) -> str:
    return "variant {}, fold {}, seed {}".format(*cell)


def _check_trials(
    trials: Sequence[Row], spec: StudySpec, protocols: Sequence[dict[str, Any]]
) -> None:
    """Refuse trials that study.json does not ask for, and a grid with holes.

    A study that has grown since has fewer trials than study.json asks for, but whole rotations,
    seeds and added variants of them.
    """
    if not trials:
        raise _MismatchError("trials.csv: no rows; expected one for each trial of study.json")
    first = spec.experiment.seed
    folds, seeds = range(spec.folds), range(first, first + spec.seeds)
    for row in trials:
        variant = row["variant"]
        is_external = variant in spec.external
        if not (
            is_external or variant in spec.variants or (spec.search and parse_winner(variant))
        ):
            known = ", ".join((*spec.variants, *spec.external))
            raise _MismatchError(f"trials.csv: variant {variant}; study.json has {known}")
        if int(row["fold"]) not in folds or int(row["seed"]) not in seeds:
            raise _MismatchError(
                f"trials.csv: {_name(_cell(row))}; study.json has folds 0 to {spec.folds - 1}, "
                f"seeds {first} to {first + spec.seeds - 1}"
            )
        if is_external != (row["status"] == EXTERNAL):
            raise _MismatchError(f"trials.csv: {_name(_cell(row))} has the status {row['status']}")
    found = {_cell(row) for row in trials if row["variant"] in spec.variants}
    begun = {variant for variant, *_ in found}
    begun |= {v for p in protocols[:1] for v in str(p["protocol"].get("variants")).split(", ")}
    variants = [v for v in spec.variants if v in begun or not protocols]
    for cell in itertools.product(
        variants, sorted({f for _, f, _ in found}), sorted({s for *_, s in found})
    ):
        if cell not in found:
            raise _MismatchError(f"trials.csv: no row for {_name(cell)}")


def _check_cells(study: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Refuse rows of other trials than those that finished, and trials without rows."""
    status = {_cell(row): row["status"] for row in tables["trials"]}
    for name in ("scores", "slices", "stages", "calibration"):
        ended = (FINISHED, EXTERNAL) if name in EXTERNAL_TABLES else (FINISHED,)
        expected = [cell for cell, how in status.items() if how in ended]
        found = dict.fromkeys(map(_cell, tables[name]))
        for cell in found.keys() - expected:
            raise _MismatchError(
                f"{name}.csv: {_name(cell)}; trials.csv has no such finished trial"
            )
        for cell in expected:
            if cell not in found and (study / f"{name}.csv").exists():
                raise _MismatchError(f"{name}.csv: no rows of {_name(cell)}, which finished")
    for row in tables["examples"]:
        if _cell(row) not in status:
            raise _MismatchError(f"examples.csv: {_name(_cell(row))} is not in trials.csv")
    for row in tables["ensemble"]:
        if not any(cell[:2] == _cell(row)[:2] for cell in status):
            raise _MismatchError(f"ensemble.csv: {_name(_cell(row))} is not in trials.csv")


def _check_patients(tables: Mapping[str, Sequence[Row]]) -> None:
    known = {row["patient"] for row in tables["patients"]}
    for name in ("scores", "slices", "stages", "ensemble", "examples"):
        unknown = {row["patient"] for row in tables[name]} - known
        if known and unknown:
            raise _MismatchError(f"{name}.csv: patient {min(unknown)!r} is not in patients.csv")


def _check_counts(scores: Sequence[Row], slices: Sequence[Row]) -> None:
    """Refuse slices that change their size, and scores that are not the sums of the slices."""
    if not slices:
        return
    pixels: dict[tuple[str, str], int] = {}
    sums: dict[tuple[_Cell, str], list[int]] = {}
    for row in slices:
        counts = _counts(row)
        size = pixels.setdefault((row["patient"], row["slice"]), sum(counts))
        if sum(counts) != size:
            raise _MismatchError(
                f"slices.csv: TP, FP, FN and TN of slice {row['slice']} with {_name(_cell(row))} "
                f"add up to {sum(counts)} pixels; expected {size}, as in an earlier row"
            )
        key = (_cell(row), row["patient"])
        sums[key] = [a + b for a, b in zip(sums.get(key, (0, 0, 0, 0)), counts, strict=True)]
    for row in scores:
        expected = sums.pop((_cell(row), row["patient"]), None)
        if _counts(row) != expected:
            raise _MismatchError(
                f"scores.csv: {_name(_cell(row))}, patient {row['patient']!r}: TP, FP, FN and TN "
                f"are {_counts(row)}; the rows of slices.csv add up to {expected}"
            )
    for cell, patient in sums:
        raise _MismatchError(f"scores.csv: no row of {_name(cell)}, patient {patient!r}")


def _counts(row: Row) -> list[int]:
    return [int(row[name]) for name in COUNT_NAMES]


def _check_lengths(name: str, rows: Sequence[Row], parts: Sequence[str]) -> None:
    """Refuse a table of which some parts of a trial, or some trials, have fewer rows."""
    lengths = Counter((_cell(row), *(row[part] for part in parts)) for row in rows)
    longest: dict[object, int] = {}
    for (cell, *_), length in lengths.items():
        same = cell if parts else None
        longest[same] = max(longest.get(same, 0), length)
    for (cell, *part), length in lengths.items():
        expected = longest[cell if parts else None]
        if length != expected:
            where = ", ".join((_name(cell), *part))
            raise _MismatchError(f"{name}.csv: {length} rows of {where}; expected {expected}")


def _read_external(
    study: Path, variant: str, jobs: Sequence[TrialJob], tables: Mapping[str, list[Row]]
) -> list[Row]:
    """Add the scores of an external variant to the tables; return its rows of trials.csv."""
    seeds, folder = sorted({job.seed for job in jobs}), external_folder(study, variant)

    def read(name: str) -> list[Row]:
        rows = read_table(folder / f"{name}.csv", EXTERNAL_TABLES[name])
        if not rows:
            raise StudyError(
                f"{folder / name}.csv has no rows: give --predictions {variant}=DIR again"
            )
        return [{**row, "variant": variant, "seed": seed} for seed in seeds for row in rows]

    for name in EXTERNAL_TABLES.keys() & TRIAL_TABLES.keys():
        tables[name].extend(read(name))
    about = {"status": EXTERNAL, "error": "", "network": "not trained here"}
    return [row | about for row in read("trials")]


def external_folder(study: Path, variant: str) -> Path:
    """Return the folder of a variant that was not trained here."""
    return study / "external" / variant


def jobs_to_export(study: Path, jobs: Sequence[TrialJob]) -> list[TrialJob]:
    """Return the trials whose models `collect` copies: the best of each variant."""
    ordered = _in_order(jobs)
    rows = [TrialFolder(study / job.path).read() or _NOT_ENDED for job in ordered]
    return _best_of_each(ordered, rows)


def kept_models(rows: Iterable[Row]) -> dict[str, Row]:
    """Return, per variant, the row of the finished trial with the lowest val loss."""
    kept: dict[str, Row] = {}
    for row in rows:
        if row["status"] == FINISHED:
            best = kept.setdefault(row["variant"], row)
            if float(row["val_loss"]) < float(best["val_loss"]):
                kept[row["variant"]] = row
    return kept


def _best_of_each(jobs: Sequence[TrialJob], rows: Sequence[Row]) -> list[TrialJob]:
    kept = kept_models(rows)
    return [job for job, row in zip(jobs, rows, strict=True) if row in kept.values()]


def _in_order(jobs: Sequence[TrialJob]) -> list[TrialJob]:
    variants = list(dict.fromkeys(job.variant for job in jobs))
    return sorted(jobs, key=lambda job: (variants.index(job.variant), job.fold, job.seed))


def _export_model(source: Path, folder: Path, variant: str) -> None:
    folder.mkdir(exist_ok=True)
    target = folder / f"{variant}.safetensors"
    with write_atomically(target) as aside:
        shutil.copyfile(source, aside)
