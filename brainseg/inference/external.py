"""Reads masks that another tool predicted, and matches them with the slices of a dataset.

A mask is an image per slice or a NIfTI volume per patient, anywhere below a folder:

    NAME.png, NAME.tif, NAME_mask.png ...    of the slice NAME
    PATIENT.nii.gz, PATIENT_mask.nii.gz      of all slices of a patient, in their order

Both what nnU-Net writes (`imagesTs` named after slices or patients) and what `brainseg.predict`
writes can be read. Where two patients have slices of one name, the file's folder must be named
after the patient.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainseg.data.layouts import decode, patient_of
from brainseg.data.nifti import VOLUME_SUFFIXES, open_volume
from brainseg.data.slice_store import SliceStore
from brainseg.errors import DataError

_IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
_MASK = "_mask"
_NOT_MASKS = ("_outline", "_stack")
_SHOWN = 20
Mask = NDArray[np.bool_]


def read_external(folder: Path, data: SliceStore, indices: Sequence[int]) -> dict[int, Mask]:
    """Read the predicted masks of some slices.

    Args:
        folder: Searched with all folders below it. Masks of other slices of the dataset may be
            there too; a file that belongs to no slice is refused.
        data: The dataset.
        indices: Of the slices that need a mask.

    Returns:
        Index -> bool (H, W) of the slice's own size, True where tumour was predicted.

    Raises:
        DataError: If the folder has no masks, a mask is missing, belongs to no slice, has another
            size or more than two values; `problems` lists every file and slice.
    """
    images, volumes = _find(folder)
    own: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(data.slices):
        own[item.patient].append(index)
    masks: dict[int, Mask] = {}
    problems: list[str] = []
    used: set[Path] = set()
    wanted = set(indices)
    for patient, members in own.items():
        needed = [index for index in members if index in wanted]
        names = [data.slices[index].name for index in members]
        volume = next((volumes[key] for key in _volume_keys(patient, names) if key in volumes), ())
        if volume:
            used.update(volume)
            if needed:
                _read_volume(volume, data, members, masks, problems)
            continue
        for index in members:
            found = _of_patient(images.get(data.slices[index].name, []), patient)
            used.update(found)
            if index in wanted:
                _read_image(found, data, index, masks, problems)
    everything = {path for paths in (*images.values(), *volumes.values()) for path in paths}
    for path in sorted(everything - used):
        problems.append(f"{path.relative_to(folder)}: belongs to no slice of {data.root}")
    if problems:
        shown = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            shown.append(f"and {len(problems) - _SHOWN:,} more")
        raise DataError(f"{folder}: {len(problems):,} problems with the predicted masks", shown)
    return {index: masks[index] for index in indices}


def _find(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the images and the volumes below a folder, by their names without `_mask`."""
    images: dict[str, list[Path]] = defaultdict(list)
    volumes: dict[str, list[Path]] = defaultdict(list)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of predicted masks")
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        kinds = ((volumes, VOLUME_SUFFIXES), (images, _IMAGE_SUFFIXES))
        for found, suffixes in kinds:
            suffix = next((end for end in suffixes if name.endswith(end)), None)
            if suffix is None or not path.is_file() or name.startswith("."):
                continue
            stem = path.name[: -len(suffix)]
            if not stem.endswith(_NOT_MASKS):
                found[stem.removesuffix(_MASK)].append(path)
            break
    if not images and not volumes:
        raise DataError(f"{folder}: no masks; expected PNG, TIFF or NIfTI files")
    return images, volumes


def _volume_keys(patient: str, slices: Sequence[str]) -> list[str]:
    """Return the names that a patient's volume may have; slices are named after theirs."""
    of_slices = {re.sub(r"_\d+$", "", name) for name in slices}
    return [patient, *of_slices] if len(of_slices) == 1 else [patient]


def _of_patient(paths: Sequence[Path], patient: str) -> list[Path]:
    if len(paths) < 2:
        return list(paths)
    parents = [
        path for path in paths if patient in (path.parent.name, patient_of(path.parent.name))
    ]
    # An input image may lie beside its mask.
    marked = [path for path in parents or paths if path.stem.endswith(_MASK)]
    return marked or parents or list(paths)


def _read_image(
    paths: Sequence[Path],
    data: SliceStore,
    index: int,
    masks: dict[int, Mask],
    problems: list[str],
) -> None:
    name = data.slices[index].name
    if len(paths) != 1:
        several = ", ".join(str(path) for path in paths)
        problems.append(f"{name}: {f'several masks: {several}' if paths else 'no mask'}")
        return
    try:
        values = decode(paths[0])
    except DataError as error:
        problems.append(str(error))
        return
    height, width = data.shapes[index]
    if values.shape != (height, width):
        shape = "x".join(map(str, values.shape))
        problems.append(f"{paths[0].name}: {shape}; the slice is {height}x{width}, one channel")
    elif len(found := np.unique(values)) > 2 or (len(found) == 2 and found[0] != 0):
        shown = ", ".join(map(str, found[:4]))
        problems.append(f"{paths[0].name}: values {shown} ...; expected 0 and one other")
    else:
        masks[index] = values != 0


def _read_volume(
    paths: Sequence[Path],
    data: SliceStore,
    members: Sequence[int],
    masks: dict[int, Mask],
    problems: list[str],
) -> None:
    if len(paths) != 1:
        problems.append(f"several volumes of one patient: {', '.join(map(str, paths))}")
        return
    like = np.empty((len(members), *data.shapes[members[0]], 1), np.uint8)
    try:
        volume = open_volume(paths[0]).read_mask(like)
    except DataError as error:
        problems.append(str(error))
        return
    masks.update(zip(members, volume, strict=True))
