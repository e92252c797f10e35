"""Writes the corpus again: small files that each reader accepts, or nearly so."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from brainseg.config import Experiment
from brainseg.model.model_file import ModelHeader
from fuzz.targets import CORPUS

_SIDE = 32


def main() -> None:
    """Write fuzz/corpus/."""
    makers: Mapping[str, Callable[[], Mapping[str, bytes]]] = {
        "images": _images,
        "models": _models,
        "tables": _tables,
        "volumes": _volumes,
    }
    for target, make in makers.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in make().items():
            (folder / name).write_bytes(content)


def _images() -> Mapping[str, bytes]:
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    blob = (rows - 12) ** 2 + (columns - 18) ** 2 < 36
    grey = (blob * 200).astype(np.uint8)
    images = {
        "rgb.tif": Image.fromarray(np.stack([grey, grey // 2, grey], -1)),
        "grey16.tif": Image.fromarray(grey.astype(np.uint16) * 200),
        "mask.png": Image.fromarray(blob.astype(np.uint8) * 255),
        "palette.png": Image.fromarray(grey).convert("P"),
        "rgb.jpg": Image.fromarray(np.stack([grey] * 3, -1)),
    }
    found = {name: _encode(image, name) for name, image in images.items()}
    found["lzw.tif"] = _encode(images["rgb.tif"], "lzw.tif", compression="tiff_lzw")
    pages = [images["rgb.tif"]] * 2
    found["pages.tif"] = _encode(pages[0], "pages.tif", save_all=True, append_images=pages[1:])
    return found


def _encode(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    kinds = {"tif": "TIFF", "png": "PNG", "jpg": "JPEG"}
    image.save(file, kinds[name.partition(".")[2]], **options)
    return file.getvalue()


def _volumes() -> Mapping[str, bytes]:
    values = (np.arange(8 * 8 * 3) % 200).astype(np.uint8).reshape(8, 8, 3)
    colours = np.stack([values] * 3, -1)
    found = {
        "grey.nii": nibabel.Nifti1Image(values, np.eye(4)).to_bytes(),
        "channels.nii": nibabel.Nifti1Image(colours, np.diag([-1, -1, 2, 1])).to_bytes(),
        "floats.nii": nibabel.Nifti1Image(values / np.float32(7), np.eye(4)).to_bytes(),
        "two.nii": nibabel.Nifti2Image(values, np.eye(4)).to_bytes(),
    }
    return found | {"grey.nii.gz": gzip.compress(found["grey.nii"], mtime=0)}


def _models() -> Mapping[str, bytes]:
    header = ModelHeader(
        experiment=Experiment(),
        fingerprint="0" * 64,
        synthetic=True,
        weights="none",
        best={"stage": 1.0, "epoch": 1.0},
        metrics={"val_dice": 0.5},
        versions={"python": "3.11"},
    )
    tensors: dict[str, NDArray[Any]] = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(1, np.int64),
    }
    return {
        "model.safetensors": save(tensors, {"brainseg": header.model_dump_json()}),
        "other.safetensors": save(tensors, {"format": "pt"}),
        "empty.safetensors": save({}),
    }


def _tables() -> Mapping[str, bytes]:
    lines = "image,mask,patient,grade\na.png,a_mask.png,one,2\n"
    return {
        "list.csv": lines.encode(),
        "bom.csv": ("\ufeff" + lines.replace("\n", "\r\n")).encode(),
        "quoted.csv": b'"FLAIR","mask","patient"\n"a.png","a_mask.png","o ""n"" e"\n',
    }


if __name__ == "__main__":
    main()
