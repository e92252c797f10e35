"""The findings of a study as sections, from test scores to post-processing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from brainseg.document import (
    NONE,
    Block,
    Figure,
    Paragraph,
    Section,
    Table,
    format_number,
    format_p,
)
from brainseg.inference.mask_metrics import TOLERANCE, TOLERANCE_MM
from study.analysis.comparison import LEVEL, Comparison, Pair
from study.analysis.variance import MEANINGS
from study.report.example_sections import examples, hardest_patients, hardest_slices, overview
from study.report.figures import FigureWriter, shown_pairs
from study.report.results import (
    WIDE,
    StudyResults,
    format_estimate,
    has_wide,
)
from study.storage.schema import ENSEMBLE_STEP, FINISHED

_SCORES = {
    **dict.fromkeys(("Dice/patient", "global Dice", "Dice/slice"), ".3f"),
    **dict.fromkeys(("IoU", "precision", "recall"), ".3f"),
    "HD95": ".1f",
}
"""Score -> format."""
SHARED = "Dice/patient, shared"
"""The column of Dice/patient on the patients that all ranked variants share, if they differ."""
IN_MM = "HD95, mm"
"""The score that stands beside HD95 where the spacing of the pixels is known."""


def describe_findings(results: StudyResults, figures: FigureWriter) -> list[Section]:
    """Return the sections on the findings; those without data are left out."""
    sections = [
        Section(name, title, list(_with_footnotes(blocks)))
        for name, title, blocks in (
            ("overview", "At a glance", overview(results, figures)),
            ("scores", "Test scores", _scores(results)),
            ("differences", "Differences between variants", _differences(results, figures)),
            ("effects", "Effects of the grid's factors", _effects(results)),
            ("interactions", "Interactions of the grid's factors", _interactions(results)),
            ("leak", "What the leaky split is worth", _leak(results)),
            ("ranks", "Ranks and sources of variance", _ranks(results, figures)),
            ("learning", "Learning curves", _learning(results, figures)),
            ("patients", "Scores per patient", _patients(results, figures)),
            ("groups", "Scores by group", _groups(results)),
            ("calibration", "Calibration", _calibration(results, figures)),
            ("postprocessing", "Post-processing", _postprocessing(results, figures)),
            ("worst-patient", "Hardest patients", hardest_patients(results)),
            ("worst-slice", "Hardest slices", hardest_slices(results)),
            ("examples", "Best, median and worst slice of each variant", examples(results)),
        )
    ]
    return [section for section in sections if section.blocks]


def _with_footnotes(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks; below a table with an interval marked as wide, a note explains the mark."""
    for block in blocks:
        yield block
        if isinstance(block, Table) and has_wide(block):
            yield Paragraph(WIDE)


def ranked_rows(results: StudyResults) -> list[dict[str, str]]:
    """Return the rows of the ranking with intervals, one per variant, values as text."""
    rows = []
    ranked = [item.variant for item in results.comparison.variants if item.ranks]
    formats = _SCORES | ({IN_MM: ".1f"} if _knows_spacing(results) else {})
    for item in results.comparison.variants:
        variant = item.variant
        finished = results.trials_of(variant, FINISHED)
        losses = [float(row["val_loss"]) for row in finished]
        scores = {**item.scores, "Dice/slice": results.slice_dice.get(variant)}
        rows.append(
            {
                "": str(1 + ranked.index(variant)) if variant in ranked else NONE,
                "variant": f"{variant} (external)" if variant in results.external else variant,
                **({SHARED: format_estimate(item.shared)} if _is_partial(results) else {}),
                **{name: format_estimate(scores.get(name), f) for name, f in formats.items()},
                "val loss": format_number(fmean(losses)) if losses else NONE,
                "patients": str(item.num_patients),
                "trials": NONE
                if variant in results.external
                else f"{len(finished)}/{len(results.trials_of(variant))}",
            }
        )
    return rows


def describe_means(results: StudyResults) -> str:
    """Say over which patients the means of the ranking are, if these differ."""
    if not _is_partial(results):
        return ""
    return (
        "Some trainings have no scores. Each variant's means are over the patients and seeds that "
        f"tested it, so they do not compare. {SHARED}, is the mean over the "
        f"{results.comparison.num_shared} patients that all ranked variants share, and ranks them."
    )


def _is_partial(results: StudyResults) -> bool:
    """Return whether a ranked variant was tested on more than what all of them share."""
    return any(
        item.shared and item.shared != item.scores["Dice/patient"]
        for item in results.comparison.variants
    )


def _knows_spacing(results: StudyResults) -> bool:
    return any(IN_MM in item.scores for item in results.comparison.variants)


def _scores(results: StudyResults) -> Iterator[Block]:
    yield Paragraph(
        "Variants are ranked by Dice/patient: the Dice of all slices of a patient together, "
        "averaged over test patients. Global Dice, IoU, precision and recall are computed from "
        "the pixel counts of all patients together. Dice/slice is the mean over slices with "
        "tumour. HD95 is the 95th percentile of the distance between the true and the predicted "
        "outline, in pixels of the slice, over slices where both exist. All is counted at the "
        "slice's own size, against the original mask. Each trial "
        "was tested once, after training, with the weights of its lowest validation loss. "
        "Intervals come from resampling patients and seeds."
    )
    differing = [name for name, values in _val_loss_settings(results).items() if len(values) > 1]
    if differing:
        yield Paragraph(
            f"The variants differ in {' and '.join(differing)}: their val losses do not compare."
        )
    if results.trials:
        caption = "Test scores with 95 % intervals, best first. HD95 in pixels: lower is better."
        yield Table(caption, ranked_rows(results))
    if _is_partial(results):
        yield Paragraph(describe_means(results))
    rows = list(_outline_rows(results))
    if rows:
        yield Paragraph(
            "A tumour that was missed or invented as a whole has no HD95. With the worst case, "
            "its slice counts with the longest distance in it, the diagonal. NSD is the share of "
            f"boundary pixels at most {TOLERANCE:g} pixels from the other outline. Volume "
            "similarity compares sizes, not places. A lesion is a connected part of the tumour in "
            "the patient's stack of slices; it is found if one pixel of it is."
        )
        yield Table(
            "Outlines, volumes and lesions, with 95 % intervals. Slices and lesions are counted "
            "over all trials.",
            rows,
        )
    if _knows_spacing(results):
        given = results.about.get("experiment", {}).get("data", {}).get("spacing_mm")
        source = "the headers of the files name it"
        if given:
            form = "data.spacing_mm gives {:g} mm between rows and {:g} mm between columns"
            source = form.format(*given)
        yield Paragraph(
            f"The spacing of the pixels is known, since {source}. The same distances are given in "
            f"millimetres, with {TOLERANCE_MM:g} mm as the tolerance of NSD."
        )
        formats = {IN_MM: ".1f", "HD95, worst case, mm": ".1f", "NSD, mm": ".3f"}
        yield Table(
            "Outlines in millimetres, with 95 % intervals.",
            [
                {"variant": item.variant}
                | {name: format_estimate(item.scores.get(name), f) for name, f in formats.items()}
                for item in results.comparison.variants
            ],
        )


def _val_loss_settings(results: StudyResults) -> dict[str, set[Any]]:
    """Return what a val loss depends on -> its values in the variants that were trained here."""
    trained = results.experiments.values()
    return {
        "loss": {experiment.loss for experiment in trained},
        "batch size": {experiment.optimizer.batch_size for experiment in trained},
        "size of the slices": {experiment.data.size for experiment in trained},
    }


def _outline_rows(results: StudyResults) -> Iterator[dict[str, str]]:
    """Yield a row per variant of the scores of outlines, volumes and lesions, where measured."""
    matrix = results.matrix
    for item in results.comparison.variants:
        if "NSD" not in item.scores:
            continue
        v = matrix.index(item.variant)
        lesions = {
            name: f"{np.nansum(matrix.measures[f'lesions_{name}'][v]):,.0f}"
            for name in ("found", "missed", "invented")
        }
        missed, invented = _count_whole_errors(results.slices, item.variant)
        yield {
            "variant": item.variant,
            "NSD": format_estimate(item.scores["NSD"]),
            "HD95": format_estimate(item.scores.get("HD95"), ".1f"),
            "HD95, worst case": format_estimate(item.scores["HD95, worst case"], ".1f"),
            "slices missed": missed,
            "slices invented": invented,
            "volume similarity": format_estimate(item.scores["volume similarity"]),
            **{f"lesions {name}": count for name, count in lesions.items()},
        }


def _count_whole_errors(slices: pd.DataFrame, variant: str) -> tuple[str, str]:
    """Return in how many slices a tumour was missed, and invented, as a whole."""
    if slices.empty:
        return NONE, NONE
    own = slices[slices["variant"] == variant]
    true, found = own["TP"] + own["FN"] > 0, own["TP"] + own["FP"] > 0
    return f"{(true & ~found).sum():,}", f"{(found & ~true).sum():,}"


def _left_out(comparison: Comparison) -> str:
    shown, pairs = shown_pairs(comparison), comparison.pairs
    if len(shown) == len(pairs):
        return ""
    return f" Only pairs of {shown[0].first} are drawn; the table has all {len(pairs):,}."


def _differences(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    comparison = results.comparison
    if comparison.pairs:
        yield Figure(
            figures.differences(),
            "Forest plot: the difference in Dice/patient of each pair of variants with its "
            "interval, beside a line at no difference",
            "Right of the line, the first variant scored better. If an interval crosses the line, "
            "the comparison is inconclusive."
            + (" Effects of factors are orange." if comparison.effects else "")
            + _left_out(comparison),
        )
        rows = [
            {
                "first - second": f"{pair.first} - {pair.second}",
                "difference": format_estimate(pair.difference, "+.3f"),
                "p": format_p(pair.p),
                "p (Holm)": format_p(pair.p_holm),
                "P(higher mean)": format_number(pair.share_better, 2),
                "P(better on a patient)": format_number(pair.improvement, 2),
                "patients": str(pair.num_patients),
                "patients needed": _format_needed(pair),
            }
            for pair in comparison.pairs
        ]
        yield Table(
            "Paired differences in Dice/patient with 95 % intervals, first minus second.", rows
        )
        yield Paragraph(
            "p is the two-sided p-value of a sign-flip test on the "
            "patients' differences; p (Holm) is corrected for the number of pairs. P(higher mean) "
            "is the probability that the first variant has the higher mean. P(better on a "
            "patient) is the probability that it has the higher Dice on a single patient, where "
            "ties count half. With the patients needed, a paired t-test would detect this "
            f"difference with a power of 0.8, at level {LEVEL:g} divided by the number of pairs. "
            "There is no such number if it is at most that of the patients tested."
        )


def _effects(results: StudyResults) -> Iterator[Block]:
    rows = _effect_rows(results, is_interaction=False)
    if rows:
        yield Paragraph(
            "An effect is what a level of a factor changes against the factor's first level. It "
            "is the mean over the levels of all other factors. An effect that needs a combination "
            "without a variant is left out."
        )
        yield Table(
            "Effects of the factors' levels on Dice/patient, with 95 % intervals; p is not "
            "corrected.",
            rows,
        )


def _interactions(results: StudyResults) -> Iterator[Block]:
    rows = _effect_rows(results, is_interaction=True)
    if rows:
        yield Paragraph(
            "An interaction is how much the effect of one level depends on another factor's "
            "level. If it is 0, the two effects add up. If its interval includes 0, none is shown."
        )
        yield Table(
            "Interactions of two factors' levels in Dice/patient, with 95 % intervals; p is not "
            "corrected.",
            rows,
        )


def _effect_rows(results: StudyResults, *, is_interaction: bool) -> list[dict[str, str]]:
    kind = "interaction" if is_interaction else "effect"
    return [
        {
            "levels": effect.name,
            f"{kind} on Dice/patient": format_estimate(effect.difference, "+.3f"),
            "p": format_p(effect.p),
        }
        for effect in results.comparison.effects
        if effect.is_interaction == is_interaction
    ]


def _leak(results: StudyResults) -> Iterator[Block]:
    if not results.leaks:
        return
    yield Paragraph(
        "LEAKY variants were trained on other slices of the patients that they were tested on, as "
        "in notebooks that split by slice. Their scores say nothing about new patients. They are "
        "not ranked and choose nothing."
    )
    rows = []
    for leak in results.leaks:
        if leak.difference is None:
            yield Paragraph(
                f"{leak.leaky} cannot be compared patient by patient. No patient was tested with "
                "all slices by it and by an honest variant that differs in the split alone. Run "
                "all rotations (--folds 10)."
            )
            continue
        scores = [
            {key: format_estimate(item.scores[key]) for key in ("Dice/patient", "global Dice")}
            for item in leak.scores
        ]
        rows.append(
            {
                "variant": leak.leaky,
                **{f"{key}, LEAKY": value for key, value in scores[0].items()},
                **{f"{key}, honest": value for key, value in scores[1].items()},
                "leak (Dice/patient)": format_estimate(leak.difference.difference, "+.3f"),
                "p": format_p(leak.difference.p),
                "patients": str(leak.difference.num_patients),
            }
        )
    if rows:
        yield Table(
            "The leak: LEAKY minus honest Dice/patient of the same variant, with 95 % intervals, "
            "on patients all of whose slices both tested.",
            rows,
        )


def _format_needed(pair: Pair) -> str:
    patients = pair.patients_needed
    if math.isnan(patients) or patients <= pair.num_patients:
        return NONE
    return f"{patients:,.0f}" if patients < 1e6 else "> 1,000,000"


def _ranks(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    ranked = [item for item in results.comparison.variants if item.ranks]
    if len(ranked) > 1:
        yield Figure(
            figures.ranks(),
            "Bars: for each variant the probability of each rank, from first to last",
            "How often each variant takes each rank if patients and seeds are resampled.",
        )
        rows = [
            {"variant": item.variant}
            | {f"rank {n}": format_number(p, 2) for n, p in enumerate(item.ranks, start=1)}
            for item in ranked
        ]
        yield Table("Probability of each rank.", rows)
        yield Figure(
            figures.rankings(),
            "Grid of ranks: of each variant, by each metric and way of ranking",
            "Ranks by other metrics and in other ways of ranking; the study's own is on top. Dark "
            "is first.",
        )
        rows = [
            {
                "metric": ranking.metric,
                "ranked by": ranking.way,
                **dict(zip([i.variant for i in ranked], map(str, ranking.ranks), strict=True)),
                "Kendall's tau": format_number(ranking.tau, 2),
            }
            for ranking in results.rankings
        ]
        yield Table(
            "Ranks by other metrics and ways of ranking. Tau compares the order with the study's: "
            "1 is the same, -1 the reverse.",
            rows,
        )
    if not all(map(math.isnan, results.comparison.variance.values())):
        yield Figure(
            figures.variance(),
            "Bars: shares of the variance of Dice/patient by source",
            "Sources of the variance of Dice/patient over all variants, patients and seeds.",
        )
        yield Table(
            "Shares of the variance of Dice/patient. A share without a number is part of another "
            "source's, since this study cannot separate the two.",
            [
                {"source": name, "share": format_number(share), "what it is": MEANINGS[name]}
                for name, share in results.comparison.variance.items()
            ],
        )


def _learning(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    if not results.history.empty:
        yield Figure(
            figures.learning_curves(),
            "Validation loss and validation Dice per epoch, one line per variant",
            "Lines are means over trials. Bands go from the lowest to the highest seed, or fold "
            "if there is only one seed.",
        )


def _patients(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    if results.matrix.patients:
        yield Figure(
            figures.patients(),
            "Dots: Dice of every test patient with every variant, patients from hard to easy",
            "Dice of every test patient. Each column of dots is one patient with all variants.",
        )


def _groups(results: StudyResults) -> Iterator[Block]:
    if results.slices.empty:
        return
    yield Paragraph(
        "Dice/patient over the slices of each group, with 95 % intervals. Small groups have wide "
        "intervals. Nothing here is corrected for the number of groups."
    )
    for breakdown in results.breakdowns:
        rows = [
            {
                "group": group.name,
                "patients": str(group.num_patients),
                "slices": f"{group.num_slices:,}",
                **{name: format_estimate(group.dice.get(name)) for name in results.variants},
            }
            for group in breakdown.groups
        ]
        yield Table(f"{breakdown.title}: Dice/patient by group.", rows)
    rows = [
        {
            "variant": item.variant,
            "tumour-free slices with a false alarm": format_estimate(item.false_alarms),
            "false pixels per tumour-free slice": format_estimate(item.false_pixels, ".1f"),
            "tumour slices without a true pixel": format_estimate(item.missed),
        }
        for item in results.slice_errors
    ]
    yield Table("False alarms and missed tumours by slice, means over patients.", rows)


def _calibration(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    if not results.calibrations:
        return
    yield Figure(
        figures.calibration(),
        "Reliability diagram: share of tumour against predicted probability, per variant",
        "Left: on the dotted line, the predicted probability is the observed share of tumour; "
        "below it, the network is overconfident. Right: the number of test pixels of each point.",
    )
    rows = [
        {
            "variant": item.variant,
            "ECE": format_number(item.error, 4),
            "ECE where the probability is 0.05 or more": format_number(item.error_unsure),
        }
        for item in results.calibrations
    ]
    yield Table("Expected calibration error (ECE) on test pixels.", rows)


def _postprocessing(results: StudyResults, figures: FigureWriter) -> Iterator[Block]:
    effects = results.effects_of_postprocessing
    if not effects:
        return
    yield Paragraph(
        "Each step is applied alone and compared with the same networks without it, on the same "
        "test patients. Thresholds, and whether a step is used, are chosen on validation for each "
        "trial; nothing is chosen on test. An ensemble averages the probabilities of the seeds of "
        "one fold. Folds are not combined, because the networks of a fold were trained on most of "
        "the other folds' test patients."
    )
    yield Figure(
        figures.postprocessing(),
        "Forest plot: what each post-processing step changes in each variant's Dice/patient",
        "Change in Dice/patient on test if the step is always applied.",
    )
    rows = [
        {
            "step": effect.step,
            "variant": effect.variant,
            "setting": effect.settings or NONE,
            "change on validation": f"{effect.val_difference:+.3f}",
            "chosen on validation": f"{effect.num_chosen} of {effect.num_trials}",
            "change on test, always": format_estimate(effect.always, "+.3f"),
            "change on test, where chosen": format_estimate(effect.as_chosen, "+.3f"),
        }
        for effect in effects
    ]
    yield Table("Post-processing steps, paired by patient.", rows)
    if not any(effect.step == ENSEMBLE_STEP for effect in effects):
        yield Paragraph(_why_no_ensemble(results))


def _why_no_ensemble(results: StudyResults) -> str:
    if results.about["seeds"] == 1:
        return "There is no ensemble, because the study has only one seed."
    return (
        "There is no ensemble, because no two seeds of one variant and fold finished with "
        "probability maps."
    )
