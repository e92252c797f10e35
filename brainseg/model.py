"""The U-Net: built, frozen and unfrozen, fed; and where its encoder's weights come from.

Shapes: B slices of a batch, H and W pixels.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from brainseg.config import ModelConfig
from brainseg.errors import ConfigError, WeightsError
from brainseg.store import cache_folder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PROBE_SECONDS = 10.0


def _import_smp() -> Any:
    """Import segmentation-models-pytorch beside any build of torch.

    The torchvision of the Python package index for Linux is a CUDA build; beside a CPU build of
    torch its compiled operators do not load and its import fails, although none of them is used
    here. Declaring the two that it describes lets the import pass.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            for operator in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", signature)
        import segmentation_models_pytorch

    return segmentation_models_pytorch


smp = _import_smp()


def build_model(config: ModelConfig, seed: int) -> torch.nn.Module:
    """Build a U-Net with 3 input channels and 1 logit out, its encoder's weights loaded.

    Args:
        config: Encoder and where its weights come from.
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
    return model


def build_unet(encoder: str) -> torch.nn.Module:
    """Build the network with random weights, channels last."""
    with warnings.catch_warnings():
        # smp calls its own timm- encoders deprecated; the study names them for their weights.
        warnings.simplefilter("ignore", DeprecationWarning)
        unet = smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)
    return unet.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def check_encoder(encoder: str) -> None:
    """Refuse an encoder that segmentation-models-pytorch does not have.

    Raises:
        ConfigError: Naming the encoders there are.
    """
    if encoder in smp.encoders.encoders or encoder.startswith("tu-"):
        return
    names = ", ".join(sorted(smp.encoders.encoders))
    raise ConfigError(
        f"model.encoder is {encoder}, which is unknown; valid: tu-<any timm model>, {names}"
    )


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


@torch.inference_mode()
def infer_logits(
    model: torch.nn.Module, images: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Run the network on slices; validation, testing and prediction all go through here.

    Args:
        model: In evaluation mode, on `device`.
        images: uint8 (B, H, W, 3), preprocessed, H and W multiples of 32.
        device: Where to compute.

    Returns:
        float32 (B, H, W) logits on `device`.
    """
    with mixed_precision(device):
        logits = model(normalise(images, device))
    return logits[:, 0].float()  # type: ignore[no-any-return]


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast on CUDA, bfloat16 where the GPU computes it; on a CPU it does not pay."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=cuda_dtype())


def cuda_dtype() -> torch.dtype:
    """Return bfloat16 where the GPU has it, else float16, which needs gradient scaling."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16


def find_encoder_weights(config: ModelConfig) -> Path | None:
    """Return the file of the encoder's weights, downloaded once per machine if need be.

    Returns:
        A safetensors file, or None for random weights.

    Raises:
        WeightsError: If the file is missing or the download impossible.
    """
    if config.encoder_weights == "none":
        return None
    if config.encoder_weights == "imagenet":
        return _fetch_imagenet(config.encoder)
    path = Path(config.encoder_weights).expanduser()
    if not path.is_file():
        raise WeightsError(f"model.encoder_weights is {path}, which is not a file")
    return path


def _load_encoder(model: torch.nn.Module, source: Path, name: str) -> None:
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    try:
        encoder.load_state_dict(load_file(source))
    except Exception as error:  # safetensors and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{source} does not hold the weights of encoder {name}: {reason}"
        ) from (error)


def _fetch_imagenet(encoder: str) -> Path:
    """Download through smp into this machine's cache; processes that ask at once wait for one."""
    target = cache_folder("encoders") / f"{encoder.replace('/', '_')}.imagenet.safetensors"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _require_hub(encoder)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    module = smp.encoders.get_encoder(encoder, weights="imagenet")
            except Exception as error:  # the hub client raises a dozen kinds, smp KeyError
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise _no_weights(encoder, reason) from error
            aside = target.with_suffix(f".{os.getpid()}.part")
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, aside)
            aside.replace(target)
    return target


def _require_hub(encoder: str) -> None:
    """Fail within seconds where the hub cannot be reached; its client would retry for minutes."""
    import requests
    from huggingface_hub import constants

    answer: list[str] = []

    def probe() -> None:
        try:
            requests.head(constants.ENDPOINT, timeout=_PROBE_SECONDS, allow_redirects=False)
            answer.append("")
        except requests.RequestException as error:
            answer.append(type(error).__name__)

    # In a thread, since resolving a name has no time limit of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 2)
    if not answer or answer[0]:
        reason = answer[0] if answer else "no answer"
        raise _no_weights(encoder, f"{constants.ENDPOINT} cannot be reached ({reason})")


def _no_weights(encoder: str, reason: str) -> WeightsError:
    return WeightsError(
        f"no ImageNet weights for encoder {encoder}: {reason}. Three ways out: connect this "
        "machine to the network once; --set model.encoder_weights=FILE.safetensors with weights "
        "from elsewhere; or --set model.encoder_weights=none to train from random weights"
    )


def derive_seed(*parts: int) -> int:
    """Mix integers, such as (seed, stage, epoch), into one seed in [0, 2**32)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
