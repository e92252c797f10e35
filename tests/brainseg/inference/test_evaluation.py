from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.data.store_builder import Slice
from brainseg.errors import CheckpointError
from brainseg.inference.evaluation import (
    FLIPS,
    LARGEST,
    LARGEST_3D,
    NUM_BINS,
    PLAIN,
    THRESHOLD,
    Evaluation,
    PartEvaluation,
    calibration_rows,
    evaluate_masks,
    evaluate_model,
    outline_cells_of_patient,
    patient_rows,
    slice_rows,
)
from brainseg.inference.mask_metrics import LesionCounts, Mask, OutlineScores
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


def test_slices_are_tested_as_predicted_alone_and_averaged_over_flips(
    predictor: Predictor, data: SliceStore
) -> None:
    indices = predictor.part_indices(data, "val")[:4]
    images = [data.image(index) for index in indices]
    logits = np.stack(list(predictor.part_logits(data, indices)), axis=1)
    for averaged, maps in zip((False, True), logits, strict=True):
        expected = [p.probabilities for p in predictor.predict(images, tta=averaged)]
        assert np.array_equal(torch.sigmoid(torch.from_numpy(maps)).numpy(), np.stack(expected))


def _with(predictor: Predictor, changes: dict[str, Any]) -> Predictor:
    """The same network in an experiment with other keys."""
    weights = {name: tensor.clone() for name, tensor in predictor.network.state_dict().items()}
    experiment = predictor.experiment.replaced(changes)
    return Predictor(weights, predictor.header.model_copy(update={"experiment": experiment}))


def test_an_experiment_with_flips_is_tested_and_predicts_with_them(
    evaluation: Evaluation, predictor: Predictor, data: SliceStore
) -> None:
    flipping = _with(predictor, {"flips": True})
    flipped = evaluate_model(flipping, data)
    assert np.array_equal(flipped.test.plain, evaluation.test.counts[FLIPS])
    assert flipped.test.counts.keys() == {PLAIN, LARGEST, LARGEST_3D}
    image = [data.image(0)]
    for averaged in (False, True):
        expected = predictor.predict(image, tta=averaged)[0].probabilities
        assert np.array_equal(flipping.predict(image, tta=averaged)[0].probabilities, expected)
    assert np.array_equal(flipping.predict(image)[0].probabilities, expected)


@pytest.mark.parametrize(("place", "stage"), [("slice", LARGEST), ("volume", LARGEST_3D)])
def test_an_experiment_that_keeps_one_component_is_tested_and_predicts_so(
    evaluation: Evaluation, predictor: Predictor, data: SliceStore, place: str, stage: str
) -> None:
    keeping = _with(predictor, {"largest_component": place})
    kept = evaluate_model(keeping, data)
    assert np.array_equal(kept.test.plain, evaluation.test.counts[stage])
    assert not np.array_equal(kept.test.plain, evaluation.test.plain)
    assert kept.test.counts.keys() == {PLAIN, FLIPS, LARGEST, LARGEST_3D} - {stage}
    rows = {row["stage"] for row in kept.tables(data)["stages"]}
    assert rows == {*kept.test.counts, THRESHOLD}
    indices = keeping.part_indices(data, "test")
    patients = [data.slices[index].patient for index in indices]
    masks = keeping.masks([data.image(index) for index in indices], patients)
    true = np.stack([data.mask(index) for index in indices]) > 0
    assert np.array_equal(kept.test.plain, count_pixels(np.stack(masks), true))


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
    assert len(rows) == 5 * patients
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
        is_empty = [row["TP"] + row["FN"] == 0, row["TP"] + row["FP"] == 0]
        assert (row["hd95"] == "") == any(is_empty)
        assert (row["hd95_worst"] == "") == (row["nsd"] == "") == all(is_empty)
        if any(is_empty) and not all(is_empty):
            assert (row["hd95_worst"], float(row["nsd"])) == (f"{32 * 2**0.5:.3f}", 0)


def test_the_largest_component_is_that_of_each_scan(
    predictor: Predictor, data: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scans of a patient: the smaller tumour of the second one is not dropped."""
    indices = [n for n, item in enumerate(data.slices) if item.patient == data.patients[0]]
    split = len(indices) // 2
    slices = list(data.slices)
    for position, index in enumerate(indices):
        slices[index] = dataclasses.replace(slices[index], scan=str(position >= split))
    two = dataclasses.replace(data, slices=tuple(slices))
    logits = np.full((len(indices), 2, *data.shapes[0]), -9, np.float32)
    logits[0, :, 2:9, 2:9] = 9
    logits[-1, :, 2:5, 2:5] = 9
    monkeypatch.setattr(Predictor, "part_indices", lambda *_: np.array(indices))
    monkeypatch.setattr(Predictor, "part_logits", lambda *_: iter(logits))
    for dataset, areas in ((two, [49, 9]), (data, [49, 0])):
        counts = evaluate_model(predictor, dataset).test.counts[LARGEST_3D]
        assert [int(counts[n, :2].sum()) for n in (0, -1)] == areas


def test_a_patients_distances_are_means_and_its_surface_is_counted() -> None:
    slices = tuple(Slice(f"{p}_{n}", p, 1) for p, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1)))
    counts = np.array([[1, 0, 1, 2], [0, 0, 2, 2], [2, 2, 0, 0], [0, 0, 0, 4]])
    maps = list(np.zeros((4, 2, 2), np.uint8))
    outlines = [
        OutlineScores(2.0, 2.0, 4, 2),
        OutlineScores(math.nan, 9.0, 2, 0),
        OutlineScores(4.0, 4.0, 4, 4),
        OutlineScores(math.nan, math.nan, 0, 0),
    ]
    lesions = {"a": LesionCounts(1, 2, 3), "b": LesionCounts(0, 0, 0)}
    true = [m > 0 for m in maps]
    part = PartEvaluation(
        slices, {PLAIN: counts}, {}, maps, true, outlines, lesions, np.zeros((20, 3))
    )
    a, b = patient_rows(part)
    assert (float(a["hd95"]), float(a["hd95_worst"]), float(a["nsd"])) == (3.0, 5.0, 0.6)
    assert [a[f"lesions_{k}"] for k in ("found", "missed", "invented")] == [1, 2, 3]
    assert a["Dice"] == float(dice(sum_by_patient(counts, ["a", "a", "a", "b"])["a"]))
    # Nothing there, nothing predicted.
    assert (b["Dice"], b["hd95"], b["hd95_worst"], b["nsd"]) == (1, "", 0, 1)


def test_distances_are_in_millimetres_where_the_spacing_is_known(
    evaluation: Evaluation, data: SliceStore
) -> None:
    assert not any("_mm" in key for row in patient_rows(evaluation.test) for key in row)
    assert not any("_mm" in key for row in slice_rows(evaluation.test, data) for key in row)
    indices = [
        index for index, item in enumerate(data.slices) if item.patient in data.patients[:2]
    ]
    predicted = [np.roll(data.mask(index) > 0, 2, axis=0) for index in indices]
    from_headers = dataclasses.replace(data, spacings=((0.5, 0.5),) * len(data.slices))
    known = evaluate_masks(from_headers, indices, predicted)
    for row in (*patient_rows(known), *slice_rows(known, data)):
        assert bool(row["hd95"]) == bool(row["hd95_mm"])
        if row["hd95"]:
            assert float(row["hd95_mm"]) == pytest.approx(float(row["hd95"]) / 2, abs=6e-4)
    # What the experiment says goes before the headers.
    given = evaluate_masks(from_headers, indices, predicted, (2.0, 1.0))
    assert given.outlines == evaluate_masks(data, indices, predicted, (2.0, 1.0)).outlines
    assert given.outlines != known.outlines


def test_nothing_there_and_nothing_predicted_is_best_in_millimetres_too() -> None:
    nothing = OutlineScores(math.nan, math.nan, 0, 0)
    cells = outline_cells_of_patient([dataclasses.replace(nothing, in_mm=nothing)])
    assert (cells["hd95_mm"], cells["hd95_worst_mm"], cells["nsd_mm"]) == ("", 0, 1)


def test_other_data_cannot_be_evaluated(predictor: Predictor, data: SliceStore) -> None:
    with pytest.raises(CheckpointError, match="was trained on data"):
        evaluate_model(predictor, dataclasses.replace(data, fingerprint="0" * 64))
