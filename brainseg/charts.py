"""Diagrams of a dataset's measures, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainseg.covariates import Covariate
from brainseg.split import PARTS
from brainseg.store import SliceStore
from brainseg.survey import AIR, SEQUENCES, Survey

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
