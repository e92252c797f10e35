"""Decodes TIFF, PNG and JPEG files, after a check of their headers."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from brainseg.errors import DataError
from brainseg.storage.files import regular_file
from brainseg.storage.urls import escape

MAX_SIDE = 4096
"""Pixels along a side of an image that is read: 16.8 megapixels."""
MAX_BYTES = 64 * 2**20
"""Bytes of an image file that is read."""
_FORMATS = {"TIFF": (".tif", ".tiff"), "PNG": (".png",), "JPEG": (".jpg", ".jpeg")}
_REFUSED_MODES = {
    "P": "a palette of colours",
    "PA": "a palette of colours",
    "LA": "grey values and transparency",
    "CMYK": "four channels of ink (CMYK)",
    "LAB": "Lab colours",
}
"""Pillow's modes of images that OpenCV would convert, or read without a channel."""
_CHECKED = ("tiff_deflate", "tiff_adobe_deflate")
"""Compressions with a checksum, in Pillow's words."""
_STRIPS = ((273, 279), (324, 325))  # the tags of offsets and sizes, of strips and of tiles
_ORIENTATION = 274  # the number of the tag, in TIFF and Exif
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# A damaged file is reported once, by this program.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.utils.logging.setLogLevel(0)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image.

    Returns:
        uint8 (H, W, 3), channels pre-contrast, FLAIR, post-contrast.

    Raises:
        DataError: If the file is damaged, or not uint8 with three channels.
    """
    image = decode(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{show_name(path)}: {show_shape(image.shape)} {image.dtype}; expected three channels "
            "of uint8"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def read_mask(path: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode the true mask of an image.

    Args:
        path: The mask file.
        image: Its image, uint8 (H, W, 3).

    Returns:
        uint8 (H, W), 1 for tumour.

    Raises:
        DataError: If the file is damaged, of another size, or not a mask.
    """
    mask = decode(path)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{show_name(path)}: {show_shape(mask.shape)} {mask.dtype}; expected one channel of "
            "uint8"
        )
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{show_name(path)}: {show_shape(mask.shape)}, but its image {show_shape(image.shape)}"
        )
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    if not (set(values) <= {0, 255} or set(values) <= {0, 1}):
        shown = ", ".join(str(value) for value in values[:6])
        raise DataError(f"{show_name(path)}: values {shown} ...; expected 0 and 255, or 0 and 1")
    return mask.astype(bool).astype(np.uint8)


def decode(path: Path) -> NDArray[np.generic]:
    """Decode an image file as it is, after a look at its header.

    Raises:
        DataError: If the file is damaged, no image, too large, of another format than its name
            says, or one that would be read in part or altered: of several pages, with a palette,
            ink or transparent grey, turned by a tag.
    """
    size = require_file(path)
    if size > MAX_BYTES:
        raise DataError(f"{show_name(path)}: {size:,} bytes; at most {MAX_BYTES:,} are read")
    # cv2.imread would return None for any error, and cannot open some names.
    try:
        raw = path.read_bytes()
        _check_header(path, raw)
        decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise DataError(f"{show_name(path)}: cannot be read: {show_error(error)}") from error
    if decoded is None:
        raise DataError(f"{show_name(path)}: {len(raw):,} bytes, damaged or truncated")
    return np.asarray(decoded)


def _check_header(path: Path, raw: bytes) -> None:
    """Refuse an image that OpenCV would not decode as it is, before its pixels are decoded."""
    try:
        with Image.open(io.BytesIO(raw), formats=tuple(_FORMATS)) as image:
            if image.format == "PNG":  # OpenCV allocates what a chunk claims to hold
                image.verify()
        with Image.open(io.BytesIO(raw), formats=tuple(_FORMATS)) as image:
            reason = _find_fault(image, path.suffix.lower())
            if reason is None and image.info.get("compression") in _CHECKED:
                _check_strips(image, raw)
    except UnidentifiedImageError as error:
        reason = f"not a TIFF, PNG or JPEG image, or a truncated one: {len(raw):,} bytes"
        raise DataError(f"{show_name(path)}: {reason}") from error
    except Image.DecompressionBombError:
        reason = f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; at most {MAX_SIDE} along a side"
    except Exception as error:  # a damaged header may raise anything
        reason = f"cannot be read, perhaps truncated: {show_error(error)}"
    if reason is not None:
        raise DataError(f"{show_name(path)}: {reason}")


def _check_strips(image: Any, raw: bytes) -> None:
    """Compare a TIFF's strips or tiles with their checksums, which libtiff does not read.

    Raises:
        zlib.error: If one is damaged.
        EOFError: If one is cut, or far longer than the image.
    """
    tags, longest = image.tag_v2, 16 * image.width * image.height + 2**20
    for starts, sizes in _STRIPS:
        for start, size in zip(tags.get(starts, ()), tags.get(sizes, ()), strict=True):
            strip = zlib.decompressobj()
            strip.decompress(raw[start : start + size], longest)
            if not strip.eof:
                raise EOFError("a strip is not whole")


def _find_fault(image: Image.Image, suffix: str) -> str | None:
    (width, height), pages = image.size, getattr(image, "n_frames", 1)
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels; at most {MAX_SIDE} along a side"
    if pages != 1:
        return f"{pages} pages; expected one slice in a file"
    if suffix not in _FORMATS.get(image.format or "", ()):
        return f"holds a {image.format} image, against its name: give the original, or rename it"
    if image.mode in _REFUSED_MODES:
        return f"{_REFUSED_MODES[image.mode]}; expected grey values or three channels: convert it"
    if (turned := image.getexif().get(_ORIENTATION, 1)) != 1:
        return f"turned by its orientation tag ({turned}): save it upright, without the tag"
    return None


def require_file(path: Path) -> int:
    """Return the size in bytes of a file of data.

    Raises:
        DataError: If there is none, or it is a folder, a pipe or a device.
    """
    try:
        return regular_file(path).stat().st_size
    except (DataError, OSError) as error:
        raise DataError(f"{show_name(path)}: {show_name(str(error))}") from error


def show_name(name: Path | str) -> str:
    """Return the last part of a path, or a text, with what no terminal shows as escapes."""
    return escape(name.name if isinstance(name, Path) else name)


def show_shape(shape: Sequence[int]) -> str:
    """Return an array's shape as messages give it, such as `256x256x3`."""
    return "x".join(str(side) for side in shape)


def show_error(error: Exception, length: int = 200) -> str:
    """Return what another library's error says, in one line of at most `length` characters."""
    return show_name(" ".join(str(error).split()))[:length]


def is_writable_name(name: str) -> bool:
    """Return whether tables can hold a name: it is UTF-8, without control characters."""
    return _UNSAFE.search(name) is None
