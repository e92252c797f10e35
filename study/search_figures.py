"""The drawings of a search: curves, importance, parallel coordinates, a slice per parameter.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from study.candidates import FINISHED, SCORE, STOPPED, Search
from study.figures import COLOURS, Drawer
from study.records import History
from study.results import Row
from study.space import VARIANT

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
        return "figures/search_progress"

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
        return "figures/search_importance"

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
        return "figures/search_slices"

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
        return "figures/search_parallel"

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
