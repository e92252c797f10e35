from __future__ import annotations

import pytest
import torch

from brainseg.errors import ConfigError
from brainseg.model.device import Compute, mixed_precision


def test_a_device_that_is_not_here_is_refused_by_name() -> None:
    assert Compute("cpu").torch_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="device nonsense cannot be used here"):
        Compute("nonsense").torch_device()


@pytest.mark.parametrize("name", ["meta", "hpu", "privateuseone", "cpu:x", "xla", "cuda:-1"])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device {name} cannot be used here: .*"):
        Compute(name).torch_device()


def test_a_cpu_computes_in_full_precision() -> None:
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
