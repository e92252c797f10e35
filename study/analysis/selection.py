"""Settings that a search chose: by which test patients, and what the other patients show.

A variant whose settings were chosen on the patients that test it scores too high on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from study.analysis.comparison import Comparison, Pair, compare
from study.analysis.scores import ScoreMatrix
from study.spec.grid import parse_winner

NEW = "never seen by the search"


@dataclass(frozen=True)
class Choice:
    """Variants whose settings a search chose, and its use of this study's test patients.

    Attributes:
        variants: The names of the variants.
        in_study: Whether the search is part of this study; otherwise the grid tells of it.
        judged: Test patients that judged candidates.
        trained: Other test patients that trained candidates.
        new: All other test patients.
        parts: Part of the test patients -> every pair of variants, compared on that part. The
            last part, `NEW`, has the new patients.
    """

    variants: tuple[str, ...]
    in_study: bool
    judged: frozenset[str]
    trained: frozenset[str]
    new: frozenset[str]
    parts: Mapping[str, Sequence[Pair]] = field(repr=False)

    @property
    def num_patients(self) -> int:
        """Number of test patients."""
        return len(self.judged) + len(self.trained) + len(self.new)


def find_choices(
    matrix: ScoreMatrix,
    comparison: Comparison,
    searched: Sequence[Mapping[str, Sequence[str]]] = (),
    chosen_on: Mapping[str, Sequence[str]] | None = None,
    external: Collection[str] = (),
) -> list[Choice]:
    """Return on which patients the settings of a study's variants were chosen.

    Args:
        matrix: Test scores.
        comparison: The comparison of these scores.
        searched: The inner splits of the study's searches: patients by part, `train` and `val`.
        chosen_on: Patients on which the settings of some `variants` were chosen before this
            study: those that `judged` candidates, and those that only `trained` them.
        external: Variants that other tools trained.

    Returns:
        Nothing if the study has no such variants.
    """
    judges, seen = patients_of(searched)
    found = [
        (tuple(filter(parse_winner, matrix.variants)) if searched else (), True, judges, seen)
    ]
    if chosen_on:
        names = tuple(name for name in chosen_on["variants"] if name in matrix.variants)
        judges = set(chosen_on["judged"])
        found.append((names, False, judges, judges | set(chosen_on["trained"])))
    everyone = frozenset(matrix.patients)
    return [
        Choice(
            names,
            in_study,
            everyone & judges,
            everyone & (seen - judges),
            everyone - seen,
            {
                "all": comparison.pairs,
                "not used to judge candidates": _pairs(matrix, everyone - judges, external),
                NEW: _pairs(matrix, everyone - seen, external),
            },
        )
        for names, in_study, judges, seen in found
        if names
    ]


def patients_of(searched: Sequence[Mapping[str, Sequence[str]]]) -> tuple[set[str], set[str]]:
    """Return the patients that judged a search's candidates, and all patients that it used."""
    judges = {name for split in searched for name in split["val"]}
    return judges, judges.union(*(split["train"] for split in searched))


def _pairs(
    matrix: ScoreMatrix, patients: Collection[str], external: Collection[str]
) -> Sequence[Pair]:
    return compare(matrix.of_patients(patients), external=external).pairs
