"""Model files: trained weights in a safetensors file whose header holds the experiment.

A model file holds all that prediction needs. Nothing is unpickled.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from brainseg.config import Experiment, Names
from brainseg.data.about import CHANNELS
from brainseg.errors import CheckpointError, DataError
from brainseg.storage.files import (
    hide_home,
    regular_file,
    retry_storage,
    write_atomically,
)
from brainseg.storage.values import MAX_BYTES, cut, explain

Tensors = dict[str, torch.Tensor]

_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_PACKAGES = (
    "torch",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that determine the numbers."""
    found = {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # another build of OpenCV, say
            found[package] = "not installed"
    return found


class ModelHeader(BaseModel):
    """The header of a model file.

    Attributes:
        format: Version of the file format.
        experiment: The training run; prediction takes size and preprocessing from it.
        fingerprint: Fingerprint of the dataset.
        synthetic: Whether the dataset was generated.
        weights: Origin of the encoder's initial weights, in words.
        best: Stage, epoch and val loss of the weights.
        metrics: Scores by name: `val_...` and, after the test, `test_...`.
        channels: Names of the channels of the dataset's images, which prediction expects.
        described: Whether a `dataset.yaml` described the dataset, whose values may be other than
            bytes; None in files of earlier versions.
        versions: Versions of Python and of the packages that determine the numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    experiment: Experiment
    fingerprint: str
    synthetic: bool
    weights: str
    best: dict[str, float]
    metrics: dict[str, float]
    channels: Names = CHANNELS
    described: bool | None = None
    versions: dict[str, str] = Field(default_factory=versions)

    @property
    def rescales(self) -> bool:
        """Whether values that are not bytes are rescaled, as in training, or else refused."""
        return self.channels != CHANNELS if self.described is None else self.described


def save_model(path: Path, weights: Tensors, header: ModelHeader) -> None:
    """Write a model file; its folder is made if need be.

    Raises:
        StorageError: If the disk refuses; a file that was there before is intact.
    """
    about = {"brainseg": hide_home(header.model_dump_json())}
    path.parent.mkdir(parents=True, exist_ok=True)
    retry_storage(lambda: save_tensors(weights, path, about), f"the model file {path}")


def load_model(path: Path) -> tuple[Tensors, ModelHeader]:
    """Read a model file.

    Raises:
        CheckpointError: If it is missing, damaged, was not written by `save_model`, or holds
            weights that are infinite, NaN or of a type that networks do not compute with.
    """
    header = read_header(path)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the model file {path}: {cut(str(error))}") from error
    if other := [name for name, values in weights.items() if values.dtype not in _DTYPES]:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise CheckpointError(
            f"the model file {path} holds {weights[other[0]].dtype} in {other[0]}; expected "
            f"{known}: convert its weights"
        )
    if bad := [name for name, values in weights.items() if not torch.isfinite(values).all()]:
        raise CheckpointError(
            f"the model file {path} holds weights that are infinite or NaN, in {len(bad)} of "
            f"{len(weights)} tensors, such as {bad[0]}: take another model"
        )
    return weights, header


def read_header(path: Path) -> ModelHeader:
    """Read the header of a model file, without its weights.

    Raises:
        CheckpointError: If it is missing, damaged, or was not written by `save_model`.
    """
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            header = (file.metadata() or {}).get("brainseg")
        if header is None:
            raise CheckpointError(f"{path} is not a model file of brainseg: its header is missing")
        if len(header) > MAX_BYTES:
            raise CheckpointError(f"the header of {path} has more than {MAX_BYTES:,} characters")
        return ModelHeader.model_validate_json(header)
    except DataError as error:  # which says that the file cannot be read
        raise CheckpointError(str(error)) from error
    except ValidationError as error:
        raise CheckpointError(f"the header of {path} cannot be used: {explain(error)}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the model file {path}: {cut(str(error))}") from error


def save_tensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout to a safetensors file, whole or not at all.

    Raises:
        OSError: If the disk refuses the write, for which safetensors has an error of its own.
    """
    layout = torch.contiguous_format
    plain = {key: t.detach().to("cpu", memory_format=layout) for key, t in tensors.items()}
    with write_atomically(path) as aside:
        try:
            save_file(plain, aside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
