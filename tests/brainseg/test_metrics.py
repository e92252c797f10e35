from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from brainseg import metrics
from brainseg.metrics import count_pixels, dice, sum_by_patient, summarise
from brainseg.model.encoders import smp


def _counts(*rows: tuple[int, int, int, int]) -> metrics.Counts:
    return np.array(rows, dtype=np.int64)


def test_pixels_are_counted_by_hand() -> None:
    predicted = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    true = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 1]]])
    assert count_pixels(predicted, true).tolist() == [[1, 1, 1, 1], [0, 0, 1, 3]]


def test_scores_by_hand() -> None:
    counts = _counts((6, 2, 4, 88))
    assert dice(counts) == pytest.approx(12 / 18)
    assert metrics.iou(counts) == pytest.approx(6 / 12)
    assert metrics.accuracy(counts) == pytest.approx(94 / 100)
    assert metrics.precision(counts) == pytest.approx(6 / 8)
    assert metrics.recall(counts) == pytest.approx(6 / 10)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0, 0, 0, 9), (1, 1, 1, 1)),  # nothing there, nothing predicted
        ((0, 3, 0, 6), (0, 0, 0, 0)),  # nothing there, something predicted
        ((0, 0, 3, 6), (0, 0, 0, 0)),  # something there, nothing predicted
        ((9, 0, 0, 0), (1, 1, 1, 1)),
    ],
)
def test_the_empty_mask_rule(row: tuple[int, int, int, int], expected: tuple[float, ...]) -> None:
    scores = (dice, metrics.iou, metrics.precision, metrics.recall)
    assert tuple(float(score(np.array(row))) for score in scores) == expected


def test_scores_agree_with_smp_and_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand((5, 16, 16), generator=generator) > 0.6
    true = torch.rand((5, 16, 16), generator=generator) > 0.7
    total = count_pixels(predicted, true).sum(dim=0).numpy()
    stats = smp.metrics.get_stats(predicted[:, None].long(), true[:, None].long(), mode="binary")
    flat_true, flat = true.flatten().numpy(), predicted.flatten().numpy()
    pairs = [
        (dice, smp.metrics.f1_score, f1_score),
        (metrics.iou, smp.metrics.iou_score, jaccard_score),
        (metrics.accuracy, smp.metrics.accuracy, accuracy_score),
        (metrics.precision, smp.metrics.precision, precision_score),
        (metrics.recall, smp.metrics.recall, recall_score),
    ]
    for ours, theirs, sklearns in pairs:
        assert float(ours(total)) == pytest.approx(float(theirs(*stats, reduction="micro")))
        assert float(ours(total)) == pytest.approx(float(sklearns(flat_true, flat)))


def test_dice_follows_from_iou_and_is_symmetric() -> None:
    counts = np.random.default_rng(0).integers(1, 100, (50, 4))
    iou = metrics.iou(counts)
    assert dice(counts) == pytest.approx(2 * iou / (1 + iou))
    assert dice(counts) == pytest.approx(dice(counts[:, [0, 2, 1, 3]]))


def test_the_three_dice_definitions_by_hand() -> None:
    counts = _counts((8, 2, 0, 90), (0, 0, 0, 100), (1, 0, 9, 90), (0, 1, 0, 99))
    scores = summarise(counts, ["a", "a", "b", "b"])
    assert scores["dice_global"] == pytest.approx(18 / 30)
    assert scores["dice_patient"] == pytest.approx((16 / 18 + 2 / 12) / 2)
    assert scores["dice_slice"] == pytest.approx((16 / 18 + 2 / 11) / 2)


def test_dice_slice_without_any_tumour() -> None:
    assert summarise(_counts((0, 0, 0, 9)), ["a"])["dice_slice"] == 1
    assert summarise(_counts((0, 1, 0, 8)), ["a"])["dice_slice"] == 0


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        ((0, 0, 0, 100), (16 / 20, (0.8 + 1) / 2, 0.8)),  # neither true nor predicted: 1
        ((0, 5, 0, 95), (16 / 25, (0.8 + 0) / 2, 0.8)),  # predicted where nothing is: 0
        ((0, 0, 5, 95), (16 / 25, (0.8 + 0) / 2, (0.8 + 0) / 2)),  # missed as a whole: 0
    ],
)
def test_an_empty_mask_under_each_dice_by_hand(
    empty: tuple[int, int, int, int], expected: tuple[float, float, float]
) -> None:
    """Patient a has one slice with Dice 0.8; all of patient b is the slice with an empty mask."""
    scores = summarise(_counts((8, 2, 2, 88), empty), ["a", "b"])
    found = tuple(scores[f"dice_{kind}"] for kind in ("global", "patient", "slice"))
    assert found == pytest.approx(expected)


def test_patients_are_summed_in_alphabetical_order() -> None:
    counts = _counts((1, 0, 0, 0), (2, 0, 0, 0), (4, 0, 0, 0))
    sums = sum_by_patient(counts, ["b", "a", "b"])
    assert [(name, int(row[0])) for name, row in sums.items()] == [("a", 2), ("b", 5)]
