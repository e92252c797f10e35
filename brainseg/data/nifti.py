"""Reads NIfTI volumes as slices in the orientation of the training slices; writes masks like them.

In that orientation rows run from front to back, columns from the patient's right to the left, and
slices from below to above. The file's affine says how its own axes run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import affines, orientations
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from brainseg.data.about import CHANNELS
from brainseg.data.image_files import MAX_SIDE, require_file, show_error, show_shape
from brainseg.data.preprocess import rescale
from brainseg.errors import DataError

VOLUME_SUFFIXES = (".nii", ".nii.gz")
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_MAX_SPACING = 100.0  # millimetres; more is no in-plane distance
_AXES = ("L", "P", "S")  # the directions in which columns, rows and slices are counted
_MAX_BYTES = 2**30
_MAX_OFFSET = 2**24  # of the values in the file; extensions of the header lie before them
_HEADER, _CHUNK = 348, 2**24
_SHOWN = 120  # characters of another library's error
_MAX_APART = 0.1  # voxels; headers round, and the grids of two scans differ by more


@dataclass(frozen=True)
class NiftiVolume:
    """A NIfTI file whose header is read; slices and mask are decoded on demand.

    Attributes:
        path: The file.
        shape: The number of slices from below to above, of rows and of columns.
    """

    path: Path
    shape: tuple[int, int, int]
    _image: Any  # nibabel is not typed
    _to_slices: NDArray[np.float64]
    _to_file: NDArray[np.float64]

    @property
    def num_slices(self) -> int:
        """The number of slices."""
        return self.shape[0]

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Millimetres from row to row and from column to column; None if they are not known.

        A header that names no unit means millimetres, as nibabel and FSL read it, unless all sides
        of a voxel are 1: so are those of a file that was written without a known spacing.
        """
        sides = affines.voxel_sizes(self._image.affine)
        try:
            unit = self._image.header.get_xyzt_units()[0]
        except KeyError:  # a number that stands for no unit
            return None
        if unit == "unknown" and np.allclose(sides, 1):
            return None
        rows, columns = (
            # A header holds 0.6 as 0.60000002.
            round(float(sides[self._to_slices[:, 0] == axis][0]) * _MILLIMETRES[unit], 6)
            for axis in (1, 0)
        )
        is_known = min(rows, columns) > 0 and max(rows, columns) <= _MAX_SPACING
        return (rows, columns) if is_known else None

    def read_slices(
        self, channels: Sequence[str] = CHANNELS, *, rescales: bool = False
    ) -> NDArray[np.uint8]:
        """Decode the volume.

        Args:
            channels: Names of the channels that it must have, on a fourth axis if there are more
                than one.
            rescales: Whether values that are not bytes are rescaled, see `rescale`, or refused.

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
                f"{self.path.name}: {show_shape(data.shape)}; expected {number} sequences on a "
                f"fourth axis ({', '.join(channels)})"
            )
        if not rescales:
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
            raise DataError(
                f"{self.path.name}: {show_shape(data.shape)}; expected three or four axes"
            )
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
        if self.shape != like.shape[:3]:
            shape, expected = show_shape(self.shape), show_shape(like.shape)
            raise DataError(f"{self.path.name}: {shape} slices, its image {expected}")
        data = self._decode()
        values = np.unique(data).tolist() if data.ndim == 3 and not data.dtype.names else None
        if values is None or not (set(values) <= {0, 255} or set(values) <= {0, 1}):
            shown = show_shape(data.shape) if values is None else f"values {values[:6]}"
            raise DataError(f"{self.path.name}: {shown}; expected one channel, 0 for no tumour")
        return self._turn(data > 0)

    def check_affine(self, like: NiftiVolume) -> None:
        """Check that the voxels of this volume lie where those of another of its size do.

        How the files' own axes run may differ: both are compared as they are cut into slices.

        Raises:
            DataError: If a corner lies more than a tenth of a voxel elsewhere. Voxels of one
                index would then be of different places, such as left and right.
        """
        corners = np.array(list(itertools.product(*((0, side - 1) for side in like.shape[::-1]))))
        own, other = self._slices_affine, like._slices_affine
        apart = affines.apply_affine(own, corners) - affines.apply_affine(other, corners)
        voxels = np.abs(np.linalg.lstsq(other[:3, :3], apart.T, rcond=None)[0]).max()
        if voxels <= _MAX_APART:
            return
        axes = ["".join(orientations.aff2axcodes(one._image.affine)) for one in (self, like)]
        is_identity = np.allclose(self._image.affine, np.eye(4))
        dropped = " (the identity, which tools write that drop affines)" if is_identity else ""
        other_name = like.path.name
        if other_name == self.path.name:
            other_name = f"{like.path.parent.name}/{other_name}"
        raise DataError(
            f"{self.path.name}: its affine{dropped} is not that of {other_name}: axes "
            f"{axes[0]} and {axes[1]}, corners up to {voxels:.3g} voxels apart, so it would be "
            "read mirrored, turned or shifted; save it with that file's affine, if its voxels are "
            "in that order, else resample it"
        )

    @property
    def _slices_affine(self) -> NDArray[np.float64]:
        """The affine of column, row and slice, as `_turn` orders them."""
        back = orientations.inv_ornt_aff(self._to_slices, self._image.shape[:3])
        return np.asarray(self._image.affine @ back, np.float64)

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
        """Read as many values as the header declares, a piece at a time; fractions as float32."""
        proxy = self._image.dataobj
        count = int(np.prod(proxy.shape, dtype=object))
        values = np.empty(count, _decoded_type(proxy))
        try:
            with ImageOpener(self.path) as file:
                file.seek(proxy.offset)
                for start in range(0, count, _CHUNK):
                    some = min(_CHUNK, count - start)
                    raw = file.read(some * proxy.dtype.itemsize)
                    if len(raw) < some * proxy.dtype.itemsize:
                        raise EOFError("it ends before the values that its header declares")
                    values[start : start + some] = _scaled(np.frombuffer(raw, proxy.dtype), proxy)
        except Exception as error:  # nibabel and the decompressors may raise anything
            raise DataError(f"{self.path.name}: damaged: {show_error(error, _SHOWN)}") from error
        if values.dtype.kind == "f" and np.isinf(values).any():
            raise DataError(f"{self.path.name}: holds infinite values")
        return values.reshape(proxy.shape, order="F")

    def _turn(self, data: NDArray[Any]) -> NDArray[Any]:
        turned = orientations.apply_orientation(data, self._to_slices)
        return np.ascontiguousarray(np.moveaxis(turned, (0, 1, 2), (2, 1, 0)))


def is_volume(path: Path) -> bool:
    """Return whether a file is a NIfTI volume, by its name."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def open_volume(path: Path) -> NiftiVolume:
    """Read the header of a NIfTI file.

    Raises:
        DataError: If the file is not a NIfTI volume, is too large or shorter than its header
            declares, or has no affine.
    """
    size = require_file(path)
    try:
        with ImageOpener(path) as file:
            block = file.read(_HEADER)
        # Before nibabel reads the extensions, which may be as long as the header says.
        offset = float(nibabel.Nifti1Header(block, check=False)["vox_offset"])
        if not 0 <= offset <= _MAX_OFFSET:
            raise DataError(f"{path.name}: its values begin at byte {offset:.0f}")
        image: Any = nibabel.Nifti1Image.from_filename(path)
        own = orientations.io_orientation(image.affine)
    except DataError:
        raise
    except Exception as error:  # nibabel and the decompressors may raise anything
        what = show_error(error, _SHOWN) if size else "0 bytes: the file is empty"
        raise DataError(f"{path.name}: not a NIfTI volume: {what}") from error
    _check_shape(path, image, own)
    _check_bytes(path, image.dataobj, size)
    known = orientations.axcodes2ornt(_AXES)
    to_slices = orientations.ornt_transform(own[:3], known)
    slices, rows, columns = (
        int(image.shape[np.flatnonzero(to_slices[:, 0] == axis)[0]]) for axis in (2, 1, 0)
    )
    to_file = orientations.ornt_transform(known, own[:3])
    return NiftiVolume(path, (slices, rows, columns), image, to_slices, to_file)


def _check_shape(path: Path, image: Any, orientation: NDArray[np.float64]) -> None:
    if len(image.shape) < 3 or min(image.shape) < 1 or np.isnan(orientation).any():
        raise DataError(f"{path.name}: {show_shape(image.shape)}; expected slices with an affine")
    if max(image.shape[:3]) > MAX_SIDE:
        raise DataError(f"{path.name}: {show_shape(image.shape)}; at most {MAX_SIDE} along a side")
    dtype = image.get_data_dtype()
    if dtype.kind not in "uif" and not dtype.names:
        raise DataError(f"{path.name}: values of type {dtype}; expected numbers")


def _check_bytes(path: Path, proxy: Any, size: int) -> None:
    """Check what the header declares against the limit and, if not compressed, the file's size."""
    count = int(np.prod(proxy.shape, dtype=object))
    decoded = count * max(_decoded_type(proxy).itemsize, proxy.dtype.itemsize)
    if decoded > _MAX_BYTES:
        raise DataError(f"{path.name}: {decoded:,} bytes decoded; at most {_MAX_BYTES:,} are read")
    declared = proxy.offset + count * proxy.dtype.itemsize
    if path.suffix.lower() == ".nii" and size < declared:
        raise DataError(
            f"{path.name}: damaged: {size:,} bytes, but its header declares {declared:,}"
        )


def _decoded_type(proxy: Any) -> np.dtype[Any]:
    """The type of values after the header's scaling: fractions are rescaled as float32 anyway."""
    is_scaled = (proxy.slope, proxy.inter) != (1, 0)
    if is_scaled or proxy.dtype.kind == "f":
        return np.dtype(np.float32)
    native: np.dtype[Any] = proxy.dtype.newbyteorder("=")
    return native


def _scaled(values: NDArray[Any], proxy: Any) -> NDArray[Any]:
    if values.dtype.names:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(apply_read_scaling(values, proxy.slope, proxy.inter))


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
