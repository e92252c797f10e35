"""The study's CSV files -> report.md, the learning curves, and the ranked table.

Needs neither Ray nor torch: a report can be redone on any laptop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from brainseg.storage import write_text
from study.results import Row, TrialFolder, read_csv

PUBLISHED = {
    "raw-resnet50": (0.8898, 0.8015, 0.9963, 0.8820, 0.8978, 0.1265),
    "preprocessed-resnet50": (0.8861, 0.7955, 0.9962, 0.8812, 0.8911, 0.1225),
    "preprocessed-efficientnet-b0": (0.8808, 0.7870, 0.9961, 0.8915, 0.8704, 0.1293),
    "raw-efficientnet-b0": (0.8807, 0.7869, 0.9962, 0.9118, 0.8517, 0.1401),
}
"""Dice, IoU, accuracy, precision, recall, val loss: one split, one seed, 12 or fewer patients."""

_COLUMNS = {
    "Dice": "test_dice_global",
    "IoU": "test_iou",
    "accuracy": "test_accuracy",
    "precision": "test_precision",
    "recall": "test_recall",
    "val loss": "val_loss",
    "Dice/patient": "test_dice_patient",
    "Dice/slice": "test_dice_slice",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette, told apart by colour-blind readers."""

SYNTHETIC = "SYNTHETIC DATA (generated phantoms): these scores say nothing about patients."


def write_report(study: Path) -> list[dict[str, str]]:
    """Write report.md and figures/ from the files of a study.

    Returns:
        The ranked table, a row per variant, values as text.
    """
    about = json.loads((study / "study.json").read_text(encoding="utf-8"))
    rows = read_csv(study / "trials.csv")
    ranking = rank(rows)
    figure = draw_learning_curves(study, rows, about["synthetic"])
    write_text(study / "report.md", _compose(about, rows, ranking, figure))
    return ranking


def rank(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Rank variants by test Dice (global); means over their finished folds and seeds.

    Args:
        rows: Of trials.csv.

    Returns:
        A row per variant; those with unfinished trials come after all others.
    """
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["variant"], []).append(row)
    means = {variant: _means(group) for variant, group in grouped.items()}

    def place(variant: str) -> tuple[bool, float]:
        # A mean without the trials that failed may be one without the hard ones.
        is_whole = all(row["status"] == "finished" for row in grouped[variant])
        return not is_whole, -means[variant].get("test_dice_global", -1.0)

    ordered = sorted(grouped, key=place)
    return [_ranked_row(place, v, grouped[v], means[v]) for place, v in enumerate(ordered, 1)]


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


def draw_learning_curves(study: Path, rows: Sequence[Row], synthetic: bool) -> Path | None:
    """Draw val loss and val Dice of every trial, a colour per variant.

    Returns:
        The picture's path, or None if no trial reported an epoch.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    histories = {
        (row["variant"], row["fold"], row["seed"]): _history_of(study, row) for row in rows
    }
    if not any(histories.values()):
        return None
    colours = dict(zip(dict.fromkeys(v for v, _, _ in histories), _COLOURS * 9, strict=False))
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("val_loss", "validation loss"), ("val_dice", "validation Dice (global)"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        labelled: set[str] = set()
        for (variant, _, _), history in histories.items():
            label = None if variant in labelled else variant
            labelled.add(variant)
            steps = [row["step"] for row in history]
            values = [row[key] for row in history]
            axis.plot(steps, values, color=colours[variant], label=label, marker=".")
        frozen = max(
            (row["step"] for h in histories.values() for row in h if row["stage"] == 1), default=0
        )
        axis.axvspan(0.5, frozen + 0.5, color="0.93", zorder=0)
        axis.set(title=title, xlabel="epoch (shaded: encoder frozen)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    if synthetic:
        figure.suptitle(SYNTHETIC, color="#B00000", fontsize=10)
    path = study / "figures" / "learning_curves.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def shares_variants_with_published(ranking: Sequence[Mapping[str, str]]) -> bool:
    """Return whether the published table has any of these variants."""
    return any(row["variant"] in PUBLISHED for row in ranking)


def published_rows() -> list[dict[str, str]]:
    """Return the published table, values as text."""
    names = ("Dice", "IoU", "accuracy", "precision", "recall", "val loss")
    return [
        {"published": variant, **{n: f"{v:.4f}" for n, v in zip(names, values, strict=True)}}
        for variant, values in PUBLISHED.items()
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table whose columns are the keys of its rows."""
    columns = list(rows[0])
    cells = [[row[column].replace("|", "\\|") for column in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _means(group: Sequence[Row]) -> dict[str, float]:
    finished = [row for row in group if row["status"] == "finished"]
    if not finished:
        return {}
    keys = [*_COLUMNS.values(), "seconds", "epochs"]
    return {key: fmean(float(row[key]) for row in finished) for key in keys}


def _ranked_row(
    place: int, variant: str, group: Sequence[Row], means: Mapping[str, float]
) -> dict[str, str]:
    scores = {name: f"{means[key]:.4f}" if means else "-" for name, key in _COLUMNS.items()}
    finished = sum(row["status"] == "finished" for row in group)
    return {
        "": str(place) if means else "-",
        "variant": variant,
        **scores,
        "seconds": f"{means['seconds']:.0f}" if means else "-",
        "epochs": f"{means['epochs']:.0f}" if means else "-",
        "trials": f"{finished}/{len(group)}",
    }


def _history_of(study: Path, row: Row) -> list[dict[str, float]]:
    name = f"{row['variant']}-fold{row['fold']}-seed{row['seed']}"
    return TrialFolder(study / "trials" / name).read_history()


def _compose(
    about: Mapping[str, Any],
    rows: Sequence[Row],
    ranking: Sequence[Mapping[str, str]],
    figure: Path | None,
) -> str:
    blocks = [f"# Study {about['name']}", describe_study(about), "## Test scores", _EXPLANATION]
    blocks.append(markdown_table(ranking))
    failed = [row for row in rows if row["status"] != "finished"]
    if failed:
        blocks += [
            f"## {len(failed)} of {len(rows)} trials without a score",
            markdown_table(
                [
                    {k: row[k] for k in ("variant", "fold", "seed", "status", "error")}
                    for row in failed
                ]
            ),
        ]
    if shares_variants_with_published(ranking):
        blocks += [
            "## Published results, for comparison",
            _PUBLISHED_NOTE,
            markdown_table(published_rows()),
        ]
    if figure is not None:
        alt = "Validation loss and Dice per epoch, one line per trial, coloured by variant"
        blocks += ["## Learning curves", f"![{alt}](figures/{figure.name})"]
    start = about["starts"][-1]
    blocks += ["## How to repeat it", f"```\n{start['command']}\n```", _provenance(about, start)]
    return "\n\n".join(blocks) + "\n"


_EXPLANATION = """\
Ranked by global Dice on the test patients, which were opened once per trial, after training; the
weights are those of the lowest validation loss. *Dice*, *IoU*, *accuracy*, *precision* and
*recall* come from pixel counts over all test slices of a trial together; *Dice/patient* sums over
each patient's slices and averages patients; *Dice/slice* averages slices that hold tumour. Of
several folds and seeds each number is the mean over finished trials; a variant that lacks some
stands below those that are whole. With one fold and one seed, differences between variants are
within what another split would change."""

_PUBLISHED_NOTE = """\
Published by the project whose protocol this is (Tada-TOT): one split, one seed, 12 or fewer test
patients of 110, 256 px, ImageNet weights, on a GPU. Not measured here."""


def _provenance(about: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
    return (
        f"Data fingerprint `{about['fingerprint']}`; commit `{start['commit']}`; {versions}. "
        "Everything in `study.json`, `trials.csv`, `scores.csv` and `split.json` beside this file."
    )
