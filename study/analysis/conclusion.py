"""The conclusion of a study in a few sentences, answers to a reader's first questions, caveats."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brainseg.document import format_p
from study.analysis.bootstrap import Estimate
from study.analysis.comparison import LEVEL, Comparison, Pair, VariantScores, smallest_p
from study.analysis.leak import Leak
from study.analysis.rankings import Ranking, other_winners
from study.analysis.scores import ScoreMatrix
from study.analysis.selection import NEW, Choice
from study.storage.schema import FAILURES

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


@dataclass(frozen=True)
class _Basis:
    """What the ranking rests on.

    Attributes:
        num_seeds: Seeds with scores of all ranked variants; planned ones do not count.
        trainings: Fewest and most of these seeds that test one patient.
        averaged: Seeds over which the scores of each of two compared studies were averaged, if
            these share none; empty otherwise.
    """

    num_seeds: int
    trainings: tuple[int, int]
    averaged: tuple[int, ...]

    @property
    def seeds(self) -> str:
        """The seeds in words."""
        if self.averaged:
            return f"means over {' and '.join(map(str, self.averaged))} seeds, not paired"
        return _count(self.num_seeds, "seed")


def conclude(
    matrix: ScoreMatrix,
    comparison: Comparison,
    synthetic: bool = False,
    choices: Sequence[Choice] = (),
    rankings: Sequence[Ranking] = (),
    leaks: Sequence[Leak] = (),
    external: Collection[str] = (),
    averaged: tuple[int, ...] = (),
) -> Conclusion:
    """Put a comparison into words.

    Args:
        matrix: The scores that were compared.
        comparison: The comparison of these scores.
        synthetic: Whether the data are generated phantoms.
        choices: On which patients the settings of some variants were chosen.
        rankings: The variants' ranks by other metrics and in other ways.
        leaks: What leaky variants, which are not ranked, gain over honest ones.
        external: Variants that other tools trained.
        averaged: Seeds over which each of two studies without a common seed was averaged.
    """
    basis = _find_basis(matrix, comparison, external, averaged)
    sentence = " ".join([_sentence(comparison, basis), *_failed(matrix, comparison)])
    sentence += "".join(map(_seen_by, choices))
    for leak in leaks:
        if leak.difference:
            gain = _format(leak.difference.difference)
            sentence += f" The leak of {leak.leaky} is worth {gain} Dice/patient."
    caveats = [*_missing(matrix, comparison), *_too_few(matrix, comparison, basis)]
    caveats += [*_folds(matrix), *_other_rankings(comparison, rankings)]
    if synthetic:
        sentence = f"SYNTHETIC DATA: {sentence}"
        caveats.insert(0, "The data are generated phantoms: no number here is about patients.")
    ranked = [variant for variant in comparison.variants if variant.ranks]
    answers: list[tuple[str, str]] = []
    if len(ranked) > 1:
        has_external = any(item.variant in external for item in ranked)
        answers = [
            ("Which is best?", _describe_best(comparison, ranked)),
            ("By how much?", _describe_gap(_pairs_of(comparison)[ranked[1].variant])),
            ("How sure is that?", _describe_sureness(matrix, comparison, rankings, choices)),
            ("On whom?", _describe_patients(comparison, basis, choices, synthetic, has_external)),
            ("What can it not say?", " ".join(_silent_on(basis, synthetic))),
        ]
    return Conclusion(sentence, tuple(caveats), tuple(answers))


def _find_basis(
    matrix: ScoreMatrix,
    comparison: Comparison,
    external: Collection[str],
    averaged: tuple[int, ...],
) -> _Basis:
    ranked = [item.variant for item in comparison.variants if item.shared]
    tested = matrix.tested[[matrix.index(name) for name in ranked]]
    scored = tested.all(axis=0) if ranked else matrix.without(external).tested.any(axis=0)
    cells = np.asarray(scored)
    seeds, per_patient = int(cells.any(axis=1).sum()), cells.sum(axis=0)[cells.any(axis=0)]
    if not seeds or all(name in external for name in ranked):  # external scores stand for all
        return _Basis(1, (1, 1), averaged)
    return _Basis(seeds, (int(per_patient.min()), int(per_patient.max())), averaged)


def is_shown(pair: Pair) -> bool:
    """Return whether the scores show that two variants differ.

    They do if the corrected p-value is below 0.05 and the interval, which includes the variation
    between seeds, excludes 0.
    """
    return pair.p_holm < LEVEL and (pair.difference.low > 0 or pair.difference.high < 0)


def _count_tests(pairs: Sequence[Pair]) -> int:
    """Return the number of pairs for which p-values are corrected."""
    return sum(pair.num_patients > 0 for pair in pairs)


def _sentence(comparison: Comparison, basis: _Basis) -> str:
    scored = [variant for variant in comparison.variants if variant.num_patients]
    if not scored:
        return "No trial has test scores, so nothing can be concluded."
    top = scored[0]
    if len(scored) == 1:
        score, patients = _format(top.scores["Dice/patient"]), _count_patients(top.num_patients)
        return (
            f"Only {top.variant} has test scores: Dice/patient {score}, on {patients} with "
            f"{basis.seeds}. There is nothing to compare it with."
        )
    if not top.shared:
        return "No patient was tested with all variants, so the variants cannot be ranked."
    pairs = list(_pairs_of(comparison).values())
    tied = [pair.second for pair in pairs if abs(pair.difference.point) < _EQUAL]
    verb = "rank first together" if tied else "ranks first"
    patients = _count_patients(comparison.num_shared, "shared " * _is_partial(comparison))
    sentences = [
        f"On {patients} with {basis.seeds}, {_join([top.variant, *tied])} {verb} by Dice/patient "
        f"({_format(top.shared)}).",
        *_verdict(pairs, _count_tests(comparison.pairs)),
    ]
    if basis.num_seeds == 1 and not basis.averaged:
        sentences.append("Another training run may give another order.")
    return " ".join(sentences)


def _count_patients(number: int, kind: str = "") -> str:
    return _count(number, f"{kind}test patient")


def _is_partial(comparison: Comparison) -> bool:
    """Return whether a ranked variant was tested on more patients than all of them share."""
    shared = comparison.num_shared
    return any(item.num_patients > shared for item in comparison.variants if item.shared)


def _pairs_of(comparison: Comparison) -> dict[str, Pair]:
    """Return every other variant with scores -> its pair with the first, which comes first."""
    top = comparison.variants[0].variant
    return {pair.second: pair for pair in comparison.pairs if pair.first == top}


def _failed(matrix: ScoreMatrix, comparison: Comparison) -> Iterator[str]:
    """Yield how many trainings of which variants failed, and whom that favours."""
    failed = _with_failures(matrix)
    for variant in failed[:_MOST_NAMES]:
        ends = matrix.ends[variant]
        counts = [(ends[status], status) for status in FAILURES if ends.get(status)]
        (number, status), *others = counts
        text = f"{number} of {variant}'s {_count(sum(ends.values()), 'training')} {status}"
        yield f"{text}{''.join(f', {number} {status}' for number, status in others)}."
    if len(failed) > _MOST_NAMES:
        yield f"{len(failed) - _MOST_NAMES} more variants have failed or diverged trainings."
    scored = [item.variant for item in comparison.variants if item.num_patients]
    favoured = [variant for variant in failed if variant in scored]
    if favoured:
        yield f"These count nowhere, which may favour {_join(favoured)}."


def _with_failures(matrix: ScoreMatrix) -> list[str]:
    """Return the variants of which trainings failed or diverged."""
    ends = matrix.ends
    return [name for name in matrix.variants if ends.get(name, {}).keys() & set(FAILURES)]


def _describe_best(comparison: Comparison, ranked: Sequence[VariantScores]) -> str:
    """Name the first variant, and those that are not shown to be worse."""
    names = {item.variant for item in ranked}

    def join(variants: Sequence[str]) -> str:
        return _join([name if name in names else f"{name} (not ranked)" for name in variants])

    first, pairs = ranked[0], _pairs_of(comparison)
    assert first.shared is not None
    best = f"{first.variant}, with a mean Dice/patient of {first.shared.point:.3f}"
    if _is_partial(comparison):
        best += (
            f" on the {_count(comparison.num_shared, 'patient')} that all ranked variants share"
        )
    worse = [name for name, pair in pairs.items() if _is_worse(pair)]
    equal = [name for name, pair in pairs.items() if not _is_better(pair) and name not in worse]
    if equal:
        best += f"; {join(equal)} may be as good"
    if worse:
        best += f". But {join(worse)} scored better on the patients tested with both"
    return f"{best}."


def _is_better(pair: Pair) -> bool:
    """Return whether the scores show that the first variant of a pair is better."""
    return is_shown(pair) and pair.difference.point > 0


def _is_worse(pair: Pair) -> bool:
    return is_shown(pair) and pair.difference.point < 0


def _describe_gap(pair: Pair) -> str:
    """Say by how much the first variant is better, and whether that may be chance."""
    found = pair.difference
    size = abs(found.point)
    if size < _EQUAL:
        return f"By nothing: {pair.second}, the next, has the same mean."
    amount = f"{size:.3f}" if size >= 0.0005 else "less than 0.001"
    if found.point < 0:  # a failed trial: the ranking is on fewer patients than the pair
        by = f"{amount} in Dice/patient"
        return f"On the patients that both tested, {pair.second}, the next, is better by {by}."
    by = f"By {amount} in Dice/patient over {pair.second}, the next."
    interval = f"{found.low:z.3f} to {found.high:z.3f}"
    if found.is_wide:
        return f"{by} The patients are too few to say whether that is chance."
    if np.isnan(found.low):
        return f"{by} There is no interval: the difference is the same on every patient."
    if is_shown(pair):
        return f"{by} Chance alone hardly explains it: the 95 % interval is {interval}."
    if found.low <= 0 <= found.high:
        return f"{by} It may be chance: the 95 % interval, {interval}, includes 0."
    return f"{by} It may be chance: {_format_p(pair)}, 95 % interval {interval}."


def _describe_sureness(
    matrix: ScoreMatrix,
    comparison: Comparison,
    rankings: Sequence[Ranking],
    choices: Sequence[Choice],
) -> str:
    """Say how sure it is that the first variant is best, and what speaks against it."""
    ranked = [variant for variant in comparison.variants if variant.ranks]
    first, second = (item.variant for item in ranked[:2])
    choice = next((c for c in choices if first in c.variants and c.judged | c.trained), None)
    failed = _with_failures(matrix)
    pairs, doubts = _pairs_of(comparison), []
    if any(map(_is_worse, pairs.values())):
        doubts.append("Another variant scored better on the patients tested with both.")
    if first in failed:
        doubts.append(f"Trainings of {first} failed or diverged.")
    if choice:
        # On the others its scores are too high by an unknown amount.
        new = [pair for pair in choice.parts[NEW] if first in (pair.first, pair.second)]
        pairs = {p.second: p for p in (pair.seen_from(first) for pair in new)}
        if not (second in pairs and _is_better(pairs[second])):
            doubts.append(_describe_new(choice, pairs.get(second)))
    level = "Not sure"
    if not doubts:
        num_others = sum(item.num_patients > 0 for item in comparison.variants) - 1
        all_shown = len(pairs) == num_others and all(map(_is_better, pairs.values()))
        num_tests = _count_tests(comparison.pairs)
        level = _grade(pairs[second], num_tests, all_shown=all_shown and not failed)
    sure = f"{level}: it ranks first in {_percent(ranked[0].ranks[0])} of resamples of patients"
    sure += " and seeds"
    # Not the study's own, and none in which all tie.
    others = [ranking for ranking in rankings[1:] if max(ranking.ranks) > 1]
    if others:
        agree = len(others) - len(other_winners(rankings))
        sure += f", and in {agree} of {len(others)} rankings by other metrics or ways"
    return " ".join([f"{sure}.", *doubts])


def _grade(pair: Pair, num_tests: int, *, all_shown: bool) -> str:
    """Say in a word or two how sure it is that the first variant is best.

    Args:
        pair: The first and the second variant.
        num_tests: Pairs for which p-values are corrected.
        all_shown: Whether the first is shown to be better than each other variant.
    """
    if all_shown:
        return "Sure"
    # Of few patients, whose test can show nothing, an interval may be narrow by luck.
    can_show = _can_show(pair.num_patients, num_tests)
    return "Fairly sure" if can_show and pair.difference.low > 0 else "Not sure"


def _can_show(num_patients: int, num_tests: int) -> bool:
    """Return whether a corrected p-value of these patients can be below the level."""
    return num_tests * smallest_p(num_patients, num_tests) < LEVEL


def _describe_new(choice: Choice, pair: Pair | None) -> str:
    """Say that the patients new to the first variant's settings do not show it to be better."""
    if pair is None or pair.num_patients == 0:
        return "Its settings were chosen with these patients: no other tested both variants."
    used, new = choice.num_patients - len(choice.new), len(choice.new)
    shown = f"{pair.second} scored better" if _is_worse(pair) else "no difference is shown"
    return (
        f"Its settings were chosen with {used} of these patients. On the {new} new to them "
        f"{shown} ({pair.first} - {pair.second}: {_format(pair.difference)})."
    )


def _percent(share: float) -> str:
    if share >= 0.995:
        return "> 99 %"
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _describe_patients(
    comparison: Comparison,
    basis: _Basis,
    choices: Sequence[Choice],
    synthetic: bool,
    has_external: bool,
) -> str:
    """Say on how many patients and trainings the ranking rests, and to whom they are new."""
    people = "generated phantoms" if synthetic else "test patients"
    here = " trained here" * has_external
    fewest, most = basis.trainings
    trainings = _count(most, "training")
    if basis.averaged:
        trainings = basis.seeds
    elif fewest < most:
        trainings = f"{fewest} to {trainings}"
    texts = [
        f"{comparison.num_shared} {people}, none seen in training by the models{here} that they "
        f"test, each tested by {trainings} of each variant{here}."
    ]
    for choice in choices:
        are = "is" if len(choice.new) == 1 else "are"
        texts.append(
            f"{len(choice.new)} of {choice.num_patients} {are} new to the settings of "
            f"{_join(choice.variants)}."
        )
    return " ".join(texts)


def _silent_on(basis: _Basis, synthetic: bool) -> Iterator[str]:
    if synthetic:
        yield "Anything about patients: the data are generated."
        return
    yield "How the variants do at other hospitals, on other scanners, or for a treatment."
    if basis.num_seeds == 1 or basis.averaged:
        yield "How much another training of the same variant would differ."


def _seen_by(choice: Choice) -> str:
    """Say how many test patients a search used to choose settings, if any."""
    judged, used, new = (len(part) for part in (choice.judged, choice.trained, choice.new))
    names, are = _join(choice.variants), "is" if new == 1 else "are"
    if not judged + used:
        return ""
    if choice.in_study:
        return (
            f" The search that chose the settings of {names} judged candidates on {judged} of "
            f"these patients and trained them on {used}. So only {new} {are} new to it: the "
            "section on the search compares the variants on these alone."
        )
    chosen = f"on {judged} of these patients" if judged else "on other patients"
    return (
        f" The settings of {names} were chosen {chosen}; candidates were trained on {used} of "
        f"them. {new} {are} new to these settings."
    )


def _verdict(pairs: Sequence[Pair], num_tests: int) -> Iterator[str]:
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
        yield from _describe_needed(rest[0], num_tests)
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
    p = format_p(pair.p_holm)
    return f"corrected p {p if p.startswith('<') else f'= {p}'}"


def _describe_needed(pair: Pair, num_tests: int) -> Iterator[str]:
    """Yield how many patients would show a difference that is not shown, if that is known."""
    # The size of a difference on a few patients says too little about it.
    if not _can_show(pair.num_patients, num_tests) or not np.isfinite(pair.patients_needed):
        return
    needed = "over a million"
    if pair.patients_needed < 1e6:
        rounded = float(f"{pair.patients_needed:.2g}")
        if rounded <= pair.num_patients:
            return
        needed = f"about {rounded:,.0f}"
    text = f"{needed} patients would be needed to find a difference of this size"
    text += f" among {num_tests} pairs" * (num_tests > 1)
    yield f"{text[0].upper()}{text[1:]}."


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
        have = "has" if len(matrix.missing) == 1 else "have"
        caveats.append(
            f"{len(matrix.missing)} of {_count(matrix.num_trials, 'trial')} {have} no scores. Two "
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


def _too_few(matrix: ScoreMatrix, comparison: Comparison, basis: _Basis) -> list[str]:
    caveats = []
    sizes = [pair.num_patients for pair in comparison.pairs if pair.num_patients]
    if sizes and not _can_show(max(sizes), len(sizes)):
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
    if basis.averaged:
        caveats.append(
            "Scores are means over seeds: intervals and p-values do not cover the variation "
            "between training runs."
        )
    elif basis.num_seeds == 1:
        caveats.append(
            "One seed: intervals and p-values hold for the trained models; how much another "
            "training run would differ is not known."
        )
    elif basis.num_seeds == 2:
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
        return f"{estimate.point:z.3f}"
    if estimate.is_wide:
        return f"{estimate.point:z.3f}, interval wide"
    return f"{estimate.point:z.3f}, 95 % interval {estimate.low:z.3f} to {estimate.high:z.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def _join(names: Sequence[str]) -> str:
    """List names in a sentence, which stays short: of many names only the first three."""
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
