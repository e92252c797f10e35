"""Networks: builds one, freezes its encoder, normalises its input and runs it.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from brainseg.config import Experiment, ModelConfig
from brainseg.errors import CheckpointError, ConfigError, WeightsError
from brainseg.model.device import mixed_precision, send
from brainseg.model.encoders import check_encoder, find_encoder_weights, smp
from brainseg.plugins import NETWORK_GROUP, describe_error, installed, is_path, load_function
from brainseg.storage.values import cut, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


SMP = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
"""Architectures of segmentation-models-pytorch, with their classes."""

_WITH_ATTENTION = ("unet", "unetplusplus")

_MONAI: dict[str, tuple[str, dict[str, Any]]] = {
    "attentionunet": (
        "AttentionUnet",
        {"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2)},
    ),
    "basicunetplusplus": ("BasicUNetPlusPlus", {}),
    "swinunetr": ("SwinUNETR", {"feature_size": 24}),
}
"""Architectures of MONAI, with their classes and, where there are no defaults, their widths."""


def build_model(config: ModelConfig, seed: int, channels: int = 3) -> torch.nn.Module:
    """Build a network with one output channel, and load its encoder's weights.

    Args:
        config: Architecture, encoder, where its weights come from, and BatchNorm's momentum.
        seed: Seed of the random initial weights.
        channels: Number of input channels, see `Experiment.input_channels`.

    Raises:
        ConfigError: If the network cannot be built.
        WeightsError: If the weights cannot be fetched or do not fit.
    """
    source = find_encoder_weights(config)
    torch.manual_seed(seed)
    model = build_network(config, channels)
    if source is not None:
        _load_encoder(model, source, config.encoder)
    if config.batchnorm_momentum is not None:
        for norm in _batchnorms(model):
            norm.momentum = config.batchnorm_momentum
    return model


def build_network(config: ModelConfig, channels: int = 3) -> torch.nn.Module:
    """Build a network with random weights, in channels-last memory format.

    Raises:
        ConfigError: If the architecture is unknown, its package is missing, or it does not work
            with the encoder.
    """
    name = config.architecture
    if config.decoder_attention != "none" and name not in _WITH_ATTENTION:
        raise ConfigError(
            f"model.decoder_attention is {config.decoder_attention}, which model.architecture "
            f"{name} does not have; {' and '.join(_WITH_ATTENTION)} do"
        )
    if name in SMP:
        check_encoder(config.encoder)
        network = _build_smp(config, channels)
    elif name in _MONAI:
        network = _build_monai(name, channels)
    else:
        network = _build_plugin(name, channels)
    has_encoder = isinstance(getattr(network, "encoder", None), torch.nn.Module)
    if name not in SMP and config.encoder != ("own" if has_encoder else "none"):
        raise ConfigError(
            f"model.architecture {name} has an encoder of its own: set model.encoder to own, and "
            "model.encoder_weights to none or to a .safetensors file"
            if has_encoder
            else f"model.architecture {name} has no encoder to load weights into or to freeze: "
            "set model.encoder and model.encoder_weights to none, and stages.0.epochs to 0"
        )
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:  # network.to() would refuse those of three-dimensional layers
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def check_network(experiment: Experiment, network: torch.nn.Module) -> None:
    """Run a network on one black slice, so that what cannot work is said before the start.

    Raises:
        ConfigError: If it fails, or does not return one map of the slice's size.
    """
    size, name = experiment.data.size, experiment.model.architecture
    slices = torch.zeros((1, experiment.input_channels, size, size))
    network.eval()
    try:
        with torch.inference_mode():
            shape = tuple(network(slices).shape)
    except Exception as error:  # shape errors of torch and assertions of timm, among others
        reason = describe_error(error)
        raise ConfigError(
            f"the network {experiment.network} cannot take slices of data.size {size}: {reason}"
        ) from error
    if shape != (1, 1, size, size):
        raise ConfigError(
            f"the network {name} returns {shape} for one slice of {size} px; expected "
            f"{(1, 1, size, size)}, logits of one map"
        )


@contextmanager
def limit_weights(count: int) -> Iterator[None]:
    """Stop the building of a network far larger than a number of weights, before it fills memory.

    Heads that are built and cut off again count too, so the limit has room for them.

    Args:
        count: Number of weights that there are to load.

    Raises:
        CheckpointError: In the block, if the network has many more.
    """
    here, most, built = threading.get_ident(), 2 * count + 50_000_000, 0

    def register(module: torch.nn.Module, name: str, weight: torch.nn.Parameter | None) -> None:
        nonlocal built
        if weight is not None and not weight.is_meta and threading.get_ident() == here:
            built += weight.numel()
        if built > most:
            raise CheckpointError(
                f"the file has {count:,} weights, and the network that it names many more"
            )

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def names_code(config: ModelConfig) -> bool:
    """Return whether a network is built by code that does not come with this program."""
    return config.architecture not in SMP and config.architecture not in _MONAI


def _build_smp(config: ModelConfig, channels: int) -> torch.nn.Module:
    options: dict[str, Any] = {}
    if config.decoder_attention != "none":
        options["decoder_attention_type"] = config.decoder_attention
    if config.architecture == "dpt" and "vit" in config.encoder:
        options["dynamic_img_size"] = True  # otherwise slices must have the pretraining's size
    try:
        with warnings.catch_warnings():
            # smp deprecates its timm- encoders, but only they have the weights of earlier studies.
            warnings.simplefilter("ignore", DeprecationWarning)
            return getattr(smp, SMP[config.architecture])(  # type: ignore[no-any-return]
                config.encoder, encoder_weights=None, in_channels=channels, classes=1, **options
            )
    except CheckpointError:  # of `limit_weights`
        raise
    except Exception as error:  # smp and timm raise a dozen kinds for what does not fit together
        raise ConfigError(
            f"model.architecture {config.architecture} does not work with model.encoder "
            f"{config.encoder}: {describe_error(error)}"
        ) from error


class _Plain(torch.nn.Module):
    """A network that returns a list of maps, of which the last is the finest, as one map."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        found = self.network(slices)
        return found[-1] if isinstance(found, list) else found  # type: ignore[no-any-return]


def _build_monai(name: str, channels: int) -> torch.nn.Module:
    try:
        nets = importlib.import_module("monai.networks.nets")
    except ImportError as error:
        raise ConfigError(
            f"model.architecture {name} is of MONAI, which is not installed: "
            'in the checkout, pip install -e ".[monai]"'
        ) from error
    class_name, options = _MONAI[name]
    built = getattr(nets, class_name)(
        spatial_dims=2, in_channels=channels, out_channels=1, **options
    )
    return _Plain(built)


def check_architecture(name: str) -> None:
    """Refuse the name of a network that is unknown; the file of a user's own is not opened.

    Raises:
        ConfigError: With the valid names.
    """
    known = [*SMP, *_MONAI, *installed(NETWORK_GROUP)]
    if is_path(name) or name in known:
        return
    hint = did_you_mean(name, known)
    raise ConfigError(
        f"model.architecture is {cut(name)}, which is unknown; {hint}Valid: {', '.join(known)}, "
        "or FILE.py:FUNCTION"
    )


def _build_plugin(name: str, channels: int) -> torch.nn.Module:
    check_architecture(name)
    build = load_function(name, NETWORK_GROUP, "model.architecture")
    try:
        network = build(channels)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(f"model.architecture {name} fails: {describe_error(error)}") from error
    if not isinstance(network, torch.nn.Module):
        raise ConfigError(f"model.architecture {name} returns no torch.nn.Module")
    return network


def set_training(model: torch.nn.Module, *, freeze_encoder: bool) -> None:
    """Put the model in training mode, and a frozen encoder in evaluation mode.

    A frozen encoder keeps its weights and BatchNorm statistics and drops nothing; smp's own
    `freeze_encoder` would leave drop-connect on.
    """
    model.train()
    encoder = getattr(model, "encoder", None)
    if encoder is not None:
        encoder.requires_grad_(not freeze_encoder)
    if freeze_encoder:
        assert encoder is not None
        encoder.eval()


@torch.no_grad()
def calibrate_encoder(
    model: torch.nn.Module, batches: Iterable[torch.Tensor], device: torch.device
) -> None:
    """Set the encoder's BatchNorm statistics to those of the training slices (Li et al. 2016).

    A network without an encoder, or without BatchNorm in it, stays as it is.

    The statistics of ImageNet are not those of MRI. A decoder that was trained on a frozen encoder
    with them would fail once the encoder is unfrozen and its statistics change.

    Args:
        model: The network, on `device`.
        batches: Images of training slices, uint8 (B, H, W, 3), in random order.
        device: Device to compute on.
    """
    encoder = getattr(model, "encoder", None)
    norms = _batchnorms(encoder) if isinstance(encoder, torch.nn.Module) else []
    if not norms:
        return
    # A network of the user's may change the slices before its encoder sees them.
    forward = encoder if isinstance(model, smp.base.SegmentationModel) else model
    assert forward is not None
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches instead of a moving one
        norm.train()
    for images in batches:
        forward(normalise(images, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batchnorms(module: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def normalise(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normalise images by ImageNet's mean and standard deviation.

    With C channels, channel i has the constants of ImageNet's channel i mod 3.

    Args:
        images: uint8 (B, H, W, C).
        device: Device of the result; images are copied to it as bytes.

    Returns:
        float32 (B, C, H, W) in channels-last memory format.
    """
    channels = [index % 3 for index in range(images.shape[3])]
    mean = torch.tensor(IMAGENET_MEAN, device=device)[channels] * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, device=device)[channels] * 255)
    moved = send(images, device).permute(0, 3, 1, 2)
    scaled = (moved.float() - mean[:, None, None]) * scale[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)


def infer_logits(
    model: torch.nn.Module, images: torch.Tensor, device: torch.device, together: int = 1
) -> torch.Tensor:
    """Run the network on slices, in validation, testing and prediction.

    On a CPU, each slice is computed alone and on one thread, and as many slices in parallel as
    torch may use threads. Its logits are then the same bits in every batch and for every number of
    threads; computed as a batch, they would depend on its size and on their place in it.

    Args:
        model: The network, in evaluation mode, on `device`.
        images: uint8 (B, H, W, 3), preprocessed, H and W multiples of 32.
        device: Device to compute on.
        together: Slices that are computed as a batch on a CPU, for views that are never asked for
            alone.

    Returns:
        float32 (B, H, W) logits on `device`.
    """
    if device.type != "cpu":
        return _infer(model, images, device)
    threads = torch.get_num_threads()
    try:
        logits = _pool(threads).map(
            lambda some: _infer(model, some, device), torch.split(images, together)
        )
        return torch.cat(list(logits))
    finally:
        # The 1 that a pool's thread sets for itself would also be the default of new threads.
        torch.set_num_threads(threads)


@torch.inference_mode()
def _infer(model: torch.nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    with mixed_precision(device):
        logits = model(normalise(images, device))
    return logits[:, 0].float()  # type: ignore[no-any-return]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "slice", torch.set_num_threads, (1,))


def _load_encoder(model: torch.nn.Module, source: Path, name: str) -> None:
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    try:
        weights = load_file(source)
        for key, own in encoder.state_dict().items():
            if key in weights and weights[key].ndim == 4 and own.shape != weights[key].shape:
                weights[key] = _widen(weights[key], own.shape[1])
        encoder.load_state_dict(weights)
    except Exception as error:  # safetensors and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        message = f"{source} does not hold the weights of encoder {name}: {reason}"
        raise WeightsError(message) from error


def _widen(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """Return the first convolution's kernel for another number of input channels.

    Channel i has the weights of channel i mod 3, all scaled by 3 / channels, so that outputs keep
    their size; the rule of timm and of segmentation-models-pytorch.

    Args:
        kernel: (O, 3, H, W).
        channels: Number of input channels.
    """
    order = [index % kernel.shape[1] for index in range(channels)]
    return kernel[:, order] * (kernel.shape[1] / channels)
