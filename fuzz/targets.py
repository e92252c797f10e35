"""The readers of what a stranger hands in, each as a function of a file's bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from brainseg.data.description import find_files, read_description
from brainseg.data.nifti import open_volume
from brainseg.errors import BrainsegError
from brainseg.inference.readers import read_user_image, read_user_mask
from brainseg.model.model_file import load_model

CORPUS = Path(__file__).with_name("corpus")
_SIDE = 32  # of the corpus's images
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}
_MANIFEST = "manifest: list.csv\nchannels: [FLAIR]\n"


def _image(folder: Path, content: bytes) -> None:
    suffix = next((_SUFFIXES[start] for start in _SUFFIXES if content.startswith(start)), ".tif")
    path = _write(folder / f"slice{suffix}", content)
    with suppress(BrainsegError):
        read_user_image(path)
    with suppress(BrainsegError):
        read_user_image(path, ("FLAIR",))
    read_user_mask(path, np.zeros((_SIDE, _SIDE, 3), np.uint8))


def _volume(folder: Path, content: bytes) -> None:
    suffix = ".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"
    volume = open_volume(_write(folder / f"volume{suffix}", content))
    with suppress(BrainsegError):
        volume.read_slices(("FLAIR",))
    volume.read_slices()


def _model(folder: Path, content: bytes) -> None:
    load_model(_write(folder / "model.safetensors", content))


def _table(folder: Path, content: bytes) -> None:
    for name in ("dataset.yaml", "a.png", "a_mask.png"):
        _write(folder / name, _MANIFEST.encode() if name == "dataset.yaml" else b"")
    _write(folder / "list.csv", content)
    description = read_description(folder)
    assert description is not None
    find_files(folder, description)


TARGETS: Mapping[str, Callable[[Path, bytes], None]] = {
    "images": _image,
    "models": _model,
    "tables": _table,
    "volumes": _volume,
}
"""Name -> reads a file of that content, written into a folder."""


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def check(target: str, content: bytes) -> None:
    """Hand a content to a reader, which may refuse it with a BrainsegError, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, suppress(BrainsegError):
        TARGETS[target](Path(folder), content)
