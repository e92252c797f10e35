"""Diagrams of a dataset's measures, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brainseg.config import AugmentConfig, PreprocessConfig
from brainseg.data.augment import Augmenter
from brainseg.data.preprocess import preprocess
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS
from brainseg.explore.measurements import AIR, SEQUENCES, Covariate, Survey
from brainseg.inference.overlay import FLAIR, TRUE, draw_outlines

Row = dict[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette, told apart by colour-blind readers."""

TUMOUR, FREE = "#D55E00", "#0072B2"
_GREY = "0.78"
_PANELS_IN_A_ROW = 4
_MOST_GROUPS = 8


def draw_patients(patients: Sequence[Row]) -> Figure:
    """Draw slices per patient, those with tumour in the colour of the patient's site."""
    ordered = sorted(patients, key=lambda row: (row["site"], -row["slices"]))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(ordered))
    axis.bar(places, [row["slices"] for row in ordered], color=_GREY, width=0.85)
    for site, colour in _colours_of(patients).items():
        own = [x for x, row in enumerate(ordered) if row["site"] == site]
        heights = [ordered[x]["tumour_slices"] for x in own]
        label = f"{site or 'unknown'} ({len(own)})"
        axis.bar(own, heights, color=colour, width=0.85, label=label)
    axis.set(
        xlabel="patients, by site", ylabel="slices", xticks=[], xlim=(-0.8, len(ordered) - 0.2)
    )
    axis.legend(title="slices with tumour, by site", ncols=6, fontsize=8, title_fontsize=8)
    axis.margins(y=0.2)
    return figure


def draw_areas(found: Survey, patients: Sequence[Row], pixels: int) -> Figure:
    """Draw tumour areas of slices, and each patient's tumour as a share of its pixels.

    Args:
        found: Measures.
        patients: Rows of the patients.
        pixels: Of a slice.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    areas = found.area[found.has_tumour]
    if len(areas):
        left.hist(areas, bins=_log_bins(areas), color=TUMOUR)
        _mark_median(left, float(np.median(areas)), "px")
    left.set(xscale="log", xlabel="tumour pixels of a slice", ylabel="slices with tumour")
    shares = [100 * row["tumour_pixels"] / (row["slices"] * pixels) for row in patients]
    order = np.argsort(shares)
    for site, colour in _colours_of(patients).items():
        own = [(x, shares[n]) for x, n in enumerate(order) if patients[n]["site"] == site]
        right.scatter(*zip(*own, strict=True), color=colour, s=14, label=site or "unknown")
    right.set(xlabel="patients, by size of tumour", ylabel="tumour, % of all pixels", xticks=[])
    right.legend(fontsize=8)
    return figure


def draw_components(found: Survey) -> Figure:
    """Draw how many components masks have, how large they are, and how elongated their boxes."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    per_slice = np.bincount([part.slice for part in found.components], minlength=len(found.area))
    values, counts = np.unique(per_slice[per_slice > 0], return_counts=True)
    left.bar(values, counts, color=TUMOUR)
    for value, count in zip(values, counts, strict=True):
        left.annotate(str(count), (value, count), ha="center", va="bottom", fontsize=8)
    left.set(xlabel="components of a mask", ylabel="masks", xticks=values)
    left.margins(y=0.12)
    areas = np.array([part.area for part in found.components])
    ratio = [max(p.width, p.height) / min(p.width, p.height) for p in found.components]
    if len(areas):
        middle.hist(areas, bins=_log_bins(areas), color=TUMOUR)
        _mark_median(middle, float(np.median(areas)), "px")
        right.scatter(areas, ratio, s=6, alpha=0.5, color=TUMOUR, linewidths=0)
    middle.set(xscale="log", xlabel="pixels of a component", ylabel="components")
    right.set(
        xscale="log", xlabel="pixels of a component", ylabel="longer / shorter side of its box"
    )
    return figure


def draw_positions(data: SliceStore, found: Survey) -> Figure:
    """Draw where tumours are: pixels, centres of mass, and places in the stack of slices."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axis in (left, middle):
        axis.imshow(found.mean_flair, cmap="gray")
        axis.set(xticks=[], yticks=[])
    share = 100 * found.heat / max(int(found.has_tumour.sum()), 1)
    heat = left.imshow(np.ma.masked_less(share, share.max() / 50), cmap="inferno", alpha=0.75)
    figure.colorbar(heat, ax=left, shrink=0.75, label="% of the masks")
    left.set(title="how often a pixel is tumour")
    place = _place_in_stack(data)
    centre = found.centre * data.size - 0.5
    dots = middle.scatter(*centre.T, c=place, s=7, cmap="viridis", vmin=0, vmax=1)
    bar = figure.colorbar(dots, ax=middle, shrink=0.75, ticks=[0, 1])
    bar.ax.set_yticklabels(["first\nslice", "last"])
    middle.set(title="centre of mass of each mask")
    bins = np.linspace(0, 1, 21)
    right.hist(place, bins=bins, color=_GREY, label="all slices")
    right.hist(place[found.has_tumour], bins=bins, color=TUMOUR, label="with tumour")
    right.set(xlabel="place in the patient's stack", ylabel="slices", title="along the stack")
    right.margins(y=0.3)
    right.legend(fontsize=8)
    return figure


def draw_intensities(found: Survey) -> Figure:
    """Draw the levels of tumour pixels and of the rest of the head, per sequence."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    levels = np.arange(AIR, 256)
    kinds = (
        (found.tissue_histogram, FREE, "rest of the head"),
        (found.tumour_histogram, TUMOUR, "tumour"),
    )
    for channel, (axis, name) in enumerate(zip(axes, SEQUENCES, strict=True)):
        for histogram, colour, label in kinds:
            counts = histogram[channel, AIR:]
            shares = 100 * counts / max(int(counts.sum()), 1)
            axis.fill_between(levels, shares, color=colour, alpha=0.45, label=label)
        axis.set(title=name, xlabel=f"level (from {AIR}: without air)", xlim=(AIR, 255))
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("% of the pixels")
    axes[0].legend(fontsize=8)
    return figure


def draw_slice_intensities(found: Survey) -> Figure:
    """Draw mean and spread of each slice, per sequence, with and without tumour."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    tumour = found.has_tumour
    for channel, (axis, name) in enumerate(zip(axes, SEQUENCES, strict=True)):
        for kind, colour, label in ((~tumour, FREE, "without tumour"), (tumour, TUMOUR, "with")):
            x, y = found.means[kind, channel], found.spreads[kind, channel]
            axis.scatter(x, y, s=5, alpha=0.4, color=colour, linewidths=0, label=label)
        axis.set(title=name, xlabel="mean level of a slice")
    axes[0].set_ylabel("spread (standard deviation)")
    axes[0].legend(fontsize=8, markerscale=3)
    return figure


def draw_splits(splits: Sequence[Row]) -> Figure:
    """Draw the share of slices with tumour in each part of each rotation."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axis = figure.subplots()
    for part, colour, shift in zip(PARTS, COLOURS, (-0.15, 0.0, 0.15), strict=False):
        rows = [row for row in splits if row.get("part") == part]
        x = [row["rotation"] + shift for row in rows]
        axis.scatter(x, [100 * row["tumour_share"] for row in rows], color=colour, label=part)
    axis.set(xlabel="rotation", ylabel="slices with tumour, %", xticks=range(10))
    axis.set_ylim(0, 1.2 * max((100 * row["tumour_share"] for row in splits), default=1))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8, ncols=3, loc="lower right")
    return figure


def draw_covariates(covariates: Sequence[Covariate], sizes: Mapping[str, float]) -> Figure:
    """Draw tumour size against each column of data.csv: groups with their medians, or points."""
    rows = -(-len(covariates) // _PANELS_IN_A_ROW)
    figure = Figure(figsize=(10, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, _PANELS_IN_A_ROW, squeeze=False, sharey=True)
    for axis, covariate in zip(axes.flat, covariates, strict=False):
        if covariate.is_continuous:
            x = [float(value) for value in covariate.values.values()]
            y = [100 * sizes[patient] for patient in covariate.values]
            axis.scatter(x, y, s=8, color=TUMOUR)
        else:
            _draw_groups(axis, covariate.groups(sizes))
        known = f", p {covariate.p_value:.2f}" if covariate.test else ""
        axis.set_title(f"{covariate.name}{known}", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(covariates) :]:
        axis.set_axis_off()
    figure.supylabel("tumour, % of the patient's pixels", fontsize=9)
    return figure


def _draw_groups(axis: Axes, groups: Mapping[str, Sequence[float]]) -> None:
    shown = list(groups.items())[:_MOST_GROUPS]
    rng = np.random.default_rng(0)  # spreads points sideways, for the eye alone
    for place, (_, values) in enumerate(shown):
        x = place + rng.uniform(-0.18, 0.18, len(values))
        axis.scatter(x, 100 * np.asarray(values), s=7, color=FREE, alpha=0.6, linewidths=0)
        axis.hlines(100 * np.median(values), place - 0.35, place + 0.35, color=TUMOUR)
    labels = [f"{name}\n({len(values)})" for name, values in shown]
    axis.set_xticks(range(len(shown)), labels)


def _colours_of(patients: Sequence[Row]) -> dict[str, str]:
    sites = sorted({row["site"] for row in patients})
    return {site: COLOURS[number % len(COLOURS)] for number, site in enumerate(sites)}


def _place_in_stack(data: SliceStore) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Place of each slice among its patient's, from 0 to 1."""
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(data.slices):
        numbers.setdefault(item.patient, []).append(number)
    place = np.zeros(len(data.slices))
    for own in numbers.values():
        place[own] = np.linspace(0, 1, len(own)) if len(own) > 1 else 0.5
    return place


def _log_bins(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.geomspace(max(values.min(), 1), values.max() + 1, 30)


def _mark_median(axis: Axes, median: float, unit: str) -> None:
    axis.axvline(median, color="0.2", linewidth=1)
    axis.annotate(
        f"median {median:,.0f} {unit} ",
        (median, 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
        ha="right",
        fontsize=8,
    )


# --- sheets ---

CLIP_LIMITS = (1.0, 2.0, 3.0, 5.0, 10.0)
STRENGTHS = (0.0, 1.0, 2.0)

_COLUMNS = 6
_TILE = 1.7  # inches
_DRAWS = 5


def draw_samples(data: SliceStore, seed: int) -> Figure:
    """Draw slices at random, two thirds of them with tumour, their true masks outlined.

    Args:
        data: The dataset.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    tumour = [number for number, item in enumerate(data.slices) if item.tumour_pixels]
    free = [number for number, item in enumerate(data.slices) if not item.tumour_pixels]
    chosen = [
        int(number)
        for pool, wanted in ((tumour, 8), (free, 4))
        for number in rng.permutation(pool)[:wanted]
    ]
    return _draw_slices(data, chosen)


def draw_extremes(data: SliceStore) -> Figure:
    """Draw the smallest and the largest tumours, of a patient one each."""
    order = sorted(
        (number for number, item in enumerate(data.slices) if item.tumour_pixels),
        key=lambda number: data.slices[number].tumour_pixels,
    )
    return _draw_slices(data, [*_one_each(data, order), *_one_each(data, order[::-1])])


def draw_augmentation(data: SliceStore, number: int, seed: int) -> Figure:
    """Draw what training sees of one slice: rows are strengths, columns epochs.

    Args:
        data: The dataset.
        number: Of the slice.
        seed: Of the changes.
    """
    figure, axes = _grid(len(STRENGTHS), _DRAWS)
    for row, strength in enumerate(STRENGTHS):
        augmenter = Augmenter(AugmentConfig(strength=strength), seed)
        for column in range(_DRAWS):
            key = (1, column + 1, number)
            image, mask = augmenter(data.image(number), data.mask(number), key)
            _show(axes[row, column], draw_outlines(image, (mask > 0, TRUE)))
            if row == 0:
                axes[row, column].set_title(f"epoch {column + 1}", fontsize=8)
        axes[row, 0].set_ylabel(
            f"strength {strength:g}" + ("" if strength else " (none)"), fontsize=9
        )
    return figure


def draw_preprocessing(data: SliceStore, number: int) -> Figure:
    """Draw one slice raw and preprocessed at several clip limits, with the levels of its FLAIR.

    Args:
        data: The dataset.
        number: Of the slice.
    """
    raw = data.image(number)
    pictures = [("raw", raw)]
    for limit in CLIP_LIMITS:
        config = PreprocessConfig(enabled=True, clip_limit=limit)
        name = f"clip limit {limit:g}" + (" (protocol)" if limit == 3 else "")
        pictures.append((name, preprocess(raw, config, data.size)))
    # Of tissue; the peak of air at the left edge would flatten all others.
    highest = 2 * np.bincount(raw[:, :, FLAIR].ravel(), minlength=256)[3 * AIR :].max()
    figure, axes = _grid(3, len(pictures))
    for column, (name, picture) in enumerate(pictures):
        _show(axes[0, column], picture)
        _show(axes[1, column], picture[:, :, FLAIR])
        levels = np.bincount(picture[:, :, FLAIR].ravel(), minlength=256)
        axes[2, column].fill_between(np.arange(AIR, 256), levels[AIR:], color="#0072B2")
        axes[2, column].set(xlim=(AIR, 255), ylim=(0, highest), yticks=[], xlabel="level")
        axes[0, column].set_title(name, fontsize=8)
    for axis, name in zip(axes[:, 0], ("three sequences", "FLAIR", "FLAIR levels"), strict=True):
        axis.set_ylabel(name, fontsize=9)
    return figure


def choose_example(data: SliceStore) -> int:
    """Return the slice whose tumour is of median size, for previews."""
    tumour = [number for number, item in enumerate(data.slices) if item.tumour_pixels]
    tumour.sort(key=lambda number: data.slices[number].tumour_pixels)
    return tumour[len(tumour) // 2] if tumour else 0


def _one_each(data: SliceStore, order: Sequence[int]) -> list[int]:
    found: dict[str, int] = {}
    for number in order:
        found.setdefault(data.slices[number].patient, number)
        if len(found) == _COLUMNS:
            break
    return list(found.values())


def _draw_slices(data: SliceStore, numbers: Sequence[int]) -> Figure:
    figure, axes = _grid(max(1, -(-len(numbers) // _COLUMNS)), _COLUMNS)
    for axis in axes.flat[len(numbers) :]:
        axis.set_axis_off()
    for axis, number in zip(axes.flat, numbers, strict=False):
        item = data.slices[number]
        _show(axis, draw_outlines(data.image(number), (data.mask(number) > 0, TRUE)))
        slice_name = item.name.removeprefix(item.patient).lstrip("_").rpartition("_")[2]
        area = f"{item.tumour_pixels:,} px" if item.tumour_pixels else "no tumour"
        axis.set_title(f"{item.patient}\nslice {slice_name}: {area}", fontsize=7)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(columns * _TILE, rows * _TILE + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Axes, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
