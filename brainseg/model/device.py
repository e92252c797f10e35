"""Where to compute, with how many helpers, and in which precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from brainseg.errors import ConfigError


@dataclass(frozen=True)
class Compute:
    """Where and with how many helpers to train; the numbers do not depend on the workers.

    Attributes:
        device: `cpu`, `cuda` or the like; None takes a GPU where there is one.
        workers: Loader processes beside the training one.
        batch_parts: Takes each batch in so many parts, for want of memory; see `train_epoch`.
    """

    device: str | None = None
    workers: int = 0
    batch_parts: int = 1

    def torch_device(self) -> torch.device:
        """Return the device, chosen now if none was named.

        Raises:
            ConfigError: If there is no such device here.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).split("\n")[0][:200]
            raise ConfigError(f"device {name} cannot be used here: {reason}") from error


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast on CUDA, bfloat16 where the GPU computes it; on a CPU it does not pay."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=cuda_dtype())


def cuda_dtype() -> torch.dtype:
    """Return bfloat16 where the GPU has it, else float16, which needs gradient scaling."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
