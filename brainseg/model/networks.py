"""The U-Net: builds it, freezes its encoder, normalises its input and runs it.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from brainseg.config import ModelConfig
from brainseg.errors import WeightsError
from brainseg.model.device import mixed_precision
from brainseg.model.encoders import check_encoder, find_encoder_weights, smp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(config: ModelConfig, seed: int, channels: int = 3) -> torch.nn.Module:
    """Build a network with one output channel, and load its encoder's weights.

    Args:
        config: Encoder, where its weights come from, and BatchNorm's momentum.
        seed: Seed of the random initial weights.
        channels: Number of input channels, see `Experiment.input_channels`.

    Raises:
        ConfigError: If the encoder is unknown.
        WeightsError: If the weights cannot be fetched or do not fit.
    """
    check_encoder(config.encoder)
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
    """Build a network with random weights, in channels-last memory format."""
    with warnings.catch_warnings():
        # smp deprecates its timm- encoders, but only they have the weights of the study.
        warnings.simplefilter("ignore", DeprecationWarning)
        unet = smp.Unet(config.encoder, encoder_weights=None, in_channels=channels, classes=1)
    return unet.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def set_training(model: torch.nn.Module, *, freeze_encoder: bool) -> None:
    """Put the model in training mode, and a frozen encoder in evaluation mode.

    A frozen encoder keeps its weights and BatchNorm statistics and drops nothing; smp's own
    `freeze_encoder` would leave drop-connect on.
    """
    model.train()
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    encoder.requires_grad_(not freeze_encoder)
    if freeze_encoder:
        encoder.eval()


@torch.no_grad()
def calibrate_encoder(
    model: torch.nn.Module, batches: Iterable[torch.Tensor], device: torch.device
) -> None:
    """Set the encoder's BatchNorm statistics to those of the training slices (Li et al. 2016).

    The statistics of ImageNet are not those of MRI. A decoder that was trained on a frozen encoder
    with them would fail once the encoder is unfrozen and its statistics change.

    Args:
        model: The U-Net, on `device`.
        batches: Images of training slices, uint8 (B, H, W, 3), in random order.
        device: Device to compute on.
    """
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    norms = _batchnorms(encoder)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches instead of a moving one
        norm.train()
    for images in batches:
        encoder(normalise(images, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batchnorms(module: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def normalise(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normalise images by ImageNet's mean and standard deviation.

    Args:
        images: uint8 (B, H, W, 3).
        device: Device of the result; images are copied to it as bytes.

    Returns:
        float32 (B, 3, H, W) in channels-last memory format.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, device=device) * 255)
    moved = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    scaled = (moved.float() - mean[:, None, None]) * scale[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)


def infer_logits(
    model: torch.nn.Module, images: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Run the network on slices, in validation, testing and prediction.

    On a CPU, each slice is computed alone and on one thread, and as many slices in parallel as
    torch may use threads. Its logits are then the same bits in every batch and for every number of
    threads; computed as a batch, they would depend on the batch size.

    Args:
        model: The U-Net, in evaluation mode, on `device`.
        images: uint8 (B, H, W, 3), preprocessed, H and W multiples of 32.
        device: Device to compute on.

    Returns:
        float32 (B, H, W) logits on `device`.
    """
    if device.type != "cpu":
        return _infer(model, images, device)
    threads = torch.get_num_threads()
    try:
        logits = _pool(threads).map(
            lambda image: _infer(model, image, device), torch.split(images, 1)
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
        encoder.load_state_dict(load_file(source))
    except Exception as error:  # safetensors and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        message = f"{source} does not hold the weights of encoder {name}: {reason}"
        raise WeightsError(message) from error
