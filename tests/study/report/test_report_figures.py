"""Figures are written as PNG and SVG, with the labels of the results, and always the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matrices import matrix_of

from study.analysis.comparison import compare
from study.report.figures import FigureWriter, shown_pairs
from study.report.results import read_results

NAMES = (
    *("calibration", "differences", "learning_curves", "patients", "postprocessing"),
    *("rankings", "ranks", "scores", "variance"),
)


def test_every_figure_has_both_formats_and_the_labels(generated: Path) -> None:
    files = sorted(path.name for path in (generated / "figures").iterdir())
    assert files == [f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")]
    for name in NAMES:
        assert (generated / "figures" / f"{name}.png").stat().st_size > 5_000
        assert "SYNTHETIC" in (generated / "figures" / f"{name}.svg").read_text()


def test_a_figure_drawn_again_has_the_same_bytes(small: Path) -> None:
    writer = FigureWriter(read_results(small))
    assert writer.differences() == "figures/differences.png"
    paths = [small / "figures" / f"differences.{suffix}" for suffix in ("png", "svg")]
    before = [path.read_bytes() for path in paths]
    writer.differences()
    assert [path.read_bytes() for path in paths] == before


def test_of_many_pairs_those_of_the_best_variant_are_drawn() -> None:
    dice = np.random.default_rng(0).uniform(0.4, 0.9, (8, 1, 6))
    comparison = compare(matrix_of(dice))
    assert shown_pairs(comparison) == comparison.pairs  # 28
    many = replace(comparison, pairs=comparison.pairs * 3)
    best = comparison.variants[0].variant
    assert {pair.first for pair in shown_pairs(many)} == {best}
    assert {pair.second for pair in shown_pairs(many)} == set("abcdefgh") - {best}


def test_a_variant_keeps_its_colour_in_every_figure(generated: Path) -> None:
    styles = FigureWriter(read_results(generated))._styles
    assert list(styles) == list(read_results(generated).matrix.variants)
    assert len({style["color"] for style in styles.values()}) == len(styles)
    assert len({style["marker"] for style in styles.values()}) == len(styles)
