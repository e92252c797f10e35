"""Example slices: which are chosen, and what their pictures show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.data.store_builder import Slice
from brainseg.inference.evaluation import (
    FLIPS,
    LARGEST,
    LARGEST_3D,
    PLAIN,
    Evaluation,
    evaluate_masks,
)
from brainseg.inference.overlay import PREDICTED, TRUE
from brainseg.metrics import Counts
from brainseg.storage.files import read_csv, write_text
from study.report.examples import draw_examples
from study.spec.grid import load_grid
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.probability_maps import save_probabilities
from study.storage.tables import collect
from study.storage.trial_folder import TrialFolder

SIZE = 32
JOBS = StudySpec(
    grid="lite", variants=load_grid("lite").variants, experiment=Experiment(), seeds=2
).jobs()


def _evaluation(data: SliceStore, missed: Slice | None) -> Evaluation:
    """Return the evaluation of a network that finds every tumour but that of one slice."""
    indices = split_by_patient(data.slices, 0, 44).indices(data.slices, "test")
    slices = tuple(data.slices[index] for index in indices)
    true = np.stack([data.mask(index) > 0 for index in indices])
    found = true & np.array([item != missed for item in slices])[:, None, None]
    tp, fn = found.sum((1, 2)), (true & ~found).sum((1, 2))
    counts: Counts = np.stack([tp, 0 * tp, fn, true[0].size - tp - fn], axis=1)
    levels = np.where(found, 255, 0).astype(np.uint8)
    stages = dict.fromkeys((PLAIN, FLIPS, LARGEST, LARGEST_3D), counts)
    part = evaluate_masks(data, indices.tolist(), list(found))
    part = replace(part, counts=stages, by_threshold={0.5: counts}, levels=list(levels))
    return Evaluation(part, part, 0.5)


def _missed(data: SliceStore) -> Slice:
    tested = split_by_patient(data.slices, 0, 44).test
    return max((s for s in data.slices if s.patient in tested), key=lambda s: s.tumour_pixels)


def _finish(study: Path, job: TrialJob, data: SliceStore, missed: Slice | None) -> None:
    folder = TrialFolder(study / job.path)
    folder.path.mkdir(parents=True)
    evaluation = _evaluation(data, missed)
    save_probabilities(folder.probabilities, evaluation)
    write_text(folder.model, job.name)
    folder.write_success(job, {"val_loss": 0.1}, evaluation.tables(data))


@pytest.fixture
def study(tmp_path: Path, data: SliceStore) -> Path:
    """A study whose raw variant misses a slice; a trial of the preprocessed one never ended."""
    return _run(tmp_path, data)


def _run(study: Path, data: SliceStore) -> Path:
    for position, missed in ((0, _missed(data)), (2, _missed(data)), (3, None)):
        _finish(study, JOBS[position], data, missed)
    collect(study, JOBS)
    draw_examples(study, JOBS, data)
    return study


def _numbered(data: SliceStore) -> SliceStore:
    """Return the dataset with the slices of each patient called 1, 2, 3 and so on."""
    seen: Counter[str] = Counter()
    slices = []
    for item in data.slices:
        seen[item.patient] += 1
        slices.append(replace(item, name=str(seen[item.patient])))
    return replace(data, slices=tuple(slices))


def _rows(study: Path, kind: str) -> list[dict[str, str]]:
    return [row for row in read_csv(study / "examples.csv") if row["kind"] == kind]


def _has(picture: Path, colour: tuple[int, int, int]) -> bool:
    pixels = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    assert pixels.shape == (256, 256, 3)
    return bool((pixels == colour).all(axis=2).any())


def test_a_missed_slice_is_the_worst_and_has_no_predicted_outline(
    study: Path, data: SliceStore
) -> None:
    for kind in ("worst slice", "worst patient"):
        first = [row for row in _rows(study, kind) if row["place"] == "1"]
        assert {row["slice"] for row in first} == {_missed(data).name}
        assert [row["variant"] for row in first] == ["raw-lite0", "preprocessed-lite0"]
        assert float(first[0]["Dice"]) == 0
        assert _has(study / first[0]["picture"], TRUE)
        assert not _has(study / first[0]["picture"], PREDICTED)
        assert _has(study / first[1]["picture"], PREDICTED)


def test_each_variant_has_its_best_median_and_worst_slice(study: Path, data: SliceStore) -> None:
    for kind, dice in (("best", 1), ("median", 1), ("worst", 0)):
        rows = {row["variant"]: row for row in _rows(study, kind)}
        assert set(rows) == {"raw-lite0", "preprocessed-lite0"}
        assert float(rows["raw-lite0"]["Dice"]) == dice
        assert rows["raw-lite0"]["seed"] == "44"
        assert rows["preprocessed-lite0"]["seed"] == "45"  # the first that ended


def test_leaky_variants_choose_no_worst_patient_or_slice(tmp_path: Path, data: SliceStore) -> None:
    variants = {"raw": {}, "LEAKY-raw": {"data.split": "slice"}}
    jobs = StudySpec(grid="leak", variants=variants, experiment=Experiment()).jobs()
    for job, missed in zip(jobs, (None, _missed(data)), strict=True):
        _finish(tmp_path, job, data, missed)
    collect(tmp_path, jobs)
    draw_examples(tmp_path, jobs, data)
    for kind in ("worst slice", "worst patient"):
        rows = _rows(tmp_path, kind)
        assert [row["place"] for row in rows] == [str(n + 1) for n in range(len(rows))]
        assert {row["variant"] for row in rows} == {"raw"}
    assert {row["variant"] for row in _rows(tmp_path, "worst")} == set(variants)


def test_at_most_two_of_the_worst_slices_are_of_one_patient(study: Path) -> None:
    rows = [row for row in _rows(study, "worst slice") if row["variant"] == "raw-lite0"]
    patients = [row["patient"] for row in rows]
    assert max(patients.count(patient) for patient in patients) == 2


def test_drawing_again_removes_old_pictures_and_changes_no_others(
    study: Path, data: SliceStore
) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in study.glob("examples*/**/*.png")}

    before = state()
    (study / "examples" / "raw-lite0" / "old.png").write_bytes(b"")
    draw_examples(study, JOBS, data)
    assert state() == before


def test_a_study_without_slices_has_no_pictures(tmp_path: Path, data: SliceStore) -> None:
    collect(tmp_path, JOBS)
    draw_examples(tmp_path, JOBS, data)
    assert not (tmp_path / "examples").exists()
    assert _rows(tmp_path, "best") == []


def test_patients_whose_slices_have_the_same_names_keep_their_own_pictures(
    study: Path, data: SliceStore, tmp_path: Path
) -> None:
    numbered = _numbered(data)
    name_of = {
        item.name: (other.patient, other.name)
        for item, other in zip(data.slices, numbered.slices, strict=True)
    }
    other = _run(tmp_path / "numbered", numbered)
    rows, others = (read_csv(folder / "examples.csv") for folder in (study, other))
    assert len(rows) == len(others)
    for row, own in zip(rows, others, strict=True):
        assert all(own[key] == row[key] for key in ("kind", "place", "variant"))
        assert (own["patient"], own["slice"]) == name_of[row["slice"]]
        assert (other / own["picture"]).read_bytes() == (study / row["picture"]).read_bytes()
