"""Reads NIfTI volumes as slices in the orientation of the training slices; writes masks like them.

In that orientation rows run from front to back, columns from the patient's right to the left, and
slices from below to above. The file's affine says how its own axes run.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from brainseg.data.about import CHANNELS
from brainseg.data.preprocess import rescale
from brainseg.errors import DataError

VOLUME_SUFFIXES = (".nii", ".nii.gz")
_AXES = ("L", "P", "S")  # the directions in which columns, rows and slices are counted
_MAX_BYTES = 2**30
_READING_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class Volume:
    """A NIfTI file whose header is read; slices and mask are decoded on demand.

    Attributes:
        path: The file.
        num_slices: The number of slices along the axis from below to above.
    """

    path: Path
    num_slices: int
    _image: Any  # nibabel is not typed
    _to_slices: NDArray[np.float64]
    _to_file: NDArray[np.float64]

    def read_slices(self, channels: Sequence[str] = CHANNELS) -> NDArray[np.uint8]:
        """Decode the volume.

        The values of the LGG dataset's channels must be bytes. Others are rescaled as a described
        dataset's are, see `rescale`.

        Args:
            channels: Names of the channels that it must have, on a fourth axis if there are more
                than one.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            DataError: If the file is damaged or has other channels, or the values are no bytes.
        """
        data = self._decode()
        if data.dtype.names:
            data = np.stack([data[name] for name in data.dtype.names], axis=-1)
        if data.ndim == 5 and data.shape[3] == 1:
            data = data[:, :, :, 0]
        if data.ndim == 3 and len(channels) == 1:
            data = data[..., None]
        if data.ndim != 4 or data.shape[3] != len(channels):
            number = "three" if len(channels) == 3 else len(channels)
            raise DataError(
                f"{self.path.name}: {_shape(data)}; expected {number} sequences on a fourth axis "
                f"({', '.join(channels)})"
            )
        if tuple(channels) == CHANNELS:
            return self._turn(_to_uint8(data, self.path.name))
        if data.dtype == np.uint8:
            return self._turn(data)
        return np.stack(rescale(list(self._turn(data))))

    def read_values(self) -> NDArray[Any]:
        """Decode the volume as it is, (N, H, W), or (N, H, W, C) if it has a fourth axis.

        Raises:
            DataError: If the file is damaged or has other axes.
        """
        data = self._decode()
        if data.dtype.names or data.ndim not in (3, 4):
            raise DataError(f"{self.path.name}: {_shape(data)}; expected three or four axes")
        return self._turn(data)

    def read_mask(self, like: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Decode this volume as the true mask of another one.

        Args:
            like: uint8 (N, H, W, 3), the slices that the mask belongs to.

        Returns:
            bool (N, H, W), True where tumour.

        Raises:
            DataError: If the file is damaged, has another size, or holds more than two values.
        """
        data = self._decode()
        values = np.unique(data).tolist() if data.ndim == 3 and not data.dtype.names else None
        if values is None or not (set(values) <= {0, 255} or set(values) <= {0, 1}):
            shown = _shape(data) if values is None else f"values {values[:6]}"
            raise DataError(f"{self.path.name}: {shown}; expected one channel, 0 for no tumour")
        mask = self._turn(data > 0)
        if mask.shape != like.shape[:3]:
            raise DataError(f"{self.path.name}: {_shape(mask)} slices, its image {_shape(like)}")
        return mask

    def write_mask(self, masks: NDArray[np.bool_], path: Path) -> None:
        """Write masks as a volume with this one's size, affine and units.

        Args:
            masks: bool (N, H, W).
            path: The new file, with the suffix `.nii` or `.nii.gz`.
        """
        data = orientations.apply_orientation(masks.transpose(2, 1, 0), self._to_file)
        header = self._image.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header.set_intent("none")
        mask = self._image.__class__(data.astype(np.uint8), self._image.affine, header)
        mask.header["cal_max"], mask.header["cal_min"] = 1, 0
        nibabel.save(mask, path)

    def _decode(self) -> NDArray[Any]:
        try:
            return np.asanyarray(self._image.dataobj)
        except _READING_ERRORS as error:
            raise DataError(f"{self.path.name}: damaged: {_reason(error)}") from error

    def _turn(self, data: NDArray[Any]) -> NDArray[Any]:
        turned = orientations.apply_orientation(data, self._to_slices)
        return np.ascontiguousarray(np.moveaxis(turned, (0, 1, 2), (2, 1, 0)))


def open_volume(path: Path) -> Volume:
    """Read the header of a NIfTI file.

    Raises:
        DataError: If the file is not a NIfTI volume, is too large, or has no affine.
    """
    try:
        image: Any = nibabel.Nifti1Image.from_filename(path)
        own = orientations.io_orientation(image.affine)
    except (*_READING_ERRORS, np.linalg.LinAlgError) as error:
        raise DataError(f"{path.name}: not a NIfTI volume: {_reason(error)}") from error
    num_bytes = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    if num_bytes > _MAX_BYTES:
        raise DataError(
            f"{path.name}: {num_bytes:,} bytes decoded; at most {_MAX_BYTES:,} are read"
        )
    if len(image.shape) < 3 or min(image.shape) < 1 or np.isnan(own).any():
        raise DataError(f"{path.name}: {_shape(image)}; expected slices with an affine")
    known = orientations.axcodes2ornt(_AXES)
    to_slices = orientations.ornt_transform(own[:3], known)
    axis = int(np.flatnonzero(to_slices[:, 0] == 2)[0])
    to_file = orientations.ornt_transform(known, own[:3])
    return Volume(path, image.shape[axis], image, to_slices, to_file)


def _to_uint8(data: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if data.dtype == np.uint8:
        return data
    lowest, highest = float(np.nanmin(data)), float(np.nanmax(data))
    with np.errstate(invalid="ignore"):
        integers = data.astype(np.uint8)
    if not np.array_equal(integers, data):
        raise DataError(
            f"{name}: {data.dtype} from {lowest:g} to {highest:g}; expected integers from 0 to "
            "255, scaled as the training slices are"
        )
    return integers


def _shape(array: Any) -> str:
    return "x".join(str(side) for side in array.shape)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
