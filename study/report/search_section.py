"""What a search found, and what it cost, as a section of the report.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna import create_study
from optuna import logging as optuna_logging
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FixedTrial, create_trial

from brainseg.document import (
    NONE,
    Block,
    Figure,
    Listing,
    Paragraph,
    Section,
    Table,
    format_change,
    format_number,
    format_p,
)
from brainseg.storage.files import read_csv
from study.analysis.bootstrap import Estimate
from study.analysis.comparison import Pair, compare
from study.analysis.conclusion import patients_of
from study.analysis.scores import ScoreMatrix
from study.report.figures import COLOURS, Drawer
from study.report.results import History, Records
from study.spec.grid import WINNER
from study.spec.search_space import VARIANT, Changes
from study.storage.candidates import (
    FINISHED,
    SCORE,
    STOPPED,
    Search,
    candidate_folder,
    read_params,
)
from study.storage.leaderboard import (
    TABLE,
    TOP,
    is_variant,
    measure_agreement,
    measure_spent,
    ranked,
)
from study.storage.tables import Row

_LEAST_FOR_IMPORTANCE = 8
_HOUR = 3600


def describe_search(records: Records, drawer: Drawer) -> list[Section]:
    """Return the section about a study's search; none if it has none."""
    rows = read_csv(records.study / TABLE)
    if not records.about.get("search") or not rows:
        return []
    search, params = Search.of_record(records.about), read_params(records.study)
    blocks: list[Block] = [Paragraph(_summary(search, rows, params)), Paragraph(_HOW)]
    blocks += [*_top(search, rows, params), *_winner(records), *_saved(records, search, rows)]
    blocks += _drawings(records, search, rows, params, drawer)
    return [Section("search", "Search", blocks)]


def importances(
    search: Search, params: Sequence[Row], scores: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return method -> parameter -> its share of what makes scores differ, the largest first.

    Args:
        search: What was asked.
        params: Of each candidate, as they were drawn.
        scores: Of each candidate, after as many epochs.

    Returns:
        fANOVA (Hutter et al. 2014) and PED-ANOVA (Watanabe et al. 2023) over the parameters that
        all candidates have; empty with too few candidates or equal scores.
    """
    if len(scores) < _LEAST_FOR_IMPORTANCE or len(set(scores)) < 2:
        return {}
    optuna_logging.set_verbosity(optuna_logging.ERROR)
    study = create_study(direction="maximize")
    for point, score in zip(params, scores, strict=True):
        fixed = FixedTrial(dict(point))
        search.space.suggest(fixed)  # type: ignore[arg-type]
        study.add_trial(
            create_trial(params=dict(point), distributions=fixed.distributions, value=score)
        )
    methods: dict[str, BaseImportanceEvaluator] = {
        "fANOVA": FanovaImportanceEvaluator(seed=search.seed),
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            name: get_param_importances(study, evaluator=method)
            for name, method in methods.items()
        }
    order = list(found["fANOVA"])
    return {name: {key: values[key] for key in order} for name, values in found.items()}


def restrict(matrix: ScoreMatrix, patients: Collection[str]) -> ScoreMatrix:
    """Return the score matrix of some of its patients."""
    kept = np.array([patient in patients for patient in matrix.patients], bool)
    return replace(
        matrix,
        patients=tuple(p for p in matrix.patients if p in patients),
        folds=matrix.folds[:, kept],
        counts=matrix.counts[:, :, kept],
        dice=matrix.dice[:, :, kept],
        hd95=matrix.hd95[:, :, kept],
    )


def _summary(search: Search, rows: Sequence[Row], params: Sequence[Changes]) -> str:
    ends = Counter(row["status"] for row in rows)
    counts = ", ".join(f"{number} {status}" for status, number in ends.most_common())
    full = ranked(rows)
    text = (
        f"{len(rows)} candidates, proposed by {search.sampler}, stopped by {search.scheduler}: "
        f"{counts}. "
    )
    if not full:
        return f"{text}None ran in full, so there is no winner."
    best = full[0]
    text += f"The best is candidate {best['candidate']} with val Dice {float(best[SCORE]):.3f}"
    is_known = is_variant(search, params[int(best["candidate"])])
    text += f", {best[VARIANT]} as it is. " if is_known else ". "
    return f"{text}The best of so many on the same patients is an optimistic figure."


def _top(search: Search, rows: Sequence[Row], params: Sequence[Changes]) -> list[Block]:
    full = ranked(rows)[:TOP]
    if not full:
        return []
    table = [
        {
            "": str(place),
            "candidate": row["candidate"],
            "val Dice": format_number(float(row[SCORE])),
            **{key: _short(row[key]) for key in (VARIANT, *search.space.ranges)},
        }
        for place, row in enumerate(full, 1)
    ]
    blocks: list[Block] = [
        Table(f"The best {len(full)} of {len(ranked(rows))} candidates run in full.", table),
        Listing(
            "Each is a configuration, search/top-1.yaml and so on; the first is best.yaml too:",
            "python -m study.run --config best.yaml",
        ),
    ]
    best = params[int(full[0]["candidate"])]
    narrow = search.space.edges(best[VARIANT], best)
    if narrow:
        blocks.append(Paragraph(f"Ranges that look too narrow: {'; '.join(narrow)}."))
    return blocks


def _winner(records: Records) -> list[Block]:
    """Compare the winner, trained anew and tested, on patients that the search saw or not."""
    winners = [name for name in records.matrix.variants if name.startswith(WINNER)]
    splits = records.split.get("search", [])
    if not winners or not splits or not records.matrix.patients:
        return []
    winner = winners[-1]  # former ones come before it
    judges, seen = patients_of(splits)
    everyone = set(records.matrix.patients)
    rows = []
    for group, patients in (
        ("all", everyone),
        ("those who did not judge candidates", everyone - judges),
        ("those whom the search never saw", everyone - seen),
    ):
        matrix = restrict(records.matrix, patients)
        for pair in compare(matrix).pairs if matrix.patients else ():
            if winner in (pair.first, pair.second):
                rows.append(_pair_row(winner, group, pair))
    return [Table(f"{winner}: {_WINNER}", rows)] if rows else []


def _pair_row(winner: str, group: str, pair: Pair) -> dict[str, str]:
    found, is_first = pair.difference, pair.first == winner
    if not is_first:
        found = Estimate(-found.point, -found.high, -found.low)
    return {
        "test patients": group,
        "number": str(pair.num_patients),
        "against": pair.second if is_first else pair.first,
        "difference in Dice/patient": format_change(found),
        "p": format_p(pair.p),
    }


def _saved(records: Records, search: Search, rows: Sequence[Row]) -> list[Block]:
    spent = measure_spent(records.study, rows)
    if not spent.epochs_in_full:
        return []
    expected = search.halving.expected_epochs(len(rows))
    table = [
        {
            "": "trained",
            "epochs": f"{spent.epochs:,}",
            "hours": f"{spent.seconds / _HOUR:.2f}",
            "share": format_number(spent.epochs / spent.epochs_in_full, 2),
        },
        {
            "": "all candidates in full",
            "epochs": f"{spent.epochs_in_full:,}",
            "hours": f"{spent.seconds_in_full / _HOUR:.2f}",
            "share": "1.00",
        },
    ]
    rungs = ", ".join(map(str, search.halving.rungs())) or "none"
    note = f"Rungs after epochs: {rungs}. About {expected:,.0f} epochs were to be expected."
    blocks: list[Block] = [Table("What stopping early saved.", table), Paragraph(note)]
    agreements = measure_agreement(rows, search.rungs)
    if agreements:
        table = [
            {
                "after epoch": str(item.rung),
                "candidates run in full": str(item.candidates),
                "Spearman": format_number(item.spearman, 2),
                "Kendall": format_number(item.kendall, 2),
                "place of the final best": str(item.place),
            }
            for item in agreements
        ]
        blocks.append(Table(_AGREEMENT, table))
    return blocks


def _drawings(
    records: Records,
    search: Search,
    rows: Sequence[Row],
    params: Sequence[Changes],
    drawer: Drawer,
) -> list[Block]:
    histories = {
        int(row["candidate"]): candidate_folder(
            records.study, int(row["candidate"])
        ).read_history()
        for row in rows
    }
    begun = [row for row in rows if histories[int(row["candidate"])]]
    rung = next(iter(search.rungs), None)
    column = SCORE if rung is None else f"{SCORE}@{rung}"
    scored = [row for row in begun if row.get(column)]
    if not scored:
        return []
    artist = SearchDrawer(drawer, search, begun, column)
    blocks: list[Block] = [
        Figure(artist.progress(histories), "Score of each candidate, and its curve", _PROGRESS)
    ]
    points = [params[int(row["candidate"])] for row in scored]
    found = importances(search, points, [float(row[column]) for row in scored])
    if found:
        alt = "Bars: how much of the spread of scores each parameter explains"
        blocks.append(Figure(artist.importance(found), alt, _IMPORTANCE))
    if not artist.parameters():
        return blocks
    alt = "Scatter plots: score against each parameter"
    blocks.append(Figure(artist.slices(), alt, _SLICES))
    alt = "Lines through the parameters of each candidate, coloured by score"
    blocks.append(Figure(artist.parallel(), alt, _PARALLEL))
    return blocks


def _short(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text or NONE


_HOW = """\
Candidates are trained and validated in rotation 0 alone; its test part is never opened by the \
search. They are compared by the highest val Dice (global) so far, the mean over inner folds; the \
first ones have the variants' own settings. Those stopped early are ranked nowhere beside \
those run in full. Where loss weights vary, val losses do not compare: Dice does."""

_WINNER = (
    "what it gains over each variant, trained in full with other seeds. Other rotations test "
    "patients on which candidates were trained or judged; only rotation 0's were never seen."
)

_AGREEMENT = (
    "Do scores at a rung tell those at the end? Rank correlations among candidates run in full; "
    "where stopping was on, these are survivors, who agree less than all would."
)

_PROGRESS = "Left: how each candidate ended. Right: its running best, and where it was stopped."

_IMPORTANCE = """\
All candidates after as many epochs, at the first rung, which all of them reach. Parameters that \
only some have are left out. A rough guide: few candidates, and not spread evenly."""

_SLICES = "Each parameter alone, all candidates after as many epochs; the others vary too."

_PARALLEL = "Each line is a candidate: its place in each range. A gap: it lacks that parameter."


# --- search_figures ---

_STYLES: dict[str, dict[str, Any]] = {
    FINISHED: {"color": COLOURS[0], "marker": "o", "label": "run in full"},
    STOPPED: {"color": COLOURS[1], "marker": "^", "label": "stopped early"},
}
_PANELS = 3
_LEGEND: dict[str, Any] = {"loc": "outside upper center", "ncols": 3, "fontsize": 8}


class SearchDrawer:
    """Draws a search.

    Args:
        drawer: Of the study.
        search: What was asked.
        rows: Of candidates.csv, of candidates with at least one epoch.
        column: Of candidates.csv, by which all of them are compared: the score at the first rung.
    """

    def __init__(self, drawer: Drawer, search: Search, rows: Sequence[Row], column: str) -> None:
        """Touch nothing yet."""
        self._drawer, self._search, self._rows, self._column = drawer, search, rows, column
        epoch = column.removeprefix(SCORE).removeprefix("@")
        self._name = f"val Dice, epoch {epoch}" if epoch else "val Dice"

    def progress(self, histories: Mapping[int, History]) -> str:
        """Draw the score of each candidate in order, and the curve of each."""
        with self._drawer.drawing("search_progress", 3.4, columns=2) as (figure, axes):
            best: list[float] = []
            for row in self._rows:
                number, curve = int(row["candidate"]), histories[int(row["candidate"])]
                style = _STYLES.get(row["status"])
                if style is None:
                    continue
                plain = {"color": style["color"], "linestyle": ""}
                axes[0].plot(number, float(row[SCORE]), marker=style["marker"], ms=4, **plain)
                steps = [epoch["step"] for epoch in curve]
                values = [epoch[SCORE] for epoch in curve]
                axes[1].plot(steps, values, color=style["color"], alpha=0.5, lw=1)
                axes[1].plot(steps[-1], values[-1], marker=style["marker"], ms=4, **plain)
                if row["status"] == FINISHED:
                    best.append(max([*best[-1:], float(row[SCORE])]))
                    axes[0].plot(number, best[-1], marker="_", ms=9, color="0.3")
            for epoch in self._search.halving.rungs():
                axes[1].axvline(epoch, color="0.6", linestyle=":", lw=1)
            axes[0].set(xlabel="candidate (bars: the best so far)", ylabel="best val Dice")
            axes[1].set(xlabel="epoch (dotted: rungs)", ylabel="best val Dice so far")
            for style in _STYLES.values():
                axes[1].plot([], [], linestyle="", **style)
            figure.legend(*axes[1].get_legend_handles_labels(), **_LEGEND)
        return "figures/search_progress.png"

    def importance(self, importances: Mapping[str, Mapping[str, float]]) -> str:
        """Draw how much each parameter mattered, by each method."""
        names = list(next(iter(importances.values())))
        width = 0.8 / len(importances)
        with self._drawer.drawing("search_importance", 1.1 + 0.3 * len(names)) as (fig, (axis,)):
            for place, (method, values) in enumerate(importances.items()):
                heights = [values[name] for name in names]
                offsets = np.arange(len(names)) + place * width
                axis.barh(offsets, heights, width, color=COLOURS[place], label=method)
            axis.set_yticks(np.arange(len(names)) + 0.4 - width / 2, names)
            axis.invert_yaxis()
            axis.set_xlabel(f"share of what makes it differ: {self._name}")
            fig.legend(*axis.get_legend_handles_labels(), **_LEGEND)
        return "figures/search_importance.png"

    def slices(self) -> str:
        """Draw the score against each parameter, all candidates after as many epochs."""
        names = self.parameters()
        rows = math.ceil(len(names) / _PANELS)
        height = 0.5 + 1.9 * rows
        with self._drawer.drawing("search_slices", height, _PANELS, rows) as (figure, axes):
            for axis, name in zip(axes, names, strict=False):
                self._slice(axis, name)
            for axis in axes[len(names) :]:
                axis.set_axis_off()
            for axis in axes[::_PANELS]:
                axis.set_ylabel(self._name, fontsize=8)
            figure.legend(*axes[0].get_legend_handles_labels(), **_LEGEND)
        return "figures/search_slices.png"

    def parallel(self) -> str:
        """Draw each candidate as a line through its parameters, coloured by its score."""
        from matplotlib import colormaps

        names = self.parameters()
        scored = [row for row in self._rows if self._score(row) is not None]
        scores = [self._score(row) or 0.0 for row in scored]
        low, high = min(scores), max(scores)
        with self._drawer.drawing("search_parallel", 3.6) as (figure, (axis,)):
            for score, row in sorted(zip(scores, scored, strict=True), key=lambda pair: pair[0]):
                shade = colormaps["viridis"]((score - low) / ((high - low) or 1))
                places = [self._place(name, row[name]) for name in names]
                axis.plot(range(len(names)), places, color=shade, alpha=0.8, marker=".", lw=1)
            axis.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=7)
            axis.set_yticks([0, 1], ["low or first", "high or last"])
            axis.grid(axis="y", alpha=0)
            title = f"{self._name}: {low:.3f} (dark) to {high:.3f} (bright)"
            figure.suptitle(title, fontsize=8)
        return "figures/search_parallel.png"

    def _slice(self, axis: Any, name: str) -> None:
        values = self._search.space.ranges.get(name)
        for status, style in _STYLES.items():
            found = [
                (_value(row[name]), self._score(row))
                for row in self._rows
                if row["status"] == status and row[name] != "" and self._score(row) is not None
            ]
            if values is None or values.choices is not None:
                found = [(str(value), score) for value, score in found]
            horizontal = [pair[0] for pair in found]
            axis.plot(horizontal, [pair[1] for pair in found], linestyle="", ms=4, **style)
        if values is not None and values.log:
            axis.set_xscale("log")
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)

    def _score(self, row: Row) -> float | None:
        value = row[self._column]
        return None if value in ("", None) else float(value)

    def parameters(self) -> list[str]:
        """Return the names of those parameters that took more than one value."""
        names = (VARIANT, *self._search.space.ranges)
        return [name for name in names if len({row[name] for row in self._rows} - {""}) > 1]

    def _place(self, name: str, text: str) -> float:
        """Where a value lies in its range, 0 to 1; NaN for a parameter that a candidate lacks."""
        if text == "":
            return math.nan
        values = self._search.space.ranges.get(name)
        if values is None or values.choices is not None:
            choices = list(self._search.space.variants) if values is None else values.ends
            return [str(choice) for choice in choices].index(text) / (len(choices) - 1)
        low, high = values.ends
        of = math.log if values.log else float
        return float((of(float(text)) - of(low)) / (of(high) - of(low)))


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
