"""What a stage of training starts with and carries: optimizer, scheduler, gradient scaler."""

from __future__ import annotations

from typing import Any

import torch

from brainseg.checkpoint import EpochState
from brainseg.compute import cuda_dtype
from brainseg.config import OptimizerConfig, StageConfig


class Stage:
    """Optimizer, scheduler and gradient scaler of one stage, all fresh in each.

    Args:
        config: Of the stage.
        settings: Of the optimizer, the same in both stages.
        model: On `device`, in the mode of the stage: what is frozen is not optimized.
        device: Where to compute.
    """

    def __init__(
        self,
        config: StageConfig,
        settings: OptimizerConfig,
        model: torch.nn.Module,
        device: torch.device,
    ) -> None:
        """Start at the stage's learning rate."""
        self.config = config
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            mode="min",
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
        )
        # bfloat16 has float32's range: only float16 needs its gradients scaled.
        scaled = device.type == "cuda" and cuda_dtype() == torch.float16
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def restore(self, state: EpochState) -> None:
        """Go on from an epoch of this stage."""
        self.optimizer.load_state_dict(state.optimizer)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    # The memory layout of before: other layouts may round differently.
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)

    def copy_optimizer(self) -> dict[str, Any]:
        """Return the optimizer's state, its tensors on the CPU and contiguous."""
        state: dict[str, Any] = self.optimizer.state_dict()
        tensors = {
            number: {
                name: value.detach().to("cpu", memory_format=torch.contiguous_format)
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        return {"state": tensors, "param_groups": state["param_groups"]}
