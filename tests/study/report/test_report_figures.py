"""Figures are written as PNG and SVG, with the labels of the results, and always the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matrices import matrix_of
from PIL import Image

from study.analysis.comparison import compare
from study.report.figures import FigureWriter, shown_pairs
from study.report.results import StudyResults, read_results

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


def _with_variants(results: StudyResults, number: int) -> StudyResults:
    """Return results with variants of invented scores, the first the best."""
    matrix = results.matrix
    dice = np.repeat(matrix.dice[:1], number, axis=0)
    dice = dice - np.linspace(0, 0.2, number)[:, None, None]
    counts = np.repeat(matrix.counts[:1], number, axis=0)
    names = tuple(f"v{n}" for n in range(number))
    return replace(
        results, matrix=replace(matrix, variants=names, dice=dice, counts=counts, measures={})
    )


def test_up_to_twelve_variants_differ_in_colour_or_marker(small: Path) -> None:
    styles = FigureWriter(_with_variants(read_results(small), 12))._styles
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == 12


def test_of_many_variants_the_best_have_colours_and_the_legend_fits(small: Path) -> None:
    results = _with_variants(read_results(small), 13)
    writer = FigureWriter(results)
    coloured = [name for name in writer._styles if name not in writer._grey]
    assert coloured == results.variants[:7]
    assert len(writer._grey) == 6
    labels = [writer._label(name, list(writer._styles)) for name in writer._styles]
    assert [label for label in labels if label] == [*coloured, "6 other variants, grey"]
    few, many = (
        Image.open(small / FigureWriter(of).patients()).height
        for of in (_with_variants(results, 2), results)
    )
    assert many > few


def test_a_patients_name_is_no_formula(small: Path) -> None:
    results = _with_variants(read_results(small), 2)
    patients = ("P_$x_$", *results.matrix.patients[1:])
    FigureWriter(replace(results, matrix=replace(results.matrix, patients=patients))).patients()
    assert "P_$x_$" in (small / "figures" / "patients.svg").read_text()
