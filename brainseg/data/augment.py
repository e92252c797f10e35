"""Random flips, rotations and elastic transforms of training slices.

A strength s in [0, 2] scales the values of the configuration, and 1 leaves them as they are:

- rotation: up to s x `rotation_degrees` to either side;
- elastic transform: amplitude s x `elastic_alpha`;
- probability of either: s x `warp_probability`, at most 1;
- flips: s x `flip_probability`, at most `flip_probability`: flipping more than half of the slices
  would vary them less.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import albumentations
import numpy as np
from numpy.typing import NDArray

from brainseg.config import AugmentConfig


class Augmenter:
    """Changes one slice at a time; seed and key determine the change.

    Args:
        config: Strength and the values that it scales.
        seed: The experiment's seed.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self._seed = seed
        self._pipeline = _build(config)

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], key: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a changed image and mask, of the same shapes and types.

        Args:
            image: uint8 (S, S, K).
            mask: uint8 (S, S), 0 or 1.
            key: See `brainseg.data.loader.Key`.
        """
        # Compose(seed=...) would give each transform the same random numbers: both flips would
        # always happen together.
        self._pipeline.set_random_state(*random_states(self._seed, key))
        changed = self._pipeline(image=image, mask=mask)
        return changed["image"], changed["mask"]


@dataclass(frozen=True)
class Scaled:
    """The augmentation settings, scaled by the strength.

    Attributes:
        flip: Probability of each flip.
        warp: Probability of a rotation, and of an elastic transform.
        degrees: Largest rotation to either side.
        alpha: Amplitude of the elastic displacement before it is smoothed.
        sigma: Standard deviation of the smoothing in pixels.
    """

    flip: float
    warp: float
    degrees: float
    alpha: float
    sigma: float


def scale(config: AugmentConfig) -> Scaled:
    """Scale the values of a configuration by its strength."""
    strength = config.strength
    return Scaled(
        flip=min(strength, 1.0) * config.flip_probability,
        warp=min(strength * config.warp_probability, 1.0),
        degrees=strength * config.rotation_degrees,
        alpha=strength * config.elastic_alpha,
        sigma=config.elastic_sigma,
    )


def random_states(seed: int, key: tuple[int, ...]) -> tuple[np.random.Generator, random.Random]:
    """Return the generators of noise and of all other draws for a slice.

    Args:
        seed: The experiment's seed.
        key: See `brainseg.data.loader.Key`.
    """
    state = np.random.default_rng([seed, *key])
    return state, random.Random(int(state.integers(2**63)))


def _build(config: AugmentConfig) -> albumentations.Compose:
    scaled = scale(config)
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=scaled.flip),
            albumentations.VerticalFlip(p=scaled.flip),
            albumentations.Rotate(limit=scaled.degrees, p=scaled.warp),
            albumentations.ElasticTransform(alpha=scaled.alpha, sigma=scaled.sigma, p=scaled.warp),
        ]
    )
