"""The figures of a study as PNG and SVG; variants differ by colour and by marker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainseg.document import plain
from brainseg.storage.files import write_bytes
from study.analysis.bootstrap import Estimate
from study.analysis.comparison import Comparison, Pair
from study.report.results import StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart."""
_OTHERS = "0.72"
"""The grey of variants that have no colour of their own."""

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "brainseg",  # the same figure gives the same bytes
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_COLOURED = 12
_WIDTH, _LEGEND_ROW = 7.2, 0.19  # inches
_DOTS_PER_INCH = 144
_MOST_NAMES = 40
_MOST_PAIRS, _MOST_OF_BEST = 60, 200


def shown_pairs(comparison: Comparison) -> tuple[Pair, ...]:
    """Return the pairs that a figure has room for: up to 60, or those of the best variant."""
    pairs = comparison.pairs
    if len(pairs) <= _MOST_PAIRS:
        return pairs
    return tuple(pair for pair in pairs if pair.first == pairs[0].first)[:_MOST_OF_BEST]


class FigureWriter:
    """Draws figures into the folder `figures/` of a study.

    Every method returns the path of its PNG file relative to the study's folder; an SVG file of
    the same name lies beside it.

    Args:
        results: The results to draw. Their labels are written into every figure.
    """

    def __init__(self, results: StudyResults) -> None:
        self._results = results
        self._styles = _choose_styles(results)
        self._grey = [name for name, style in self._styles.items() if style["color"] == _OTHERS]

    def learning_curves(self) -> str:
        """Draw val loss and val Dice per epoch: the mean over trials and the spread of seeds."""
        history = self._results.history
        last_frozen = np.nan_to_num(history["step"][history["stage"] == 1].max())
        titles = {"val_loss": "validation loss", "val_dice": "validation Dice (global)"}
        trained = [name for name in self._styles if name in set(history["variant"])]
        with self._draw("learning_curves", 3.4, columns=2, legend=trained) as (_, axes):
            for axis, (key, title) in zip(axes, titles.items(), strict=True):
                for variant in trained:
                    style = self._styles[variant]
                    own = history[history["variant"] == variant]
                    mean = own.groupby("step")[key].mean()
                    axis.plot(mean, label=self._label(variant, trained), markersize=3, **style)
                    unit = "seed" if own["seed"].nunique() > 1 else "fold"
                    spread = own.groupby([unit, "step"])[key].mean().groupby("step")
                    band = spread.min(), spread.max()
                    axis.fill_between(mean.index, *band, color=style["color"], alpha=0.18, lw=0)
                axis.axvspan(0.5, last_frozen + 0.5, color="0.93", zorder=0)
                axis.set(title=title, xlabel="epoch (shaded: encoder frozen)")
                axis.xaxis.get_major_locator().set_params(integer=True)
        return "figures/learning_curves.png"

    def scores(self) -> str:
        """Draw the Dice/patient of each ranked variant, the best on top."""
        ranked = [item for item in self._results.comparison.variants if item.ranks]
        rows = [
            (item.variant, item.shared, self._styles[item.variant]["color"])
            for item in ranked
            if item.shared
        ]
        with self._draw("scores", 0.9 + 0.28 * len(rows)) as (_, (axis,)):
            _draw_forest(axis, rows, line=None)
            patients = f"{self._results.comparison.num_shared} test patients"
            axis.set_xlabel(f"Dice/patient on {patients}, 95 % interval")
        return "figures/scores.png"

    def differences(self) -> str:
        """Draw the paired differences of all variants and, below them, the factors' effects."""
        comparison = self._results.comparison
        pairs = shown_pairs(comparison)
        rows = [(f"{p.first} - {p.second}", p.difference, _COLOURS[0]) for p in pairs]
        rows += [(effect.name, effect.difference, _COLOURS[1]) for effect in comparison.effects]
        with self._draw("differences", 0.9 + 0.28 * len(rows)) as (_, (axis,)):
            _draw_forest(axis, rows)
            axis.set_xlabel("difference in Dice/patient, 95 % interval")
        return "figures/differences.png"

    def postprocessing(self) -> str:
        """Draw what each post-processing step changes."""
        rows = [
            (f"{e.step}: {e.variant}", e.always, self._styles[e.variant]["color"])
            for e in self._results.effects_of_postprocessing
        ]
        with self._draw("postprocessing", 0.9 + 0.24 * len(rows)) as (_, (axis,)):
            _draw_forest(axis, rows)
            axis.set_xlabel("change in Dice/patient on test, 95 % interval")
        return "figures/postprocessing.png"

    def ranks(self) -> str:
        """Draw the probability of each rank."""
        ranked = [item for item in self._results.comparison.variants if item.ranks]
        with self._draw("ranks", 0.9 + 0.32 * len(ranked)) as (_, (axis,)):
            left = np.zeros(len(ranked))
            for rank in range(len(ranked)):
                shares = np.array([item.ranks[rank] for item in ranked])
                grey = 0.2 + 0.65 * rank / max(len(ranked) - 1, 1)
                names = [item.variant for item in ranked]
                bars = axis.barh(names, shares, left=left, color=str(grey), edgecolor="white")
                ink = "white" if grey < 0.5 else "black"
                text = [f"{rank + 1}: {share:.0%}" if share > 0.08 else "" for share in shares]
                axis.bar_label(bars, text, label_type="center", color=ink, fontsize=8)
                left += shares
            axis.invert_yaxis()
            axis.set(xlim=(0, 1), xlabel="probability of each rank (1 is best)")
            axis.grid(False)
        return "figures/ranks.png"

    def rankings(self) -> str:
        """Draw the ranks by each metric and way of ranking as a grid."""
        rankings = self._results.rankings
        names = [item.variant for item in self._results.comparison.variants if item.ranks]
        ways = [f"{ranking.metric}: {ranking.way}" for ranking in rankings]
        ranks = np.array([ranking.ranks for ranking in rankings])
        rows, columns = ways, names
        if len(names) > _MOST_COLOURED:  # a page is higher than wide
            ranks, rows, columns = ranks.T, names, ways
        with self._draw("rankings", 1.6 + 0.22 * len(rows)) as (_, (axis,)):
            darkest = 1 - 0.3 * len(names)
            axis.imshow(ranks, cmap="Greys_r", vmin=darkest, vmax=len(names), aspect="auto")
            axis.set_yticks(range(len(rows)), rows)
            axis.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
            for row, column in np.ndindex(ranks.shape):
                shade = (ranks[row, column] - darkest) / (len(names) - darkest)
                ink = "white" if shade < 0.55 else "black"
                text = str(ranks[row, column])
                axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
            axis.grid(False)
        return "figures/rankings.png"

    def variance(self) -> str:
        """Draw the sources of the variance of Dice/patient."""
        shares = self._results.comparison.variance
        known = {name: share for name, share in shares.items() if not math.isnan(share)}
        with self._draw("variance", 0.9 + 0.26 * len(known)) as (_, (axis,)):
            bars = axis.barh(list(known), list(known.values()), color=_COLOURS[0])
            axis.bar_label(bars, [f"{share:.1%}" for share in known.values()], padding=3)
            axis.invert_yaxis()
            axis.set(xlim=(0, 1.12), xlabel="share of the variance of Dice/patient")
        return "figures/variance.png"

    def patients(self) -> str:
        """Draw the Dice of each test patient with each variant, the hardest patient first."""
        matrix = self._results.matrix
        num_patients = len(matrix.patients)
        means = pd.DataFrame(matrix.dice.reshape(-1, num_patients)).mean()
        order = means.argsort(kind="stable")
        names = list(self._styles)
        with self._draw("patients", 4.2, legend=names) as (_, (axis,)):
            for variant, style in self._styles.items():
                values = pd.DataFrame(matrix.dice[matrix.index(variant)]).mean()[order].to_numpy()
                label = self._label(variant, names)
                axis.plot(values, linestyle="", markersize=4, alpha=0.8, label=label, **style)
            axis.set(ylim=(-0.02, 1.02), ylabel="Dice/patient, mean over seeds")
            axis.set_xlabel("test patients, the hardest first")
            axis.set_xticks([])
            if len(order) <= _MOST_NAMES:
                # Between two dollars a name would be read as a formula, and may be none.
                patients = [plain(matrix.patients[p]) for p in order]
                axis.set_xticks(range(len(order)), patients, rotation=90, fontsize=7)
        return "figures/patients.png"

    def calibration(self) -> str:
        """Draw the reliability diagram and the number of pixels of each of its points."""
        names = [item.variant for item in self._results.calibrations]
        with self._draw("calibration", 3.4, columns=2, legend=names) as (_, (left, right)):
            left.plot([0, 1], [0, 1], color="0.5", linestyle=":")
            for item in self._results.calibrations:
                style = self._styles[item.variant] | {"markersize": 4}
                label = self._label(item.variant, names)
                left.plot(item.predicted, item.observed, label=label, **style)
                right.plot(item.predicted, item.pixels, **style)
            left.set(xlabel="predicted probability", ylabel="share that is tumour")
            left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            right.set(yscale="log", xlabel="predicted probability", ylabel="test pixels")
        return "figures/calibration.png"

    def save(self, figure: Figure, name: str) -> str:
        """Write any figure as PNG and SVG, with the labels of the results in its corner."""
        if self._results.labels:
            label = " · ".join(self._results.labels)
            figure.supxlabel(label, color="#B00000", fontsize=8, x=0.99, ha="right")
        for suffix, metadata in (("png", None), ("svg", {"Date": None})):
            content = BytesIO()
            figure.savefig(content, format=suffix, dpi=_DOTS_PER_INCH, metadata=metadata)
            figure.set_layout_engine("none")  # the second file has the first one's layout
            path = self._results.folder / "figures" / f"{name}.{suffix}"
            write_bytes(path, content.getvalue())
        return f"figures/{name}.png"

    @contextmanager
    def _draw(
        self, name: str, height: float, columns: int = 1, legend: Sequence[str] = ()
    ) -> Iterator[tuple[Figure, Any]]:
        """Open a figure and its axes, side by side, and save it.

        Args:
            name: Of its file.
            height: Of its axes, in inches.
            columns: Number of axes.
            legend: Variants that the legend above the first axes names.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        labels = {self._label(variant, legend) for variant in legend} - {None}
        height += _LEGEND_ROW * math.ceil(max(len(labels) - 4, 0) / 2)
        with rc_context(STYLE):
            figure = Figure(figsize=(_WIDTH, height), layout="constrained")
            axes = figure.subplots(1, columns, squeeze=False)[0]
            yield figure, axes
            handles, names = axes[0].get_legend_handles_labels()
            if legend and handles:
                figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8)
            self.save(figure, name)

    def _label(self, variant: str, drawn: Sequence[str]) -> str | None:
        """Return a variant's name in the legend; the first grey one's stands for all of them."""
        grey = [name for name in self._grey if name in drawn]
        if variant not in grey:
            return variant
        return _count_others(len(grey)) if variant == grey[0] else None


def _count_others(number: int) -> str:
    return f"{number} other variants, grey" if number > 1 else "1 other variant, grey"


def _choose_styles(results: StudyResults) -> dict[str, dict[str, Any]]:
    """Return variant -> its colour and marker in every figure.

    Of more than 12 variants only the best have colours, one each, and come first. Fewer all have
    one; those of one colour differ in their markers.
    """
    variants = results.matrix.variants
    if len(variants) <= _MOST_COLOURED:
        return {
            variant: {
                "color": _COLOURS[n % len(_COLOURS)],
                "marker": _MARKERS[(n + n // len(_COLOURS)) % len(_MARKERS)],
                "zorder": 2.5,
            }
            for n, variant in enumerate(variants)
        }
    best = zip(results.variants, _COLOURS, _MARKERS, strict=False)
    styles: dict[str, dict[str, Any]] = {
        variant: {"color": colour, "marker": marker, "zorder": 2.5}
        for variant, colour, marker in best
    }
    grey = {"color": _OTHERS, "marker": ".", "linewidth": 0.7, "zorder": 1.5}  # below the others
    return styles | {variant: grey for variant in variants if variant not in styles}


def _draw_forest(
    axis: Axes, rows: Sequence[tuple[str, Estimate, str]], line: float | None = 0
) -> None:
    """Draw an estimate with its interval per row, the first row on top, and a line across."""
    for position, (_, estimate, colour) in enumerate(rows):
        axis.plot(estimate.point, position, "o", color=colour, markersize=5)
        axis.plot([estimate.low, estimate.high], [position] * 2, color=colour, linewidth=1.6)
    if line is not None:
        axis.axvline(line, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0)
