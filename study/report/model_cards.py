"""Model cards beside the exported models: what each is, what it was tested on, what limits it.

After Mitchell et al. 2019, Model Cards for Model Reporting.
"""

from __future__ import annotations

from collections.abc import Iterator

from brainseg.document import format_number, markdown_table
from brainseg.storage.files import write_text
from study.report.results import StudyResults, format_estimate
from study.storage.tables import Row, kept_models


def write_model_cards(results: StudyResults) -> None:
    """Write `models/<variant>.md` for each variant that has a finished trial."""
    for variant, row in kept_models(results.trials).items():
        blocks = [
            f"# Model card: {variant}",
            *([f"**{' · '.join(results.labels)}**"] if results.labels else []),
            *_model(results, row),
            *_data(results, row),
            *_scores(results, row),
            *_limits(results, variant),
        ]
        write_text(results.folder / "models" / f"{variant}.md", "\n\n".join(blocks) + "\n")


def _model(results: StudyResults, row: Row) -> Iterator[str]:
    variant, size = row["variant"], results.about["experiment"]["data"]["size"]
    filters = "median filter and CLAHE" if row["preprocessed"] == "True" else "none"
    yield "## Model"
    yield "\n".join(
        [
            f"- File: `{variant}.safetensors`; its header holds the experiment that made it.",
            f"- Network: U-Net, encoder {row['encoder']}; first weights: {row['weights']}.",
            "- Input: one slice with the channels pre-contrast, FLAIR and post-contrast; resized "
            f"to {size} px; filters: {filters}.",
            "- Output: the probability of tumour (FLAIR abnormality) per pixel.",
            "- Chosen from the variant's trials by the lowest validation loss: fold "
            f"{row['fold']}, seed {row['seed']}, stage {float(row['best_stage']):.0f}, epoch "
            f"{float(row['best_epoch']):.0f}.",
        ]
    )
    yield (
        f"```python\nfrom brainseg import Predictor\n\n"
        f'masks = Predictor.load("{variant}.safetensors").masks(images)\n```'
    )


def _data(results: StudyResults, row: Row) -> Iterator[str]:
    about = results.about
    kind = "Generated phantoms (SYNTHETIC)" if about["synthetic"] else "MRI slices"
    yield "## Data and split"
    lines = [
        f"- {kind}: {about['patients']} patients, {about['slices']:,} slices, "
        f"{about['tumour_slices']:,} with tumour; fingerprint `{about['fingerprint']}`.",
    ]
    for rotation in results.split.get("rotations", []):
        if int(rotation["rotation"]) == int(row["fold"]):
            sizes = ", ".join(f"{len(rotation[part])} {part}" for part in ("train", "val", "test"))
            lines.append(f"- Split by patient (`split.json`): {sizes} patients.")
    yield "\n".join(lines)


def _scores(results: StudyResults, row: Row) -> Iterator[str]:
    variant = row["variant"]
    (scores,) = (item for item in results.comparison.variants if item.variant == variant)
    yield "## Scores"
    num_trials = len(results.trials_of(variant, "finished"))
    yield (
        f"Scores of the variant with 95 % intervals, from {num_trials} trials and "
        f"{scores.num_patients} test patients. Global Dice, IoU, precision and recall are "
        "computed from the pixels of all patients; HD95 is in pixels."
    )
    yield markdown_table(
        [
            {"score": name, "value": format_estimate(estimate, ".1f" if name == "HD95" else ".3f")}
            for name, estimate in scores.scores.items()
        ]
    )
    own = ", ".join(
        f"{title} {float(row[key]):.3f}"
        for title, key in (
            ("Dice/patient", "test_dice_patient"),
            ("global Dice", "test_dice_global"),
            ("precision", "test_precision"),
            ("recall", "test_recall"),
        )
    )
    yield f"Scores of this model file on its own test patients: {own}."


def _limits(results: StudyResults, variant: str) -> Iterator[str]:
    yield "## Limits"
    lines = [
        "**Not for clinical use.** The model serves research on the comparison of networks.",
        f"The study's conclusion: {results.conclusion.sentence}",
        *results.conclusion.caveats,
        "The model segments slices one by one and does not see volumes. Scanners, sites and "
        "reference outlines other than the dataset's were not tested.",
    ]
    for breakdown in results.breakdowns:
        groups = [group for group in breakdown.groups if variant in group.dice]
        if groups:
            weakest = min(groups, key=lambda group: group.dice[variant].point)
            lines.append(
                f"Weakest group by {breakdown.title[0].lower()}{breakdown.title[1:]}: "
                f"{weakest.name}, Dice/patient {format_estimate(weakest.dice[variant])} on "
                f"{weakest.num_patients} patients."
            )
    lines += [
        f"False alarms on {format_estimate(item.false_alarms)} of tumour-free slices; "
        f"{format_estimate(item.missed)} of tumour slices missed (shares, means over patients)."
        for item in results.slice_errors
        if item.variant == variant
    ]
    lines += [
        "Calibration error where the probability is 0.05 or more: "
        f"{format_number(item.error_unsure)}."
        for item in results.calibrations
        if item.variant == variant
    ]
    yield "\n".join(f"- {line}" for line in lines)
    if not results.about["synthetic"]:
        yield (
            "The weights derive from the LGG MRI Segmentation dataset (Mateusz Buda; TCGA-LGG "
            "through TCIA), which is under CC BY-NC-SA 4.0."
        )
