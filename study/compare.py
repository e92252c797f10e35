"""What can be concluded from the score matrix: intervals, paired differences, ranks.

Pure functions over arrays; needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from study.scores import ScoreMatrix


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; the bounds are NaN where there is no interval."""

    point: float
    low: float
    high: float


@dataclass(frozen=True)
class VariantScores:
    """One variant's test scores.

    Attributes:
        variant: Its name.
        num_patients: Patients it was tested on.
        scores: Name of a score -> estimate: Dice/patient (the one that is compared), global Dice,
            IoU, precision, recall and, where measured, HD95 (pixels, lower is better).
        ranks: Probability of each rank, first to last, over resamples; empty if not ranked.
    """

    variant: str
    num_patients: int
    scores: Mapping[str, Estimate]
    ranks: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """The paired comparison of two variants by Dice/patient, on the cells that both have.

    Attributes:
        first: The variant that stands higher in the table.
        second: The other.
        num_patients: Patients tested with both.
        num_dropped: Patients tested with one of them only.
        difference: first - second.
        share_better: Share of resamples in which first has the higher mean; ties count half.
        improvement: Probability that first has the higher Dice on one patient; ties count half.
        p: Two-sided, by sign flips of the patients' differences.
        p_holm: The same, corrected for the number of pairs.
        patients_needed: Patients with which a paired t-test would find this difference with power
            0.8 at level 0.05; inf if there is none, NaN if its spread is unknown.
    """

    first: str
    second: str
    num_patients: int
    num_dropped: int
    difference: Estimate
    share_better: float
    improvement: Estimate
    p: float
    p_holm: float
    patients_needed: float


@dataclass(frozen=True)
class Effect:
    """What one factor, or two together, change in Dice/patient.

    Attributes:
        name: `encoder: resnet50 -> efficientnet-b0`, `preprocessing`, or `interaction`.
        difference: With its interval.
        p: Two-sided, by sign flips.
    """

    name: str
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Comparison:
    """All that the scores of a study say about its variants.

    Attributes:
        variants: In the order of their Dice/patient, best first, those without scores last.
        pairs: Every pair, in that order.
        effects: Main effects and interaction, where the variants are a 2 x 2; else empty.
        variance: Component -> share of the variance of Dice/patient; NaN where not estimable.
        sentence: What can and cannot be concluded.
        caveats: What limits it, a sentence each.
    """

    variants: tuple[VariantScores, ...]
    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]
    variance: Mapping[str, float]
    sentence: str
    caveats: tuple[str, ...]


def compare(
    matrix: ScoreMatrix,
    factors: Mapping[str, tuple[str, bool]] | None = None,
    *,
    synthetic: bool = False,
    seed: int = 44,
) -> Comparison:
    """Compare the variants of a study by Dice/patient.

    Args:
        matrix: Of its test scores.
        factors: Variant -> its encoder, and whether its slices are preprocessed.
        synthetic: The data are generated phantoms; the sentence says so.
        seed: Of resamples and sign flips: the same seed, the same numbers.
    """
    raise NotImplementedError
