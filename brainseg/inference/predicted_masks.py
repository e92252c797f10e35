"""Reads masks that another tool predicted, and matches them with the slices of a dataset.

A mask is an image per slice or a NIfTI volume per patient, anywhere below a folder:

    NAME.png, NAME.tif, NAME_mask.png ...    of the slice NAME
    PATIENT.nii.gz, PATIENT_mask.nii.gz      of all slices of a patient, in their order

Both what nnU-Net writes (`imagesTs` named after slices or patients) and what `brainseg.predict`
writes can be read. Where two patients have slices of one name, the file is `PATIENT_NAME`, or its
folder is named after the patient.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg.data.description import find_files, read_description
from brainseg.data.image_files import decode, show_shape
from brainseg.data.layouts import patient_of
from brainseg.data.nifti import VOLUME_SUFFIXES, is_volume, open_volume
from brainseg.data.slice_store import SliceStore
from brainseg.data.store_builder import Slice
from brainseg.errors import DataError

_IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
_MASK = "_mask"
_NOT_MASKS = ("_outline", "_stack")
_SHOWN = 20
Mask = NDArray[np.bool_]
ScanKey = tuple[str, str]
"""A patient and one of its examinations, see `Slice.volume`."""


def read_predicted_masks(
    folder: Path, data: SliceStore, indices: Sequence[int]
) -> dict[int, Mask]:
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
            size, affine or more than two values; `problems` lists every file and slice.
    """
    images, volumes = _list_files(folder)
    members_of: dict[ScanKey, list[int]] = defaultdict(list)
    for index, item in enumerate(data.slices):
        members_of[item.volume].append(index)
    shared = _shared_names(data)
    names = _volume_names(data, members_of, shared)
    masks: dict[int, Mask] = {}
    problems: list[str] = []
    used: set[Path] = set()
    wanted, likes = set(indices), _image_volumes(data) if volumes else {}
    for key, members in members_of.items():
        volume = next((volumes[name] for name in names[key] if name in volumes), [])
        if volume:
            used.update(volume)
            if not wanted.isdisjoint(members):
                _read_volume(volume, data, members, masks, problems, likes.get(key))
            continue
        for index in members:
            found = _find_image(images, data.slices[index], shared)
            used.update(found)
            if index in wanted:
                _read_image(found, data, index, masks, problems, names[key][0])
    everything = {path for paths in (*images.values(), *volumes.values()) for path in paths}
    for path in sorted(everything - used):
        problems.append(f"{path.relative_to(folder)}: belongs to no slice of {data.root}")
    if problems:
        shown = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            shown.append(f"and {len(problems) - _SHOWN:,} more")
        raise DataError(f"{folder}: {len(problems):,} problems with the predicted masks", shown)
    return {index: masks[index] for index in indices}


def _list_files(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
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


def _image_volumes(data: SliceStore) -> dict[ScanKey, Path]:
    """Return the NIfTI volume, that of the first channel, of each patient's scan that has one.

    A volume of one slice is an image of its scan; of several such, none is its scan's volume.
    """
    description = read_description(data.root) if data.described else None
    if description is None:
        return {}
    items = find_files(data.root, description).items
    volumes = [item for item in items if is_volume(item.images[0])]
    of_scan = Counter((item.patient, item.scan) for item in volumes)
    single = {(i.patient, i.scan): i.images[0] for i in volumes if of_scan[i.patient, i.scan] == 1}
    return single | {(item.patient, item.name): item.images[0] for item in volumes}


def _shared_names(data: SliceStore) -> set[str]:
    """Return the names of slices, and of volumes that they may come from, of two patients."""
    owners: dict[str, set[str]] = defaultdict(set)
    for item in data.slices:
        for name in {item.name, _of_volume(item.name)}:
            owners[name].add(item.patient)
    return {name for name, patients in owners.items() if len(patients) > 1}


def _of_volume(name: str) -> str:
    """Return the name of the volume that a slice may come from."""
    return re.sub(r"_\d+$", "", name)


def _volume_names(
    data: SliceStore, members_of: Mapping[ScanKey, Sequence[int]], shared: Collection[str]
) -> dict[ScanKey, list[str]]:
    """Return the names that the volume of each scan may have, the one to name first.

    Args:
        data: The dataset.
        members_of: Scan -> its slices.
        shared: Names that two patients share.
    """
    patients = Counter(patient for patient, _ in members_of)
    scans = Counter(scan for _, scan in members_of)
    names = {}
    for (patient, scan), members in members_of.items():
        own = [patient if patients[patient] == 1 else f"{patient}_{scan}"]
        own += [scan] if scans[scan] == 1 else []
        cut = {_of_volume(data.slices[index].name) for index in members}.difference(shared)
        own += cut if len(cut) == 1 else []
        names[patient, scan] = own
    return names


def _find_image(
    images: Mapping[str, list[Path]], item: Slice, shared: Collection[str]
) -> list[Path]:
    """Return the files that may hold a slice's mask; one, if all is well.

    Args:
        images: Name -> the files of that name.
        item: The slice.
        shared: Names that two patients share.
    """
    # A pattern may have the patient in the file's name; the slice is called by the rest.
    if whole := images.get(f"{item.patient}_{item.name}"):
        return whole
    paths, is_shared = images.get(item.name, []), item.name in shared
    if len(paths) < 2 and not is_shared:
        return paths
    own = [p for p in paths if item.patient in (p.parent.name, patient_of(p.parent.name))]
    if not own and not is_shared:
        own = paths
    # An input image may lie beside its mask.
    return [path for path in own if path.stem.endswith(_MASK)] or own


def _read_image(
    paths: Sequence[Path],
    data: SliceStore,
    index: int,
    masks: dict[int, Mask],
    problems: list[str],
    volume: str,
) -> None:
    item = data.slices[index]
    if len(paths) != 1:
        several = ", ".join(str(path) for path in paths)
        expected = f"no mask; expected {item.name}.png or {volume}.nii.gz"
        found = f"several masks: {several}" if paths else expected
        problems.append(f"patient {item.patient}, slice {item.name}: {found}")
        return
    try:
        values = decode(paths[0])
    except DataError as error:
        problems.append(str(error))
        return
    height, width = data.shapes[index]
    if values.shape != (height, width):
        shape = show_shape(values.shape)
        problems.append(f"{paths[0].name}: {shape}; the slice is {height}x{width}, one channel")
    elif not _is_mask(values):
        problems.append(f"{paths[0].name}: {_show(values)}; expected 0 and one other")
    else:
        masks[index] = values != 0


def _read_volume(
    paths: Sequence[Path],
    data: SliceStore,
    members: Sequence[int],
    masks: dict[int, Mask],
    problems: list[str],
    like: Path | None,
) -> None:
    """Read the masks of a scan from a volume.

    Args:
        like: The volume that the scan's slices are of; None if they are images.
    """
    if len(paths) != 1:
        problems.append(f"several volumes of one patient: {', '.join(map(str, paths))}")
        return
    shapes = {data.shapes[index] for index in members}
    try:
        volume = open_volume(paths[0])
        values = volume.read_values()
        if like is not None and values.shape == (like_volume := open_volume(like)).shape:
            volume.check_affine(like_volume)
    except DataError as error:
        problems.append(str(error))
        return
    if len(shapes) > 1 or values.shape != (len(members), *data.shapes[members[0]]):
        found = show_shape(values.shape)
        expected = " and ".join(f"{height}x{width}" for height, width in sorted(shapes))
        problems.append(f"{paths[0].name}: {found}; expected {len(members)} slices of {expected}")
    elif not _is_mask(values):
        problems.append(f"{paths[0].name}: {_show(values)}; expected 0 and one other")
    else:
        masks.update(zip(members, values != 0, strict=True))


def _is_mask(values: NDArray[Any]) -> bool:
    found = np.unique(values)
    return len(found) < 2 or (len(found) == 2 and found[0] == 0)


def _show(values: NDArray[Any]) -> str:
    return f"values {', '.join(map(str, np.unique(values)[:4]))} ..."
