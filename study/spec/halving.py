"""Successive halving as arithmetic: the rungs at which candidates are compared, and what it saves.

Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), as Ray Tune does it: whoever
reaches a rung goes on if the value is at least the (1 - 1/factor) quantile of those before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FACTOR = 4
"""One in so many goes on at a rung; LOG.md says what 2, 3 and 4 took in trials."""

BRACKETS = {"asha": 1, "hyperband": 3}
"""Scheduler -> how many ladders of rungs; each further one begins a rung later."""

_UNFROZEN_EPOCHS = 2


@dataclass(frozen=True)
class Halving:
    """The rungs of a search.

    Attributes:
        first: Epoch of the first rung, counted over both stages.
        longest: Epochs of the longest candidate.
        brackets: Ladders of rungs; 0 stops nobody.
    """

    first: int
    longest: int
    brackets: int

    @classmethod
    def of(cls, scheduler: str, stage_epochs: tuple[int, int]) -> Halving:
        """Return the rungs of a scheduler.

        Args:
            scheduler: Its name; one that has no rungs gets none.
            stage_epochs: The longest stage 1 and the most epochs that a candidate can have: the
                first rung lies behind two unfrozen epochs of each of them.
        """
        frozen, longest = stage_epochs
        return cls(frozen + _UNFROZEN_EPOCHS, longest, BRACKETS.get(scheduler, 0))

    def rungs(self, bracket: int = 0) -> list[int]:
        """Return the epochs after which candidates of a bracket can be stopped, ascending.

        There is none at the last epoch, where there is nothing to save.
        """
        steps = range(bracket, 1 + max(0, math.ceil(math.log(self.longest, FACTOR))))
        epochs = [self.first * FACTOR**step for step in steps] if self.brackets else []
        return [epoch for epoch in epochs if epoch < self.longest]

    def chances(self) -> list[float]:
        """Return the probability of each bracket: softmax of its number of rungs, as in Tune."""
        weights = [math.exp(len(self.rungs(bracket))) for bracket in range(self.brackets)]
        return [weight / sum(weights) for weight in weights]

    def expected_epochs(self, candidates: int) -> float:
        """Return about how many epochs a search takes if good candidates come at random.

        A sampler that learns proposes better ones than those before, of which fewer are stopped:
        LOG.md has up to twice as many.
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
            before, left = rung, expected_passes(left)
        return epochs + left * (self.longest - before)


def expected_passes(arrivals: float) -> float:
    """Return how many of those who reach a rung go on, on average, values in random order.

    With i values there, each as likely anywhere in [0, 1], the quantile with numpy's linear
    interpolation lies on average at (1 + (i - 1) (1 - 1/factor)) / (i + 1).
    """
    if arrivals < 1:
        return arrivals
    whole = round(arrivals)
    later = sum((1 + (i - 1) / FACTOR) / (i + 1) for i in range(1, whole))
    return (1 + later) * arrivals / whole
