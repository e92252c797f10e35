from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from brainseg.config import Experiment
from brainseg.data.slice_store import Slice, SliceStore
from brainseg.errors import CheckpointError
from brainseg.inference.evaluation import (
    LARGEST,
    NUM_BINS,
    PLAIN,
    THRESHOLD,
    Evaluation,
    Mask,
    PartEvaluation,
    calibration_rows,
    evaluate_model,
    hausdorff_95,
    keep_largest,
    patient_rows,
)
from brainseg.inference.predictor import Predictor
from brainseg.metrics import count_pixels, dice, sum_by_patient
from brainseg.model.device import Compute
from brainseg.training.trainer import train_two_stage


@pytest.fixture(scope="module")
def predictor(data: SliceStore, tiny: Experiment) -> Predictor:
    short = tiny.replaced({"stages.1.epochs": 1})
    return Predictor.of(train_two_stage(short, data, compute=Compute("cpu")), Compute("cpu"))


@pytest.fixture(scope="module")
def evaluation(predictor: Predictor, data: SliceStore) -> Evaluation:
    return evaluate_model(predictor, data)


def _mask(*rows: str) -> Mask:
    return np.array([[cell == "#" for cell in row] for row in rows])


def _with_masks(data: SliceStore, indices: np.ndarray, masks: np.ndarray) -> SliceStore:  # type: ignore[type-arg]
    """The same store with other masks on some slices."""
    pixels = np.array(data.pixels)
    pixels[indices, :, :, 3] = masks
    other = dataclasses.replace(data)
    other.__dict__["flat"] = pixels.ravel()
    return other


def test_hd95_of_two_pixels_is_their_distance() -> None:
    left, right = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    left[1, 1] = right[4, 5] = True
    assert hausdorff_95(left, right) == 5
    assert hausdorff_95(left, left) == 0


def test_hd95_is_not_defined_where_a_mask_is_empty() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for pair in ((empty, full), (full, empty), (empty, empty)):
        assert math.isnan(hausdorff_95(*pair))


def test_hd95_agrees_with_all_distances_between_boundary_pixels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        masks = generator.random((2, 24, 24)) > generator.uniform(0.3, 0.9)
        edges = []
        for mask in masks:
            padded = np.pad(mask, 1)
            around = [padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
            edges.append(np.argwhere(mask & ~np.logical_and.reduce(around)))
        distances = cdist(*edges)
        both = [np.percentile(distances.min(axis=axis), 95) for axis in (0, 1)]
        assert hausdorff_95(*masks) == pytest.approx(max(both))


def test_the_largest_component_is_kept_with_its_corners() -> None:
    mask = _mask("##...", "..#..", ".....", "#...#", "#...#")
    assert np.array_equal(keep_largest(mask), _mask("##...", "..#..", ".....", ".....", "....."))
    one = _mask(".#", "..")
    assert np.array_equal(keep_largest(one), one)
    assert not keep_largest(np.zeros((3, 3), bool)).any()


def test_plain_counts_are_those_of_prediction_at_the_slices_own_size(
    evaluation: Evaluation, predictor: Predictor, data: SliceStore
) -> None:
    for name, part in (("val", evaluation.val), ("test", evaluation.test)):
        indices = predictor.part_indices(data, name)
        masks = predictor.masks([data.image(index) for index in indices])
        true = np.stack([data.mask(index) for index in indices])
        assert np.array_equal(part.counts[PLAIN], count_pixels(np.stack(masks), true > 0))
        assert part.patients == [data.slices[index].patient for index in indices]


def test_evaluating_again_gives_the_same_rows(
    evaluation: Evaluation, predictor: Predictor, data: SliceStore
) -> None:
    assert evaluate_model(predictor, data).tables(data) == evaluation.tables(data)


def test_flipped_views_are_those_of_flipped_slices(predictor: Predictor, data: SliceStore) -> None:
    indices = predictor.part_indices(data, "val")[:4]
    logits = np.stack(list(predictor.flipped_logits(data, indices)), axis=1)
    for view, axes in enumerate(((), (0,), (1,), (0, 1))):
        images = [np.flip(data.image(index), axes).copy() for index in indices]
        expected = np.stack([np.flip(m, axes) for m in predictor.probabilities(images)])
        # The slice itself is computed alone, its flips as a batch, which rounds differently.
        found = torch.sigmoid(torch.from_numpy(logits[view])).numpy()
        assert found == pytest.approx(expected, abs=1e-4 if axes else 0, rel=0)


def test_validation_alone_chooses_the_threshold(
    evaluation: Evaluation, predictor: Predictor, data: SliceStore
) -> None:
    test = predictor.part_indices(data, "test")
    without = evaluate_model(predictor, _with_masks(data, test, np.zeros((len(test), 32, 32))))
    assert without.threshold == evaluation.threshold
    assert not np.array_equal(without.test.counts[PLAIN], evaluation.test.counts[PLAIN])
    # Where all of validation is what the lowest threshold finds, the lowest is chosen.
    val = predictor.part_indices(data, "val")
    low = np.stack([m >= 0.05 for m in predictor.probabilities([data.image(n) for n in val])])
    assert evaluate_model(predictor, _with_masks(data, val, low)).threshold == 0.05


def test_every_post_processing_has_counts_of_every_patient(
    evaluation: Evaluation, data: SliceStore
) -> None:
    rows = evaluation.tables(data)["stages"]
    patients = len(set(evaluation.val.patients)) + len(set(evaluation.test.patients))
    assert len(rows) == 4 * patients
    settings = {row["setting"] for row in rows if row["stage"] == THRESHOLD}
    assert settings == {f"{evaluation.threshold:.2f}"}
    filtered = evaluation.test.counts[LARGEST][:, :2].sum(axis=1)
    assert (filtered <= evaluation.test.counts[PLAIN][:, :2].sum(axis=1)).all()


def test_calibration_counts_every_test_pixel_once(evaluation: Evaluation) -> None:
    rows = calibration_rows(evaluation)
    assert len(rows) == NUM_BINS
    assert sum(row["pixels"] for row in rows) == sum(t.size for t in evaluation.test.true)
    assert sum(row["tumour_pixels"] for row in rows) == sum(t.sum() for t in evaluation.test.true)
    for row in rows:
        low, high = (float(row[edge]) * row["pixels"] for edge in ("from", "to"))
        assert low - 1e-3 <= float(row["probability_sum"]) <= high + 1e-3


def test_slice_rows_describe_the_slices(evaluation: Evaluation, data: SliceStore) -> None:
    rows = evaluation.tables(data)["slices"]
    by_name = {item.name: item for item in data.slices}
    for row in rows:
        assert row["tumour_pixels"] == by_name[row["slice"]].tumour_pixels
        assert row["TP"] + row["FN"] == row["tumour_pixels"]
        assert (row["hd95"] == "") == (row["TP"] + row["FN"] == 0 or row["TP"] + row["FP"] == 0)


def test_a_patients_hd95_is_the_mean_of_the_slices_that_have_one() -> None:
    slices = tuple(Slice(f"{p}_{n}", p, 1) for p, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1)))
    counts = np.array([[1, 0, 1, 2], [0, 0, 2, 2], [2, 2, 0, 0], [0, 0, 0, 4]])
    maps = list(np.zeros((4, 2, 2), np.uint8))
    hd95 = np.array([2.0, np.nan, 4.0, np.nan])
    part = PartEvaluation(
        slices, {PLAIN: counts}, {}, maps, [m > 0 for m in maps], hd95, np.zeros((20, 3))
    )
    rows = patient_rows(part)
    assert [(row["patient"], row["hd95"]) for row in rows] == [("a", 3.0), ("b", "")]
    assert rows[0]["Dice"] == float(dice(sum_by_patient(counts, ["a", "a", "a", "b"])["a"]))
    assert rows[1]["Dice"] == 1  # nothing there, nothing predicted


def test_other_data_cannot_be_evaluated(predictor: Predictor, data: SliceStore) -> None:
    with pytest.raises(CheckpointError, match="was trained on data"):
        evaluate_model(predictor, dataclasses.replace(data, fingerprint="0" * 64))
