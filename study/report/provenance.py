"""What the findings rest on, as sections: trials, published results, cost, data, reproduction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from brainseg.data.about import LGG
from brainseg.document import (
    NONE,
    Block,
    Bullets,
    Listing,
    Paragraph,
    Section,
    Table,
    facts_table,
)
from brainseg.storage.files import hash_file, read_text
from study.analysis.protocol import describe_changes
from study.report.results import SYNTHETIC, StudyResults
from study.storage.schema import EXTERNAL, FINISHED
from study.storage.study_folder import GRID_FILE, changed_lines, grid_copies

_HOUR = 3600
_SIZE = "data.size"


def describe_provenance(results: StudyResults) -> list[Section]:
    """Return the sections on what the findings rest on; those without data are left out."""
    sections = [
        Section("trials", "Trials", list(_trials(results))),
        Section("published", "Published results, for comparison", list(_published(results))),
        Section("cost", "Cost", list(_cost(results))),
        Section("protocol", "Protocol of the study", list(_protocol(results))),
        Section("data", "Data and split", list(_data(results))),
        Section("repeat", "How to reproduce this study", list(_reproduction(results))),
    ]
    return [section for section in sections if section.blocks]


def describe_study(about: Mapping[str, Any], size: str = "") -> str:
    """Return what a reader must know beside any score, in one line.

    Args:
        about: The content of study.json.
        size: Side of a slice in the network, in pixels; by default the one that all variants
            share, if they do.
    """
    size = size or _shared_size(about)
    parts = [
        SYNTHETIC if about["synthetic"] else f"data {about['fingerprint'][:12]}",
        f"{about['patients']} patients",
        *([f"{size} px"] if size else []),
        f"encoder weights: {about['weights']}",
        f"{about['folds']} fold(s) x {about['seeds']} seed(s)",
    ]
    return " · ".join(parts)


def _shared_size(about: Mapping[str, Any]) -> str:
    shared = about["experiment"]["data"]["size"]
    sizes = {changes.get(_SIZE, shared) for changes in about["variants"].values()} or {shared}
    is_searched = _SIZE in (about.get("search") or {"space": {}})["space"]
    return "" if is_searched or len(sizes) > 1 else str(sizes.pop())


def describe_licence(about: Mapping[str, Any]) -> str:
    """Return the dataset's name, source and licence in a sentence.

    Args:
        about: The content of study.json.
    """
    dataset = about.get("about") or LGG.model_dump()
    source = f" ({dataset['source']})" if dataset["source"] else ""
    licence = dataset["licence"] or "not stated in its dataset.yaml"
    return f"Dataset: {dataset['name'] or 'without a name'}{source}. Licence: {licence}."


def published_rows(results: StudyResults) -> list[dict[str, str]]:
    """Return the published table, values as text; empty if it has no variant of the study."""
    scores = (results.about.get("published") or {"scores": {}})["scores"]
    if not set(results.variants) & set(scores):
        return []
    return [
        {"published": variant, **{name: f"{value:.4f}" for name, value in row.items()}}
        for variant, row in scores.items()
    ]


def check_split(results: StudyResults) -> list[tuple[str, bool]]:
    """Verify the split from split.json and scores.csv.

    Returns:
        Statements about the split, each with whether it holds; empty without split.json.
    """
    rotations = results.split.get("rotations", [])
    if not rotations:
        return []
    patients = set(results.split["patients"])
    parts = [[set(r["train"]), set(r["val"]), set(r["test"])] for r in rotations]
    tested = [test for _, _, test in parts]
    test_of = {int(r["rotation"]): set(r["test"]) for r in rotations}
    matrix = results.matrix
    scored = [
        (int(fold), patient)
        for folds in matrix.folds
        for fold, patient in zip(folds, matrix.patients, strict=True)
        if fold >= 0
    ]
    checks = [
        (
            "no patient is in two of train, val and test",
            all(not a & b for group in parts for a, b in itertools.combinations(group, 2)),
        ),
        (
            "train, val and test of every rotation hold patients of the dataset alone",
            all(set().union(*group) <= patients for group in parts),
        ),
        (
            "no patient is tested in two rotations",
            all(not a & b for a, b in itertools.combinations(tested, 2)),
        ),
        (
            "every score is of a patient in the test part of its rotation",
            all(patient in test_of.get(fold, set()) for fold, patient in scored),
        ),
    ]
    # Sites beyond ten, and patients that a file leaves out, are tested by no rotation.
    if len(rotations) == 10 and results.split.get("split", "patient") == "patient":
        checks.append(("every patient is tested", set().union(*tested) == patients))
    return checks


def _trials(results: StudyResults) -> Iterator[Block]:
    trained = [row for row in results.trials if row["status"] != EXTERNAL]
    failed = [row for row in trained if row["status"] != FINISHED]
    halved = [row for row in results.trials if row.get("batch_parts") not in (None, "", "1")]
    total = len(trained)
    yield Paragraph(f"{total - len(failed)} of {total} trials finished.")
    yield from _stopping(results)
    if failed:
        keys = ("variant", "fold", "seed", "status", "error")
        rows = [{key: row[key] or NONE for key in keys} for row in failed]
        yield Table(f"{len(failed)} trials without scores.", rows)
    if halved:
        yield Paragraph("Memory ran out, so batches were taken in parts, which changes numbers:")
        yield Bullets([f"{r['variant']} fold {r['fold']} seed {r['seed']}" for r in halved])


def _stopping(results: StudyResults) -> Iterator[Block]:
    """Say by which rule trainings ended early, and how many did."""
    experiment = results.about["experiment"]
    rule = experiment.get("stopping") or {}
    rules = []
    if rule.get("patience"):
        rules.append(
            f"A training ended early after {rule['patience']} epochs of the last stage without a "
            "lower val loss."
        )
    if rule.get("minutes"):
        rules.append(
            f"A training ended early after {rule['minutes']:g} minutes of epochs, so that the "
            "numbers depend on the machine."
        )
    if rules:
        finished = [row for row in results.trials if row["status"] == FINISHED]
        epochs = [int(row["epochs"]) for row in finished]
        between = f"{min(epochs)} to {max(epochs)}" if epochs else "no"
        planned = [results.folder_of(row).read_experiment().num_epochs for row in finished]
        early = sum(ran < full for ran, full in zip(epochs, planned, strict=True))
        yield Paragraph(
            f"{' '.join(rules)} The trials ran {between} epochs; {early} of {len(finished)} ended "
            "before their last. The rule is the same for all variants."
        )


def _published(results: StudyResults) -> Iterator[Block]:
    rows = published_rows(results)
    if rows:
        published = results.about["published"]
        yield Paragraph(
            f"Published and not measured here. Source: {published['source']}. Measured on: "
            f"{published['measured']}. The published Dice is the global one."
        )
        yield Table("Published by others, not measured here.", rows, is_result=False)


def _cost(results: StudyResults) -> Iterator[Block]:
    trained = (row["variant"] for row in results.trials if row["status"] != EXTERNAL)
    own = dict.fromkeys(
        [*results.variants, *trained]
    )  # leaky variants, which are not ranked, last
    names = [variant for variant in own if variant not in results.external]
    rows = [_cost_row(results, variant) for variant in (*names, None)]
    yield Table("Cost of training; preparation, testing and waiting are not counted.", rows)
    yield Paragraph("Energy was not measured.")


def _cost_row(results: StudyResults, variant: str | None) -> dict[str, str]:
    rows = results.trials if variant is None else results.trials_of(variant)
    rows = [row for row in rows if row["status"] != EXTERNAL]
    seconds = sum(float(row["seconds"] or 0) for row in rows)
    epochs = sum(int(row["epochs"] or 0) for row in rows)
    gpus = float(results.about["gpus_per_trial"])
    cpus = float(results.about["cpus_per_trial"])
    kind, share = ("GPU hours", gpus) if gpus else ("CPU hours", cpus)
    return {
        "variant": variant or "all",
        "trials": str(len(rows)),
        "epochs": f"{epochs:,}",
        "seconds per epoch": f"{seconds / epochs:.1f}" if epochs else NONE,
        "hours of trials": f"{seconds / _HOUR:.2f}",
        kind: f"{seconds * share / _HOUR:.2f}",
    }


def _protocol(results: StudyResults) -> Iterator[Block]:
    """Say what was fixed, when, and what was changed since."""
    registered = results.about.get("protocol") or []
    if not registered:
        return
    first, last = registered[0], registered[-1]
    when = "before the first trial" if not first["tested"] else f"after {first['tested']} trials"
    changes = describe_changes(registered)
    yield Paragraph(
        f"Written on {first['time']}, {when}; SHA-256 {first['hash'][:12]}. "
        + ("It was changed since." if changes else "It was not changed since.")
    )
    if changes:
        yield Table(
            "What was changed since, and how many trials had been tested by then.", changes
        )
    facts = {name: str(value) for name, value in last["protocol"].items() if value}
    yield facts_table("What was fixed. All other scores in this report are secondary.", facts)


def _data(results: StudyResults) -> Iterator[Block]:
    about = results.about
    facts = {
        "kind": "SYNTHETIC: generated phantoms" if about["synthetic"] else "MRI slices",
        "patients": f"{about['patients']:,}",
        "slices": f"{about['slices']:,}",
        "slices with tumour": f"{about['tumour_slices']:,}",
        "channels": ", ".join(about["channels"]),
        "fingerprint": str(about["fingerprint"]),
    }
    yield facts_table("The dataset.", facts)
    if not about["synthetic"]:
        yield Paragraph(
            f"{describe_licence(about)} The same holds for the pictures of slices in this report."
        )
    checks = check_split(results)
    if checks:
        rows = [{"check": text, "result": "holds" if ok else "FAILS"} for text, ok in checks]
        yield Table("The split, verified from split.json and scores.csv.", rows, is_result=False)


def _grid_copies(results: StudyResults) -> Iterator[Block]:
    copies = grid_copies(results.folder)
    if not copies:
        return
    rows = [
        {
            "file": path.name,
            "SHA-256": hash_file(path),
            "used": "latest copy" if path.name == GRID_FILE else "before it was changed",
        }
        for path in copies
    ]
    yield Table("The file of the grid, copied into the study's folder.", rows, is_result=False)
    for before, after in itertools.pairwise(copies):
        if lines := changed_lines(read_text(before), read_text(after)):
            yield Listing(f"What changed after {before.name}:", "\n".join(lines))


def _reproduction(results: StudyResults) -> Iterator[Block]:
    start = results.about["starts"][-1]
    yield Listing("The command:", start["command"])
    yield facts_table("Versions.", {"commit of this code": start["commit"], **start["versions"]})
    yield from _grid_copies(results)
    differences = "\n".join(
        f"{variant}: " + ", ".join(f"{key}={value}" for key, value in changes.items())
        for variant, changes in results.about["variants"].items()
    )
    yield Listing("The variants and the keys in which they differ:", differences)
    shared = results.folder / "experiment.yaml"
    if shared.exists():
        text = read_text(shared)
        yield Listing("The configuration that they share:", text, is_folded=True)
    yield Paragraph(
        "All numbers above come from study.json, split.json and the CSV files beside this report: "
        "trials, scores, slices, stages, ensemble, calibration, patients, examples."
    )
