"""The slices that a reader learns from, chosen over the whole study and drawn.

Drawn once the trials have ended, from the probabilities that they kept: only then is it known
which slices all variants find hard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from brainseg.data.preprocess import resize
from brainseg.data.slice_store import SliceStore
from brainseg.inference.overlay import (
    FLAIR,
    PREDICTED,
    TRUE,
    add_outlines,
    draw_flair,
    encode_picture,
)
from brainseg.metrics import dice
from brainseg.storage.files import read_csv, write_bytes, write_csv
from study.analysis.scores import Indices, SliceScores, read_slices
from study.spec.grid import Trial
from study.storage.probability_maps import LEVELS, load_probabilities
from study.storage.tables import Row, TrialFolder

EXAMPLE_COLUMNS = (
    *("kind", "place", "variant", "fold", "seed", "patient", "slice", "Dice", "picture"),
)
WORST_PATIENT, WORST_SLICE = "worst patient", "worst slice"
_NUM_WORST = 10
_MOST_OF_A_PATIENT = 2
_SIDE = 256
_STEP = 4  # of the 256 greys, one in so many is used
_BACKGROUND, _MARGIN = 20, 6


@dataclass(frozen=True)
class _Choice:
    """A slice to draw: why, in which place, and the entry of slices.csv that it is."""

    kind: str
    place: int
    entry: int


def draw_examples(study: Path, trials: Sequence[Trial], data: SliceStore) -> None:
    """Write examples.csv and the pictures in examples/.

    Per variant the best, the median and the worst slice with tumour; of all variants together the
    ten worst patients (each by the slice with most wrong pixels) and the ten worst slices.

    Args:
        study: The study's folder, its slices.csv written.
        trials: All of them; those without probabilities have no pictures.
        data: The dataset.
    """
    scores = read_slices(read_csv(study / "slices.csv"))
    folder = study / "examples"
    shutil.rmtree(folder, ignore_errors=True)  # of a smaller study, whose choice was another
    rows = [_describe(scores, choice) for choice in _choose(scores)] if scores.names else []
    drawn = dict(_draw_all(study, trials, data, rows))
    kept = [row for row in rows if row["picture"] in drawn]
    for name, picture in drawn.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(study / name, picture)
    write_csv(study / "examples.csv", kept, EXAMPLE_COLUMNS)


def _choose(scores: SliceScores) -> Iterator[_Choice]:
    first = scores.is_first
    for v in range(len(scores.variants)):
        entries = np.flatnonzero(first & (scores.variant == v) & scores.has_tumour)
        if len(entries):
            order = _worst_first(scores, entries)
            for kind, position in (("best", -1), ("median", len(order) // 2), ("worst", 0)):
                yield _Choice(kind, 1, int(order[position]))
    for kind, names in (
        (WORST_PATIENT, _worst_patients(scores)),
        (WORST_SLICE, _worst_slices(scores)),
    ):
        for place, name in enumerate(names, start=1):
            for entry in np.flatnonzero(first & (scores.name == name)):
                yield _Choice(kind, place, int(entry))


def _worst_first(scores: SliceScores, entries: Indices) -> Indices:
    """Order entries by Dice, of equal ones the one with more wrong pixels first."""
    counts = scores.counts[entries]
    return entries[np.lexsort((-counts[:, 1:3].sum(axis=1), dice(counts)))]


def _worst_patients(scores: SliceScores) -> list[int]:
    """Per patient, lowest mean Dice first, the slice with most wrong pixels."""
    everything = np.ones(len(scores.name), bool)
    by_patient = np.nanmean(scores.dice_by_patient(everything), axis=(0, 1))
    wrong = np.bincount(scores.name, scores.counts[:, 1:3].sum(axis=1))
    patient_of = np.zeros(len(scores.names), np.int64)
    patient_of[scores.name] = scores.patient
    worst = []
    for patient in np.argsort(by_patient, kind="stable")[:_NUM_WORST]:
        names = np.flatnonzero(patient_of == patient)
        worst.append(int(names[np.argmax(wrong[names])]))
    return worst


def _worst_slices(scores: SliceScores) -> list[int]:
    """The slices of the lowest mean Dice, of one patient at most two."""
    times = np.bincount(scores.name)
    means = np.bincount(scores.name, dice(scores.counts)) / times
    wrong = np.bincount(scores.name, scores.counts[:, 1:3].sum(axis=1)) / times
    patient_of = dict(zip(scores.name.tolist(), scores.patient.tolist(), strict=True))
    worst: list[int] = []
    for name in np.lexsort((-wrong, means.round(12))).tolist():
        same = sum(patient_of[other] == patient_of[name] for other in worst)
        if same < _MOST_OF_A_PATIENT:
            worst.append(name)
        if len(worst) == _NUM_WORST:
            break
    return worst


def _describe(scores: SliceScores, choice: _Choice) -> Row:
    entry = choice.entry
    variant, name = scores.variants[scores.variant[entry]], scores.names[scores.name[entry]]
    return {
        "kind": choice.kind,
        "place": choice.place,
        "variant": variant,
        "fold": int(scores.fold[entry]),
        "seed": scores.seeds[scores.seed[entry]],
        "patient": scores.patients[scores.patient[entry]],
        "slice": name,
        "Dice": f"{float(dice(scores.counts[entry])):.6f}",
        "picture": f"examples/{variant}/{name}.png",
    }


def _draw_all(
    study: Path, trials: Sequence[Trial], data: SliceStore, rows: Sequence[Row]
) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the PNG of each picture, trial by trial."""
    number_of = {item.name: number for number, item in enumerate(data.slices)}
    for trial in trials:
        path = TrialFolder(study / "trials" / trial.name).probabilities
        cell = (trial.variant, trial.fold, trial.seed)
        wanted = {r["slice"]: r for r in rows if (r["variant"], r["fold"], r["seed"]) == cell}
        if not wanted or not path.exists():
            continue
        maps = load_probabilities(path, "test")
        threshold = trial.experiment.threshold * LEVELS
        for position, name in enumerate(maps.slices):
            if name in wanted:
                predicted = np.asarray(maps.levels[position] >= threshold)
                image = data.image(number_of[name])
                yield wanted[name]["picture"], _paint(image, maps.true[position], predicted)


def _paint(
    image: NDArray[np.uint8], true: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> bytes:
    """Return a PNG of the head in FLAIR with both outlines, in few greys for few bytes."""
    left, top, side = _find_head(image[:, :, FLAIR])
    window = np.s_[top : top + side, left : left + side]
    masks = [_enlarge(mask, image.shape[0])[window] for mask in (true, predicted)]
    head = resize(draw_flair(image[window]), _SIDE) // _STEP * _STEP
    return encode_picture(add_outlines(head, (masks[0], TRUE), (masks[1], PREDICTED)))


def _enlarge(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    large = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    return np.asarray(large, np.bool_)


def _find_head(flair: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return left, top and side of a square around what is not background; all, if nothing is."""
    size = flair.shape[0]
    left, top, width, height = cv2.boundingRect((flair > _BACKGROUND).astype(np.uint8))
    side = min(max(width, height) + 2 * _MARGIN, size)
    if width == 0:
        return 0, 0, size
    centre = (left + width // 2, top + height // 2)
    x, y = (min(max(c - side // 2, 0), size - side) for c in centre)
    return x, y, side
