"""A model card beside each exported model: what it is, what it was tested on, what limits it.

After Mitchell et al. 2019, Model Cards for Model Reporting. Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from brainseg.document import format_estimate, format_number, markdown_table
from brainseg.storage.files import write_text
from study.analysis.comparison import VariantScores
from study.report.results import Records
from study.storage.tables import Row, kept_models


def write_cards(records: Records) -> None:
    """Write `models/<variant>.md` for each variant that has a finished trial."""
    scores = {item.variant: item for item in records.comparison.variants}
    for variant, row in kept_models(records.trials).items():
        blocks = [
            f"# Model card: {variant}",
            *([f"**{' · '.join(records.labels)}**"] if records.labels else []),
            *_describe_model(records, row),
            *_describe_data(records, row),
            *_describe_scores(records, row, scores[variant]),
            *_describe_limits(records, variant),
        ]
        write_text(records.study / "models" / f"{variant}.md", "\n\n".join(blocks) + "\n")


def _describe_model(records: Records, row: Row) -> Iterator[str]:
    variant, size = row["variant"], records.about["experiment"]["data"]["size"]
    filters = "median filter and CLAHE" if row["preprocessed"] == "True" else "none"
    yield "## Model"
    yield "\n".join(
        [
            f"- File: `{variant}.safetensors`; its header holds the experiment that made it.",
            f"- U-Net, encoder {row['encoder']}; first weights: {row['weights']}.",
            f"- In: one slice, channels pre-contrast, FLAIR, post-contrast; resized to {size} px; "
            f"filters: {filters}.",
            "- Out: the probability of tumour (FLAIR abnormality) per pixel.",
            f"- The variant's trial of the lowest validation loss: fold {row['fold']}, seed "
            f"{row['seed']}, stage {float(row['best_stage']):.0f}, epoch "
            f"{float(row['best_epoch']):.0f}.",
        ]
    )
    yield (
        f"```python\nfrom brainseg import Predictor\n\n"
        f'masks = Predictor.load("{variant}.safetensors").masks(images)\n```'
    )


def _describe_data(records: Records, row: Row) -> Iterator[str]:
    about = records.about
    kind = "Generated phantoms (SYNTHETIC)" if about["synthetic"] else "MRI slices"
    yield "## Data and split"
    lines = [
        f"- {kind}: {about['patients']} patients, {about['slices']:,} slices, "
        f"{about['tumour_slices']:,} with tumour; fingerprint `{about['fingerprint']}`.",
    ]
    for rotation in records.split.get("rotations", []):
        if int(rotation["rotation"]) == int(row["fold"]):
            sizes = ", ".join(f"{len(rotation[part])} {part}" for part in ("train", "val", "test"))
            lines.append(f"- By patient, none in two parts: {sizes} patients (`split.json`).")
    yield "\n".join(lines)


def _describe_scores(records: Records, row: Row, scores: VariantScores) -> Iterator[str]:
    yield "## Scores"
    num_trials = len(records.finished(row["variant"]))
    yield (
        f"Of the variant: {num_trials} trials, {scores.num_patients} test patients, with 95 % "
        "intervals; global Dice, IoU, precision and recall from the pixels of all patients; HD95 "
        "in pixels."
    )
    table = {
        name: format_estimate(estimate, 1 if name == "HD95" else 3)
        for name, estimate in scores.scores.items()
    }
    yield markdown_table([{"score": name, "value": value} for name, value in table.items()])
    own = ", ".join(
        f"{title} {float(row[key]):.3f}"
        for title, key in (
            ("Dice/patient", "test_dice_patient"),
            ("global Dice", "test_dice_global"),
            ("precision", "test_precision"),
            ("recall", "test_recall"),
        )
    )
    yield f"Of this file alone, on its own test patients: {own}."


def _describe_limits(records: Records, variant: str) -> Iterator[str]:
    yield "## Limits"
    lines = [
        "**Not for clinical use.** For research on the comparison of networks.",
        f"The study's conclusion: {records.conclusion.sentence}",
        *records.conclusion.caveats,
        "Slices are segmented one by one; volumes are not looked at. Scanners, sites and "
        "reference outlines other than the dataset's were not tested.",
        *_weakest(records, variant),
        *_alarms(records, variant),
    ]
    for item in records.calibrations:
        if item.variant == variant:
            error = format_number(item.error_unsure)
            lines.append(f"Calibration error where the probability is 0.05 or more: {error}.")
    yield "\n".join(f"- {line}" for line in lines)
    if not records.about["synthetic"]:
        yield (
            "The weights derive from the LGG MRI Segmentation dataset (Mateusz Buda; TCGA-LGG "
            "through TCIA), which is under CC BY-NC-SA 4.0."
        )


def _weakest(records: Records, variant: str) -> Iterator[str]:
    for found in records.breakdowns:
        groups = [group for group in found.groups if variant in group.dice]
        if groups:
            weakest = min(groups, key=lambda group: group.dice[variant].point)
            score = format_estimate(weakest.dice[variant])
            yield (
                f"Weakest group by {found.title[0].lower()}{found.title[1:]}: {weakest.name}, "
                f"Dice/patient {score} on {weakest.num_patients} patients."
            )


def _alarms(records: Records, variant: str) -> Iterator[str]:
    for item in records.alarms:
        if item.variant == variant:
            yield (
                f"False alarms on {format_estimate(item.false_alarms)} of tumour-free slices; "
                f"{format_estimate(item.missed)} of tumour slices missed (shares, means over "
                "patients)."
            )
