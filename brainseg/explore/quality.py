"""Measures of a dataset -> its card, findings on its quality, and the check of its splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg.config import NUM_FOLDS
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS, split_by_patient
from brainseg.errors import DataError
from brainseg.explore.measurements import AIR, SEQUENCES, Covariate, Survey

Row = dict[str, Any]

SPECK = 10
"""Components with fewer pixels are named as findings."""

_EXAMPLES = 3


def describe_dataset(data: SliceStore, found: Survey, patients: Sequence[Row]) -> Row:
    """Return the dataset's card: how much of what there is."""
    num_tumour = int(found.has_tumour.sum())
    slices = [row["slices"] for row in patients]
    areas = found.area[found.has_tumour]
    parts = np.array([part.area for part in found.components])
    per_slice = Counter(part.slice for part in found.components)
    return {
        "root": data.root.name,
        "fingerprint": data.fingerprint,
        "synthetic": data.synthetic,
        "side": data.size,
        "patients": len(patients),
        "slices": len(data.slices),
        "tumour_slices": num_tumour,
        "tumour_free_slices": len(data.slices) - num_tumour,
        "tumour_slice_share": num_tumour / len(data.slices),
        "tumour_pixel_share": float(found.area.sum() / (len(data.slices) * data.size**2)),
        "slices_per_patient": _spread(slices),
        "sites": dict(sorted(Counter(row["site"] or "unknown" for row in patients).items())),
        "missing": dict(sorted(Counter(row["missing"] for row in patients).items())),
        "area": _spread(areas),
        "components": len(found.components),
        "component_area": _spread(parts),
        "slices_with_several_components": sum(count > 1 for count in per_slice.values()),
        "intensity": {
            name: {
                "mean": float(found.means[:, channel].mean()),
                "spread": float(found.spreads[:, channel].mean()),
            }
            for channel, name in enumerate(SEQUENCES)
        },
    }


def check_quality(
    data: SliceStore, found: Survey, patients: Sequence[Row], table: Mapping[str, Any]
) -> list[str]:
    """Return a sentence per finding; the checks that found nothing share the last one."""
    names = [item.name for item in data.slices]
    blank = found.histograms[:, :, 0].sum(axis=1) == 3 * data.size**2
    specks = sorted({names[part.slice] for part in found.components if part.area < SPECK})
    border = sorted({names[p.slice] for p in found.components if _touches_border(p, data.size)})
    whole = {row["patient"] for row in patients if not row["missing"]}
    pairs = zip(data.slices, found.missing, strict=True)
    partly = sorted({item.patient for item, name in pairs if name and item.patient in whole})
    without = [row["patient"] for row in patients if not row["tumour_slices"]]
    known = {row["patient"] for row in patients}
    checks: list[tuple[str, Sequence[str]]] = [
        ("slices without any signal", [n for n, b in zip(names, blank, strict=True) if b]),
        ("slices with the same pixels as another one", _duplicates(names, found.digests)),
        ("patients without any tumour", without),
        ("patients whose slices are not numbered without gaps", _gaps_in_names(data)),
        ("tumour-free slices between two with tumour", _holes(data, found)),
        (f"masks with a speck of fewer than {SPECK} pixels", specks),
        ("masks that touch the border of the slice", border),
        ("masks that reach where there is no signal", _named(names, found.outside > 0)),
        ("patients of whom a sequence is missing in some slices only", partly),
        ("sequences of patients whose background is not black", _bright_backgrounds(data, found)),
        ("slices with more than 1 % of a sequence saturated", _named(names, _saturated(found))),
        ("patients without a row in data.csv", sorted(known - set(table)) if table else []),
        ("rows of data.csv without slices", sorted(set(table) - known)),
    ]
    counted = [f"{what}: {len(hits)} ({_some(hits)})." for what, hits in checks if hits]
    sentences = [text[0].upper() + text[1:] for text in counted]
    clean = [what for what, hits in checks if not hits]
    decoded = f"All {len(names):,} slices decode, each with a mask of its size of two values only"
    return [f"{decoded}.", *sentences, f"Looked for and not found: {'; '.join(clean)}."]


def verify_splits(data: SliceStore, split_seed: int) -> list[Row]:
    """Return a row per rotation and part: patients, slices, those with tumour, shared patients.

    A rotation that cannot be built has a row with its `error`.
    """
    rows: list[Row] = []
    for rotation in range(NUM_FOLDS):
        try:
            split = split_by_patient(data.slices, rotation, split_seed)
        except DataError as error:
            rows.append({"rotation": rotation, "error": str(error)})
            continue
        sets = {part: set(getattr(split, part)) for part in PARTS}
        for part in PARTS:
            numbers = split.indices(data.slices, part)
            tumour = sum(data.slices[number].tumour_pixels > 0 for number in numbers)
            others = set().union(*(sets[other] for other in PARTS if other != part))
            rows.append(
                {
                    "rotation": rotation,
                    "part": part,
                    "patients": len(sets[part]),
                    "slices": len(numbers),
                    "tumour_slices": tumour,
                    "tumour_share": tumour / len(numbers),
                    "shared_patients": len(sets[part] & others),
                }
            )
    return rows


def _spread(values: Sequence[int] | NDArray[np.int64]) -> dict[str, float]:
    """Count, extremes and quantiles; zeros where there is nothing."""
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return dict.fromkeys(("count", "min", "p10", "median", "p90", "max", "mean"), 0.0)
    low, middle, high = np.percentile(numbers, [10, 50, 90])
    return {
        "count": float(len(numbers)),
        "min": float(numbers.min()),
        "p10": float(low),
        "median": float(middle),
        "p90": float(high),
        "max": float(numbers.max()),
        "mean": float(numbers.mean()),
    }


def _some(names: Sequence[str]) -> str:
    tail = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + tail


def _named(names: Sequence[str], hits: NDArray[np.bool_]) -> list[str]:
    return [name for name, hit in zip(names, hits, strict=True) if hit]


def _touches_border(part: Any, side: int) -> bool:
    return bool(
        part.left == 0
        or part.top == 0
        or part.left + part.width == side
        or part.top + part.height == side
    )


def _bright_backgrounds(data: SliceStore, found: Survey) -> list[str]:
    """Patient and sequence where the most frequent level of half of the slices is no air."""
    most = found.histograms.argmax(axis=2)
    owner = np.array([item.patient for item in data.slices])
    return [
        f"{patient} {name}"
        for patient in data.patients
        for channel, name in enumerate(SEQUENCES)
        if np.median(most[owner == patient, channel]) > AIR
    ]


def _saturated(found: Survey) -> NDArray[np.bool_]:
    share = found.histograms[:, :, 255] / found.histograms.sum(axis=2)
    return np.asarray((share > 0.01).any(axis=1))


def _duplicates(names: Sequence[str], digests: Sequence[bytes]) -> list[str]:
    seen: dict[bytes, str] = {}
    return [
        f"{name} is {first}"
        for name, digest in zip(names, digests, strict=True)
        if (first := seen.setdefault(digest, name)) != name
    ]


def _gaps_in_names(data: SliceStore) -> list[str]:
    numbers: dict[str, list[int]] = {}
    for item in data.slices:
        match = re.search(r"(\d+)$", item.name)
        numbers.setdefault(item.patient, []).append(int(match.group(1)) if match else -1)
    return [p for p, n in numbers.items() if sorted(n) != list(range(min(n), min(n) + len(n)))]


def _holes(data: SliceStore, found: Survey) -> list[str]:
    """Tumour-free slices with tumour on both sides of them in the same patient."""
    places: dict[str, list[int]] = {}
    for number, item in enumerate(data.slices):
        if item.tumour_pixels:
            places.setdefault(item.patient, []).append(number)
    return [
        data.slices[number].name
        for own in places.values()
        for number in range(own[0], own[-1])
        if not found.area[number]
    ]


# --- narrative ---


PUBLISHED = {"patients": 110, "slices": 3929}
"""The whole public dataset; the table published with the protocol swaps its two classes."""

_LEVEL = 0.05


def summarise_in_words(
    card: Row,
    found: Survey,
    splits: Sequence[Row],
    covariates: Sequence[Covariate],
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
