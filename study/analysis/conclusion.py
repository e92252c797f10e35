"""The conclusion of a study in one sentence, with the caveats that limit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from study.analysis.bootstrap import Estimate
from study.analysis.comparison import LEVEL, Comparison, Pair, smallest_p
from study.analysis.robustness import Ranking, other_winners
from study.analysis.scores import ScoreMatrix
from study.spec.grid import WINNER

_FEW_PATIENTS = 40
_EQUAL = 1e-12


@dataclass(frozen=True)
class Conclusion:
    """What the scores of a study show, in words.

    Attributes:
        sentence: What can and what cannot be concluded.
        caveats: What limits the conclusion, a sentence each.
    """

    sentence: str
    caveats: tuple[str, ...]


def conclude(
    matrix: ScoreMatrix,
    comparison: Comparison,
    synthetic: bool = False,
    searched: Sequence[Mapping[str, Sequence[str]]] = (),
    rankings: Sequence[Ranking] = (),
) -> Conclusion:
    """Put a comparison into words.

    Args:
        matrix: The scores that were compared.
        comparison: The comparison of these scores.
        synthetic: Whether the data are generated phantoms.
        searched: A search's inner splits: patients by part, `train` and `val`.
        rankings: The variants' ranks by other metrics and in other ways.
    """
    sentence = _sentence(matrix, comparison) + _seen_by_search(matrix, searched)
    caveats = [*_missing(matrix, comparison), *_too_few(matrix, comparison), *_folds(matrix)]
    caveats += _other_rankings(comparison, rankings)
    if synthetic:
        sentence = f"SYNTHETIC DATA: {sentence}"
        caveats.insert(0, "The data are generated phantoms: no number here is about patients.")
    return Conclusion(sentence, tuple(caveats))


def patients_of(searched: Sequence[Mapping[str, Sequence[str]]]) -> tuple[set[str], set[str]]:
    """Return the patients that judged a search's candidates, and all patients that it used."""
    judges = {name for split in searched for name in split["val"]}
    return judges, judges.union(*(split["train"] for split in searched))


def is_shown(pair: Pair) -> bool:
    """Return whether the scores show that two variants differ.

    They do if the corrected p-value is below 0.05 and the interval, which includes the variation
    between seeds, excludes 0.
    """
    return pair.p_holm < LEVEL and (pair.difference.low > 0 or pair.difference.high < 0)


def _sentence(matrix: ScoreMatrix, comparison: Comparison) -> str:
    scored = [variant for variant in comparison.variants if variant.num_patients]
    if not scored:
        return "No trial has test scores, so nothing can be concluded."
    top = scored[0]
    score = _format(top.scores["Dice/patient"])
    basis = f"{_count(top.num_patients, 'test patient')} with {_count(len(matrix.seeds), 'seed')}"
    if len(scored) == 1:
        return (
            f"Only {top.variant} has test scores, Dice/patient {score} on {basis}, so there is "
            "nothing to compare it with."
        )
    if not comparison.num_shared:
        return "No patient was tested with all variants, so the variants cannot be ranked."
    pairs = [pair for pair in comparison.pairs if pair.first == top.variant]
    tied = [pair.second for pair in pairs if abs(pair.difference.point) < _EQUAL]
    verb = "rank first together" if tied else "ranks first"
    tail = ", and another training run may give another order" if len(matrix.seeds) == 1 else ""
    return (
        f"On {basis}, {_join([top.variant, *tied])} {verb} by Dice/patient ({score})"
        f"{_verdict(pairs)}{tail}."
    )


def _seen_by_search(matrix: ScoreMatrix, searched: Sequence[Mapping[str, Sequence[str]]]) -> str:
    """Say how many test patients a search used to choose the winner's settings, if any."""
    winners = [variant for variant in matrix.variants if variant.startswith(WINNER)]
    judges, seen = patients_of(searched)
    judged, used = (len(group & set(matrix.patients)) for group in (judges, seen - judges))
    if not winners or not judged + used:
        return ""
    new = len(matrix.patients) - judged - used
    return (
        f" The search that chose the settings of {_join(winners)} judged candidates on {judged} "
        f"of these patients and trained them on {used}: only {new} are new to it; the section on "
        "the search compares the variants on these alone."
    )


def _verdict(pairs: Sequence[Pair]) -> str:
    """Return what the pairs of the first variant show, as the end of a sentence."""
    shown = [pair for pair in pairs if is_shown(pair)]
    better = [pair for pair in shown if pair.difference.point > 0]
    worse = [pair.second for pair in shown if pair.difference.point < 0]
    equal = [pair.second for pair in pairs if pair.difference.low == pair.difference.high == 0]
    apart = [pair.second for pair in pairs if pair.num_patients == 0]
    rest = [pair for pair in pairs if pair not in shown and pair.second not in equal + apart]
    text = ""
    if better:
        gains = [f"{pair.second} (by {_format(pair.difference)})" for pair in better]
        text += f", and scored better than {_join(gains)}"
    if equal:
        text += f", and {_join(equal)} scored the same on every patient"
    if worse:
        text += f", although {_join(worse)} scored better on the patients tested with both"
    if rest:
        others = _join([pair.second for pair in rest])
        if len(rest) == len(pairs) > 1:
            others = "any other variant"
        text += f", but no difference from {others} is shown ({_describe_first(rest)})"
    if apart:
        text += f", and it shares no patient with {_join(apart)}"
    return text


def _describe_first(pairs: Sequence[Pair]) -> str:
    """Describe the first of the differences that are not shown."""
    pair = pairs[0]
    text = f"{pair.second}: " if len(pairs) > 1 else ""
    if pair.num_patients < 2:
        return f"{text}{_format(pair.difference)}, one patient has no interval and no test"
    p = "< 0.001" if pair.p_holm < 0.001 else f"= {pair.p_holm:.2g}"
    text += f"{_format(pair.difference)}, corrected p {p}"
    if np.isfinite(pair.patients_needed):
        needed = "over a million"
        if pair.patients_needed < 1e6:
            needed = f"about {float(f'{pair.patients_needed:.2g}'):,.0f}"
        text += f"; {needed} patients would be needed to find a difference of this size"
    return text


def _other_rankings(comparison: Comparison, rankings: Sequence[Ranking]) -> list[str]:
    """Say by which other metrics or ways of ranking another variant ranks first."""
    others = other_winners(rankings)
    if not others:
        return []
    names = [item.variant for item in comparison.variants if item.ranks]
    first: dict[str, list[str]] = {}
    for ranking in others:
        winners = _join([names[n] for n in ranking.winners])
        first.setdefault(winners, []).append(f"{ranking.metric} ({ranking.way})")
    listed = "; ".join(f"{winners} by {_join(by)}" for winners, by in first.items())
    return [
        f"Another choice of metric or of ranking names another winner in {len(others)} of "
        f"{len(rankings)} rankings: {listed}."
    ]


def _missing(matrix: ScoreMatrix, comparison: Comparison) -> list[str]:
    caveats = []
    if matrix.missing:
        caveats.append(
            f"{len(matrix.missing)} of {_count(matrix.num_trials, 'trial')} have no scores: two "
            "variants are compared on the patients and seeds that both have, and ranked on the "
            f"{_count(comparison.num_shared, 'patient')} tested with all ranked variants."
        )
    without = [v.variant for v in comparison.variants if not v.num_patients]
    if without:
        caveats.append(f"Variants without scores: {_join(without)}.")
    unranked = [v.variant for v in comparison.variants if v.num_patients and not v.ranks]
    if unranked and len(unranked) < len(comparison.variants) - len(without):
        caveats.append(
            f"Not ranked, because more than half of the scores are missing: {_join(unranked)}."
        )
    return caveats


def _too_few(matrix: ScoreMatrix, comparison: Comparison) -> list[str]:
    caveats = []
    sizes = [pair.num_patients for pair in comparison.pairs if pair.num_patients]
    if sizes and len(sizes) * smallest_p(max(sizes)) >= LEVEL:
        caveats.append(
            f"With {_count(max(sizes), 'patient')} and {_count(len(sizes), 'pair')} of variants "
            f"no corrected p-value can be below {LEVEL}: no difference, however large, can be "
            "shown."
        )
    if 1 < len(matrix.patients) < _FEW_PATIENTS:
        caveats.append(
            f"Fewer than {_FEW_PATIENTS} patients: in simulations with skewed scores, 95 % "
            "intervals contained the true value in about 90 % of studies."
        )
    if len(matrix.seeds) == 1:
        caveats.append(
            "One seed: intervals and p-values hold for the trained models; how much another "
            "training run would differ is not known."
        )
    elif len(matrix.seeds) == 2:
        caveats.append("Two seeds tell little about how much training runs differ.")
    return caveats


def _folds(matrix: ScoreMatrix) -> list[str]:
    num_folds = len(np.unique(matrix.folds[matrix.folds >= 0]))
    if num_folds == 0:
        return []
    if num_folds == 1:
        return ["One fold: another split into training and test patients may give another result."]
    return [
        "Patients of one fold are tested by the same models, and the training sets of different "
        "folds overlap: intervals, which treat patients as independent, are a little too narrow."
    ]


def _format(estimate: Estimate) -> str:
    if np.isnan(estimate.low):
        return f"{estimate.point:.3f}"
    return f"{estimate.point:.3f}, 95 % interval {estimate.low:.3f} to {estimate.high:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
