"""Experiment: every knob of one training run, with its default, range and unit, in one place.

The defaults are the published protocol at 256 pixels; `configs/baseline.yaml` writes them all out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from brainseg.errors import ConfigError
from brainseg.storage.urls import name_of, to_location

NUM_FOLDS = 10
"""Folds that the patients are dealt into; a rotation r in [0, 10) says which are tested."""

NUM_INNER_FOLDS = NUM_FOLDS - 1
"""Rotations of the folds that are not tested: which of them validate."""

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """Frozen, and an unknown key is an error: a typing mistake must not train the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataConfig(_Section):
    """Which pixels the network sees.

    Attributes:
        size: Side of the square that slices are resized to, in pixels; a multiple of 32.
        split_seed: Seed of the assignment of patients to folds; one value for a whole study.
    """

    size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = 256
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 44


class PreprocessConfig(_Section):
    """Deterministic filters of every slice, in training and prediction alike.

    Attributes:
        enabled: False leaves slices raw and the other keys unread.
        median_kernel: Side of the median filter in pixels, odd; 1 is no filter.
        clip_limit: CLAHE clip limit on the L channel of LAB, relative to a flat histogram.
        tile_grid: CLAHE tiles along each side.
    """

    enabled: bool = False
    median_kernel: Literal[1, 3, 5] = 3
    clip_limit: Annotated[float, Field(gt=0, le=40)] = 3.0
    tile_grid: Annotated[int, Field(ge=1, le=32)] = 8


class AugmentConfig(_Section):
    """Random changes of training slices.

    Attributes:
        strength: 0 is none, 1 the published protocol, 2 the most; `augment.py` says how it scales
            the values below.
        flip_probability: Of the horizontal and, drawn independently, of the vertical flip.
        warp_probability: Of the rotation and, drawn independently, of the elastic transform.
        rotation_degrees: Largest rotation to either side, in degrees.
        elastic_alpha: Amplitude of the elastic displacement field.
        elastic_sigma: Smoothness of that field, in pixels.
    """

    strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    flip_probability: Probability = 0.5
    warp_probability: Probability = 0.5
    rotation_degrees: Annotated[float, Field(ge=0, le=90)] = 25.0
    elastic_alpha: Annotated[float, Field(ge=0, le=1000)] = 120.0
    elastic_sigma: Annotated[float, Field(ge=1, le=100)] = 6.0


class ModelConfig(_Section):
    """The U-Net.

    Attributes:
        encoder: Any encoder name of segmentation-models-pytorch, such as `resnet50`.
        encoder_weights: `imagenet` (downloaded once), `none` (random), or the path or URL of a
            safetensors file whose keys are the encoder's.
        calibrate_encoder: Set the encoder's BatchNorm statistics to those of the training slices
            before stage 1; False keeps the ones that came with the weights.
        batchnorm_momentum: Weight of each batch in BatchNorm's running statistics. None keeps the
            value of each layer: 0.1 in most networks, but 0.01 in `efficientnet-b0` to `-b7`. With
            0.01 the statistics need hundreds of steps to follow weights that change fast, as
            random ones do, and validation fails until then.
    """

    encoder: str = "resnet50"
    encoder_weights: str = "imagenet"
    calibrate_encoder: bool = True
    batchnorm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None

    @field_validator("encoder_weights", mode="before")
    @classmethod
    def _name_none(cls, value: object) -> object:
        return "none" if value is None else value

    @field_validator("encoder_weights")
    @classmethod
    def _imagenet_none_or_path(cls, value: str) -> str:
        if value not in ("imagenet", "none") and not name_of(to_location(value)).endswith(
            ".safetensors"
        ):
            raise ValueError("must be imagenet, none, or the path or URL of a .safetensors file")
        return value


class StageConfig(_Section):
    """One of the two stages of training, each with an optimizer and a scheduler of its own.

    Attributes:
        epochs: Passes over the training slices; 0 skips the stage.
        learning_rate: AdamW's, at the stage's first epoch.
        freeze_encoder: True keeps the encoder's weights and BatchNorm statistics bit-equal.
    """

    epochs: Annotated[int, Field(ge=0, le=10_000)]
    learning_rate: Positive
    freeze_encoder: bool


class OptimizerConfig(_Section):
    """AdamW and ReduceLROnPlateau on the val loss, the same in both stages.

    Attributes:
        batch_size: Slices per optimizer step.
        weight_decay: AdamW's decoupled decay.
        plateau_factor: Factor on the learning rate when the val loss stalls.
        plateau_patience: Epochs without a better val loss that are waited for.
    """

    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    plateau_patience: Annotated[int, Field(ge=0)] = 3


class LossConfig(_Section):
    """Weights of the two terms; the protocol's val losses are on the scale of one half each."""

    dice_weight: Annotated[float, Field(ge=0, le=100)] = 0.5
    bce_weight: Annotated[float, Field(ge=0, le=100)] = 0.5

    @model_validator(mode="after")
    def _weighs_something(self) -> LossConfig:
        if self.dice_weight + self.bce_weight == 0:
            raise ValueError("dice_weight and bce_weight cannot both be 0")
        return self


class Experiment(_Section):
    """One training run: with a dataset and the versions it determines the numbers.

    Attributes:
        seed: Of initial weights, order, augmentation and dropout.
        fold: Rotation of the ten folds, 0 to 9; 0 is the published split.
        inner_fold: Rotation, 0 to 8, of the nine folds that are not tested: other ones validate,
            the same are tested. 0 is the published split.
        threshold: Probability from which on a pixel is called tumour.
    """

    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    stages: tuple[StageConfig, StageConfig] = (
        StageConfig(epochs=5, learning_rate=1e-4, freeze_encoder=True),
        StageConfig(epochs=15, learning_rate=1e-5, freeze_encoder=False),
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 44
    fold: Annotated[int, Field(ge=0, lt=NUM_FOLDS)] = 0
    inner_fold: Annotated[int, Field(ge=0, lt=NUM_INNER_FOLDS)] = 0

    @model_validator(mode="after")
    def _trains_at_all(self) -> Experiment:
        if not any(stage.epochs for stage in self.stages):
            raise ValueError("stages.0.epochs and stages.1.epochs cannot both be 0")
        return self

    def replaced(self, changes: dict[str, Any]) -> Experiment:
        """Return a copy in which dotted keys such as `stages.0.epochs` have new values.

        Raises:
            ConfigError: If a key is unknown or a value not allowed.
        """
        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            try:
                assign(tree, key, value)
            except KeyError as error:
                raise ConfigError(f"unknown key {key}{_suggestion(key)}") from error
        return _validated(tree, "--set")

    def value(self, key: str) -> Any:
        """Return the value of a dotted key.

        Raises:
            ConfigError: If there is no such key.
        """
        values = flatten(self.model_dump(mode="json"))
        if key not in values:
            raise ConfigError(f"unknown key {key}{_suggestion(key)}")
        return values[key]

    def to_yaml(self) -> str:
        """Return YAML text that `load_experiment` reads back to an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_experiment(path: Path | str) -> Experiment:
    """Read an experiment from a YAML file; keys that it leaves out keep their defaults.

    Raises:
        ConfigError: If the file is missing, no YAML mapping, or holds a bad key or value.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no keys; compare configs/baseline.yaml")
    return _validated(tree, str(path))


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `KEY=VALUE` texts into dotted keys and YAML values; a later one wins.

    Raises:
        ConfigError: If a text has no `=` or its value is no YAML.
    """
    changes = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as data.size=128")
        try:
            changes[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is no YAML: {error}") from error
    return changes


def valid_keys() -> list[str]:
    """Return every dotted key of an experiment, in the order of the file."""
    return list(flatten(Experiment().model_dump(mode="json")))


def differences(ours: Experiment, theirs: Experiment) -> list[str]:
    """Return a line `key: theirs -> ours` for each key in which two experiments differ."""
    left = flatten(theirs.model_dump(mode="json"))
    right = flatten(ours.model_dump(mode="json"))
    return [f"{key}: {left[key]} -> {right[key]}" for key in left if left[key] != right[key]]


def _suggestion(key: str) -> str:
    keys = valid_keys()
    near = difflib.get_close_matches(key, keys, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint} Valid keys: {', '.join(keys)}"


def _validated(tree: dict[str, Any], origin: str) -> Experiment:
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown key {key}{_suggestion(key)}")
            else:
                reason = problem["msg"].removeprefix("Value error, ")
                # A rule of ours about several keys names them itself.
                is_ours = problem["type"] == "value_error" and isinstance(problem["input"], dict)
                found = "" if is_ours else f"{key} is {problem['input']!r}: "
                lines.append(f"{found}{reason[0].lower()}{reason[1:]}")
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from error


# --- keys ---


def assign(tree: dict[str, Any], key: str, value: object) -> None:
    """Give the value of a dotted key another one, in place.

    Raises:
        KeyError: If the tree has no such key.
    """
    *parents, last = key.split(".")
    node: Any = tree
    try:
        for part in parents:
            node = node[_position(part)] if isinstance(node, list) else node[part]
        if isinstance(node, list):
            node[_position(last)] = value
        elif last in node:
            node[last] = value
        else:
            raise KeyError(last)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise KeyError(key) from error


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their dotted keys, in its order."""
    if isinstance(node, dict):
        items: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _position(text: str) -> int:
    if not text.isdigit():
        raise ValueError(text)  # int() would take -1 for the last stage
    return int(text)
