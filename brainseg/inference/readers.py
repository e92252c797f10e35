"""Reads the files that a user predicts: images of one slice and NIfTI volumes.

A file `<name>_mask.<suffix>` beside a file is its true mask. The size in a file's header is
checked before the file is decoded, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg.data.about import CHANNELS
from brainseg.data.description import read_values, to_bytes
from brainseg.data.image_files import (
    MAX_SIDE,
    is_writable_name,
    read_image,
    read_mask,
    show_name,
)
from brainseg.data.layouts import describe_unused, natural_key, path_key, patient_of
from brainseg.data.nifti import VOLUME_SUFFIXES, NiftiVolume, open_volume
from brainseg.errors import DataError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
MASK_ENDING = "_mask"
MIN_SIDE = 32
_FILLED = 0.5
_NO_INPUT = "no TIFF, PNG, JPEG or NIfTI files, nor masks of one"


@dataclass(frozen=True)
class Scan:
    """A file to predict.

    Attributes:
        path: An image of one slice, or a volume.
        mask: The file of its true mask, or None.
        name: The path of its results, without suffix, relative to the folder of results.
        patient: The name of the file's folder; of a volume, its own. Where files of others have
            the same, with the path before it.
    """

    path: Path
    mask: Path | None
    name: Path
    patient: str

    @cached_property
    def volume(self) -> Path:
        """What slices of one volume share: the file, or the folder of an image."""
        whole = _whole(self.path)
        return whole if self.is_volume else whole.parent

    @property
    def is_volume(self) -> bool:
        """Whether the file is a NIfTI volume."""
        return self.suffix in VOLUME_SUFFIXES

    @property
    def suffix(self) -> str:
        """The file's suffix in lower case, such as `.nii.gz`."""
        return _suffix(self.path)


@dataclass(frozen=True)
class Slices:
    """The content of a file.

    Attributes:
        images: uint8 (H, W, C) each; from `read_scan` perhaps uint16, see `to_bytes`.
        masks: bool (H, W) each, True where tumour; None without a true mask.
        volume: The volume that the slices come from, or None.
    """

    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]] | None
    volume: NiftiVolume | None = None


def find_scans(paths: Iterable[Path]) -> tuple[list[Scan], list[str]]:
    """Find the files to predict, in natural order, the files of a volume together.

    Args:
        paths: Files, and folders that are searched with all folders below them.

    Returns:
        The files, each once, and a sentence for each path that cannot be used.
    """
    scans: dict[Path, Scan] = {}
    problems: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        found = list(_scans_of(path, problems))
        if not found:
            reason = "no images or volumes in it" if path.is_dir() else "there is no such file"
            problems.append(f"{show_name(str(path))}: {reason}")
        for scan in found:
            if not is_writable_name(str(scan.path.absolute())):
                problems.append(
                    f"{show_name(str(scan.path))}: a name with control characters, or that is not "
                    "UTF-8, which no table can hold: rename it"
                )
                continue
            if (again := _whole(scan.path)) in seen:
                continue
            seen.add(again)
            other = scans.setdefault(scan.name, scan)
            if other is not scan:
                problems.append(f"{scan.path}: would overwrite the results of {other.path}")
    return _tell_apart(sorted(scans.values(), key=_order)), problems


def _order(scan: Scan) -> tuple[Any, ...]:
    """A key for the natural order that keeps a folder's images together: they are one volume."""
    whole = _whole(scan.path)
    key, folder, *rest = path_key(str(whole.parent), whole.name)
    return key, folder, scan.is_volume, *rest


def _whole(path: Path) -> Path:
    """Return the path of a file without links to folders; the file itself may be a link."""
    return path.parent.resolve() / path.name


def _tell_apart(scans: Sequence[Scan]) -> list[Scan]:
    """Put the path before the names of patients that other folders, or volumes, have too.

    Folders that differ in the date of a TCGA name are of one patient.
    """
    owners: dict[str, set[Path]] = {}
    for scan in scans:
        dated = not scan.is_volume and scan.patient != scan.volume.name
        owners.setdefault(scan.patient, set()).add(Path() if dated else scan.volume)
    return [
        scan
        if len(owners[scan.patient]) == 1
        else replace(
            scan, patient=str(scan.path.parent / (scan.patient if scan.is_volume else ""))
        )
        for scan in scans
    ]


def describe_skipped(paths: Iterable[Path]) -> list[str]:
    """Return a sentence for each folder to predict that holds files that are not read.

    Args:
        paths: As `find_scans` takes them. Hidden files, and those that are no data, such as
            README, are left out.
    """
    found = []
    for path in (path.absolute() for path in paths if path.is_dir()):
        used = [file for scan in _scans_of(path) for file in (scan.path, scan.mask) if file]
        remedy = f"in {show_name(str(path))} are skipped, since they are {_NO_INPUT}"
        with suppress(OSError):  # a folder that cannot be read is among the problems
            found += describe_unused(path, used, remedy)
    return found


def read_batches(
    scans: Sequence[Scan],
    size: int,
    problems: list[str],
    channels: Sequence[str] = CHANNELS,
    *,
    rescales: bool = False,
    together: bool = True,
) -> Iterator[list[tuple[Scan, Slices]]]:
    """Yield groups of files that hold at least `size` slices; the last may hold fewer.

    Files of one volume that follow each other are in one group where they are needed together: for
    the network, or because values of 16 bits are rescaled over the volume.

    Args:
        scans: The files.
        size: The number of slices.
        problems: A sentence is appended for each file that cannot be used.
        channels: Names of the channels that the network was trained with.
        rescales: Whether values that are not bytes are rescaled, or refused.
        together: Whether the network needs all slices of a volume at once.
    """
    batch: list[tuple[Scan, Slices]] = []
    for _, group in itertools.groupby(scans, key=lambda scan: scan.volume):
        own = list(group)
        # A folder may hold more slices than fit in memory.
        is_apart = not together and (not rescales or (len(own) > size and _hold_bytes(own)))
        for part in [[scan] for scan in own] if is_apart else [own]:
            if sum(len(slices.images) for _, slices in batch) >= size:
                yield _rescaled(batch)
                batch = []
            for scan in part:
                try:
                    batch.append((scan, read_scan(scan, channels, rescales=rescales)))
                except DataError as error:
                    problems.append(f"{scan.path.parent}/{error}")
    if batch:
        yield _rescaled(batch)


def _hold_bytes(scans: Sequence[Scan]) -> bool:
    """Whether no image holds values of 16 bits; decoded for this, since headers do not all tell.

    Files that cannot be read count for nothing, as when they are predicted.
    """
    for scan in scans:
        with suppress(DataError):
            if read_values(scan.path).dtype != np.uint8:
                return False
    return True


def _rescaled(batch: Sequence[tuple[Scan, Slices]]) -> list[tuple[Scan, Slices]]:
    """Turn values of 16 bits into bytes, those of a volume together, as the slice store does."""
    found = []
    for _, group in itertools.groupby(batch, key=lambda item: item[0].volume):
        own = list(group)
        images = iter(to_bytes([image for _, slices in own for image in slices.images]))
        for scan, slices in own:
            found.append((scan, replace(slices, images=[next(images) for _ in slices.images])))
    return found


def read_scan(scan: Scan, channels: Sequence[str] = CHANNELS, *, rescales: bool = False) -> Slices:
    """Check and decode a file and its true mask.

    Args:
        scan: The file.
        channels: Names of the channels that it must have.
        rescales: Whether values that are not bytes are rescaled, or refused.

    Raises:
        DataError: If either cannot be used.
    """
    if scan.is_volume:
        volume = open_volume(scan.path)
        _check_size(scan.path.name, *volume.shape[1:])
        data = volume.read_slices(channels, rescales=rescales)
        if scan.mask is None:
            return Slices(list(data), None, volume)
        mask = open_volume(scan.mask)
        masks = mask.read_mask(data)
        mask.check_affine(volume)
        _check_filled(scan.mask.name, masks)
        return Slices(list(data), list(masks), volume)
    image = read_user_image(scan.path, channels, rescales=rescales)
    return Slices([image], [read_user_mask(scan.mask, image)] if scan.mask else None)


def count_slices(scan: Scan) -> int:
    """Return the number of slices in a file; 1 if it cannot be read."""
    try:
        return open_volume(scan.path).num_slices if scan.is_volume else 1
    except DataError:
        return 1


def read_user_image(
    path: Path, channels: Sequence[str] = CHANNELS, *, rescales: bool = False
) -> NDArray[Any]:
    """Check the header of an image file, then decode it.

    Args:
        path: The file.
        channels: Names of the channels that it must have.
        rescales: Whether values of 16 bits, which the caller rescales, are allowed.

    Returns:
        uint8 (H, W, C), perhaps uint16 if that is allowed.

    Raises:
        DataError: If it is not an image, is too large, or has other channels or types.
    """
    if not rescales:
        image = read_image(path)
        _check_size(path.name, *image.shape[:2])
        return image
    found: NDArray[Any] = read_values(path)[0]
    _check_size(path.name, *found.shape[:2])
    values = found[..., None] if found.ndim == 2 else found
    if values.shape[2] != len(channels):
        raise DataError(
            f"{path.name}: {values.shape[2]} channels; expected {len(channels)} "
            f"({', '.join(channels)})"
        )
    return values


def read_user_mask(path: Path, image: NDArray[Any]) -> NDArray[np.bool_]:
    """Check the header of the file of a true mask, then decode it.

    Args:
        path: The file.
        image: (H, W, C), the slice that the mask belongs to.

    Returns:
        bool (H, W), True where tumour.

    Raises:
        DataError: If the mask cannot be used.
    """
    mask = read_mask(path, image).astype(bool)
    _check_filled(path.name, mask)
    return mask


def _check_filled(name: str, mask: NDArray[np.bool_]) -> None:
    if (share := float(mask.mean())) > _FILLED:
        raise DataError(f"{name}: {share:.0%} is tumour; is it inverted?")


def _check_size(name: str, height: int, width: int) -> None:
    if not (min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE):
        limits = f"from {MIN_SIDE} to {MAX_SIDE} pixels"
        raise DataError(f"{name}: {width} x {height} pixels; expected sides {limits}")


def _scans_of(path: Path, problems: list[str] | None = None) -> Iterator[Scan]:
    if path.is_dir():
        name = path.resolve().name
        for file in sorted(_walk(path, problems), key=lambda file: natural_key(str(file))):
            yield _scan(file, name / file.relative_to(path))
    elif path.exists():
        yield _scan(path, Path(path.name))


def _scan(path: Path, name: Path) -> Scan:
    suffix = _suffix(path)
    stem = path.name[: len(path.name) - len(suffix)]
    is_volume = suffix in VOLUME_SUFFIXES
    suffixes = (suffix, *(VOLUME_SUFFIXES if is_volume else IMAGE_SUFFIXES))
    masks = (path.with_name(f"{stem}{MASK_ENDING}{other}") for other in suffixes)
    return Scan(
        path=path,
        mask=next((mask for mask in masks if mask.exists()), None),
        name=name.with_name(stem),
        patient=stem if is_volume else patient_of(path.parent.resolve().name),
    )


def _walk(root: Path, problems: list[str] | None) -> Iterator[Path]:
    def note(error: OSError) -> None:
        if problems is not None:
            problems.append(f"{show_name(str(error.filename))}: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=note):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            suffix = _suffix(Path(name))
            is_mask = name[: len(name) - len(suffix)].endswith(MASK_ENDING)
            is_input = suffix in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)
            if is_input and not is_mask and not name.startswith("."):
                yield Path(folder) / name


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix
