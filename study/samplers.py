"""Optuna's samplers, begun anew for each candidate: no proposal depends on restarts."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial


class Seeded(BaseSampler):
    """A sampler that begins anew for each candidate, so that it remembers nothing but the study.

    Args:
        name: One of `SAMPLERS`.
        seed: Of the search.
    """

    def __init__(self, name: str, seed: int) -> None:
        """Begin with the sampler of the first candidate."""
        self._name, self._seed = name, seed
        self._sampler = self._build(0, "")

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the sampler of this candidate draws together."""
        self._sampler = self._build(trial.number, "")
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw that."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one value by itself."""
        # By name too: what was drawn before an interruption is not drawn again.
        sampler = self._build(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _build(self, number: int, key: str) -> BaseSampler:
        words = np.random.SeedSequence([self._seed, number, crc32(key.encode())])
        seed = int(words.generate_state(1)[0])
        match self._name:
            case "random":
                return RandomSampler(seed)
            case "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "gp":
                return GPSampler(seed=seed)
            case _:
                # Trials that run count as bad ones: no two at once go to the same place.
                return TPESampler(seed=seed, multivariate=True, constant_liar=True)
