"""The U-Net: built, frozen and unfrozen, fed.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from brainseg.config import ModelConfig
from brainseg.errors import WeightsError
from brainseg.model.device import mixed_precision
from brainseg.model.encoders import check_encoder, find_encoder_weights, smp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(config: ModelConfig, seed: int) -> torch.nn.Module:
    """Build a U-Net with 3 input channels and 1 logit out, its encoder's weights loaded.

    Args:
        config: Encoder, where its weights come from, and BatchNorm's momentum.
        seed: Of the random initial weights.

    Raises:
        ConfigError: If the encoder is unknown.
        WeightsError: If the weights cannot be fetched or do not fit.
    """
    check_encoder(config.encoder)
    source = find_encoder_weights(config)
    torch.manual_seed(seed)
    model = build_unet(config.encoder)
    if source is not None:
        _load_encoder(model, source, config.encoder)
    if config.batchnorm_momentum is not None:
        for norm in _batchnorms(model):
            norm.momentum = config.batchnorm_momentum
    return model


def build_unet(encoder: str) -> torch.nn.Module:
    """Build the network with random weights, channels last."""
    with warnings.catch_warnings():
        # smp calls its own timm- encoders deprecated; the study names them for their weights.
        warnings.simplefilter("ignore", DeprecationWarning)
        unet = smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)
    return unet.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def set_training(model: torch.nn.Module, *, freeze_encoder: bool) -> None:
    """Put the model in training mode; a frozen encoder keeps weights, statistics and no dropout.

    smp's own `freeze_encoder` leaves drop-connect on, in validation too: here a frozen encoder is
    in evaluation mode as a whole.
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

    ImageNet's statistics are not those of MRI. A decoder trained on an encoder that is frozen with
    them loses its footing when the encoder is unfrozen and its statistics move; with these it does
    not.

    Args:
        model: On `device`.
        batches: Images of training slices, uint8 (B, H, W, 3), in mixed order.
        device: Where to compute.
    """
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    norms = _batchnorms(encoder)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, not a moving one
        norm.train()
    for images in batches:
        encoder(normalise(images, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batchnorms(module: torch.nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [part for part in module.modules() if isinstance(part, kind)]


def normalise(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Turn uint8 (B, H, W, 3) into the network's float32 (B, 3, H, W), channels last.

    ImageNet's mean and spread are applied on the target device, so that a GPU receives a quarter
    of the bytes.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, device=device) * 255)
    moved = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    scaled = (moved.float() - mean[:, None, None]) * scale[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)


def infer_logits(
    model: torch.nn.Module, images: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Run the network on slices; validation, testing and prediction all go through here.

    On a CPU each slice goes through alone and on one thread, as many slices at once as torch may
    use threads: its logits are then the same bits whatever its neighbours, their number and the
    number of threads. Kernels for whole batches round differently from one batch size to the next.

    Args:
        model: In evaluation mode, on `device`.
        images: uint8 (B, H, W, 3), preprocessed, H and W multiples of 32.
        device: Where to compute.

    Returns:
        float32 (B, H, W) logits on `device`.
    """
    if device.type != "cpu":
        return _infer(model, images, device)
    threads = torch.get_num_threads()
    try:
        slices = [images[n : n + 1] for n in range(len(images))]
        return torch.cat(list(_pool(threads).map(lambda s: _infer(model, s, device), slices)))
    finally:
        # The 1 that a worker set for itself is also what threads born later would start with.
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


def derive_seed(*parts: int) -> int:
    """Mix integers, such as (seed, stage, epoch), into one seed in [0, 2**32)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
