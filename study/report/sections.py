"""What a study found, section by section: scores, differences, groups, stages, slices.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from brainseg.document import (
    NONE,
    Block,
    Figure,
    Gallery,
    Paragraph,
    Section,
    Table,
    Tile,
    format_change,
    format_estimate,
    format_number,
    format_p,
)
from study.analysis.subgroups import Breakdown
from study.report.figures import Drawer
from study.report.results import Records
from study.storage.tables import Row

_SCORES = {
    "Dice/patient": 3,
    "global Dice": 3,
    "Dice/slice": 3,
    "IoU": 3,
    "precision": 3,
    "recall": 3,
    "HD95": 1,
}


def describe_findings(records: Records, drawer: Drawer) -> list[Section]:
    """Return the sections about what was found; what was not measured is left out."""
    sections = [
        _ranking(records),
        _differences(records, drawer),
        _ranks(records, drawer),
        _learning(records, drawer),
        _patients(records, drawer),
        _breakdowns(records),
        _calibration(records, drawer),
        _stages(records, drawer),
        *describe_cases(records),
    ]
    return [section for section in sections if section.blocks]


def ranked_rows(records: Records) -> list[dict[str, str]]:
    """Return the ranked table with intervals, a row per variant, values as text."""
    rows = []
    ranked = [item.variant for item in records.comparison.variants if item.ranks]
    for item in records.comparison.variants:
        place = str(1 + ranked.index(item.variant)) if item.variant in ranked else NONE
        rows.append({"": place, "variant": item.variant})
        own = {**item.scores, "Dice/slice": records.slice_dice.get(item.variant)}
        for name, decimals in _SCORES.items():
            rows[-1][name] = format_estimate(own.get(name), decimals)
        finished, asked = records.finished(item.variant), records.trials_of(item.variant)
        losses = [float(row["val_loss"]) for row in finished]
        rows[-1] |= {
            "val loss": format_number(fmean(losses)) if losses else NONE,
            "patients": str(item.num_patients),
            "trials": f"{len(finished)}/{len(asked)}",
        }
    return rows


def _ranking(records: Records) -> Section:
    blocks: list[Block] = [Paragraph(_EXPLANATION)]
    if records.trials:
        caption = "Test scores with 95 % intervals, best first. HD95 in pixels: lower is better."
        blocks.append(Table(caption, ranked_rows(records)))
    return Section("scores", "Test scores", blocks)


def _differences(records: Records, drawer: Drawer) -> Section:
    comparison = records.comparison
    blocks: list[Block] = []
    if comparison.pairs:
        path = drawer.differences(comparison.pairs, comparison.effects)
        alt = (
            "Forest plot: each pair of variants' difference in Dice/patient with its interval, "
            "beside a line at no difference"
        )
        blocks.append(Figure(path, alt, _FOREST))
        rows = [
            {
                "first - second": f"{pair.first} - {pair.second}",
                "difference": format_change(pair.difference),
                "p": format_p(pair.p),
                "p (Holm)": format_p(pair.p_holm),
                "higher mean": format_number(pair.share_better, 2),
                "better on a patient": format_number(pair.improvement, 2),
                "patients": str(pair.num_patients),
                "patients needed": _spell_needed(pair.patients_needed),
            }
            for pair in comparison.pairs
        ]
        blocks += [Table(_PAIRS, rows), Paragraph(_PAIRS_NOTE)]
    if comparison.effects:
        effects = [
            {
                "factor": effect.name,
                "effect on Dice/patient": format_change(effect.difference),
                "p": format_p(effect.p),
            }
            for effect in comparison.effects
        ]
        blocks.append(Table("Encoder and preprocessing as the two factors they are.", effects))
    return Section("differences", "Is one better than another?", blocks)


def _spell_needed(patients: float) -> str:
    if np.isnan(patients):
        return NONE
    return f"{patients:,.0f}" if patients < 1e6 else "> 1,000,000"


def _ranks(records: Records, drawer: Drawer) -> Section:
    blocks: list[Block] = []
    ranked = [item for item in records.comparison.variants if item.ranks]
    if len(ranked) > 1:
        alt = "Bars: for each variant the probability of each rank, from first to last"
        blocks.append(Figure(drawer.ranks(records.comparison), alt, _RANKS))
        rows = [
            {"variant": item.variant}
            | {f"rank {n}": format_number(share, 2) for n, share in enumerate(item.ranks, start=1)}
            for item in ranked
        ]
        blocks.append(Table("Probability of each rank.", rows))
    shares = records.comparison.variance
    if any(not np.isnan(share) for share in shares.values()):
        alt = "Bars: shares of the variance of Dice/patient by what causes it"
        blocks.append(Figure(drawer.variance(shares), alt, _VARIANCE))
    return Section("ranks", "How stable is the order, and what makes scores differ?", blocks)


def _learning(records: Records, drawer: Drawer) -> Section:
    blocks: list[Block] = []
    if any(records.histories.values()):
        alt = "Validation loss and validation Dice per epoch, one line per variant"
        blocks.append(Figure(drawer.learning_curves(records), alt, _CURVES))
    return Section("learning", "Learning curves", blocks)


def _patients(records: Records, drawer: Drawer) -> Section:
    blocks: list[Block] = []
    if records.matrix.patients:
        alt = "Dots: Dice of every test patient with every variant, patients from hard to easy"
        caption = "Every test patient: a column of dots is one patient with all variants."
        blocks.append(Figure(drawer.patients(records), alt, caption))
    return Section("patients", "Patient by patient", blocks)


def _breakdowns(records: Records) -> Section:
    blocks: list[Block] = []
    if len(records.slices):
        blocks.append(Paragraph(_BREAKDOWN))
        blocks += [_breakdown(found, records.variants) for found in records.breakdowns]
        rows = [
            {
                "variant": item.variant,
                "tumour-free slices with a false alarm": format_estimate(item.false_alarms),
                "false pixels per tumour-free slice": format_estimate(item.false_pixels, 1),
                "tumour slices missed": format_estimate(item.missed),
            }
            for item in records.alarms
        ]
        blocks.append(Table("Slices that are wrong as a whole, means over patients.", rows))
    return Section("groups", "By group of patients and slices", blocks)


def _breakdown(found: Breakdown, variants: Sequence[str]) -> Table:
    rows = [
        {
            "group": group.name,
            "patients": str(group.num_patients),
            "slices": f"{group.num_slices:,}",
            **{variant: format_estimate(group.dice.get(variant)) for variant in variants},
        }
        for group in found.groups
    ]
    return Table(f"{found.title}: Dice/patient by group.", rows)


def _calibration(records: Records, drawer: Drawer) -> Section:
    calibrations = records.calibrations
    blocks: list[Block] = []
    if calibrations:
        alt = "Reliability diagram: share of tumour against predicted probability, per variant"
        blocks.append(Figure(drawer.calibration(calibrations), alt, _RELIABILITY))
        rows = [
            {
                "variant": item.variant,
                "ECE": format_number(item.error, 4),
                "ECE where the probability is 0.05 or more": format_number(item.error_unsure),
            }
            for item in calibrations
        ]
        blocks.append(Table("Expected calibration error on test pixels.", rows))
    return Section("calibration", "Are the probabilities right?", blocks)


def _stages(records: Records, drawer: Drawer) -> Section:
    effects = records.stage_effects
    blocks: list[Block] = []
    if effects:
        alt = "Forest plot: what each optional stage changes in each variant's Dice/patient"
        figure = Figure(drawer.stages(effects), alt, "Always applied, whatever validation says.")
        rows = [
            {
                "stage": effect.step,
                "variant": effect.variant,
                "setting": effect.settings or NONE,
                "change on validation": f"{effect.val_difference:+.3f}",
                "chosen on validation": f"{effect.num_chosen} of {effect.num_trials}",
                "change on test, always": format_change(effect.always),
                "change on test, where chosen": format_change(effect.as_chosen),
            }
            for effect in effects
        ]
        blocks = [Paragraph(_STAGES), figure, Table("Optional stages, paired by patient.", rows)]
        if not any(effect.step == "ensemble" for effect in effects):
            blocks.append(Paragraph("With one seed there is no ensemble over seeds."))
    return Section("stages", "Optional stages: do they earn their place?", blocks)


_EXPLANATION = """\
Ranked by Dice/patient: Dice over all slices of a patient together, then the mean over test \
patients. Global Dice, IoU, precision and recall come from the pixel counts of all patients \
together; Dice/slice is the mean over slices that hold tumour. HD95 is the 95th percentile of the \
distance between the outlines in pixels at the network's size, over slices where both exist. The \
test part was opened once per trial, after training; the weights are those of the lowest \
validation loss. Intervals redraw patients and seeds."""

_FOREST = """\
Right of the line the first scored better; an interval across the line leaves the question open."""

_PAIRS = "Paired differences in Dice/patient, first minus second, with 95 % intervals."

_PAIRS_NOTE = """\
p: how often chance alone would give a difference this large, by flipping the signs of patients' \
differences; Holm's correction is for the number of pairs. Higher mean: probability that the \
first has it. Better on a patient: probability that the first has the higher Dice on one patient, \
ties counting half. Patients needed: for a paired t-test to find this difference with power 0.8."""

_RANKS = "How often each variant takes each rank when patients and seeds are drawn again."
_VARIANCE = "What the spread of Dice/patient is made of, over all variants, patients and seeds."
_CURVES = """\
Line: mean over trials. Band: from the lowest to the highest seed; with one seed, fold."""

_BREAKDOWN = """\
Dice/patient over the slices of each group, with 95 % intervals. Small groups have wide \
intervals; nothing here is corrected for the number of groups that one may look at."""

_RELIABILITY = """\
Left: on the dotted line a probability is what it says; below it the network is too sure. Right: \
how many test pixels each point stands on."""

_STAGES = """\
Each stage alone, against the same networks without it, on the same test patients. Validation \
chooses a threshold, and whether a stage is used, trial by trial; the test part chooses nothing. \
An ensemble is the mean probability of one fold's seeds; over folds there is none, because each \
fold's networks were trained on most of the others' test patients."""


# --- cases ---

_WORST = {"worst patient": "The hardest patients", "worst slice": "The hardest slices"}


def describe_cases(records: Records) -> list[Section]:
    """Return the sections with pictures; without pictures they have no blocks."""
    return [*_worst(records), _examples(records)]


def _worst(records: Records) -> list[Section]:
    sections = []
    for kind, title in _WORST.items():
        places: dict[int, list[Row]] = {}
        for row in records.examples:
            if row["kind"] == kind:
                places.setdefault(int(row["place"]), []).append(row)
        blocks: list[Block] = []
        if places:
            describe = _patient_row if kind == "worst patient" else _slice_row
            rows = [describe(records, place, r[0]) for place, r in sorted(places.items())]
            blocks = [
                Paragraph(f"{_WORST_NOTE[kind]} {_OUTLINES}"),
                Table(_WORST_TABLE[kind], rows),
            ]
            blocks += [_gallery(records, place, r) for place, r in sorted(places.items())]
        sections.append(Section(kind.replace(" ", "-"), title, blocks))
    return sections


def _gallery(records: Records, place: int, rows: Sequence[Row]) -> Gallery:
    name = rows[0]["slice"]
    area = _area_of(records, name)
    note = " (no tumour)" if area == 0 else ""
    return Gallery(f"{place}. {name}{note}", [_tile(row) for row in rows])


def _patient_row(records: Records, place: int, example: Row) -> dict[str, str]:
    patient = example["patient"]
    about = records.patients.get(patient, {})
    area = about.get("tumour_pixels")
    return {
        "": str(place),
        "patient": patient,
        "site": about.get("site") or NONE,
        "tumour, px": f"{int(area):,}" if area else NONE,
        "missing": about.get("missing") or NONE,
        **{variant: _patient_dice(records, variant, patient) for variant in records.variants},
    }


def _slice_row(records: Records, place: int, example: Row) -> dict[str, str]:
    name = example["slice"]
    area = _area_of(records, name)
    own = records.slices[records.slices["slice"] == name]
    row = {"": str(place), "slice": name, "tumour, px": NONE if area is None else f"{area:,}"}
    for variant in records.variants:
        wrong = own.loc[own["variant"] == variant, ["FP", "FN"]].sum(axis=1)
        row[variant] = format_number(float(wrong.mean()), 1) if len(wrong) else NONE
    return row


def _area_of(records: Records, name: str) -> int | None:
    areas = records.slices.loc[records.slices["slice"] == name, "tumour_pixels"]
    return int(areas.iloc[0]) if len(areas) else None


def _patient_dice(records: Records, variant: str, patient: str) -> str:
    matrix = records.matrix
    if patient not in matrix.patients:
        return NONE
    values = matrix.dice[matrix.index(variant), :, matrix.patients.index(patient)]
    known = [float(value) for value in values if not np.isnan(value)]
    return format_number(fmean(known)) if known else NONE


def _examples(records: Records) -> Section:
    blocks: list[Block] = []
    for variant in records.variants:
        rows = [
            row
            for kind in ("best", "median", "worst")
            for row in records.examples
            if row["kind"] == kind and row["variant"] == variant
        ]
        if rows:
            tiles = [_tile(row, f"{row['kind']}: {row['slice']}") for row in rows]
            blocks.append(Gallery(variant, tiles))
    if blocks:
        blocks.insert(0, Paragraph(f"Of each variant's tumour slices. {_OUTLINES}"))
    return Section("examples", "Best, median and worst slice of each variant", blocks)


def _tile(row: Row, label: str = "") -> Tile:
    alt = (
        f"FLAIR slice {row['slice']} with the true outline in blue and that of {row['variant']} "
        f"in orange, Dice {float(row['Dice']):.2f}"
    )
    return Tile(row["picture"], alt, f"{label or row['variant']}, Dice {float(row['Dice']):.2f}")


_OUTLINES = "FLAIR; the true outline is blue, the predicted one orange."

_WORST_NOTE = {
    "worst patient": "The ten of the lowest mean Dice over variants and seeds; of each the slice "
    "with most wrong pixels.",
    "worst slice": "The ten of the lowest mean Dice over variants and seeds, of equal ones those "
    "with more wrong pixels; at most two of a patient.",
}

_WORST_TABLE = {
    "worst patient": "Dice of the patient with each variant, mean over seeds.",
    "worst slice": "Wrong pixels of the slice with each variant, invented or missed, at the "
    "network's size; mean over seeds.",
}
