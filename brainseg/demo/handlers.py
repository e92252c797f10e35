"""What the demo does with uploaded files: reads them, calls `Predictor.predict`, draws HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainseg.data.layouts import natural_key
from brainseg.demo import render as panels
from brainseg.demo.catalog import TrainedModel
from brainseg.errors import BrainsegError, DataError
from brainseg.inference.predictor import Prediction, Predictor
from brainseg.inference.readers import read_user_image, read_user_mask
from brainseg.model.device import Compute

MAX_SLICES = 200
MAX_PIXELS = 12 * 2**20
"""Of all slices of a patient together: what a page keeps of a visitor stays below 200 MB."""

NO_SECOND = "none"
_MASK = "_mask"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SeenSlice:
    """A slice with what each model said of it."""

    name: str
    image: NDArray[np.uint8]
    true: Mask | None
    predictions: dict[str, Prediction]


class Desk:
    """What the page does: takes the names of files, returns HTML.

    Args:
        models: At least one, the best first.
        compute: Device to predict on.
    """

    def __init__(self, models: Sequence[TrainedModel], compute: Compute) -> None:
        """Load nothing yet."""
        self.models = {model.name: model for model in models}
        # Two networks may be compared; a third one takes the place of the older.
        self._load = lru_cache(maxsize=2)(
            lambda name: Predictor.load(self.models[name].path, compute)
        )

    def outline(self, image: str | None, mask: str | None, first: str, second: str) -> str:
        """Return one slice's panels, one per chosen model; a message where a file is bad."""
        if not image:
            return panels.show_alert(["There is no slice yet: upload one, or take an example."])
        try:
            read = _read(Path(image), Path(mask) if mask else None)
            return self._draw(self._predict([read], first, second)[0])
        except BrainsegError as error:
            return panels.show_alert([str(error)])

    def outline_patient(
        self, files: Sequence[str] | None, first: str, second: str
    ) -> tuple[list[SeenSlice], str]:
        """Predict a patient's slices.

        Args:
            files: Slices, and masks called like them with `_mask` at the end.
            first: A model's name.
            second: Another one's, or `none`.

        Returns:
            Slices in natural order; and HTML: messages on bad files, scores of the patient.
        """
        try:
            reads, problems = _read_patient([Path(file) for file in files or []])
            seen = self._predict(reads, first, second)
        except BrainsegError as error:
            return [], panels.show_alert([str(error)])
        scores = [panels.format_patient(name, counts) for name, counts in _count(seen).items()]
        return seen, "".join([panels.show_alert(problems) if problems else "", *scores])

    def find_largest(self, seen: Sequence[SeenSlice]) -> int:
        """Return the number, from 1, of the slice with the largest predicted tumour."""
        areas = [max(int(p.mask.sum()) for p in item.predictions.values()) for item in seen]
        return 1 + int(np.argmax(areas))

    def show_slice(self, seen: Sequence[SeenSlice] | None, number: int) -> str:
        """Return the panels of a patient's slice, numbered from 1."""
        if not seen or not 1 <= number <= len(seen):
            return panels.show_hint("These slices are no longer kept: outline them again.")
        return self._draw(seen[number - 1])

    def describe(self, first: str, second: str) -> str:
        """Return the chosen models' cards in Markdown."""
        return "\n\n".join(self.models[name].describe() for name in self._chosen(first, second))

    def _chosen(self, first: str, second: str) -> list[str]:
        return [name for name in dict.fromkeys((first, second)) if name in self.models]

    def _predict(self, reads: Sequence[SeenSlice], first: str, second: str) -> list[SeenSlice]:
        seen = list(reads)
        for name in self._chosen(first, second):
            found = self._load(name).predict([item.image for item in seen])
            for number, (probabilities, mask) in enumerate(found):
                kept = Prediction(probabilities.astype(np.float16), mask)
                both = seen[number].predictions | {name: kept}
                seen[number] = replace(seen[number], predictions=both)
        return seen

    def _draw(self, seen: SeenSlice) -> str:
        drawn = [
            panels.draw_panel(
                name, self.models[name].header, seen.name, seen.image, prediction, seen.true
            )
            for name, prediction in seen.predictions.items()
        ]
        return panels.place_side_by_side(seen.name, drawn)


def _read(image: Path, mask: Path | None) -> SeenSlice:
    pixels = read_user_image(image)
    true = read_user_mask(mask, pixels) if mask else None
    return SeenSlice(image.name, pixels, true, {})


def _read_patient(paths: Sequence[Path]) -> tuple[list[SeenSlice], list[str]]:
    """Read slices in natural order; those that cannot be used give a sentence each."""
    masks = {path.stem: path for path in paths if path.stem.endswith(_MASK)}
    images = sorted((p for p in paths if p.stem not in masks), key=lambda p: natural_key(p.name))
    if not images:
        raise DataError("There are no slices yet: upload a patient's files.")
    if len(images) > MAX_SLICES:
        raise DataError(f"{len(images)} slices; at most {MAX_SLICES} at a time")
    reads: list[SeenSlice] = []
    problems: list[str] = []
    for path in images:
        try:
            read = _read(path, masks.get(path.stem + _MASK))
        except DataError as error:
            problems.append(str(error))
            continue
        reads.append(read)
        if sum(item.image.size // 3 for item in reads) > MAX_PIXELS:
            raise DataError(f"more than {MAX_PIXELS:,} pixels together: upload fewer slices")
    if not reads:
        raise DataError("; ".join(problems[:10]))
    return reads, problems


def _count(seen: Sequence[SeenSlice]) -> dict[str, NDArray[np.int64]]:
    """Model -> int64 (N, 4) counts of a patient's slices, where all have true masks."""
    counts: dict[str, list[NDArray[np.int64]]] = {}
    for item in seen:
        if item.true is None:
            return {}
        for name, prediction in item.predictions.items():
            counts.setdefault(name, []).append(panels.count(prediction.mask, item.true))
    return {name: np.stack(rows) for name, rows in counts.items()}
