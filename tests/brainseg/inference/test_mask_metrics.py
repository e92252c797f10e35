from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from brainseg.inference.mask_metrics import (
    TOLERANCE,
    TOLERANCE_MM,
    LesionCounts,
    Mask,
    compare_outlines,
    count_lesions,
    keep_components,
)


def _disc(row: int, column: int, radius: int, size: int = 32) -> Mask:
    rows, columns = np.ogrid[:size, :size]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def _pairs(count: int = 20) -> Iterator[tuple[Mask, Mask]]:
    """Noise, discs that meet, discs at the border, one pixel, and equal masks."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        a, b = generator.random((2, 24, 24)) > generator.uniform(0.3, 0.9)
        yield a, b
    yield _disc(10, 10, 6), _disc(12, 13, 5)
    yield _disc(0, 0, 6), _disc(31, 31, 5)
    yield _disc(10, 10, 0), _disc(10, 12, 0)
    yield _disc(10, 10, 6), _disc(10, 10, 6)


def _edges(mask: Mask) -> np.ndarray:  # type: ignore[type-arg]
    padded = np.pad(mask, 1)
    around = [padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
    return np.argwhere(mask & ~np.logical_and.reduce(around))


def test_outlines_agree_with_all_distances_between_boundary_pixels() -> None:
    for predicted, true in _pairs():
        distances = cdist(_edges(predicted), _edges(true))
        nearest = [distances.min(axis=1), distances.min(axis=0)]
        found = compare_outlines(predicted, true)
        assert found.hd95 == pytest.approx(max(np.percentile(d, 95) for d in nearest))
        assert found.hd95_worst == found.hd95
        assert found.surface == sum(map(len, nearest))
        assert found.surface_within == sum(int((d <= TOLERANCE).sum()) for d in nearest)


def test_outlines_agree_with_monai() -> None:
    monai = pytest.importorskip("monai.metrics")
    import torch

    for predicted, true in _pairs():
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, true)]
        found = compare_outlines(predicted, true)
        hd95 = monai.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        assert found.hd95 == pytest.approx(float(hd95), abs=1e-5)
        nsd = monai.compute_surface_dice(
            *pair, class_thresholds=[TOLERANCE], include_background=True
        )
        assert found.surface_within / found.surface == pytest.approx(float(nsd), abs=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.5), (0.43, 1.7), (2.5, 0.6)])
def test_outlines_in_millimetres_agree_with_monai(spacing: tuple[float, float]) -> None:
    monai = pytest.importorskip("monai.metrics")
    import torch

    for predicted, true in _pairs():
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, true)]
        found = compare_outlines(predicted, true, spacing).in_mm
        assert found is not None
        options = {"include_background": True, "spacing": list(spacing)}
        hd95 = monai.compute_hausdorff_distance(*pair, percentile=95, **options)
        assert found.hd95 == pytest.approx(float(hd95), abs=1e-5)
        nsd = monai.compute_surface_dice(*pair, class_thresholds=[TOLERANCE_MM], **options)
        assert found.surface_within / found.surface == pytest.approx(float(nsd), abs=1e-6)


def test_millimetres_stand_beside_pixels_and_may_differ_by_direction() -> None:
    one, other = _disc(10, 10, 0), _disc(13, 14, 0)
    found = compare_outlines(one, other, (0.5, 2.0))
    assert found.hd95 == 5
    assert found.in_mm is not None
    assert found.in_mm.hd95 == pytest.approx(math.hypot(3 * 0.5, 4 * 2.0))
    assert (found.surface_within, found.in_mm.surface_within) == (0, 0)
    near = compare_outlines(one, _disc(13, 10, 0), (0.5, 2.0))
    assert near.in_mm is not None
    assert (near.surface_within, near.in_mm.surface_within) == (0, 2)
    missed = compare_outlines(one, np.zeros_like(one), (0.5, 2.0)).in_mm
    assert missed is not None
    assert math.isnan(missed.hd95)
    assert missed.hd95_worst == pytest.approx(math.hypot(32 * 0.5, 32 * 2.0))
    assert compare_outlines(one, other).in_mm is None


def test_a_tumour_missed_or_invented_costs_the_diagonal() -> None:
    empty, disc = np.zeros((32, 32), bool), _disc(10, 10, 6)
    for pair in ((empty, disc), (disc, empty)):
        found = compare_outlines(*pair)
        assert math.isnan(found.hd95)
        assert found.hd95_worst == pytest.approx(32 * math.sqrt(2))
        assert found.surface > 0
        assert found.surface_within == 0
    nothing = compare_outlines(empty, empty)
    assert math.isnan(nothing.hd95_worst)
    assert nothing.surface == 0


def _volume(*slices: str) -> list[Mask]:
    return [np.array([[cell == "#" for cell in row] for row in s.split()]) for s in slices]


def test_lesions_are_components_of_the_volume() -> None:
    true = _volume("#.... ..... ....#", ".#... ..... .....", "..... ..... #....")
    # The first two slices hold one lesion, joined at a corner; beside it one in each.
    predicted = _volume("..... ..... .....", ".#... ...#. .....", "..... ..... #....")
    assert count_lesions(predicted, true) == LesionCounts(found=2, missed=1, invented=1)
    assert count_lesions(true, true) == LesionCounts(3, 0, 0)
    nothing = [np.zeros_like(mask) for mask in true]
    assert count_lesions(nothing, true) == LesionCounts(0, 3, 0)
    assert count_lesions(true, nothing) == LesionCounts(0, 0, 3)


def test_the_largest_component_of_a_volume_is_kept() -> None:
    masks = _volume("#... ....", ".#.. ....", "...# ...#", "...#")
    kept = keep_components(masks, ["p"] * 4, "volume")
    for found, expected in zip(
        kept, _volume(".... ....", ".... ....", "...# ...#", "...#"), strict=True
    ):
        assert np.array_equal(found, expected)
    equal = _volume("#... ....", ".#.. ....", "...# ...#")
    first = _volume("#... ....", ".#.. ....", ".... ....")
    assert all(map(np.array_equal, keep_components(equal, ["p"] * 3, "volume"), first))
    assert all(map(np.array_equal, keep_components(masks, ["p"] * 4, "none"), masks))


def test_the_largest_component_of_each_slice_and_of_each_patient_is_kept() -> None:
    (mask,) = _volume("##... ..#.. ..... #...# #...#")
    (top,) = _volume("##... ..#.. ..... ..... .....")
    one, nothing = _volume(".# ..", ".. ..")
    kept = keep_components([mask, one, nothing], ["p", "p", "q"], "slice")
    assert all(map(np.array_equal, kept, [top, one, nothing]))
    kept = keep_components([one, mask], ["p", "q"], "volume")  # p's pixel is q's no more
    assert all(map(np.array_equal, kept, [one, top]))
