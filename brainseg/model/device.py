"""The device, the number of loader workers, and mixed precision."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch

from brainseg.errors import ConfigError
from brainseg.storage.values import cut


@dataclass(frozen=True)
class Compute:
    """The resources of one training or prediction.

    Attributes:
        device: A device name of torch, such as `cpu` or `cuda`; None takes a GPU if there is one.
        workers: Loader processes, which do not change any number; 0 loads in the training process.
        batch_parts: Parts that a batch is processed in to save memory, see `train_epoch`.
    """

    device: str | None = None
    workers: int = 0
    batch_parts: int = 1

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            ConfigError: If this machine does not have it.
        """
        name = self.device
        if name is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            one = torch.ones(1, device=name)
            one.add(1).item()  # which a device without memory, such as meta, cannot
            return one.device
        except (RuntimeError, AssertionError, ImportError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise ConfigError(f"--device {cut(name)} cannot be used here: {reason}") from error


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device; only CUDA copies while the CPU goes on.

    Others, such as MPS, would read pageable memory after it has been used for something else.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def fix_algorithms(device: torch.device) -> None:
    """Let a GPU use only algorithms that give the same bits each time, where there are such."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        # Bilinear upsampling has a second, deterministic gradient. Operators without one warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Return a gradient scaler for float16, else a disabled one: bfloat16 has float32's range."""
    return torch.amp.GradScaler("cuda", enabled=computes_in_float16(device))


def computes_in_float16(device: torch.device) -> bool:
    """Return whether `mixed_precision` computes in float16, where 65,504 is the largest number."""
    return device.type == "cuda" and cuda_dtype() == torch.float16


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context that autocasts on CUDA; elsewhere one that does nothing."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=cuda_dtype())


def cuda_dtype() -> torch.dtype:
    """Return bfloat16 if the GPU supports it, else float16, which needs gradient scaling."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
