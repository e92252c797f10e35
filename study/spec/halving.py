"""The arithmetic of successive halving: rungs at which candidates are compared, expected epochs.

In rounds (Jamieson and Talwalkar 2016, arXiv 1502.07943) all candidates come to a rung before its
best ones go on.

Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) as Ray Tune implements it: a
candidate that reaches a rung continues if its value is at least the (1 - 1/factor) quantile of the
values that were recorded at that rung before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FACTOR = 4
"""One candidate in so many continues at a rung of asynchronous halving; LOG.md compares 2 to 4."""

BRACKETS = {"asha": 1, "hyperband": 3, "halving": 1}
"""Scheduler -> number of brackets; each further bracket has its first rung one rung later."""

IN_ROUNDS = "halving"
"""The scheduler whose candidates wait at a rung for each other."""

ROUND_FACTOR = 3
"""One candidate in so many goes on after a round; LOG.md compares 2, 3 and 4."""

UNFROZEN_EPOCHS = 2


@dataclass(frozen=True)
class Halving:
    """The rungs of a search.

    Attributes:
        first: Epoch of the first rung, counted over both stages.
        longest: Epochs of the longest candidate.
        brackets: Number of brackets; 0 stops no candidate.
        in_rounds: Whether candidates wait at a rung for each other.
    """

    first: int
    longest: int
    brackets: int
    in_rounds: bool = False

    @property
    def factor(self) -> int:
        """Reduction factor: 1 / factor of the candidates continue; rungs grow by the factor."""
        return ROUND_FACTOR if self.in_rounds else FACTOR

    @classmethod
    def of(cls, scheduler: str, stage_epochs: tuple[int, int]) -> Halving:
        """Return the rungs of a scheduler; one without rungs has no brackets.

        Args:
            scheduler: Its name.
            stage_epochs: The longest stage 1 and the most epochs that a candidate can have. The
                first rung comes after two unfrozen epochs of every candidate.
        """
        frozen, longest = stage_epochs
        first, brackets = frozen + UNFROZEN_EPOCHS, BRACKETS.get(scheduler, 0)
        return cls(first, longest, brackets, scheduler == IN_ROUNDS)

    def start(self, bracket: int) -> int:
        """Return the epoch of a bracket's first rung, even if no candidate trains that long."""
        return int(self.first * self.factor**bracket)

    def rungs(self, bracket: int = 0) -> list[int]:
        """Return the epochs after which candidates of a bracket can be stopped, ascending.

        The last epoch is none of them: there is nothing left to save.
        """
        if not self.brackets:
            return []
        steps = range(bracket, 1 + max(0, math.ceil(math.log(self.longest, self.factor))))
        return [epoch for epoch in map(self.start, steps) if epoch < self.longest]

    def chances(self) -> list[float]:
        """Return the probability of each bracket: softmax of its number of rungs, as in Tune."""
        weights = [math.exp(len(self.rungs(bracket))) for bracket in range(self.brackets)]
        return [weight / sum(weights) for weight in weights]

    def expected_epochs(self, candidates: int) -> float:
        """Return the epochs that a search is expected to train if values come in random order.

        In rounds the order does not matter. Otherwise a sampler that learns draws better
        candidates later, of which fewer are stopped: LOG.md has up to twice as many epochs.
        """
        if not self.brackets:
            return float(candidates * self.longest)
        return sum(
            self._bracket_epochs(bracket, candidates * chance)
            for bracket, chance in enumerate(self.chances())
        )

    def _bracket_epochs(self, bracket: int, candidates: float) -> float:
        epochs, before, left = 0.0, 0, candidates
        for rung in self.rungs(bracket):
            epochs += left * (rung - before)
            before = rung
            left = num_survivors(left) if self.in_rounds else expected_passes(left)
        return epochs + left * (self.longest - before)


def num_survivors(arrivals: float) -> int:
    """Return how many of the candidates that came to a rung go on, in rounds; 0 of none."""
    return max(1, round(arrivals / ROUND_FACTOR)) if arrivals else 0


def expected_passes(arrivals: float) -> float:
    """Return how many candidates continue at a rung on average, with values in random order.

    With i values there, each as likely anywhere in [0, 1], the quantile with numpy's linear
    interpolation lies on average at (1 + (i - 1) (1 - 1/factor)) / (i + 1).
    """
    if arrivals < 1:
        return arrivals
    whole = round(arrivals)
    later = sum((1 + (i - 1) / FACTOR) / (i + 1) for i in range(1, whole))
    return (1 + later) * arrivals / whole
