"""The demo's event handlers: take uploaded files, predict them and return HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from brainseg.data.description import to_bytes
from brainseg.data.layouts import natural_key
from brainseg.demo.catalog import TrainedModel
from brainseg.demo.render import PredictedSlice, render, render_patient, render_slice
from brainseg.errors import BrainsegError, DataError
from brainseg.inference.predictor import Prediction, Predictor
from brainseg.inference.readers import MASK_ENDING, read_user_image, read_user_mask
from brainseg.model.device import Compute
from brainseg.model.model_file import ModelHeader

MAX_SLICES = 200
MAX_PIXELS = 12 * 2**20
"""The pixels of all slices of a patient together; it keeps a visitor's data below 200 MB."""

NO_SECOND = "none"
"""The second model's name if models are not compared."""


class Handlers:
    """The handlers of the page's events.

    Args:
        models: At least one model, the best first.
        compute: The device to predict on.
        allow_code: Whether code that the models name may be run.
    """

    def __init__(
        self, models: Sequence[TrainedModel], compute: Compute, *, allow_code: bool = False
    ) -> None:
        self.models = {model.name: model for model in models}
        self._synthetic = {model.name for model in models if model.header.synthetic}
        # Two networks can be compared; a third one replaces the older.
        self._load = lru_cache(maxsize=2)(
            lambda name: Predictor.load(self.models[name].path, compute, allow_code=allow_code)
        )

    def outline_slice(self, image: str | None, mask: str | None, first: str, second: str) -> str:
        """Predict one slice and return it as HTML, or a message if a file cannot be used.

        Args:
            image: The path of the slice.
            mask: The path of its true mask, or None.
            first: A model's name.
            second: Another model's name, or `NO_SECOND`.
        """
        if not image:
            return render("alert", ["There is no slice yet: upload one, or take an example."])
        try:
            header = self._header(first, second)
            item = _read(Path(image), Path(mask) if mask else None, header)
            return self._render(self._predict(_as_bytes([item]), first, second)[0])
        except BrainsegError as error:
            return render("alert", [str(error)])

    def outline_patient(
        self, files: Sequence[str] | None, first: str, second: str
    ) -> tuple[list[PredictedSlice], str]:
        """Predict a patient's slices.

        Args:
            files: The paths of slices, and of true masks whose names end in `_mask`.
            first: A model's name.
            second: Another model's name, or `NO_SECOND`.

        Returns:
            The slices in natural order; and as HTML, messages on files that cannot be used and the
            patient's scores.
        """
        try:
            items, problems = _read_patient(
                [Path(file) for file in files or []], self._header(first, second)
            )
            items = self._predict(_as_bytes(items), first, second)
        except BrainsegError as error:
            return [], render("alert", [str(error)])
        html = render("alert", problems) if problems else ""
        for model in self._chosen(first, second):
            counts = [item.counts(model) for item in items]
            known = [row for row in counts if row is not None]
            if len(known) == len(items):
                html += render_patient(model, np.stack(known))
        return items, html

    def find_largest(self, items: Sequence[PredictedSlice]) -> int:
        """Return the number, from 1, of the slice with the largest predicted tumour."""
        areas = [max(int(p.mask.sum()) for p in item.predictions.values()) for item in items]
        return 1 + int(np.argmax(areas))

    def show_slice(self, items: Sequence[PredictedSlice] | None, number: int) -> str:
        """Return one of a patient's slices, counted from 1, as HTML."""
        if not items or not 1 <= number <= len(items):
            return render("hint", "These slices are no longer kept: outline them again.")
        return self._render(items[number - 1])

    def describe(self, first: str, second: str) -> str:
        """Return the cards of the chosen models in Markdown."""
        return "\n\n".join(self.models[name].describe() for name in self._chosen(first, second))

    def _chosen(self, first: str, second: str) -> list[str]:
        return [name for name in dict.fromkeys((first, second)) if name in self.models]

    def _header(self, first: str, second: str) -> ModelHeader:
        """Return the first model's header: it names the channels that a slice must have.

        Raises:
            DataError: If the two models were trained on slices of different channels or types.
        """
        headers = [self.models[name].header for name in self._chosen(first, second)]
        kinds = {tuple(header.channels) for header in headers}
        if len(kinds) != 1:
            names = " and ".join(", ".join(kind) for kind in sorted(kinds))
            raise DataError(f"the two models take slices of different channels: {names}")
        if len({header.rescales for header in headers}) > 1:
            raise DataError("only one of the two models takes slices of 16 bits: choose one alone")
        return headers[0]

    def _predict(
        self, items: list[PredictedSlice], first: str, second: str
    ) -> list[PredictedSlice]:
        for name in self._chosen(first, second):
            images = [item.image for item in items]
            found = self._load(name).predict(images, patients=[""] * len(images))
            # Half precision halves what is kept of a visitor.
            kept = [Prediction(p.probabilities.astype(np.float16), p.mask) for p in found]
            items = [
                replace(item, predictions=item.predictions | {name: prediction})
                for item, prediction in zip(items, kept, strict=True)
            ]
        return items

    def _render(self, item: PredictedSlice) -> str:
        return render_slice(item, self._synthetic)


def _as_bytes(items: Sequence[PredictedSlice]) -> list[PredictedSlice]:
    images = to_bytes([item.image for item in items])
    return [replace(item, image=image) for item, image in zip(items, images, strict=True)]


def _read(image: Path, mask: Path | None, header: ModelHeader) -> PredictedSlice:
    pixels = read_user_image(image, header.channels, rescales=header.rescales)
    return PredictedSlice(image.name, pixels, read_user_mask(mask, pixels) if mask else None, {})


def _read_patient(
    paths: Sequence[Path], header: ModelHeader
) -> tuple[list[PredictedSlice], list[str]]:
    """Read slices in natural order; return a sentence for each that cannot be used."""
    masks = {path.stem: path for path in paths if path.stem.endswith(MASK_ENDING)}
    images = sorted((p for p in paths if p.stem not in masks), key=lambda p: natural_key(p.name))
    if not images:
        raise DataError("There are no slices yet: upload a patient's files.")
    if len(images) > MAX_SLICES:
        raise DataError(f"{len(images)} slices; at most {MAX_SLICES} at a time")
    items: list[PredictedSlice] = []
    problems: list[str] = []
    num_pixels = 0
    for path in images:
        try:
            items.append(_read(path, masks.get(path.stem + MASK_ENDING), header))
        except DataError as error:
            problems.append(str(error))
            continue
        num_pixels += items[-1].image.size // len(header.channels)
        if num_pixels > MAX_PIXELS:
            raise DataError(f"more than {MAX_PIXELS:,} pixels together: upload fewer slices")
    if not items:
        raise DataError("; ".join(problems[:10]))
    return items, problems
