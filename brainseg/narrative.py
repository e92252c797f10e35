"""The numbers of a dataset -> a summary in sentences; each number in them was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brainseg.config import NUM_FOLDS
from brainseg.covariates import Covariate
from brainseg.survey import AIR, SEQUENCES, Survey

Row = dict[str, Any]

PUBLISHED = {"patients": 110, "slices": 3929}
"""The whole public dataset; the table published with the protocol swaps its two classes."""

_LEVEL = 0.05


def summarise_in_words(
    card: Row, found: Survey, splits: Sequence[Row], covariates: Sequence[Covariate]
) -> list[str]:
    """Return the summary, a sentence per list entry, every number taken from the measures."""
    sentences = [*_sentences_on_classes(card), *_sentences_on_size(card)]
    if found.has_tumour.any():
        sentences += [_sentence_on_place(found), _sentence_on_contrast(found)]
    sentences += [_sentence_on_sequences(card), _sentence_on_splits(splits)]
    tested = [covariate for covariate in covariates if covariate.test]
    if tested:
        related = [c.name for c in tested if c.adjusted < _LEVEL]
        columns = "column" if len(tested) == 1 else "columns"
        verb = "is" if len(related) == 1 else "are"
        sentences.append(
            f"Of {len(tested)} {columns} on patients (site, data.csv) {len(related) or 'none'} "
            f"{verb} related to tumour size beyond chance (adjusted p below {_LEVEL:g})"
            + (f": {', '.join(related)}." if related else ".")
        )
    return sentences


def _sentences_on_classes(card: Row) -> list[str]:
    sentences = [
        f"{card['slices']:,} slices of {card['patients']} patients. {card['tumour_slices']:,} "
        f"slices ({card['tumour_slice_share']:.1%}) hold tumour, {card['tumour_free_slices']:,} "
        f"({1 - card['tumour_slice_share']:.1%}) do not."
    ]
    if all(card[key] == value for key, value in PUBLISHED.items()) and not card["synthetic"]:
        sentences.append(
            "This is the whole public dataset. The table that is published with the protocol "
            "has these two numbers swapped: counted, tumour-free slices are the larger class."
        )
    sentences.append(
        f"Tumour is {card['tumour_pixel_share']:.2%} of all pixels: a network that finds nothing "
        f"has an accuracy of {1 - card['tumour_pixel_share']:.4f}, so accuracy ranks nothing."
    )
    return sentences


def _sentences_on_size(card: Row) -> list[str]:
    area, slices = card["area"], card["slices_per_patient"]
    few, many = slices["min"], slices["max"]
    sentences = [
        f"Patients have {few:.0f} to {many:.0f} slices (median {slices['median']:.0f}): a mean "
        "over slices weighs patients by how finely they were scanned, one over patients does not."
        if few < many
        else f"Every patient has {few:.0f} slices."
    ]
    if area["count"]:
        sentences.append(
            f"Tumour areas span {area['min']:,.0f} to {area['max']:,.0f} pixels with a median of "
            f"{area['median']:,.0f}; the smallest tenth is below {area['p10']:,.0f}, where a few "
            f"pixels decide a slice's Dice. {card['slices_with_several_components']:,} of "
            f"{card['tumour_slices']:,} masks have more than one component."
        )
    return sentences


def _sentence_on_place(found: Survey) -> str:
    x = found.centre[found.has_tumour, 0]
    left = float((x < 0.5).mean())
    return (
        f"{left:.0%} of the tumour masks have their centre in the left half of the picture, "
        f"{1 - left:.0%} in the right one; the most frequent pixel is tumour in "
        f"{found.heat.max() / found.has_tumour.sum():.0%} of them."
    )


def _sentence_on_contrast(found: Survey) -> str:
    levels = np.arange(256)
    ratios = []
    for channel, name in enumerate(SEQUENCES):
        tumour = found.tumour_histogram[channel]
        tissue = np.where(levels >= AIR, found.tissue_histogram[channel], 0)
        inside = float(tumour @ levels / max(tumour.sum(), 1))
        around = float(tissue @ levels / max(tissue.sum(), 1))
        ratios.append(f"{inside / around if around else 0:.2f} times in {name}")
    return (
        "Tumour pixels have the mean level of the rest of the head "
        f"{', '.join(ratios)}, over slices with tumour."
    )


def _sentence_on_sequences(card: Row) -> str:
    missing = {name: count for name, count in card["missing"].items() if name}
    if not missing:
        return "No patient lacks a sequence: no channel is a copy of FLAIR throughout."
    parts = [f"{name} in {count}" for name, count in missing.items()]
    return (
        f"{sum(missing.values())} of {card['patients']} patients lack a sequence and carry FLAIR "
        f"in its place: {', '.join(parts)}."
    )


def _sentence_on_splits(splits: Sequence[Row]) -> str:
    failed = [row for row in splits if "error" in row]
    if failed:
        return f"{len(failed)} of {NUM_FOLDS} rotations cannot be built: {failed[0]['error']}."
    shares = [row["tumour_share"] for row in splits if row["part"] == "test"]
    shared = sum(row["shared_patients"] for row in splits)
    return (
        f"In all {NUM_FOLDS} rotations {shared or 'no'} patients are in two parts; the share of "
        f"test slices with tumour goes from {min(shares):.1%} to {max(shares):.1%}."
    )
