"""Choose and draw the example slices of a study once all trials have ended.

The pictures are drawn from the probability maps that the trials kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainseg.data.about import FLAIR
from brainseg.data.preprocess import pad_to_square, resize
from brainseg.data.slice_store import SliceStore
from brainseg.inference.mask_metrics import keep_components
from brainseg.inference.overlay import (
    PREDICTED,
    TRUE,
    add_outlines,
    draw_flair,
    encode_picture,
)
from brainseg.storage.files import write_bytes, write_csv
from study.analysis.scores import dice_by_patient, read_slices
from study.report.results import WORST_PATIENT, WORST_SLICE
from study.spec.grid import LEAKY
from study.spec.trial_job import TrialJob
from study.storage.probability_maps import LEVELS, load_probabilities
from study.storage.schema import EXAMPLES, SLICES, Row, read_table
from study.storage.trial_folder import TrialFolder

_NUM_WORST = 10
_MOST_OF_A_PATIENT = 2
_SIDE = 256
_STEP = 4  # greys are rounded to multiples of it, which makes files smaller
_BACKGROUND, _MARGIN = 20, 6  # grey level, pixels
_Key = tuple[str, str]  # patient and slice: patients may have slices of the same name


def draw_examples(study: Path, jobs: Sequence[TrialJob], data: SliceStore) -> None:
    """Write examples.csv and the pictures in examples/.

    Each variant gets its best, its median and its worst slice with tumour. All variants together
    get the ten worst patients, each by the slice with the most wrong pixels, and the ten worst
    slices.

    Args:
        study: The study's folder, with slices.csv.
        jobs: All trials of the study; those without probability maps get no pictures.
        data: The dataset.
    """
    slices = read_slices(read_table(study / "slices.csv", SLICES))
    folder = study / "examples"
    shutil.rmtree(folder, ignore_errors=True)  # a smaller study had other examples
    rows = _choose(slices, _name_files(data))
    drawn = dict(_draw_all(study, jobs, data, rows))
    kept = [row for row in rows if row["picture"] in drawn]
    for name, picture in drawn.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(study / name, picture)
    write_csv(study / "examples.csv", kept, EXAMPLES.names)


def _name_files(data: SliceStore) -> dict[_Key, str]:
    """Return the name of each slice's picture: the slice's own, if no two slices share one."""
    names = [item.name for item in data.slices]
    are_unique = len(set(names)) == len(names)
    return {
        (item.patient, item.name): f"{item.name}.png" if are_unique else f"{index}_{item.name}.png"
        for index, item in enumerate(data.slices)
    }


def _choose(slices: pd.DataFrame, files: Mapping[_Key, str]) -> list[Row]:
    """Return the rows of examples.csv; each variant's picture shows its lowest seed."""
    slices = slices.assign(wrong=slices["FP"] + slices["FN"])
    first = slices.sort_values("seed", kind="stable")
    first = first.drop_duplicates(["variant", "patient", "slice"]).sort_index()
    rows: list[Row] = []
    for _, own in first[first["TP"] + first["FN"] > 0].groupby("variant", observed=True):
        order = _worst_first(own)
        for kind, position in (("best", -1), ("median", len(order) // 2), ("worst", 0)):
            rows.append(_describe(kind, 1, order.iloc[position], files))
    # Leaky variants choose nothing: they test patients that no honest one may have tested.
    honest = slices[~slices["variant"].astype(str).str.startswith(LEAKY)].assign(
        patient=lambda own: own["patient"].cat.remove_unused_categories(),
        variant=lambda own: own["variant"].cat.remove_unused_categories(),
    )
    first = first[~first["variant"].astype(str).str.startswith(LEAKY)]
    for kind, keys in (
        (WORST_PATIENT, _worst_patients(honest)),
        (WORST_SLICE, _worst_slices(honest)),
    ):
        for rank, (patient, name) in enumerate(keys, start=1):
            shown = first[(first["patient"] == patient) & (first["slice"] == name)]
            rows += [_describe(kind, rank, shown.iloc[n], files) for n in range(len(shown))]
    return rows


def _worst_first(slices: pd.DataFrame) -> pd.DataFrame:
    """Sort slices by Dice; of equal ones, those with more wrong pixels come first."""
    return slices.sort_values(["Dice", "wrong"], ascending=[True, False], kind="stable")


def _worst_patients(slices: pd.DataFrame) -> list[_Key]:
    """Return the slice with the most wrong pixels of each of the patients with the lowest Dice."""
    if slices.empty:
        return []
    means = np.nanmean(dice_by_patient(slices), axis=(0, 1))
    worst = slices["patient"].cat.categories[np.argsort(means, kind="stable")[:_NUM_WORST]]
    wrong = slices.groupby(["patient", "slice"], sort=False, observed=True)["wrong"].sum()
    return [(patient, wrong[patient].idxmax()) for patient in worst]


def _worst_slices(slices: pd.DataFrame) -> list[_Key]:
    """Return the slices with the lowest mean Dice, at most two of a patient."""
    groups = slices.groupby(["patient", "slice"], sort=False, observed=True)
    means = groups[["Dice", "wrong"]].mean().round({"Dice": 12}).reset_index()
    worst = _worst_first(means).groupby("patient", sort=False, observed=True)
    chosen = worst.head(_MOST_OF_A_PATIENT).head(_NUM_WORST)
    return list(zip(chosen["patient"], chosen["slice"], strict=True))


def _describe(kind: str, rank: int, row: pd.Series, files: Mapping[_Key, str]) -> Row:
    return {
        "kind": kind,
        "place": rank,
        "variant": row["variant"],
        "fold": int(row["fold"]),
        "seed": int(row["seed"]),
        "patient": row["patient"],
        "slice": row["slice"],
        "Dice": f"{row['Dice']:.6f}",
        "picture": f"examples/{row['variant']}/{files[row['patient'], row['slice']]}",
    }


def _draw_all(
    study: Path, jobs: Sequence[TrialJob], data: SliceStore, rows: Sequence[Row]
) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the PNG of each picture, trial by trial."""
    index_of = {(item.patient, item.name): index for index, item in enumerate(data.slices)}
    for job in jobs:
        path = TrialFolder(study / job.path).probabilities
        cell = (job.variant, job.fold, job.seed)
        own = [row for row in rows if (row["variant"], row["fold"], row["seed"]) == cell]
        wanted = {(row["patient"], row["slice"]): row for row in own}
        if not wanted or not path.exists():
            continue
        maps = load_probabilities(path, "test")
        threshold = job.experiment.threshold * LEVELS
        found = [np.asarray(levels >= threshold) for levels in maps.levels]
        masks = keep_components(found, maps.volumes, job.experiment.largest_component)
        for position, key in enumerate(zip(maps.patients, maps.slices, strict=True)):
            if key in wanted:
                image = data.image(index_of[key])
                yield wanted[key]["picture"], _paint(image, maps.true[position], masks[position])


def _paint(
    image: NDArray[np.uint8], true: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> bytes:
    """Return a PNG of the head in FLAIR with both outlines."""
    image = pad_to_square(image)
    true, predicted = (pad_to_square(mask.astype(np.uint8)) > 0 for mask in (true, predicted))
    left, top, side = _find_head(image.max(axis=2) if image.shape[2] != 3 else image[:, :, FLAIR])
    window = np.s_[top : top + side, left : left + side]
    masks = [mask[window] for mask in (true, predicted)]
    head = resize(draw_flair(image[window]), _SIDE) // _STEP * _STEP
    return encode_picture(add_outlines(head, (masks[0], TRUE), (masks[1], PREDICTED)))


def _find_head(flair: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Return left, top and side of a square around the head; the whole slice if it is black."""
    size = flair.shape[0]
    left, top, width, height = cv2.boundingRect((flair > _BACKGROUND).astype(np.uint8))
    if width == 0:
        return 0, 0, size
    side = min(max(width, height) + 2 * _MARGIN, size)
    centre = (left + width // 2, top + height // 2)
    x, y = (min(max(c - side // 2, 0), size - side) for c in centre)
    return x, y, side
