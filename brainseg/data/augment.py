"""Random changes of a training slice; all randomness comes through the seeds handed in.

How `strength` s in [0, 2] scales the protocol's values, which s = 1 leaves as they are:

- rotation: up to s x `rotation_degrees` to either side;
- elastic transform: amplitude s x `elastic_alpha`;
- probability of either: s x `warp_probability`, at most 1;
- flips: s x `flip_probability`, at most `flip_probability`, since more often than every second
  time would be less variety.
"""

from __future__ import annotations

import os
import random

# albumentations otherwise asks a package index for news whenever it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import numpy as np
from numpy.typing import NDArray

from brainseg.config import AugmentConfig


class Augmenter:
    """Applies the configured changes to one slice at a time.

    Args:
        config: Strength and the values that it scales.
        seed: The experiment's seed.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        """Build the pipeline once; each call hands it fresh random states."""
        self._seed = seed
        self._pipeline = _build(config)

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], key: tuple[int, int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Change a slice.

        Args:
            image: uint8 (S, S, 3).
            mask: uint8 (S, S), 0 or 1.
            key: Stage, epoch and number of the slice. With the seed it determines the change, so
                that neither worker count nor a resume can alter it.

        Returns:
            Image and mask of the same shapes and types.
        """
        state = np.random.default_rng([self._seed, *key])
        # One generator for the whole pipeline: Compose(seed=...) would give each transform the
        # same stream, and both flips would always happen together.
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
