"""Draws the figures of an exploration with matplotlib: diagrams of measurements, and slices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brainseg.config import AugmentConfig, PreprocessConfig
from brainseg.data.augment import Augmenter
from brainseg.data.preprocess import apply_filters
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import PARTS
from brainseg.document import plain
from brainseg.explore.covariates import Covariate
from brainseg.explore.measurements import AIR, Measurements, Row
from brainseg.inference.overlay import TRUE, draw_outlines

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

CLIP_LIMITS = (1.0, 2.0, 3.0, 5.0, 10.0)
STRENGTHS = (0.0, 1.0, 2.0)

_TUMOUR, _FREE, _GREY = "#D55E00", "#0072B2", "0.78"
_MAX_GROUPS = 8
_COVARIATES_PER_ROW = 4
_SLICES_PER_ROW = 6
_SLICE_SIDE = 1.7  # inches
_NUM_EPOCHS = 5


def draw_patients(patients: pd.DataFrame) -> Figure:
    """Draw slices per patient, those with tumour in the colour of the patient's site.

    Args:
        patients: A row per patient, see `Exploration`.
    """
    ordered = patients.sort_values(["site", "slices"], ascending=[True, False], kind="stable")
    figure, axis = _subplots(3.6, 1, 1)
    axis.bar(np.arange(len(ordered)), ordered["slices"], color=_GREY, width=0.85)
    for site, colour in _colours_of(patients).items():
        own = np.flatnonzero(ordered["site"] == site)
        heights = ordered["tumour_slices"].iloc[own]
        label = f"{plain(site) or 'unknown'} ({len(own)})"
        axis.bar(own, heights, color=colour, width=0.85, label=label)
    axis.set(
        xlabel="patients, by site", ylabel="slices", xticks=[], xlim=(-0.8, len(ordered) - 0.2)
    )
    axis.legend(title="slices with tumour, by site", ncols=6, fontsize=8, title_fontsize=8)
    axis.margins(y=0.2)
    return figure


def draw_areas(found: Measurements, patients: pd.DataFrame) -> Figure:
    """Draw tumour areas of slices, and each patient's tumour as a share of its pixels.

    Args:
        found: The measurements.
        patients: A row per patient, see `Exploration`.
    """
    figure, (left, right) = _subplots(3.6, 1, 2)
    _draw_area_histogram(left, found.tumour_areas)
    left.set(xscale="log", xlabel="tumour pixels of a slice", ylabel="slices with tumour")
    ordered = patients.sort_values("tumour_share").reset_index()
    for site, colour in _colours_of(patients).items():
        own = ordered[ordered["site"] == site]
        shares = 100 * own["tumour_share"]
        right.scatter(own.index, shares, color=colour, s=14, label=plain(site) or "unknown")
    right.set(xlabel="patients, by size of tumour", ylabel="tumour, % of all pixels", xticks=[])
    right.legend(fontsize=8)
    return figure


def draw_components(found: Measurements) -> Figure:
    """Draw how many components masks have, how large they are, and how elongated their boxes."""
    figure, (left, middle, right) = _subplots(3.4, 1, 3)
    parts = found.components
    counts = parts["slice"].value_counts().value_counts().sort_index()
    left.bar(counts.index, counts, color=_TUMOUR)
    for value, count in counts.items():
        left.annotate(str(count), (value, count), ha="center", va="bottom", fontsize=8)
    left.set(xlabel="components of a mask", ylabel="masks", xticks=counts.index)
    left.margins(y=0.12)
    _draw_area_histogram(middle, parts["area"].to_numpy())
    middle.set(xscale="log", xlabel="pixels of a component", ylabel="components")
    if len(parts):
        sides = parts[["width", "height"]]
        ratio = sides.max(axis=1) / sides.min(axis=1)
        right.scatter(parts["area"], ratio, s=6, alpha=0.5, color=_TUMOUR, linewidths=0)
    right.set(
        xscale="log", xlabel="pixels of a component", ylabel="longer / shorter side of its box"
    )
    return figure


def draw_positions(data: SliceStore, found: Measurements) -> Figure:
    """Draw where tumours are: pixels, centres of mass, and positions in the stack of slices."""
    figure, (left, middle, right) = _subplots(3.6, 1, 3)
    for axis in (left, middle):
        axis.imshow(found.mean_image, cmap="gray")
        axis.set(xticks=[], yticks=[])
    share = 100 * found.heat / max(int(found.has_tumour.sum()), 1)
    heat = left.imshow(np.ma.masked_less(share, share.max() / 50), cmap="inferno", alpha=0.75)
    figure.colorbar(heat, ax=left, shrink=0.75, label="% of the masks")
    left.set(title="how often a pixel is tumour")
    position = _positions_in_stack(found)
    x, y = (found.slices[axis] * data.size - 0.5 for axis in ("x", "y"))
    dots = middle.scatter(x, y, c=position, s=7, cmap="viridis", vmin=0, vmax=1)
    bar = figure.colorbar(dots, ax=middle, shrink=0.75, ticks=[0, 1])
    bar.ax.set_yticklabels(["first\nslice", "last"])
    middle.set(title="centre of mass of each mask")
    bins = np.linspace(0, 1, 21)
    right.hist(position, bins=bins, color=_GREY, label="all slices")
    right.hist(position[found.has_tumour], bins=bins, color=_TUMOUR, label="with tumour")
    right.set(xlabel="position in the patient's stack", ylabel="slices", title="along the stack")
    right.margins(y=0.3)
    right.legend(fontsize=8)
    return figure


def draw_intensities(found: Measurements) -> Figure:
    """Draw the levels of tumour pixels and of the rest of the head, per sequence."""
    figure, axes = _subplots(3.2, 1, len(found.channels), squeeze=False, sharey=True)
    axes = axes[0]
    levels = np.arange(AIR, 256)
    kinds = (
        (found.tissue_histogram, _FREE, "rest of the head"),
        (found.tumour_histogram, _TUMOUR, "tumour"),
    )
    for channel, (axis, name) in enumerate(zip(axes, found.channels, strict=True)):
        for histogram, colour, label in kinds:
            counts = histogram[channel, AIR:]
            shares = 100 * counts / max(int(counts.sum()), 1)
            axis.fill_between(levels, shares, color=colour, alpha=0.45, label=label)
        axis.set(title=name, xlabel=f"level (from {AIR}: without air)", xlim=(AIR, 255))
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("% of the pixels")
    axes[0].legend(fontsize=8)
    return figure


def draw_slice_intensities(found: Measurements) -> Figure:
    """Draw mean and spread of each slice, per sequence, with and without tumour."""
    figure, axes = _subplots(3.4, 1, len(found.channels), squeeze=False, sharex=True, sharey=True)
    axes = axes[0]
    tumour = found.has_tumour
    for channel, (axis, name) in enumerate(zip(axes, found.channels, strict=True)):
        for kind, colour, label in ((~tumour, _FREE, "without tumour"), (tumour, _TUMOUR, "with")):
            x, y = found.means[kind, channel], found.spreads[kind, channel]
            axis.scatter(x, y, s=5, alpha=0.4, color=colour, linewidths=0, label=label)
        axis.set(title=name, xlabel="mean level of a slice")
    axes[0].set_ylabel("spread (standard deviation)")
    axes[0].legend(fontsize=8, markerscale=3)
    return figure


def draw_splits(splits: Sequence[Row]) -> Figure:
    """Draw the share of slices with tumour in each part of each rotation."""
    figure, axis = _subplots(2.8, 1, 1)
    for part, colour, shift in zip(PARTS, COLOURS, (-0.15, 0.0, 0.15), strict=False):
        rows = [row for row in splits if row.get("part") == part]
        x = [row["rotation"] + shift for row in rows]
        axis.scatter(x, [100 * row["tumour_share"] for row in rows], color=colour, label=part)
    axis.set(xlabel="rotation", ylabel="slices with tumour, %", xticks=range(10))
    axis.set_ylim(0, 1.2 * max((100 * row["tumour_share"] for row in splits), default=1))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8, ncols=3, loc="lower right")
    return figure


def draw_covariates(covariates: Sequence[Covariate]) -> Figure:
    """Draw tumour size against each covariate: groups with their medians, or points."""
    rows = -(-len(covariates) // _COVARIATES_PER_ROW)
    figure, axes = _subplots(2.1 * rows, rows, _COVARIATES_PER_ROW, squeeze=False, sharey=True)
    for axis, covariate in zip(axes.flat, covariates, strict=False):
        if covariate.is_continuous:
            x = covariate.patients["value"].astype(float)
            axis.scatter(x, 100 * covariate.patients["size"], s=8, color=_TUMOUR)
        else:
            _draw_groups(axis, covariate.groups)
        known = f", p {covariate.p_value:.2f}" if covariate.test else ""
        axis.set_title(f"{covariate.name}{known}", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(covariates) :]:
        axis.set_axis_off()
    figure.supylabel("tumour, % of the patient's pixels", fontsize=9)
    return figure


def draw_samples(data: SliceStore, seed: int) -> Figure:
    """Draw random slices with their true masks outlined, two thirds of them with tumour.

    Args:
        data: The dataset.
        seed: The seed of the choice.
    """
    rng = np.random.default_rng(seed)
    areas = _areas(data)
    chosen = [
        rng.permutation(np.flatnonzero(pool))[:wanted]
        for pool, wanted in ((areas > 0, 8), (areas == 0, 4))
    ]
    return _draw_slices(data, np.concatenate(chosen).tolist())


def draw_extremes(data: SliceStore) -> Figure:
    """Draw the smallest and the largest tumours, at most one slice per patient each."""
    order = _tumour_slices_by_area(data)
    return _draw_slices(
        data, [*_one_per_patient(data, order), *_one_per_patient(data, order[::-1])]
    )


def choose_example(data: SliceStore) -> int:
    """Return the index of the slice whose tumour has the median area."""
    order = _tumour_slices_by_area(data)
    return order[len(order) // 2] if order else 0


def draw_augmentation(data: SliceStore, index: int, seed: int) -> Figure:
    """Draw one slice as training sees it: rows are strengths, columns epochs.

    Args:
        data: The dataset.
        index: The slice.
        seed: The seed of the augmentation.
    """
    figure, axes = _grid(len(STRENGTHS), _NUM_EPOCHS)
    for row, strength in enumerate(STRENGTHS):
        augmenter = Augmenter(AugmentConfig(strength=strength), seed)
        for column in range(_NUM_EPOCHS):
            key = (1, column + 1, index)
            image, mask = augmenter(data.image(index), data.mask(index), key)
            _show(axes[row, column], draw_outlines(image, (mask > 0, TRUE)))
            if row == 0:
                axes[row, column].set_title(f"epoch {column + 1}", fontsize=8)
        axes[row, 0].set_ylabel(
            f"strength {strength:g}" + ("" if strength else " (none)"), fontsize=9
        )
    return figure


def draw_preprocessing(data: SliceStore, index: int, shown: int) -> Figure:
    """Draw one slice raw and preprocessed at several clip limits, with a channel's levels.

    Args:
        data: The dataset.
        index: The slice.
        shown: Index of the channel.
    """
    raw = data.image(index)
    pictures = [("raw", raw)]
    for limit in CLIP_LIMITS:
        config = PreprocessConfig(filters=("median", "clahe"), clip_limit=limit)
        name = f"clip limit {limit:g}" + (" (protocol)" if limit == 3 else "")
        pictures.append((name, apply_filters(raw, config)))
    # The peak of tissue: that of air, at the left edge, would flatten all others.
    highest = 2 * np.bincount(raw[:, :, shown].ravel(), minlength=256)[3 * AIR :].max()
    figure, axes = _grid(3, len(pictures))
    for column, (name, picture) in enumerate(pictures):
        # Three channels as red, green and blue; others by their first.
        _show(axes[0, column], picture if picture.shape[2] == 3 else picture[:, :, 0])
        _show(axes[1, column], picture[:, :, shown])
        levels = np.bincount(picture[:, :, shown].ravel(), minlength=256)
        axes[2, column].fill_between(np.arange(AIR, 256), levels[AIR:], color=_FREE)
        axes[2, column].set(xlim=(AIR, 255), ylim=(0, highest), yticks=[], xlabel="level")
        axes[0, column].set_title(name, fontsize=8)
    first = "three channels" if raw.shape[2] == 3 else data.channels[0]
    rows = (first, data.channels[shown], f"{data.channels[shown]} levels")
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, fontsize=9)
    return figure


def _subplots(height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """Return a figure 10 inches wide and its axes."""
    figure = Figure(figsize=(10, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _draw_groups(axis: Axes, groups: Mapping[str, Sequence[float]]) -> None:
    shown = list(groups.items())[:_MAX_GROUPS]
    rng = np.random.default_rng(0)  # spreads points sideways so that they can be seen
    for x, (_, values) in enumerate(shown):
        spread = x + rng.uniform(-0.18, 0.18, len(values))
        axis.scatter(spread, 100 * np.asarray(values), s=7, color=_FREE, alpha=0.6, linewidths=0)
        axis.hlines(100 * np.median(values), x - 0.35, x + 0.35, color=_TUMOUR)
    labels = [f"{name}\n({len(values)})" for name, values in shown]
    axis.set_xticks(range(len(shown)), labels)


def _draw_area_histogram(axis: Axes, areas: NDArray[np.int64]) -> None:
    if not len(areas):
        return
    bins = np.geomspace(max(areas.min(), 1), areas.max() + 1, 30).tolist()
    axis.hist(areas, bins=bins, color=_TUMOUR)
    median = float(np.median(areas))
    axis.axvline(median, color="0.2", linewidth=1)
    axis.annotate(
        f"median {median:,.0f} px ",
        (median, 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
        ha="right",
        fontsize=8,
    )


def _colours_of(patients: pd.DataFrame) -> dict[str, str]:
    """Return a colour for each site."""
    return dict(zip(sorted(patients["site"].unique()), itertools.cycle(COLOURS), strict=False))


def _positions_in_stack(found: Measurements) -> NDArray[np.float64]:
    """Return the position of each slice among its patient's, from 0 to 1."""
    groups = found.slices.groupby("patient")["name"]
    last = groups.transform("size") - 1
    return np.where(last > 0, groups.cumcount() / np.maximum(last, 1), 0.5)


def _areas(data: SliceStore) -> NDArray[np.int64]:
    return np.array([item.tumour_pixels for item in data.slices])


def _tumour_slices_by_area(data: SliceStore) -> list[int]:
    areas = _areas(data)
    return sorted(np.flatnonzero(areas).tolist(), key=lambda index: areas[index])


def _one_per_patient(data: SliceStore, order: Sequence[int]) -> list[int]:
    """Return the first slice of each patient, for as many patients as a row has pictures."""
    first: dict[str, int] = {}
    for index in order:
        first.setdefault(data.slices[index].patient, index)
    return list(first.values())[:_SLICES_PER_ROW]


def _draw_slices(data: SliceStore, indices: Sequence[int]) -> Figure:
    figure, axes = _grid(max(1, -(-len(indices) // _SLICES_PER_ROW)), _SLICES_PER_ROW)
    for axis in axes.flat[len(indices) :]:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, indices, strict=False):
        item = data.slices[index]
        _show(axis, draw_outlines(data.image(index), (data.mask(index) > 0, TRUE)))
        number = item.name.removeprefix(item.patient).lstrip("_").rpartition("_")[2]
        area = f"{item.tumour_pixels:,} px" if item.tumour_pixels else "no tumour"
        axis.set_title(f"{plain(item.patient)}\nslice {number}: {area}", fontsize=7)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(
        figsize=(columns * _SLICE_SIDE, rows * _SLICE_SIDE + 0.3), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Axes, picture: NDArray[np.uint8]) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
