"""Compare two studies on the patients that both tested: `python -m study.compare A B`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainseg.cli import FINISHED, build_parser, location, result_folder, run_command
from brainseg.config import differences
from brainseg.document import Block, Bullets, Document, Paragraph, Section, to_html, to_markdown
from brainseg.errors import ConfigError, StudyError
from brainseg.storage.files import write_csv, write_text
from brainseg.storage.urls import Location
from study.analysis.scores import Floats, ScoreMatrix, count_ends
from study.analysis.selection import patients_of
from study.cli import build_console
from study.report.build import print_rows
from study.report.figures import FigureWriter
from study.report.results import StudyResults, read_results
from study.report.sections import describe_findings, describe_means, ranked_rows
from study.spec.grid import LEAKY
from study.spec.study_spec import StudySpec
from study.spec.trial_job import trial_name
from study.storage.schema import COMPARISON, EXTERNAL, Row
from study.storage.schema import FINISHED as TRIAL_FINISHED
from study.storage.study_folder import read_spec
from study.storage.sync import StudySync

_WRITTEN = ("comparison.html", "comparison.md", "comparison.csv", "figures")
_EXAMPLES = """\
Puts the variants of two studies of one dataset side by side, on the patients that both tested.
Variants get the name of their study in front. LEAKY variants are left out.

examples:
  python -m study.compare results/lite results/architectures
      writes compare-lite-architectures/comparison.html, .md and .csv
  python -m study.compare results/lite s3://BUCKET/studies/lite-256 --out sizes
      a study at a URL; the comparison goes to sizes/

exit codes:
  0  the comparison is written
  1  a study is missing, damaged or unfinished, or the two cannot be compared
  2  usage: a flag or value is wrong, or the folder holds other things
  130  stopped by Ctrl-C or SIGTERM
"""


@dataclass(frozen=True)
class _Study:
    """One of the two studies.

    Attributes:
        name: Stands before its variants.
        spec: What it asks.
        results: Its tables.
    """

    name: str
    spec: StudySpec
    results: StudyResults


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _compare(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser("study.compare", "Compare two studies.", _EXAMPLES)
    parser.add_argument("first", type=location, metavar="A", help="folder or URL of a study")
    parser.add_argument(
        "second", type=location, metavar="B", help="folder or URL of another study"
    )
    parser.add_argument(
        "--out", type=result_folder, metavar="DIR", help="folder to write (default: compare-A-B)"
    )
    return parser


def _compare(args: argparse.Namespace) -> int:
    if args.out is not None:
        _check_folder(args.out)
    one, other = _read(args.first), _read(args.second)
    if one.name == other.name:
        one = _Study(f"{one.name}.A", one.spec, one.results)
        other = _Study(f"{other.name}.B", other.spec, other.results)
    _check_comparable(one, other)
    folder = args.out or Path(f"compare-{one.name}-{other.name}")
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = _join(one, other, folder)
    title = f"Comparison of {one.name} and {other.name}"
    document = Document(
        title=title,
        facts=f"{len(results.matrix.patients)} patients that both studies tested",
        labels=results.labels,
        sentence=results.conclusion.sentence,
        points=(*results.points, *_seen_by_searches(one, other, results.matrix)),
        sections=[
            Section("specification", "How the studies differ", list(_describe(one, other))),
            *describe_findings(results, FigureWriter(results)),
        ],
    )
    write_text(folder / "comparison.html", to_html(document, folder))
    write_text(folder / "comparison.md", to_markdown(document))
    write_csv(folder / "comparison.csv", _pair_rows(results), COMPARISON.names)
    console = build_console()
    note = f"{document.facts}\n{describe_means(results)}".strip()
    print_rows(ranked_rows(results), title, note, console)
    console.print(document.sentence, "", sep="\n")
    console.print(f"comparison: {folder / 'comparison.html'}")
    return FINISHED


def _read(place: Location) -> _Study:
    sync = StudySync(place, read_only=True)
    if not sync.exists():
        raise StudyError(f"{place} is not a study: name the folder or URL that holds study.json")
    sync.fetch()
    spec = read_spec(sync.folder)
    if not (sync.folder / "trials.csv").exists():
        raise StudyError(f"{place} has no trials.csv yet: run the study to its end")
    results = read_results(sync.folder)
    return _Study(results.about["name"], spec, results)


def _check_comparable(one: _Study, other: _Study) -> None:
    """Refuse studies whose scores on one patient do not mean the same.

    Raises:
        StudyError: With the reason.
    """
    a, b = one.spec, other.spec
    why = ""
    if a.synthetic != b.synthetic:
        why = "one has generated phantoms, the other has real data"
    elif a.fingerprint != b.fingerprint:
        why = f"their datasets differ ({a.fingerprint[:12]}, {b.fingerprint[:12]})"
    elif _split_of(a) != _split_of(b):
        why = f"their splits differ ({_describe_splits(a, b)})"
    else:
        x, y = one.results.matrix, other.results.matrix
        shared = sorted(set(x.patients) & set(y.patients))
        if not shared:
            why = "no patient was tested with honest variants of both"
        elif not np.array_equal(_folds(x, shared), _folds(y, shared)):
            why = "they tested the same patients in other rotations, after other training patients"
        elif not np.array_equal(_pixels(x, shared), _pixels(y, shared)):
            why = "they counted the pixels of the same patients at different resolutions"
    if why:
        raise StudyError(
            f"{one.name} and {other.name} cannot be compared: {why}. Compare two studies of one "
            "dataset with one split, scored by the same version of this program"
        )


def _split_of(spec: StudySpec) -> tuple[str, int]:
    """Return the kind of a split and its seed, or the hash of its file, which needs no seed."""
    data = spec.experiment.data
    digest = spec.files.get(data.split)
    return (data.split, data.split_seed) if digest is None else (digest, 0)


def _describe_splits(one: StudySpec, other: StudySpec) -> str:
    a, b = one.experiment.data, other.experiment.data
    if a.split != b.split:
        return f"{a.split}, {b.split}"
    if a.split not in one.files:
        return f"data.split_seed {a.split_seed}, {b.split_seed}"
    return f"{a.split} was changed in between"


def _indices(matrix: ScoreMatrix, patients: Sequence[str]) -> list[int]:
    return [matrix.patients.index(patient) for patient in patients]


def _folds(matrix: ScoreMatrix, patients: Sequence[str]) -> NDArray[np.int64]:
    """Return the rotation that tested each patient, (P,)."""
    return np.asarray(matrix.folds.max(axis=0)[_indices(matrix, patients)])


def _pixels(matrix: ScoreMatrix, patients: Sequence[str]) -> Floats:
    """Return the number of pixels that each patient's counts add up to, (P,)."""
    totals = matrix.counts.sum(axis=-1)[..., _indices(matrix, patients)]
    return np.asarray(np.nanmax(totals, axis=(0, 1)))


def _join(one: _Study, other: _Study, folder: Path) -> StudyResults:
    """Return the results of both studies on the patients that both tested."""
    x, y = one.results.matrix, other.results.matrix
    patients = tuple(sorted(set(x.patients) & set(y.patients)))
    # Without a common seed nothing pairs the trainings: each study's mean stands for one.
    seeds = _common_seeds(one, other)
    scores = [_select(matrix, seeds, patients) for matrix in (x, y)]
    a, b = (study.spec.experiment.data.spacing_mm for study in (one, other))
    folds = _folds(x, patients)
    trials = [
        row | {"variant": f"{study.name}/{row['variant']}"}
        for study in (one, other)
        for row in study.results.trials
        if not row["variant"].startswith(LEAKY)
        and int(row["fold"]) in folds
        and (not seeds or int(row["seed"]) in seeds)
    ]
    num_seeds = len(seeds) or 1
    matrix = ScoreMatrix(
        variants=tuple(f"{s.name}/{v}" for s in (one, other) for v in s.results.matrix.variants),
        seeds=seeds or (0,),
        patients=patients,
        folds=np.tile(folds, (num_seeds, 1)),
        counts=np.concatenate([of.counts for of in scores]),
        dice=np.concatenate([of.dice for of in scores]),
        measures={
            name: np.concatenate([of.measures[name] for of in scores])
            for name in x.measures
            if a == b or not name.endswith("_mm")
        },
        num_trials=sum(row["status"] != EXTERNAL for row in trials),
        missing=tuple(
            trial_name(row["variant"], row["fold"], row["seed"])
            for row in trials
            if row["status"] not in (TRIAL_FINISHED, EXTERNAL)
        ),
        ends=count_ends(trials),
    )
    origins = [str(study.results.about["weights"]) for study in (one, other)]
    return StudyResults(
        folder=folder,
        about={
            "synthetic": one.spec.synthetic,
            "experiment": {"data": {"spacing_mm": a}},
            "external": [f"{s.name}/{v}" for s in (one, other) for v in s.results.external],
            "weights": ", ".join(dict.fromkeys(", ".join(origins).split(", "))),
        },
        split={},
        trials=trials,
        patients={p: row for p, row in one.results.patients.items() if p in patients},
        postprocessing=(),
        calibration=(),
        examples=(),
        slices=pd.DataFrame(),
        history=pd.DataFrame(),
        matrix=matrix,
        averaged=() if seeds else tuple(len(_seeds_of(study)) for study in (one, other)),
        diagonal=max(study.results.diagonal for study in (one, other)),
        experiments={
            f"{study.name}/{variant}": experiment
            for study in (one, other)
            for variant, experiment in study.results.experiments.items()
        },
    )


def _seeds_of(study: _Study) -> tuple[int, ...]:
    """Return the seeds with which a training of the study has scores."""
    return study.results.matrix.scored_seeds(study.results.external)


def _common_seeds(one: _Study, other: _Study) -> tuple[int, ...]:
    return tuple(sorted(set(_seeds_of(one)) & set(_seeds_of(other))))


def _select(matrix: ScoreMatrix, seeds: Sequence[int], patients: Sequence[str]) -> ScoreMatrix:
    """Return the scores of some seeds and patients; without seeds, those of their mean."""
    chosen = [matrix.seeds.index(seed) for seed in seeds]

    def select(values: Floats) -> Floats:
        values = values[:, :, _indices(matrix, patients)]
        if chosen:
            return np.asarray(values[:, chosen])
        mean = np.ma.masked_invalid(values).mean(axis=1, keepdims=True)
        return np.asarray(np.ma.filled(mean, np.nan))

    return matrix.mapped(select)


def _describe(one: _Study, other: _Study) -> list[Block]:
    """Return what differs between the specifications of the studies, and how seeds are paired."""
    fields = ("grid", "variants", "folds", "seeds", "weight_files", "files")
    lines = [
        f"{key}: {getattr(one.spec, key)} -> {getattr(other.spec, key)}"
        for key in fields
        if getattr(one.spec, key) != getattr(other.spec, key)
    ]
    lines += differences(other.spec.experiment, one.spec.experiment)
    commits = [study.results.about["starts"][-1]["commit"] for study in (one, other)]
    if commits[0] != commits[1]:
        lines.append(f"commit of the code: {commits[0]} -> {commits[1]}")
    seeds = _common_seeds(one, other)
    paired = (
        f"Trainings are paired by seed ({', '.join(map(str, seeds))}); other seeds are left out."
        if seeds
        else "The studies share no seed, so that each patient's scores are averaged over seeds: "
        "the intervals do not cover the variation between trainings."
    )
    return [
        Paragraph(f"Each line gives a key, its value in {one.name} and that in {other.name}."),
        Bullets(lines or ["Nothing differs: the studies ask the same."]),
        Paragraph(paired),
    ]


def _seen_by_searches(one: _Study, other: _Study, matrix: ScoreMatrix) -> list[str]:
    """Say which studies have a search that used some of these patients."""
    caveats = []
    for study in (one, other):
        patients = set(matrix.patients)
        if chosen := study.results.about.get("chosen_on"):
            seen = len(patients & {*chosen["judged"], *chosen["trained"]})
            caveats += [
                f"The settings of {name} of {study.name} were chosen with {seen} of these "
                "patients: its scores are too high by an unknown amount."
                for name in chosen["variants"]
                if seen
            ]
        _, used = patients_of(study.results.split.get("search", ()))
        seen = len(used & patients)
        if seen:
            caveats.append(
                f"The search of {study.name} used {seen} of these patients to choose settings: "
                "its winner's scores are too high by an unknown amount."
            )
    return caveats


def _pair_rows(results: StudyResults) -> list[Row]:
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "patients": pair.num_patients,
            "difference": pair.difference.point,
            "low": pair.difference.low,
            "high": pair.difference.high,
            "p": pair.p,
            "p_holm": pair.p_holm,
        }
        for pair in results.comparison.pairs
    ]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds other things than an earlier comparison."""
    if folder.exists() and (
        not folder.is_dir() or any(path.name not in _WRITTEN for path in folder.iterdir())
    ):
        raise ConfigError(f"{folder} is there already and holds other things: name another --out")


if __name__ == "__main__":
    sys.exit(main())
