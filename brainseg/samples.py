"""Slices to try a model with: taken from a dataset, of patients that the model does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.errors import DataError
from brainseg.modelfile import ModelHeader
from brainseg.overlay import encode_picture
from brainseg.split import split_by_patient
from brainseg.store import SliceStore

_MOST_SLICES = 40


@dataclass(frozen=True)
class Sample:
    """A slice on disk with its true mask, and a few words for the button that takes it."""

    label: str
    image: Path
    mask: Path


def describe_source(data: SliceStore, header: ModelHeader | None) -> str:
    """Return in words whose slices the samples are."""
    if data.synthetic:
        return "Generated phantoms, SYNTHETIC"
    is_own = header is not None and header.fingerprint == data.fingerprint
    return "Test patients of the model's split" if is_own else f"Slices of {data.root.name}"


def write_samples(data: SliceStore, header: ModelHeader | None, folder: Path) -> list[Sample]:
    """Write a large, a middling and a small tumour and a slice without, as TIFF files.

    Args:
        data: The dataset; where the model was trained on it, the test part of its split is taken.
        header: Of the model.
        folder: Where to.
    """
    numbers = unknown_slices(data, header)
    ordered = sorted(numbers, key=lambda number: data.slices[number].tumour_pixels)
    tumour = [number for number in ordered if data.slices[number].tumour_pixels]
    free = [number for number in ordered if not data.slices[number].tumour_pixels]
    chosen = {}
    if tumour:
        places = {"large": -1, "middling": len(tumour) // 2, "small": len(tumour) // 10}
        chosen = {f"{name} tumour": tumour[place] for name, place in places.items()}
    if free:
        brightest = max(free, key=lambda number: int(data.image(number).sum()))
        chosen["no tumour"] = brightest
    return [_write(data, number, label, folder) for label, number in chosen.items()]


def write_patient(data: SliceStore, header: ModelHeader | None, folder: Path) -> list[Path]:
    """Write slices and true masks of the patient with the most tumour; return all files."""
    numbers = unknown_slices(data, header)
    sums: dict[str, int] = {}
    for number in numbers:
        item = data.slices[number]
        sums[item.patient] = sums.get(item.patient, 0) + item.tumour_pixels
    patient = max(sums, key=lambda name: sums[name])
    own = [number for number in numbers if data.slices[number].patient == patient]
    step = -(-len(own) // _MOST_SLICES)
    samples = [_write(data, number, "", folder) for number in own[::step]]
    return [path for sample in samples for path in (sample.image, sample.mask)]


def unknown_slices(data: SliceStore, header: ModelHeader | None) -> list[int]:
    """Return positions of slices that a model was not trained on, as far as one can know."""
    if header is not None and header.fingerprint == data.fingerprint:
        experiment = header.experiment
        try:
            split = split_by_patient(data.slices, experiment.fold, experiment.data.split_seed)
            return [int(number) for number in split.numbers(data.slices, "test")]
        except DataError:  # too few patients for folds: then nothing was trained on them either
            pass
    return list(range(len(data.slices)))


def _write(data: SliceStore, number: int, label: str, folder: Path) -> Sample:
    name = data.slices[number].name
    image, mask = folder / f"{name}.tif", folder / f"{name}_mask.tif"
    folder.mkdir(parents=True, exist_ok=True)
    image.write_bytes(encode_picture(data.image(number), ".tif"))
    mask.write_bytes(encode_picture(data.mask(number) * np.uint8(255), ".tif"))
    return Sample(label, image, mask)
