"""The experiment: every setting of a training run, with its default, unit and range.

The defaults are the published protocol at 256 pixels; `configs/baseline.yaml` lists them all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from brainseg.errors import ConfigError
from brainseg.plugins import FILTER_GROUP, installed, is_path
from brainseg.storage.urls import name_of, to_location
from brainseg.storage.values import (
    Checked,
    Line,
    cut,
    did_you_mean,
    parse_yaml,
    read_yaml,
    unknown,
    validated,
)

NUM_FOLDS = 10
"""Folds that patients are assigned to, and rotations that choose which fold is tested."""

LEAKY_SPLIT = "slice"
"""The value of `data.split` that lets slices of one patient train and test."""

FILTERS = ("median", "clahe", "unsharp", "laplacian", "sobel")
"""The filters that come with the program."""

EDGES = "sobel"
"""The filter that adds a channel."""

NUM_INNER_FOLDS = NUM_FOLDS - 1
"""Rotations within the folds that are not tested, which choose the folds that validate."""

Probability = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Name = Annotated[Line, Field(max_length=60)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
Millimetres = Annotated[float, Field(gt=0, le=100)]
LossWeight = Annotated[float, Field(ge=0, le=100)]


class _Section(Checked):
    model_config = ConfigDict(validate_default=True)


class DataConfig(_Section):
    """Slices and their split.

    Attributes:
        size: Side of the square that slices are resized to, in pixels; a multiple of 32 from 32 to
            1024.
        split: How patients are assigned to training, validation and test: `patient`, ten folds of
            patients; `site`, each site left out in turn; the path of a YAML or JSON file of
            patients; or `slice`, ten folds of slices, which is LEAKY: a patient's slices train and
            test.
        split_seed: Seed that assigns patients to folds, 0 to 2**32 - 1; the same in a whole study.
        channels: Names of the dataset's channels that the network sees, in order, at most 64;
            None takes all.
        tumour_share: Share of slices with tumour among those that an epoch draws, with
            replacement, from the training slices, 0 to 1 (Buda et al. 2019 weigh slices by
            tumour); None takes each slice once.
        context: Neighbouring slices on each side whose channels the network sees too, 0 to 5.
        context_channels: Names of the channels of these neighbours; None takes all of `channels`.
        resident: Whether training keeps its prepared slices on the device and augments them there,
            see `brainseg.data.resident`: `never` loads them; `auto` keeps them on a GPU if those
            of the whole dataset take at most 4 GB; `always` keeps them on any device.
        spacing_mm: Distance of neighbouring pixels in millimetres, above 0, at most 100: a number,
            or from row to row and from column to column. It changes no training: the test's
            distances are also given in millimetres. None takes it from the headers of NIfTI files,
            where they hold it; the same in a whole study.
    """

    size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = 256
    split: Line = "patient"
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 44
    channels: Names | None = None
    tumour_share: Probability | None = None
    context: Annotated[int, Field(ge=0, le=5)] = 0
    context_channels: Names | None = None
    resident: Literal["never", "auto", "always"] = "never"
    spacing_mm: tuple[Millimetres, Millimetres] | None = None

    @field_validator("spacing_mm", mode="before")
    @classmethod
    def _expand_spacing(cls, value: object) -> object:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (value, value) if is_number else value

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        if value not in ("patient", "site", LEAKY_SPLIT) and not value.endswith(
            (".yaml", ".yml", ".json")
        ):
            raise ValueError(
                f"must be patient, site, {LEAKY_SPLIT}, or the path of a .yaml or .json file"
            )
        return value


class PreprocessConfig(_Section):
    """Deterministic changes of slices, the same in training and prediction.

    Attributes:
        intensities: `none`; `percentile` rescales each channel of a volume (a patient's scan) from
            its `percentiles` over the foreground to 0 to 255; `zscore` gives each channel of the
            foreground mean 0 and standard deviation 1 (both as in Buda et al. 2019).
        percentiles: The two percentiles, 0 to 100.
        filters: Names of filters in the order in which they are applied: `median`, `clahe`,
            `unsharp`, `laplacian`; `sobel` adds the strength of edges as one more channel;
            `./mine.py:FUNCTION` or an entry point is your own; at most 32. The published
            preprocessing is median, clahe.
        median_kernel: Side of the median filter in pixels: 1 (no filter), 3 or 5.
        clip_limit: Clip limit of CLAHE on the L channel of LAB, as a multiple of the bin height of
            a flat histogram; above 0, at most 40.
        tile_grid: Tiles of CLAHE along each side, 1 to 32.
        unsharp_amount: Share of the difference to a blurred slice that `unsharp` adds, 0 to 10.
        unsharp_sigma: Standard deviation of that blur, 0.5 to 20 pixels.
        crop: `none`; `brain` cuts slices to the smallest square around the foreground of the
            volume, before they are resized.
    """

    intensities: Literal["none", "percentile", "zscore"] = "none"
    percentiles: tuple[Percent, Percent] = (1.0, 99.5)
    filters: Annotated[tuple[Line, ...], Field(max_length=32)] = ()
    median_kernel: Literal[1, 3, 5] = 3
    clip_limit: Annotated[float, Field(gt=0, le=40)] = 3.0
    tile_grid: Annotated[int, Field(ge=1, le=32)] = 8
    unsharp_amount: Annotated[float, Field(ge=0, le=10)] = 1.0
    unsharp_sigma: Annotated[float, Field(ge=0.5, le=20)] = 2.0
    crop: Literal["none", "brain"] = "none"

    @field_validator("filters", mode="before")
    @classmethod
    def _refuse_text(cls, names: Any) -> Any:
        if isinstance(names, str):
            raise ValueError(f"give a list, such as [{cut(names)}]")
        return names

    @field_validator("filters")
    @classmethod
    def _check_filter_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name in FILTERS or is_path(name):
                continue
            known = [*FILTERS, *installed(FILTER_GROUP)]
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"{hint}Valid: {', '.join(known)}, or FILE.py:FUNCTION")
        return names

    @property
    def own_filters(self) -> list[str]:
        """The filters that are code of the user's."""
        return [name for name in self.filters if name not in FILTERS]

    @model_validator(mode="after")
    def _check_percentiles_and_filters(self) -> PreprocessConfig:
        if not self.percentiles[0] < self.percentiles[1]:
            raise ValueError(f"percentiles are {self.percentiles}: the first must be lower")
        if len(set(self.filters)) < len(self.filters):
            raise ValueError(f"filters are {', '.join(self.filters)}: one is there twice")
        return self


class AugmentConfig(_Section):
    """Random changes of training slices.

    Attributes:
        strength: Scales the other keys, see `brainseg.data.augment`; 0 (no augmentation) to 2, the
            published protocol is 1.
        flip_probability: Probability, 0 to 1, of a horizontal flip and, drawn independently, of a
            vertical one.
        warp_probability: Probability, 0 to 1, of a rotation and, drawn independently, of an
            elastic transform.
        rotation_degrees: Largest rotation to either side, 0 to 90 degrees.
        elastic_alpha: Amplitude of the elastic displacement, 0 to 1000, before it is smoothed.
        elastic_sigma: Standard deviation of its Gaussian smoothing, 1 to 100 pixels.
    """

    strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    flip_probability: Probability = 0.5
    warp_probability: Probability = 0.5
    rotation_degrees: Annotated[float, Field(ge=0, le=90)] = 25.0
    elastic_alpha: Annotated[float, Field(ge=0, le=1000)] = 120.0
    elastic_sigma: Annotated[float, Field(ge=1, le=100)] = 6.0


class ModelConfig(_Section):
    """The network.

    Attributes:
        architecture: One of `unet`, `unetplusplus`, `manet`, `linknet`, `fpn`, `pspnet`,
            `deeplabv3`, `deeplabv3plus`, `pan`, `upernet`, `segformer`, `dpt` (of
            segmentation-models-pytorch); `attentionunet`, `basicunetplusplus`, `swinunetr` (of
            MONAI, which have no encoder); a function such as `./mine.py:build`; or the name of an
            entry point in `brainseg.networks`.
        decoder_attention: `scse` adds squeeze and excitation (Roy et al. 2018) to the decoder of
            `unet` or `unetplusplus`; `none` does not.
        encoder: Name of an encoder of segmentation-models-pytorch, such as `resnet50`, `mit_b0`
            or `tu-` with a name of timm; `own` if a network of the user's has one, `none` for
            architectures without one.
        encoder_weights: `imagenet` (downloaded once), `none` (random), or the path or URL of a
            safetensors file with the encoder's state dict, in which `{encoder}` stands for the
            encoder's name.
        calibrate_encoder: Whether the encoder's BatchNorm statistics are computed from the
            training slices before stage 1; if False, those of the weights are kept.
        batchnorm_momentum: Weight of each batch in BatchNorm's running statistics. None keeps the
            value of each layer: 0.1 in most networks, but 0.01 in `efficientnet-b0` to `-b7`. With
            0.01 the statistics need hundreds of steps to follow weights that change fast, as
            random ones do, and validation fails until then.
    """

    architecture: Line = "unet"
    decoder_attention: Literal["none", "scse"] = "none"
    encoder: Annotated[Line, Field(max_length=100)] = "resnet50"
    encoder_weights: Line = "imagenet"
    calibrate_encoder: bool = True
    batchnorm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def weights_location(self) -> str:
        """`encoder_weights` with the encoder's name in it; a slash of the name becomes `_`."""
        return self.encoder_weights.replace("{encoder}", self.encoder.replace("/", "_"))

    @field_validator("encoder_weights", mode="before")
    @classmethod
    def _null_to_none(cls, value: object) -> object:
        return "none" if value is None else value

    @model_validator(mode="after")
    def _check_encoder_and_weights(self) -> ModelConfig:
        if self.encoder == "none" and self.encoder_weights != "none":
            raise ValueError("model.encoder is none: set model.encoder_weights to none too")
        if self.encoder == "own" and self.encoder_weights == "imagenet":
            raise ValueError(
                "model.encoder is own: set model.encoder_weights to none or to a .safetensors file"
            )
        return self

    @field_validator("encoder_weights")
    @classmethod
    def _check_weights(cls, value: str) -> str:
        if value not in ("imagenet", "none") and not name_of(to_location(value)).endswith(
            ".safetensors"
        ):
            raise ValueError("must be imagenet, none, or the path or URL of a .safetensors file")
        return value


class StageConfig(_Section):
    """One of the two stages of training; each starts with a new optimizer and scheduler.

    Attributes:
        epochs: Passes over the training slices, 0 (skips the stage) to 10,000.
        learning_rate: Highest learning rate of the stage, above 0, at most 1e10; with the schedule
            `plateau` the one at its start.
        freeze_encoder: Whether the encoder's weights and BatchNorm statistics stay as they are.
    """

    epochs: Annotated[int, Field(ge=0, le=10_000)]
    learning_rate: Annotated[float, Field(gt=0, le=1e10)]
    freeze_encoder: bool


class OptimizerConfig(_Section):
    """The optimizer and the schedule of its learning rate; the same in both stages.

    Attributes:
        name: `adamw` (Loshchilov and Hutter 2019), or `sgd` with Nesterov momentum.
        momentum: Momentum of `sgd`, 0 to below 1; without effect on `adamw`.
        batch_size: Slices per optimizer step, 2 to 4096.
        weight_decay: Weight decay, 0 to 1; decoupled with `adamw`.
        gradient_clip: Largest norm of the gradient of all weights together, above 0, at most
            1,000,000; None does not clip.
        average_decay: Decay of an exponential moving average of the weights, which is validated,
            kept and tested in their place, between 0 and 1; None takes the weights themselves.
        schedule: `plateau` lowers the learning rate when the val loss stalls, `constant` does not
            change it, `cosine` (Loshchilov and Hutter 2017) lets it fall to 0 over the stage,
            `onecycle` (Smith and Topin 2018) lets it rise and fall.
        warmup_epochs: Epochs at the start of each stage in which the learning rate rises in equal
            steps, 0 to 1000; with `constant` and `cosine`.
        plateau_factor: Factor on the learning rate if the val loss stalls, between 0 and 1.
        plateau_patience: Epochs without a lower val loss before that, 0 to 10,000.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 16
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    gradient_clip: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Literal["plateau", "constant", "cosine", "onecycle"] = "plateau"
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)] = 0.0
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    plateau_patience: Annotated[int, Field(ge=0, le=10_000)] = 3

    @model_validator(mode="after")
    def _check_warmup(self) -> OptimizerConfig:
        if self.warmup_epochs and self.schedule in ("plateau", "onecycle"):
            raise ValueError(
                f"optimizer.warmup_epochs is {self.warmup_epochs:g}, but optimizer.schedule is "
                f"{self.schedule}: it needs constant or cosine"
            )
        return self


class LossConfig(_Section):
    """The weighted sum of up to four terms, of which one must have a weight.

    Attributes:
        dice_weight: Weight of the soft Dice loss, 0 to 100.
        bce_weight: Weight of the binary cross entropy, 0 to 100.
        focal_weight: Weight of the focal loss (Lin et al. 2017), 0 to 100.
        focal_gamma: Its exponent, which makes sure pixels count less, 0 to 10.
        tversky_weight: Weight of the Tversky loss (Salehi et al. 2017), 0 to 100.
        tversky_alpha: Its weight of false positives, 0 to 1; false negatives have the rest.
    """

    dice_weight: LossWeight = 0.5
    bce_weight: LossWeight = 0.5
    focal_weight: LossWeight = 0.0
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    tversky_weight: LossWeight = 0.0
    tversky_alpha: Probability = 0.3

    @model_validator(mode="after")
    def _check_loss_weights(self) -> LossConfig:
        if self.dice_weight + self.bce_weight + self.focal_weight + self.tversky_weight == 0:
            raise ValueError(
                "dice_weight, bce_weight, focal_weight and tversky_weight cannot all be 0"
            )
        return self


class StoppingConfig(_Section):
    """When a training ends before its last epoch; the same rule for all variants of a study.

    Attributes:
        patience: Epochs of the last stage without a lower val loss that end it, 1 to 10,000; None
            runs all.
        minutes: Minutes of training epochs after which it ends, above 0, at most 1,000,000; None
            runs all. Then the number of epochs, and so every number, depends on the machine.
    """

    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None
    minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None


class Experiment(_Section):
    """A training run: with the dataset and the package versions, it determines the numbers.

    Attributes:
        data: Slices and their split.
        preprocess: Deterministic filters.
        augment: Random changes of training slices.
        model: The U-Net.
        stages: Two stages, at least one with epochs.
        optimizer: The optimizer and its schedule.
        loss: Weights of the loss terms.
        stopping: When a training ends early.
        threshold: Lowest probability at which a pixel is tumour, between 0 and 1.
        flips: Whether prediction and test average each slice's probabilities over the slice and
            its three flips. Validation after each epoch sees the slice alone.
        largest_component: Where prediction and test keep the largest connected component of a
            mask alone: in each slice, or in the volume that a scan's slices make.
        seed: Seed of initial weights, order, augmentation and dropout, 0 to 2**32 - 1.
        fold: Rotation, 0 to 9, that chooses the tested fold; 0 is the published split.
        inner_fold: Rotation, 0 to 8, that chooses the folds that validate among those that are not
            tested; 0 is the published split.
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
    stopping: StoppingConfig = StoppingConfig()
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    flips: bool = False
    largest_component: Literal["none", "slice", "volume"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 44
    fold: Annotated[int, Field(ge=0, lt=NUM_FOLDS)] = 0
    inner_fold: Annotated[int, Field(ge=0, lt=NUM_INNER_FOLDS)] = 0

    @model_validator(mode="after")
    def _check_stages(self) -> Experiment:
        if not any(stage.epochs for stage in self.stages):
            raise ValueError("stages.0.epochs and stages.1.epochs cannot both be 0")
        for index, stage in enumerate(self.stages):
            if 0 < stage.epochs < self.optimizer.warmup_epochs:
                raise ValueError(
                    f"optimizer.warmup_epochs is {self.optimizer.warmup_epochs:g}, more than "
                    f"stages.{index}.epochs, {stage.epochs}"
                )
            if stage.epochs and stage.freeze_encoder and self.model.encoder == "none":
                raise ValueError(
                    f"stages.{index}.freeze_encoder is true, but model.encoder is none: set "
                    f"stages.{index}.epochs to 0, or freeze_encoder to false"
                )
        return self

    @property
    def is_leaky(self) -> bool:
        """Whether slices of one patient may train and test."""
        return self.data.split == LEAKY_SPLIT

    @property
    def num_epochs(self) -> int:
        """Epochs of both stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def network(self) -> str:
        """The network in a few words, such as `unet resnet50`, for tables."""
        model = self.model
        words = [
            Path(model.architecture).name,
            *([] if model.encoder == "none" else [model.encoder]),
        ]
        if model.decoder_attention != "none":
            words.append(model.decoder_attention)
        if self.input_channels != 3:
            words.append(f"{self.input_channels} channels")
        return " ".join(words)

    @property
    def filters(self) -> str:
        """The filters in a few words, for tables; a user's own by the name of its file."""
        return ", ".join(Path(name).name for name in self.preprocess.filters) or "none"

    @property
    def input_channels(self) -> int:
        """Number of channels of the network's input; a dataset has 3 where none are named."""
        own = len(self.data.channels or range(3))
        shared = len(self.data.context_channels or range(own))
        return own + 2 * self.data.context * shared + (EDGES in self.preprocess.filters)

    @property
    def needs_volume(self) -> bool:
        """Whether the prediction for a slice depends on other slices of the patient."""
        config = self.preprocess
        alone = config.intensities == config.crop == "none" and not self.data.context
        return not alone or self.largest_component == "volume"

    def replaced(self, changes: dict[str, Any], origin: str = "--set") -> Experiment:
        """Return a copy in which dotted keys, such as `stages.0.epochs`, have new values.

        Args:
            changes: Dotted key -> new value.
            origin: Where the changes come from, for errors: a flag, or the name of a file.

        Raises:
            ConfigError: If a key is unknown or a value not allowed.
        """
        tree: Any = self.model_dump(mode="json")
        for key, value in changes.items():
            node = tree
            try:
                *parents, last = [int(p) if p.isdecimal() else p for p in key.split(".")]
                for part in parents:
                    node = node[part]
                node[last]  # a key that is not there must not be added
                node[last] = value
            except (LookupError, TypeError, ValueError) as error:
                raise ConfigError(f"{origin}: {unknown(key, valid_keys())}") from error
        return validated(Experiment, tree, origin, valid_keys())

    def value(self, key: str) -> Any:
        """Return the value of a dotted key.

        Raises:
            ConfigError: If there is no such key.
        """
        values = _flatten(self)
        if key not in values:
            raise ConfigError(unknown(key, valid_keys()))
        return values[key]

    def to_yaml(self) -> str:
        """Return YAML text that `load_experiment` reads back to an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_experiment(path: Path | str) -> Experiment:
    """Read an experiment from a YAML file; keys that it leaves out keep their defaults.

    Raises:
        ConfigError: If the file is no YAML mapping, or a key or value is not allowed.
        DataError: If there is no such file.
    """
    return validated(Experiment, read_yaml(Path(path)), str(path), valid_keys())


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` texts into dotted keys and YAML values; the last one of a key wins.

    Raises:
        ConfigError: If a text has no `=` or its value is no YAML.
    """
    changes = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {cut(text)}: expected KEY=VALUE, such as data.size=128")
        changes[key.strip()] = parse_yaml(value, f"--set {cut(key)}: the value is not YAML")
    return changes


@functools.cache
def valid_keys() -> tuple[str, ...]:
    """Return the dotted keys of all values of an experiment, in the order of its YAML file."""
    return tuple(_flatten(Experiment()))


def differences(ours: Experiment, theirs: Experiment) -> list[str]:
    """Return a line `key: theirs -> ours` for each key in which two experiments differ."""
    left, right = _flatten(theirs), _flatten(ours)
    return [f"{key}: {left[key]} -> {right[key]}" for key in left if left[key] != right[key]]


def _flatten(node: Any) -> dict[str, Any]:
    """The values of an experiment by their dotted keys."""
    if isinstance(node, BaseModel):
        node = node.model_dump(mode="json")
    if isinstance(node, list) and any(isinstance(value, dict) for value in node):
        node = {str(index): value for index, value in enumerate(node)}
    if not isinstance(node, dict):
        return {"": node}
    return {
        f"{key}.{below}".rstrip("."): value
        for key, child in node.items()
        for below, value in _flatten(child).items()
    }
