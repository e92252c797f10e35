"""The slices that a reader learns from, chosen over the whole study and drawn.

Drawn once the trials have ended, from the probabilities that they kept: only then is it known
which slices all variants find hard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
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
from brainseg.storage.files import read_csv, write_bytes, write_csv
from study.analysis.scores import dice_by_patient, read_slices
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


def draw_examples(study: Path, trials: Sequence[Trial], data: SliceStore) -> None:
    """Write examples.csv and the pictures in examples/.

    Per variant the best, the median and the worst slice with tumour; of all variants together the
    ten worst patients (each by the slice with most wrong pixels) and the ten worst slices.

    Args:
        study: The study's folder, its slices.csv written.
        trials: All of them; those without probabilities have no pictures.
        data: The dataset.
    """
    slices = read_slices(read_csv(study / "slices.csv"))
    folder = study / "examples"
    shutil.rmtree(folder, ignore_errors=True)  # of a smaller study, whose choice was another
    rows = _choose(slices)
    drawn = dict(_draw_all(study, trials, data, rows))
    kept = [row for row in rows if row["picture"] in drawn]
    for name, picture in drawn.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(study / name, picture)
    write_csv(study / "examples.csv", kept, EXAMPLE_COLUMNS)


def _choose(slices: pd.DataFrame) -> list[Row]:
    """Return the rows of examples.csv; each variant's picture shows its lowest seed."""
    slices = slices.assign(wrong=slices["FP"] + slices["FN"])
    first = slices.sort_values("seed", kind="stable").drop_duplicates(["variant", "slice"])
    first = first.sort_index()
    rows: list[Row] = []
    for _, own in first[first["TP"] + first["FN"] > 0].groupby("variant", observed=True):
        order = _worst_first(own)
        for kind, position in (("best", -1), ("median", len(order) // 2), ("worst", 0)):
            rows.append(_describe(kind, 1, order.iloc[position]))
    for kind, names in (
        (WORST_PATIENT, _worst_patients(slices)),
        (WORST_SLICE, _worst_slices(slices)),
    ):
        for place, name in enumerate(names, start=1):
            shown = first[first["slice"] == name]
            rows += [_describe(kind, place, shown.iloc[n]) for n in range(len(shown))]
    return rows


def _worst_first(slices: pd.DataFrame) -> pd.DataFrame:
    """Sort by Dice, of equal ones the one with more wrong pixels first."""
    return slices.sort_values(["Dice", "wrong"], ascending=[True, False], kind="stable")


def _worst_patients(slices: pd.DataFrame) -> list[str]:
    """Per patient, lowest mean Dice first, the slice with most wrong pixels."""
    if slices.empty:
        return []
    means = np.nanmean(dice_by_patient(slices), axis=(0, 1))
    worst = slices["patient"].cat.categories[np.argsort(means, kind="stable")[:_NUM_WORST]]
    wrong = slices.groupby(["patient", "slice"], sort=False, observed=True)["wrong"].sum()
    return [wrong[patient].idxmax() for patient in worst]


def _worst_slices(slices: pd.DataFrame) -> list[str]:
    """The slices of the lowest mean Dice, of one patient at most two."""
    groups = slices.groupby(["patient", "slice"], sort=False, observed=True)
    means = groups[["Dice", "wrong"]].mean().round({"Dice": 12}).reset_index()
    worst = _worst_first(means).groupby("patient", sort=False, observed=True)
    return list(worst.head(_MOST_OF_A_PATIENT).head(_NUM_WORST)["slice"])


def _describe(kind: str, place: int, row: pd.Series) -> Row:
    return {
        "kind": kind,
        "place": place,
        "variant": row["variant"],
        "fold": int(row["fold"]),
        "seed": int(row["seed"]),
        "patient": row["patient"],
        "slice": row["slice"],
        "Dice": f"{row['Dice']:.6f}",
        "picture": f"examples/{row['variant']}/{row['slice']}.png",
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
