"""Random flips, rotations and elastic transforms of training slices.

A strength s in [0, 2] scales the values of the configuration, and 1 leaves them as they are:

- rotation: up to s x `rotation_degrees` to either side;
- elastic transform: amplitude s x `elastic_alpha`;
- probability of either: s x `warp_probability`, at most 1;
- flips: s x `flip_probability`, at most `flip_probability`: flipping more than half of the slices
  would vary them less.
"""

from __future__ import annotations

import os
import random

# On import, albumentations would look for a newer version on the package index.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

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
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], key: tuple[int, int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a changed image and mask, of the same shapes and types.

        Args:
            image: uint8 (S, S, K).
            mask: uint8 (S, S), 0 or 1.
            key: Stage, epoch and index of the slice.
        """
        state = np.random.default_rng([self._seed, *key])
        # Compose(seed=...) would give each transform the same random numbers: both flips would
        # always happen together.
        self._pipeline.set_random_state(state, random.Random(int(state.integers(2**63))))
        changed = self._pipeline(image=image, mask=mask)
        return changed["image"], changed["mask"]


def _build(config: AugmentConfig) -> albumentations.Compose:
    strength = config.strength
    flip = min(strength, 1.0) * config.flip_probability
    warp = min(strength * config.warp_probability, 1.0)
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=flip),
            albumentations.VerticalFlip(p=flip),
            albumentations.Rotate(limit=strength * config.rotation_degrees, p=warp),
            albumentations.ElasticTransform(
                alpha=strength * config.elastic_alpha, sigma=config.elastic_sigma, p=warp
            ),
        ]
    )
