"""From a patient's slices to the network's input, and from its maps back to the slices.

The order is: padding to a square, intensities rescaled over the volume, filters at the slice's own
size, crop, resizing, and then neighbouring slices and edges as further channels. Training,
evaluation and prediction all come through here.

A volume is all slices of one scan of a patient, in natural order. Its foreground are the pixels at
which some channel reaches a tenth of the volume's highest value (the rule of Buda et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.config import EDGES, Experiment
from brainseg.data.about import CHANNELS
from brainseg.data.preprocess import (
    apply_filters,
    detect_edges,
    fit_back,
    pad_to_square,
    resize,
    resize_mask,
)
from brainseg.data.slice_store import SliceStore
from brainseg.errors import ConfigError

Image = NDArray[np.uint8]

_FOREGROUND = 0.1
_Z_CENTRE, _Z_STEPS = 128.0, 32.0
"""A z-score z is stored as the byte 128 + 32 z: from -4 to just below 4, in steps of 1/32."""

_OUTSIDE = -100.0
"""The logit outside a crop: a probability of 0."""


class Crop(NamedTuple):
    """A square window of a padded slice, in pixels."""

    top: int
    left: int
    side: int


class Volume:
    """The slices of one scan as a network sees them.

    Args:
        read: Returns a slice by its position in the volume, uint8 (H, W, C).
        count: Number of slices.
        experiment: Size, filters, intensities, crop, channels and context.
        channels: Names of the C channels.
        prepared: Returns what `prepare` would for a position, from a store.

    Raises:
        ConfigError: If the experiment names a channel that the slices do not have.
    """

    def __init__(
        self,
        read: Callable[[int], Image],
        count: int,
        experiment: Experiment,
        channels: Sequence[str],
        prepared: Callable[[int], Image] | None = None,
    ) -> None:
        self._read = read
        self._prepared = self.prepare if prepared is None else prepared
        self._count = count
        self._data = experiment.data
        self._config = experiment.preprocess
        self._own = _indices("data.channels", self._data.channels, channels)
        names = [channels[index] for index in self._own]
        self._shared = _indices("data.context_channels", self._data.context_channels, names)

    def image(self, position: int) -> Image:
        """Return the input for a slice, uint8 (S, S, K).

        The order of the K channels is: the slices before, the slice itself, the slices after, each
        with its channels, and the slice's edges. At the ends of a volume, the last slice repeats.
        """
        context, image = self._data.context, self._prepared(position)
        if not context:
            return image
        num_own = len(self._own)
        parts = []
        for place in range(position - context, position + context + 1):
            if place == position:
                parts.append(image[:, :, :num_own])
            else:
                near = min(max(place, 0), self._count - 1)
                parts.append(self._prepared(near)[:, :, self._shared])
        return np.concatenate([*parts, image[:, :, num_own:]], axis=2)

    def mask(self, mask: Image) -> Image:
        """Return the mask of a slice, uint8 (H, W), at the network's size, uint8 (S, S)."""
        return resize_mask(self._window(pad_to_square(mask)), self._data.size)

    def picture(self, position: int) -> Image:
        """Return a slice in the network's geometry as colours, uint8 (S, S, 3)."""
        image, num_own = self._prepared(position), len(self._own)
        return np.ascontiguousarray(image[:, :, [index % num_own for index in range(3)]])

    def restore(self, logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """Bring a map of the network back to the size of its slice.

        Args:
            logits: float32 (S, S).
            height: Height of the slice in pixels.
            width: Width of the slice in pixels.

        Returns:
            float32 (height, width); -100, a probability of 0, outside a crop.
        """
        crop = self._crop
        if crop is None:
            return fit_back(logits, height, width)
        side = max(height, width)
        square = np.full((side, side), _OUTSIDE, np.float32)
        window = np.s_[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
        square[window] = fit_back(logits, crop.side, crop.side)
        return fit_back(square, height, width)

    def prepare(self, position: int) -> Image:
        """Return a slice alone, uint8 (S, S, K): its channels, then its edges if asked for."""
        image = pad_to_square(self._read(position))
        if self._own != list(range(image.shape[2])):
            image = np.ascontiguousarray(image[:, :, self._own])
        if self._tables is not None:
            image = cv2.LUT(image, self._tables).reshape(image.shape)
        image = apply_filters(image, self._config)
        if EDGES in self._config.filters:
            image = np.concatenate([image, detect_edges(image)[:, :, None]], axis=2)
        return resize(self._window(image), self._data.size)

    def _window(self, square: Image) -> Image:
        crop = self._crop
        if crop is None:
            return square
        top, left, side = crop
        return np.ascontiguousarray(square[top : top + side, left : left + side])

    @cached_property
    def _highest(self) -> int:
        return max(int(self._read(position).max()) for position in range(self._count))

    def _foreground(self, image: Image) -> NDArray[np.bool_]:
        return np.asarray(image.max(axis=2) >= max(1.0, _FOREGROUND * self._highest))

    @cached_property
    def _tables(self) -> NDArray[np.uint8] | None:
        """New value of each byte, uint8 (1, 256, C), or None if intensities stay."""
        kind = self._config.intensities
        if kind == "none":
            return None
        counts = np.zeros((len(self._own), 256))
        for position in range(self._count):
            image = self._read(position)
            inside = image[self._foreground(image)]
            for number, channel in enumerate(self._own):
                counts[number] += np.bincount(inside[:, channel], minlength=256)
        levels = np.arange(256.0)
        rows = []
        for row in counts:
            if not row.any():
                rows.append(levels)
            elif kind == "percentile":
                low, high = _percentiles(row, self._config.percentiles)
                rows.append((levels - low) / max(high - low, 1.0) * 255)
            else:
                mean = np.average(levels, weights=row)
                spread = np.sqrt(np.average((levels - mean) ** 2, weights=row))
                rows.append(_Z_CENTRE + _Z_STEPS * (levels - mean) / max(spread, 1e-6))
        return np.stack(rows, axis=1).round().clip(0, 255).astype(np.uint8)[None]

    @cached_property
    def _crop(self) -> Crop | None:
        """The smallest square around the foreground of all slices."""
        if self._config.crop == "none":
            return None
        shapes = {self._read(position).shape[:2] for position in range(self._count)}
        if len(shapes) > 1:
            return None  # slices of different sizes do not lie on each other
        seen = np.zeros((max(shapes.pop()),) * 2, np.uint8)
        for position in range(self._count):
            image = self._read(position)
            seen |= pad_to_square(self._foreground(image).astype(np.uint8))
        left, top, width, height = cv2.boundingRect(seen)
        if width == 0:
            return None
        side = max(width, height)
        largest = seen.shape[0] - side
        top, left = top - (side - height) // 2, left - (side - width) // 2
        return Crop(min(max(top, 0), largest), min(max(left, 0), largest), side)


class StoreInputs:
    """The inputs of all slices of a dataset.

    Args:
        store: The dataset.
        experiment: See `Volume`.
        prepared: What `prepare` returns for every slice, uint8 (N, S, S, K + 1), see
            `brainseg.data.input_store`; None prepares slices anew whenever they are asked for.

    Raises:
        ConfigError: If the experiment names a channel that the dataset does not have.
    """

    def __init__(
        self, store: SliceStore, experiment: Experiment, prepared: Image | None = None
    ) -> None:
        self._store = store
        self._prepared = prepared
        members: dict[tuple[str, str], list[int]] = {}
        self._place: list[tuple[tuple[str, str], int]] = []
        for index, item in enumerate(store.slices):
            own = members.setdefault(item.volume, [])
            self._place.append((item.volume, len(own)))
            own.append(index)
        self._volumes = {
            key: Volume(
                _reader(store, own),
                len(own),
                experiment,
                store.channels,
                None if prepared is None else _taker(prepared, own),
            )
            for key, own in members.items()
        }

    def prepare(self, index: int) -> Image:
        """Return a slice alone and its mask as the last channel, uint8 (S, S, K + 1)."""
        key, position = self._place[index]
        volume = self._volumes[key]
        return np.dstack([volume.prepare(position), volume.mask(self._store.mask(index))])

    def image(self, index: int) -> Image:
        """Return the input for a slice of the store, uint8 (S, S, K), see `Volume.image`."""
        key, position = self._place[index]
        return self._volumes[key].image(position)

    def mask(self, index: int) -> Image:
        """Return the mask of a slice at the network's size, uint8 (S, S)."""
        if self._prepared is not None:
            return np.ascontiguousarray(self._prepared[index, :, :, -1])
        return self._volumes[self._place[index][0]].mask(self._store.mask(index))

    def picture(self, index: int) -> Image:
        """Return a slice in the network's geometry as colours, uint8 (S, S, 3)."""
        key, position = self._place[index]
        return self._volumes[key].picture(position)

    def restore(self, index: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a map of the network back to the size of its slice, float32 (H, W)."""
        height, width = self._store.mask(index).shape
        return self._volumes[self._place[index][0]].restore(logits, height, width)


def name_channels(experiment: Experiment, store: SliceStore) -> Experiment:
    """Return the experiment with the dataset's channels named, unless it has the usual three.

    The number of channels decides the network, which a model file must give without the dataset.
    """
    if experiment.data.channels is not None or len(store.channels) == len(CHANNELS):
        return experiment
    return experiment.replaced({"data.channels": list(store.channels)})


def describe_channels(experiment: Experiment, channels: Sequence[str]) -> str:
    """Return the channels of the network's input in words.

    Args:
        experiment: Its choice of channels, neighbouring slices and edges.
        channels: Names of the channels of the dataset.
    """
    data = experiment.data
    own = ", ".join(data.channels or channels)
    words = f"Channels {own}"
    if data.context:
        shared = ", ".join(data.context_channels or data.channels or channels)
        words += f"; before and after them {shared} of the {data.context} slices on each side"
    return words + ("; last the edges" if EDGES in experiment.preprocess.filters else "")


def describe_preparation(experiment: Experiment) -> str:
    """Return intensities, filters and crop in words."""
    config = experiment.preprocess
    about = {
        "median": f"median filter {config.median_kernel}",
        "clahe": f"CLAHE with clip limit {config.clip_limit:g} and {config.tile_grid} x "
        f"{config.tile_grid} tiles",
        "unsharp": f"unsharp mask of {config.unsharp_sigma:g} px times {config.unsharp_amount:g}",
        "laplacian": "Laplacian subtracted",
        "sobel": "Sobel edges as a channel",
    }
    low, high = config.percentiles
    intensities = {
        "none": [],
        "percentile": [
            f"each volume's channels rescaled from percentile {low:g} to {high:g} of its "
            "foreground, as bytes that occur, to 0 to 255"
        ],
        "zscore": [
            "z-scores z of each volume's channels, by mean and deviation of its foreground, as "
            f"the bytes {_Z_CENTRE:g} + {_Z_STEPS:g} z"
        ],
    }
    words = intensities[config.intensities] + [
        about.get(name, f"the filter {Path(name).name}") for name in config.filters
    ]
    if config.crop == "brain":
        words.append("cut to the smallest square around the foreground of the volume's slices")
    return ", then ".join(words) or "no filters"


def _reader(store: SliceStore, members: Sequence[int]) -> Callable[[int], Image]:
    return lambda position: store.image(members[position])


def _taker(prepared: Image, members: Sequence[int]) -> Callable[[int], Image]:
    return lambda position: np.ascontiguousarray(prepared[members[position], :, :, :-1])


def _indices(key: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[int]:
    for name in wanted or ():
        if name not in known:
            raise ConfigError(f"{key} names {name!r}; the channels are {', '.join(known)}")
    return [known.index(name) for name in (known if wanted is None else wanted)]


def _percentiles(counts: NDArray[np.float64], wanted: Sequence[float]) -> tuple[float, float]:
    """Return the levels at two percentiles of a histogram of bytes, of levels that occur."""
    levels = np.flatnonzero(counts)
    shares = np.cumsum(counts[levels]) / counts.sum()
    low, high = (float(levels[np.searchsorted(shares, share / 100)]) for share in wanted)
    return low, high
