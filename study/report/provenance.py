"""What a study rests on, section by section: trials, cost, data, split, versions, command.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from brainseg.document import NONE, Block, Listing, Paragraph, Section, Table, facts_table
from study.report.results import SYNTHETIC, Records
from study.storage.tables import Row

PUBLISHED = {
    "raw-resnet50": (0.8898, 0.8015, 0.9963, 0.8820, 0.8978, 0.1265),
    "preprocessed-resnet50": (0.8861, 0.7955, 0.9962, 0.8812, 0.8911, 0.1225),
    "preprocessed-efficientnet-b0": (0.8808, 0.7870, 0.9961, 0.8915, 0.8704, 0.1293),
    "raw-efficientnet-b0": (0.8807, 0.7869, 0.9962, 0.9118, 0.8517, 0.1401),
}
"""Dice, IoU, accuracy, precision, recall, val loss: one split, one seed, 12 or fewer patients."""

_SECONDS = 3600


def describe_basis(records: Records) -> list[Section]:
    """Return the sections about what the findings rest on."""
    sections = [
        _trials(records),
        _published(records),
        _cost(records),
        _data(records),
        _repeat(records),
    ]
    return [section for section in sections if section.blocks]


def describe_study(about: Mapping[str, Any]) -> str:
    """Return what a reader must know beside any score, in one line."""
    size = about["experiment"]["data"]["size"]
    parts = [
        SYNTHETIC if about["synthetic"] else f"data {about['fingerprint'][:12]}",
        f"{about['patients']} patients",
        f"{size} px",
        f"encoder weights: {about['weights']}",
        f"{about['folds']} fold(s) x {about['seeds']} seed(s)",
    ]
    return " · ".join(parts)


def published_rows(records: Records) -> list[dict[str, str]]:
    """Return the published table, values as text; empty if no variant of the study is in it."""
    names = ("Dice", "IoU", "accuracy", "precision", "recall", "val loss")
    if not set(records.variants) & set(PUBLISHED):
        return []
    return [
        {"published": variant, **{n: f"{v:.4f}" for n, v in zip(names, values, strict=True)}}
        for variant, values in PUBLISHED.items()
    ]


def check_split(records: Records) -> list[tuple[str, bool]]:
    """Return sentences about the split, each with whether it holds in the files as they are."""
    rotations = records.split.get("rotations", [])
    if not rotations:
        return []
    everyone = set(records.split["fold_of_patient"])
    parts = [[set(r["train"]), set(r["val"]), set(r["test"])] for r in rotations]
    tested = [test for _, _, test in parts]
    where = {int(r["rotation"]): set(r["test"]) for r in rotations}
    matrix = records.matrix
    scored = [
        (int(fold), matrix.patients[p])
        for seed in matrix.folds
        for p, fold in enumerate(seed)
        if fold >= 0
    ]
    checks = [
        (
            "no patient is in two of train, val and test",
            all(not a & b for group in parts for a, b in itertools.combinations(group, 2)),
        ),
        (
            "every patient is in one of them, in every rotation",
            all(set().union(*group) == everyone for group in parts),
        ),
        (
            "no patient is tested in two rotations",
            all(not a & b for a, b in itertools.combinations(tested, 2)),
        ),
        (
            "every score is of a patient of its rotation's test part",
            all(patient in where.get(fold, set()) for fold, patient in scored),
        ),
    ]
    if len(rotations) == 10:
        checks.append(("every patient is tested", set().union(*tested) == everyone))
    return checks


def _trials(records: Records) -> Section:
    failed = [row for row in records.trials if row["status"] != "finished"]
    halved = [row for row in records.trials if row.get("batch_parts") not in (None, "", "1")]
    finished = len(records.trials) - len(failed)
    blocks: list[Block] = [Paragraph(f"{finished} of {len(records.trials)} trials finished.")]
    if failed:
        keys = ("variant", "fold", "seed", "status", "error")
        rows = [{key: row[key] or NONE for key in keys} for row in failed]
        blocks.append(Table(f"{len(failed)} trials without a score.", rows))
    if halved:
        names = ", ".join(f"{r['variant']} fold {r['fold']} seed {r['seed']}" for r in halved)
        blocks.append(
            Paragraph(f"Batches in parts for want of memory, which changes numbers: {names}.")
        )
    return Section("trials", "Trials", blocks)


def _published(records: Records) -> Section:
    rows = published_rows(records)
    blocks: list[Block] = []
    if rows:
        table = Table("Published by others, not measured here.", rows, is_result=False)
        blocks = [Paragraph(_PUBLISHED_NOTE), table]
    return Section("published", "Published results, for comparison", blocks)


def _cost(records: Records) -> Section:
    rows = [_cost_row(records, variant) for variant in records.variants]
    rows.append(_cost_row(records, None))
    caption = "What training took; preparation, testing and waiting are not counted."
    return Section("cost", "Cost", [Table(caption, rows), Paragraph("Energy was not measured.")])


def _cost_row(records: Records, variant: str | None) -> dict[str, str]:
    rows = records.trials if variant is None else records.trials_of(variant)
    seconds = sum(float(row["seconds"] or 0) for row in rows)
    epochs = sum(int(row["epochs"] or 0) for row in rows)
    gpus = float(records.about["gpus_per_trial"])
    cpus = float(records.about["cpus_per_trial"])
    kind, share = ("GPU hours", gpus) if gpus else ("CPU hours", cpus)
    return {
        "variant": variant or "all",
        "trials": str(len(rows)),
        "epochs": f"{epochs:,}",
        "seconds per epoch": f"{seconds / epochs:.1f}" if epochs else NONE,
        "hours of trials": f"{seconds / _SECONDS:.2f}",
        kind: f"{seconds * share / _SECONDS:.2f}",
    }


def _data(records: Records) -> Section:
    about, patients = records.about, list(records.patients.values())
    facts = {
        "kind": "SYNTHETIC: generated phantoms" if about["synthetic"] else "MRI slices",
        "patients": f"{about['patients']:,}",
        "slices": f"{about['slices']:,}",
        "slices with tumour": f"{about['tumour_slices']:,}",
        "fingerprint": str(about["fingerprint"]),
        **_count_patients(patients),
    }
    blocks: list[Block] = [facts_table("The dataset.", facts)]
    if not about["synthetic"]:
        blocks.append(Paragraph(_LICENCE))
    checks = check_split(records)
    if checks:
        rows = [{"check": text, "result": "holds" if ok else "FAILS"} for text, ok in checks]
        caption = "The split, checked anew from split.json and scores.csv."
        blocks.append(Table(caption, rows, is_result=False))
    return Section("data", "Data and split", blocks)


def _count_patients(patients: list[Row]) -> dict[str, str]:
    counts = {}
    for title, key, empty in (
        ("patients by site", "site", "not known"),
        ("patients by missing sequence", "missing", "none"),
        ("patients by grade (code)", "grade", "not known"),
        ("patients by histology (code)", "histology", "not known"),
    ):
        found = Counter(row[key] or empty for row in patients)
        if found and set(found) != {"not known"}:
            counts[title] = ", ".join(f"{name}: {n}" for name, n in sorted(found.items()))
    return counts


def _repeat(records: Records) -> Section:
    about, start = records.about, records.about["starts"][-1]
    versions = {"commit of this code": start["commit"], **start["versions"]}
    shared = records.study / "experiment.yaml"
    differences = "\n".join(
        f"{variant}: " + ", ".join(f"{key}={value}" for key, value in changes.items())
        for variant, changes in about["variants"].items()
    )
    blocks: list[Block] = [
        Listing("The command:", start["command"]),
        facts_table("Versions.", versions),
        Listing("The variants, and the keys in which they differ:", differences),
    ]
    if shared.exists():
        text = shared.read_text(encoding="utf-8")
        blocks.append(Listing("The configuration that they share:", text, is_folded=True))
    blocks.append(Paragraph(_FILES))
    return Section("repeat", "How to repeat it", blocks)


_PUBLISHED_NOTE = """\
Published by the project whose protocol this is (Tada-TOT): one split, one seed, 12 or fewer test \
patients of 110, 256 px, ImageNet weights, on a GPU. Not measured here. Its Dice is the global \
one."""

_LICENCE = """\
Slices from the LGG MRI Segmentation dataset (Mateusz Buda; TCGA-LGG through TCIA) are under \
CC BY-NC-SA 4.0, and so are their pictures in this report."""

_FILES = """\
Every number above comes from study.json, split.json and the CSV files beside this report: \
trials, scores, slices, stages, ensemble, calibration, patients, examples."""
