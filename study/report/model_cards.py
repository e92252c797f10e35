"""Model cards beside the exported models: what each is, what it was tested on, what limits it.

After Mitchell et al. 2019, Model Cards for Model Reporting.
"""

from __future__ import annotations

from collections.abc import Iterator

from brainseg.config import Experiment
from brainseg.data.about import CHANNELS, FLAIR
from brainseg.document import (
    Block,
    Bullets,
    Document,
    Listing,
    Paragraph,
    Section,
    Table,
    format_number,
    to_markdown,
)
from brainseg.storage.files import hide_home, write_text
from study.report.provenance import describe_licence, describe_study
from study.report.results import StudyResults, format_estimate
from study.spec.grid import LEAKY
from study.storage.schema import FINISHED, Row
from study.storage.tables import kept_models


def write_model_cards(results: StudyResults) -> None:
    """Write `models/<variant>.md` for each variant that has a finished trial."""
    for variant, row in kept_models(results.trials).items():
        if variant.startswith(LEAKY):
            continue  # no card recommends it; the model file says by its name what it is
        card = Document(
            title=f"Model card: {variant}",
            facts=describe_study(results.about, str(row["size"])),
            labels=results.labels,
            sentence="Not for clinical use. The model serves research on comparing networks.",
            points=(),
            sections=[
                Section("model", "Model", list(_model(results, row))),
                Section("data", "Data and split", [Bullets(list(_data(results, row)))]),
                Section("scores", "Scores", list(_scores(results, row))),
                Section("limits", "Limits", [Bullets(list(_limits(results, row)))]),
            ],
        )
        write_text(results.folder / "models" / f"{variant}.md", to_markdown(card))


def _model(results: StudyResults, row: Row) -> Iterator[Block]:
    variant = row["variant"]
    experiment = results.experiment_of(row)
    note, arguments = "", "images"
    if experiment.needs_volume:
        note = "# patients: the patient of each image, a patient's slices in order\n"
        arguments = "images, patients=patients"
    yield Bullets(
        [
            f"File: `{variant}.safetensors`; its header holds the experiment that made it.",
            f"Network: {row['network']}; first weights: {row['weights']}.",
            f"Input: one slice with the channels {', '.join(results.about['channels'])}; resized "
            f"to {row['size']} px; filters: {row['filters']}.",
            *_seen(experiment),
            f"Output: the probability of tumour ({_target(results)}) per pixel.",
            "Chosen from the variant's trials by the lowest validation loss: fold "
            f"{row['fold']}, seed {row['seed']}, stage {float(row['best_stage']):.0f}, epoch "
            f"{float(row['best_epoch']):.0f}.",
        ]
    )
    code = [*experiment.preprocess.own_filters]
    if experiment.model.architecture in results.about["files"]:
        code.append(experiment.model.architecture)
    if code:
        names = ", ".join(map(hide_home, code))
        note = f"# allow_code=True runs {names}: give it only if you trust that code\n{note}"
    allowed = ", allow_code=True" if code else ""
    yield Listing(
        "In Python:",
        "from brainseg import Predictor\n\n"
        f'{note}masks = Predictor.load("{variant}.safetensors"{allowed}).masks({arguments})',
    )


def _seen(experiment: Experiment) -> Iterator[str]:
    """Yield which channels and neighbours of a slice the network sees, if they are configured."""
    data = experiment.data
    if data.channels:
        yield f"The network sees only these channels, in this order: {', '.join(data.channels)}."
    if data.context:
        yield f"Neighbouring slices on each side that the network sees too: {data.context}."
    if data.context and data.context_channels:
        yield f"Channels of these neighbours: {', '.join(data.context_channels)}."


def _target(results: StudyResults) -> str:
    """Return what the outlines mark: only those of the LGG dataset's channels are known."""
    is_known = tuple(results.about["channels"]) == CHANNELS
    return f"{CHANNELS[FLAIR]} abnormality" if is_known else "as the dataset outlines it"


def _data(results: StudyResults, row: Row) -> Iterator[str]:
    about = results.about
    kind = "Generated phantoms (SYNTHETIC)" if about["synthetic"] else "MRI slices"
    yield (
        f"{kind}: {about['patients']} patients, {about['slices']:,} slices, "
        f"{about['tumour_slices']:,} with tumour; fingerprint `{about['fingerprint']}`."
    )
    for rotation in results.split.get("rotations", []):
        if int(rotation["rotation"]) == int(row["fold"]):
            sizes = ", ".join(f"{len(rotation[part])} {part}" for part in ("train", "val", "test"))
            yield f"Split by patient (`split.json`): {sizes} patients."
    if not about["synthetic"]:
        yield f"{describe_licence(about)} The weights derive from it."


def _scores(results: StudyResults, row: Row) -> Iterator[Block]:
    variant = row["variant"]
    (scores,) = (item for item in results.comparison.variants if item.variant == variant)
    num_trials = len(results.trials_of(variant, FINISHED))
    table = [
        {"score": name, "value": format_estimate(found, ".1f" if "HD95" in name else ".3f")}
        for name, found in scores.scores.items()
    ]
    yield Table(
        f"Scores of the variant with 95 % intervals, from {num_trials} trials and "
        f"{scores.num_patients} test patients. Global Dice, IoU, precision and recall are "
        "computed from the pixels of all patients. HD95 without a unit is in pixels.",
        table,
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
    yield Paragraph(f"Scores of this model file on its own test patients: {own}.")


def _limits(results: StudyResults, row: Row) -> Iterator[str]:
    variant = row["variant"]
    yield f"The study's conclusion: {results.conclusion.sentence}"
    yield from results.conclusion.caveats
    yield (
        "The model needs all slices of a patient in their order, since its mask of one depends on "
        "the others."
        if results.experiment_of(row).needs_volume
        else "The model segments slices one by one and does not see volumes."
    ) + " Scanners, sites and reference outlines other than the dataset's were not tested."
    for breakdown in results.breakdowns:
        groups = [group for group in breakdown.groups if variant in group.dice]
        if groups:
            weakest = min(groups, key=lambda group: group.dice[variant].point)
            yield (
                f"Weakest group by {breakdown.title[0].lower()}{breakdown.title[1:]}: "
                f"{weakest.name}, Dice/patient {format_estimate(weakest.dice[variant])} on "
                f"{weakest.num_patients} patients."
            )
    for errors in results.slice_errors:
        if errors.variant == variant:
            yield (
                f"False alarms on {format_estimate(errors.false_alarms)} of tumour-free slices; "
                f"no true pixel found on {format_estimate(errors.missed)} of tumour slices "
                "(shares, means over patients)."
            )
    for item in results.calibrations:
        if item.variant == variant:
            error = format_number(item.error_unsure)
            yield f"Calibration error where the probability is 0.05 or more: {error}."
