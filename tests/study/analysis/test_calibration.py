from __future__ import annotations

import numpy as np
import pytest

from study.analysis.calibration import calibrate


def _rows(variant: str, bins: list[tuple[str, int, float, int]]) -> list[dict[str, str]]:
    names = ("from", "pixels", "probability_sum", "tumour_pixels")
    return [
        {"variant": variant, **dict(zip(names, map(str, values), strict=True))} for values in bins
    ]


def test_the_calibration_error_by_hand() -> None:
    rows = _rows("a", [("0.00", 80, 0.8, 0), ("0.05", 10, 0.7, 2), ("0.95", 10, 9.7, 7)])
    (one,) = calibrate(rows)
    assert one.error == pytest.approx((0.8 + 1.3 + 2.7) / 100)
    assert one.error_unsure == pytest.approx((1.3 + 2.7) / 20)
    assert one.observed.tolist() == pytest.approx([0, 0.2, 0.7])
    (both,) = calibrate(rows * 2)  # two trials with the same bins
    assert both.error == pytest.approx(one.error)
    assert both.pixels.tolist() == [160, 20, 20]


def test_variants_keep_their_order_and_an_empty_bin_has_no_probability() -> None:
    second, first = calibrate(
        _rows("b", [("0.50", 0, 0.0, 0), ("0.00", 10, 0.0, 0)])
        + _rows("a", [("0.00", 10, 1.0, 1)])
    )
    assert (second.variant, first.variant) == ("b", "a")
    assert second.pixels.tolist() == [10, 0]
    assert np.isnan([second.predicted[1], second.observed[1], second.error_unsure]).all()
    assert first.error == 0


def test_no_rows_have_no_calibration() -> None:
    assert calibrate([]) == []
