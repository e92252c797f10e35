"""Flips, rotations and elastic transforms of a batch on its device, drawn first and then applied.

`draw` makes the draws of `brainseg.data.augment` for the keys of a batch: the same flips and
angles, and displacements of the same distribution from another noise. The noise is smoothed in
whole numbers below 2**53, so that a displacement is the same in every batch and on every device
(by construction; only a CPU was at hand). `warp` applies a draw in one interpolation.

Given what albumentations drew for 60 slices with tumour of the LGG dataset at 256 px, `warp`
differs from albumentations 2.0.8 with OpenCV 5 by

- nothing for flips;
- at most 1 grey level and 0.002 % of a mask's pixels for a rotation or an elastic transform;
- 0.47 grey levels in the mean (1.07 on the worst slice) and 0.10 % of a mask's pixels (4.5 % of
  the tumour's; at 64 px 1.39 levels, 0.39 % and 17 %) for both: albumentations interpolates the
  slice twice. Two calls of `warp`, one for each, differ by at most 1 level and no pixel of a mask.

Shapes: B slices of a batch, S pixels.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch.nn.functional import grid_sample

from brainseg.config import AugmentConfig
from brainseg.data.augment import Scaled, random_states, scale
from brainseg.data.loader import Key

_BYTES = 4
_NOISE_MEAN = _BYTES * 255 / 2
_NOISE_STD = math.sqrt(_BYTES * (256**2 - 1) / 12)
"""The noise of a pixel is the sum of four random bytes, close to a normal distribution."""

_WEIGHT_STEPS = 2**20
_RADIUS = 4
"""OpenCV cuts a Gaussian kernel of floats off at four standard deviations."""

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Parameters:
    """The changes of a batch, in the order in which they are applied.

    Attributes:
        flip_h: Whether left and right are exchanged, bool (B,).
        flip_v: Whether top and bottom are exchanged, bool (B,).
        angle: Counterclockwise rotation about the centre in degrees, float32 (B,).
        displacement: Where each pixel of the rotated slice is taken from, relative to it, as x and
            y in pixels, float32 (B, 2, S, S).
    """

    flip_h: torch.Tensor
    flip_v: torch.Tensor
    angle: torch.Tensor
    displacement: torch.Tensor


def draw(
    config: AugmentConfig, seed: int, keys: Sequence[Key], size: int, device: torch.device
) -> Parameters:
    """Draw the changes of a batch; seed and key determine those of each slice.

    Args:
        config: Strength and the values that it scales.
        seed: The experiment's seed.
        keys: Of each of the B slices.
        size: S.
        device: Device of the result.
    """
    scaled = scale(config)
    drawn = [_draw_slice(scaled, seed, key, size) for key in keys]
    # Whole numbers of 32 bits are exact in float64: one copy to the device takes all.
    table = send(torch.tensor(drawn, dtype=torch.float64), device)
    displacement = torch.zeros((len(keys), 2, size, size), device=device)
    moved = [place for place, row in enumerate(drawn) if row[3]]
    if moved:
        places = send(torch.tensor(moved), device)
        displacement[places] = displace(
            table[places, 4:].long(), table[places, 3], scaled.sigma, size
        )
    return Parameters(table[:, 0] > 0, table[:, 1] > 0, table[:, 2].float(), displacement)


def _draw_slice(scaled: Scaled, seed: int, key: Key, size: int) -> list[float]:
    """Return flips, angle, amplitude of the displacement, and two words that seed its noise."""
    rng = random_states(seed, key)[1]
    rng.random()  # albumentations draws whether to change the slice at all
    flip_h, flip_v = _happens(rng, scaled.flip), _happens(rng, scaled.flip)
    angle = rng.uniform(-scaled.degrees, scaled.degrees) if _happens(rng, scaled.warp) else 0.0
    amplitude = 0.0
    if _happens(rng, scaled.warp):
        amplitude = scaled.alpha / _highest_of(2 * size**2, rng.random())
    return [flip_h, flip_v, angle, amplitude, rng.getrandbits(32), rng.getrandbits(32)]


def _happens(rng: random.Random, probability: float) -> bool:
    # As albumentations: what is certain takes no random number.
    return probability >= 1 or (probability > 0 and rng.random() < probability)


def _highest_of(count: int, uniform: float) -> float:
    """Return the highest absolute value of `count` standard normal numbers.

    albumentations divides its noise by it. Its distribution is known: it is drawn by inversion.

    Args:
        count: Number of values.
        uniform: Random number from 0 to below 1.
    """
    tail = -math.expm1(math.log(max(uniform, 1e-12)) / count) / 2
    return -NormalDist().inv_cdf(tail)


def displace(
    words: torch.Tensor, amplitude: torch.Tensor, sigma: float, size: int
) -> torch.Tensor:
    """Return smoothed noise as displacements in pixels.

    Args:
        words: Two words of 32 bits that seed each slice's noise, int64 (B, 2).
        amplitude: Standard deviation of the noise before it is smoothed, float64 (B,).
        sigma: Standard deviation of the smoothing in pixels; beyond the border, the noise of the
            border repeats.
        size: S.

    Returns:
        float32 (B, 2, S, S).
    """
    counter = torch.arange(2 * size**2, device=words.device)
    bits = _mix(_mix(counter ^ words[:, :1]) ^ words[:, 1:])
    sums = torch.stack([bits >> 8 * place & 255 for place in range(_BYTES)]).sum(dim=0)
    # As albumentations does: x above y in one array, so that they mix where they meet.
    noise = (sums - _NOISE_MEAN).view(-1, 2 * size, size).double()
    rows, columns = (_smoothing(length, sigma, words.device) for length in (2 * size, size))
    # All products and sums are whole numbers below 2**53: their order does not matter.
    smoothed = rows @ noise @ columns.T
    factor = amplitude / (_NOISE_STD * float(columns[0].sum()) ** 2)
    return (smoothed * factor[:, None, None]).float().view(-1, 2, size, size)


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Return a bijective hash of words of 32 bits, int64 (Wellons 2018, hash-prospector)."""
    words = (words ^ words >> 16) * 0x21F0AAAD & _WORD
    words = (words ^ words >> 15) * 0x735A2D97 & _WORD
    return words ^ words >> 15


@functools.lru_cache(maxsize=8)
def _smoothing(length: int, sigma: float, device: torch.device) -> torch.Tensor:
    """Return the matrix that smooths an axis of L values, whole numbers in float64 (L, L)."""
    radius = round(2 * _RADIUS * sigma + 1) // 2
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum() * _WEIGHT_STEPS).round()
    matrix, places = np.zeros((length, length)), np.arange(length)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        matrix[places, np.clip(places + step, 0, length - 1)] += weight
    return torch.from_numpy(matrix).to(device)


def warp(
    images: torch.Tensor, masks: torch.Tensor, parameters: Parameters
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate and displace a batch; what comes from outside a slice is 0.

    Args:
        images: uint8 (B, S, S, K), interpolated bilinearly.
        masks: uint8 (B, S, S), of the nearest pixel.
        parameters: The changes.

    Returns:
        Images and masks of the same shapes and types.
    """
    size = images.shape[1]
    centre = (size - 1) / 2
    steps = torch.arange(size, device=images.device)
    # From a pixel of the result back: to the rotated slice, to the flipped one, to the slice.
    x = parameters.displacement[:, 0] + steps
    y = parameters.displacement[:, 1] + steps[:, None]
    angle = torch.deg2rad(parameters.angle.double())[:, None, None]
    cos, sin = torch.cos(angle).float(), torch.sin(angle).float()
    right, down = (x - centre) / centre, (y - centre) / centre
    flip_h, flip_v = (
        (1 - 2 * flip.float())[:, None, None] for flip in (parameters.flip_h, parameters.flip_v)
    )
    grid = torch.stack(
        [flip_h * (cos * right - sin * down), flip_v * (sin * right + cos * down)], dim=-1
    )
    smooth, nearest = (
        grid_sample(planes.float(), grid, mode, padding_mode="border", align_corners=True)
        for planes, mode in ((images.permute(0, 3, 1, 2), "bilinear"), (masks[:, None], "nearest"))
    )
    # The rotated slice ends at its border, even where the slice itself goes on beyond it.
    shares = [_covered(x, size), _covered(y, size)]
    shares += [_covered(place, size) for place in (grid * centre + centre).unbind(-1)]
    seen = torch.minimum(shares[0] * shares[1], shares[2] * shares[3])
    taken = torch.stack(shares).amin(dim=0) >= 0.5
    return (
        (smooth * seen[:, None]).round().to(torch.uint8).permute(0, 2, 3, 1),
        (nearest[:, 0] * taken).to(torch.uint8),
    )


def _covered(place: torch.Tensor, size: int) -> torch.Tensor:
    """Return the share of a sample between pixels that lies on 0 to size - 1, along one axis."""
    return torch.minimum(place + 1, size - place).clamp(0, 1)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from this process to a device, without waiting for a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
