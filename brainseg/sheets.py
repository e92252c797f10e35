"""Sheets of slices: samples, extremes, and what augmentation and preprocessing do to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brainseg.augment import Augmenter
from brainseg.config import AugmentConfig, PreprocessConfig
from brainseg.overlay import FLAIR, TRUE, draw_outlines
from brainseg.preprocess import preprocess
from brainseg.store import SliceStore
from brainseg.survey import AIR

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
