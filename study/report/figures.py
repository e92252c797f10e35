"""The study's drawings, each as PNG and SVG: told apart by colour and by marker.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.storage.files import write_bytes
from study.analysis.bootstrap import Estimate
from study.analysis.calibration import Calibration
from study.analysis.comparison import Comparison, Effect, Pair
from study.analysis.postprocessing import PostprocessingEffect
from study.analysis.scores import Floats
from study.report.results import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 7.2
_DOTS_PER_INCH = 144
_MOST_NAMES = 40
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "brainseg",  # or each drawing's ids would be random
}


class Drawer:
    """Draws into `figures/` of a study.

    Args:
        study: The study's folder.
        variants: Names; the order gives them their colours and markers.
        labels: Written into every drawing, `SYNTHETIC` say.
    """

    def __init__(self, study: Path, variants: Sequence[str], labels: Sequence[str]) -> None:
        """Remember whose colours are whose."""
        self._folder = study / "figures"
        self._note = " · ".join(labels)
        self._styles = {
            variant: {"color": COLOURS[n % len(COLOURS)], "marker": _MARKERS[n % len(_MARKERS)]}
            for n, variant in enumerate(variants)
        }

    def learning_curves(self, records: Records) -> str:
        """Draw val loss and val Dice per epoch: the mean over trials, and the spread of seeds."""
        panels = (("val_loss", "validation loss"), ("val_dice", "validation Dice (global)"))
        with self.drawing("learning_curves", 3.4, columns=2) as (figure, axes):
            for axis, (key, title) in zip(axes, panels, strict=True):
                for variant, style in self._styles.items():
                    curves = _curves(records, variant, key)
                    if curves:
                        _band(axis, curves, variant, style)
                axis.axvspan(0.5, _last_frozen(records) + 0.5, color="0.93", zorder=0)
                axis.set(title=title, xlabel="epoch (shaded: encoder frozen)")
                axis.xaxis.get_major_locator().set_params(integer=True)
            self._legend(figure, axes[0])
        return "figures/learning_curves.png"

    def differences(self, pairs: Sequence[Pair], effects: Sequence[Effect]) -> str:
        """Draw the paired differences of all variants, and below them the factors' effects."""
        rows = [(f"{p.first} - {p.second}", p.difference, COLOURS[0]) for p in pairs]
        rows += [(effect.name, effect.difference, COLOURS[1]) for effect in effects]
        with self.drawing("differences", 0.9 + 0.28 * len(rows)) as (_, (axis,)):
            _forest(axis, rows)
            axis.set_xlabel("difference in Dice/patient, 95 % interval")
        return "figures/differences.png"

    def stages(self, effects: Sequence[PostprocessingEffect]) -> str:
        """Draw what each post-processing step changes."""
        rows = [
            (f"{e.step}: {e.variant}", e.always, self._styles[e.variant]["color"]) for e in effects
        ]
        with self.drawing("stages", 0.9 + 0.24 * len(rows)) as (_, (axis,)):
            _forest(axis, rows)
            axis.set_xlabel("change of Dice/patient on test, 95 % interval")
        return "figures/stages.png"

    def ranks(self, comparison: Comparison) -> str:
        """Draw the probability of each rank."""
        ranked = [item for item in comparison.variants if item.ranks]
        with self.drawing("ranks", 0.9 + 0.32 * len(ranked)) as (_, (axis,)):
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

    def variance(self, shares: Mapping[str, float]) -> str:
        """Draw what the spread of Dice/patient is made of."""
        known = {name: share for name, share in shares.items() if not math.isnan(share)}
        with self.drawing("variance", 0.9 + 0.26 * len(known)) as (_, (axis,)):
            bars = axis.barh(list(known), list(known.values()), color=COLOURS[0])
            axis.bar_label(bars, [f"{share:.1%}" for share in known.values()], padding=3)
            axis.invert_yaxis()
            axis.set(xlim=(0, 1.12), xlabel="share of the variance of Dice/patient")
        return "figures/variance.png"

    def patients(self, records: Records) -> str:
        """Draw each test patient's Dice with each variant, the hardest patient first."""
        matrix = records.matrix
        means = np.array([_mean(matrix.dice[:, :, p]) for p in range(len(matrix.patients))])
        order = np.argsort(means, kind="stable")
        with self.drawing("patients", 4.2) as (figure, (axis,)):
            for variant, style in self._styles.items():
                dice = matrix.dice[matrix.index(variant)]
                values = [_mean(dice[:, p]) for p in order]
                axis.plot(values, linestyle="", markersize=4, alpha=0.8, label=variant, **style)
            axis.set(ylim=(-0.02, 1.02), ylabel="Dice/patient, mean over seeds")
            axis.set_xlabel("test patients, the hardest first")
            axis.set_xticks([])
            if len(order) <= _MOST_NAMES:
                names = [matrix.patients[p] for p in order]
                axis.set_xticks(range(len(order)), names, rotation=90, fontsize=7)
            self._legend(figure, axis)
        return "figures/patients.png"

    def calibration(self, calibrations: Sequence[Calibration]) -> str:
        """Draw the reliability diagram, and how many pixels it stands on."""
        with self.drawing("calibration", 3.4, columns=2) as (figure, axes):
            axes[0].plot([0, 1], [0, 1], color="0.5", linestyle=":")
            for item in calibrations:
                style = self._styles[item.variant]
                axes[0].plot(
                    item.predicted, item.observed, label=item.variant, markersize=4, **style
                )
                axes[1].plot(item.predicted, item.pixels, markersize=4, **style)
            axes[0].set(xlabel="predicted probability", ylabel="share that is tumour")
            axes[0].set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes[1].set(yscale="log", xlabel="predicted probability", ylabel="test pixels")
            self._legend(figure, axes[0])
        return "figures/calibration.png"

    def _legend(self, figure: Figure, axis: Axes) -> None:
        handles, names = axis.get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8)

    @contextmanager
    def drawing(self, name: str, height: float, columns: int = 1, rows: int = 1) -> Any:
        """Open a figure in the style of all, and its axes row by row; write it as PNG and SVG.

        Args:
            name: Of the files.
            height: In inches.
            columns: Of axes.
            rows: Of axes.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with pyplot.rc_context(_STYLE):
            figure, axes = pyplot.subplots(
                rows, columns, figsize=(_WIDTH, height), layout="constrained", squeeze=False
            )
            try:
                yield figure, axes.ravel()
                if self._note:
                    figure.supxlabel(self._note, color="#B00000", fontsize=8, x=0.99, ha="right")
                self._folder.mkdir(exist_ok=True)
                for suffix in ("png", "svg"):
                    content = BytesIO()
                    metadata = {"Date": None} if suffix == "svg" else None
                    figure.savefig(content, format=suffix, dpi=_DOTS_PER_INCH, metadata=metadata)
                    write_bytes(self._folder / f"{name}.{suffix}", content.getvalue())
            finally:
                pyplot.close(figure)


def _forest(axis: Axes, rows: Iterable[tuple[str, Estimate, str]]) -> None:
    """Draw one estimate with its interval per row, the first on top."""
    names = []
    for position, (name, estimate, colour) in enumerate(rows):
        names.append(name)
        if math.isnan(estimate.point):
            continue
        axis.plot(estimate.point, position, "o", color=colour, markersize=5)
        if not math.isnan(estimate.low):
            axis.plot([estimate.low, estimate.high], [position] * 2, color=colour, linewidth=1.6)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0)


def _band(
    axis: Axes, curves: Mapping[int, Sequence[Floats]], name: str, style: Mapping[str, Any]
) -> None:
    """Draw the mean over trials; around it the seeds' spread, or with one seed the folds'."""
    everything = _align([curve for group in curves.values() for curve in group])
    steps = 1 + np.arange(everything.shape[1])
    axis.plot(steps, np.nanmean(everything, axis=0), label=name, markersize=3, **style)
    groups = list(curves.values())
    members = [np.nanmean(_align(g), axis=0) for g in groups] if len(groups) > 1 else groups[0]
    if len(members) > 1:
        spread = _align(members)
        low, high = np.nanmin(spread, axis=0), np.nanmax(spread, axis=0)
        axis.fill_between(steps[: len(low)], low, high, color=style["color"], alpha=0.18, lw=0)


def _curves(records: Records, variant: str, key: str) -> dict[int, list[Floats]]:
    """Return seed -> one curve per fold."""
    found: dict[int, list[Floats]] = {}
    for (name, _, seed), history in records.histories.items():
        if name == variant and history:
            found.setdefault(seed, []).append(np.array([row[key] for row in history]))
    return found


def _align(curves: Sequence[Floats]) -> Floats:
    """Stack curves, those that ended early filled with NaN."""
    stacked = np.full((len(curves), max(len(curve) for curve in curves)), np.nan)
    for row, curve in zip(stacked, curves, strict=True):
        row[: len(curve)] = curve
    return stacked


def _last_frozen(records: Records) -> float:
    steps = [row["step"] for h in records.histories.values() for row in h if row["stage"] == 1]
    return max(steps, default=0)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
