"""The conclusion of a study in a few sentences, answers to a reader's first questions, caveats."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from study.analysis.bootstrap import Estimate
from study.analysis.comparison import LEVEL, Comparison, Pair, smallest_p
from study.analysis.leak import Leak
from study.analysis.robustness import Ranking, other_winners
from study.analysis.scores import ScoreMatrix
from study.spec.grid import WINNER

_FEW_PATIENTS = 40
_EQUAL = 1e-12
_MOST_NAMES = 4


@dataclass(frozen=True)
class Conclusion:
    """What the scores of a study show, in words.

    Attributes:
        sentence: What can and what cannot be concluded, in a few short sentences.
        answers: A reader's first questions, each with its answer; empty if nothing is ranked.
        caveats: What limits the conclusion, a sentence each.
    """

    sentence: str
    caveats: tuple[str, ...]
    answers: tuple[tuple[str, str], ...] = ()


def conclude(
    matrix: ScoreMatrix,
    comparison: Comparison,
    synthetic: bool = False,
    searched: Sequence[Mapping[str, Sequence[str]]] = (),
    rankings: Sequence[Ranking] = (),
    leaks: Sequence[Leak] = (),
    external: Collection[str] = (),
    chosen_on: Mapping[str, Sequence[str]] | None = None,
) -> Conclusion:
    """Put a comparison into words.

    Args:
        matrix: The scores that were compared.
        comparison: The comparison of these scores.
        synthetic: Whether the data are generated phantoms.
        searched: A search's inner splits: patients by part, `train` and `val`.
        rankings: The variants' ranks by other metrics and in other ways.
        leaks: What leaky variants, which are not ranked, gain over honest ones.
        external: Variants that other tools trained.
        chosen_on: Patients by which an earlier search chose the settings of some `variants`, if
            the grid names them: those that `judged` candidates, those that only `trained` them.
    """
    sentence = _sentence(matrix, comparison) + _seen_by_search(matrix, searched)
    if chosen_on:
        sentence += _seen_by_choice(matrix, chosen_on)
    for leak in leaks:
        if leak.difference:
            gain = _format(leak.difference.difference)
            sentence += f" The leak of {leak.leaky} is worth {gain} Dice/patient."
    caveats = [*_missing(matrix, comparison), *_too_few(matrix, comparison), *_folds(matrix)]
    caveats += _other_rankings(comparison, rankings)
    if synthetic:
        sentence = f"SYNTHETIC DATA: {sentence}"
        caveats.insert(0, "The data are generated phantoms: no number here is about patients.")
    answers = tuple(_answers(matrix, comparison, rankings, synthetic, external))
    return Conclusion(sentence, tuple(caveats), answers)


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
            f"Only {top.variant} has test scores: Dice/patient {score}, on {basis}. There is "
            "nothing to compare it with."
        )
    if not comparison.num_shared:
        return "No patient was tested with all variants, so the variants cannot be ranked."
    pairs = [pair for pair in comparison.pairs if pair.first == top.variant]
    tied = [pair.second for pair in pairs if abs(pair.difference.point) < _EQUAL]
    verb = "rank first together" if tied else "ranks first"
    sentences = [
        f"On {basis}, {_join([top.variant, *tied])} {verb} by Dice/patient ({score}).",
        *_verdict(pairs),
    ]
    if len(matrix.seeds) == 1:
        sentences.append("Another training run may give another order.")
    return " ".join(sentences)


def _answers(
    matrix: ScoreMatrix,
    comparison: Comparison,
    rankings: Sequence[Ranking],
    synthetic: bool,
    external: Collection[str],
) -> Iterator[tuple[str, str]]:
    """Yield what a reader asks first, for a study that ranks at least two variants."""
    ranked = [variant for variant in comparison.variants if variant.ranks]
    if len(ranked) < 2:
        return
    first, second = ranked[:2]
    pairs = {pair.second: pair for pair in comparison.pairs if pair.first == first.variant}
    shown = [name for name, pair in pairs.items() if is_shown(pair) and pair.difference.point > 0]
    equal = [v.variant for v in ranked[1:] if v.variant in pairs and v.variant not in shown]
    score, pair = first.scores["Dice/patient"], pairs[second.variant]
    best = f"{first.variant}, with a mean Dice/patient of {score.point:.3f}"
    if equal:
        best += f"; {_join(equal)} may be as good"
    yield "Which is best?", f"{best}."
    yield "By how much?", _describe_gap(pair)
    sure = f"{_describe_sureness(pair, has_equals=bool(equal))}: it ranks first in "
    sure += f"{100 * first.ranks[0]:.0f} % of resamples of patients and seeds"
    # Not the study's own, and none in which all tie.
    others = [ranking for ranking in rankings[1:] if max(ranking.ranks) > 1]
    if others:
        agree = len(others) - len(other_winners(rankings))
        sure += f", and in {agree} of {len(others)} rankings by other metrics or ways"
    yield "How sure is that?", f"{sure}."
    people = "generated phantoms" if synthetic else "test patients"
    here = " trained here" * any(item.variant in external for item in ranked)
    yield (
        "On whom?",
        f"{comparison.num_shared} {people}, none seen in training by the models{here} that they "
        f"test, with {_count(len(matrix.seeds), 'training')} of each variant{here}.",
    )
    yield "What can it not say?", " ".join(_silent_on(matrix, synthetic))


def _describe_gap(pair: Pair) -> str:
    """Say by how much the first variant is better, and whether that may be chance."""
    found = pair.difference
    if found.point < 0:  # a failed trial: the ranking is on fewer patients than the pair
        by = f"{-found.point:.3f} in Dice/patient"
        return f"On the patients that both tested, {pair.second}, the next, is better by {by}."
    by = f"By {found.point:.3f} in Dice/patient over {pair.second}, the next."
    interval = f"{found.low:.3f} to {found.high:.3f}"
    if found.is_wide:
        return f"{by} The patients are too few to say whether that is chance."
    if is_shown(pair):
        return f"{by} Chance alone hardly explains it: the 95 % interval is {interval}."
    if found.low <= 0 <= found.high:
        return f"{by} It may be chance: the 95 % interval, {interval}, includes 0."
    return f"{by} It may be chance: {_format_p(pair)}, 95 % interval {interval}."


def _describe_sureness(pair: Pair, *, has_equals: bool) -> str:
    """Say in a word or two how sure it is that the first variant is best.

    Args:
        pair: The first and the second variant.
        has_equals: Whether other variants may be as good.
    """
    if not has_equals:
        return "Sure"
    # Of few patients, whose test can show nothing, an interval may be narrow by luck.
    can_show = smallest_p(pair.num_patients) < LEVEL
    return "Fairly sure" if can_show and pair.difference.low > 0 else "Not sure"


def _silent_on(matrix: ScoreMatrix, synthetic: bool) -> Iterator[str]:
    if synthetic:
        yield "Anything about patients: the data are generated."
        return
    yield "How the variants do at other hospitals, on other scanners, or for a treatment."
    if len(matrix.seeds) == 1:
        yield "How much another training of the same variant would differ."


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
        f"of these patients and trained them on {used}. So only {new} are new to it: the section "
        "on the search compares the variants on these alone."
    )


def _seen_by_choice(matrix: ScoreMatrix, chosen_on: Mapping[str, Sequence[str]]) -> str:
    """Say how many test patients an earlier search chose by, as the grid states."""
    names = [name for name in chosen_on["variants"] if name in matrix.variants]
    patients, judges = set(matrix.patients), set(chosen_on["judged"])
    judged, used = len(judges & patients), len((set(chosen_on["trained"]) - judges) & patients)
    if not names or not judged + used:
        return ""
    chosen = f"on {judged} of these patients" if judged else "on other patients"
    return (
        f" The settings of {_join(names)} were chosen {chosen}; candidates were trained on {used} "
        f"of them. {len(patients) - judged - used} are new to these settings."
    )


def _verdict(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield what the pairs of the first variant show, a sentence each."""
    shown = [pair for pair in pairs if is_shown(pair)]
    better = [pair for pair in shown if pair.difference.point > 0]
    worse = [pair.second for pair in shown if pair.difference.point < 0]
    equal = [pair.second for pair in pairs if pair.difference.low == pair.difference.high == 0]
    apart = [pair.second for pair in pairs if pair.num_patients == 0]
    rest = [pair for pair in pairs if pair not in shown and pair.second not in equal + apart]
    if better:
        first = f"{better[0].second}: " if len(better) > 1 else ""
        gain = f"{first}by {_format(better[0].difference)}"
        yield f"It scored better than {_join([pair.second for pair in better])} ({gain})."
    if equal:
        yield f"{_join(equal)} scored the same on every patient."
    if worse:
        yield f"But {_join(worse)} scored better on the patients tested with both."
    if rest:
        others = _join([pair.second for pair in rest])
        if len(rest) == len(pairs) > 1:
            others = "any other variant"
        yield f"No difference from {others} is shown ({_describe_first(rest)})."
        yield from _describe_needed(rest[0])
    if apart:
        yield f"It shares no patient with {_join(apart)}."


def _describe_first(pairs: Sequence[Pair]) -> str:
    """Describe the first of the differences that are not shown."""
    pair = pairs[0]
    text = f"{pair.second}: " if len(pairs) > 1 else ""
    if pair.num_patients < 2:
        return f"{text}{_format(pair.difference)}, one patient has no interval and no test"
    return f"{text}{_format(pair.difference)}, {_format_p(pair)}"


def _format_p(pair: Pair) -> str:
    return f"corrected p {'< 0.001' if pair.p_holm < 0.001 else f'= {pair.p_holm:.2g}'}"


def _describe_needed(pair: Pair) -> Iterator[str]:
    """Yield how many patients would show a difference that is not shown, if that is known."""
    # The size of a difference on a few patients says too little about it.
    if smallest_p(pair.num_patients) < LEVEL and np.isfinite(pair.patients_needed):
        needed = "Over a million"
        if pair.patients_needed < 1e6:
            needed = f"About {float(f'{pair.patients_needed:.2g}'):,.0f}"
        yield f"{needed} patients would be needed to find a difference of this size."


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
    listed = " ".join(f"By {_join(by)}: {winners}." for winners, by in first.items())
    return [
        f"Another choice of metric or of ranking names another winner in {len(others)} of "
        f"{len(rankings)} rankings. {listed}"
    ]


def _missing(matrix: ScoreMatrix, comparison: Comparison) -> list[str]:
    caveats = []
    if matrix.missing:
        caveats.append(
            f"{len(matrix.missing)} of {_count(matrix.num_trials, 'trial')} have no scores. Two "
            "variants are compared on the patients and seeds that both have. They are ranked on "
            f"the {_count(comparison.num_shared, 'patient')} tested with all ranked variants."
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
    if sizes and len(sizes) * smallest_p(max(sizes), len(sizes)) >= LEVEL:
        caveats.append(
            f"With {_count(max(sizes), 'patient')} and {_count(len(sizes), 'pair')} of variants "
            f"no corrected p-value can be below {LEVEL}: no difference, however large, can be "
            "shown."
        )
    shown = [item.scores["Dice/patient"] for item in comparison.variants if item.scores]
    if any(found.is_wide for found in (*shown, *(pair.difference for pair in comparison.pairs))):
        caveats.append(
            "Wide intervals hold nearly all values that are possible: the patients are too few."
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
        "folds overlap. Intervals treat patients as independent: they are a little too narrow."
    ]


def _format(estimate: Estimate) -> str:
    if np.isnan(estimate.low):
        return f"{estimate.point:.3f}"
    if estimate.is_wide:
        return f"{estimate.point:.3f}, interval wide"
    return f"{estimate.point:.3f}, 95 % interval {estimate.low:.3f} to {estimate.high:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def _join(names: Sequence[str]) -> str:
    """List names in a sentence, which stays short: of many names only the first three."""
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
