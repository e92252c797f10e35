from __future__ import annotations

import os

import pytest
import torch

from brainseg.errors import ConfigError
from brainseg.model.device import Compute, fix_algorithms, mixed_precision, send


def test_a_device_that_is_not_here_is_refused_by_name() -> None:
    assert Compute("cpu").torch_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="device nonsense cannot be used here"):
        Compute("nonsense").torch_device()


@pytest.mark.parametrize("name", ["meta", "hpu", "privateuseone", "cpu:x", "xla", "cuda:-1"])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device {name} cannot be used here: .*"):
        Compute(name).torch_device()


def test_only_cuda_copies_while_the_program_goes_on() -> None:
    class Recorder(torch.Tensor):
        def to(self, *_: object, **options: object) -> torch.Tensor:
            asked.append(options["non_blocking"])
            return self

    asked: list[object] = []
    for name in ("cpu", "mps", "cuda"):
        send(Recorder(), torch.device(name))
    assert asked == [False, False, True]


def test_a_gpu_is_told_to_give_the_same_bits_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # which the user has set
    fix_algorithms(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        fix_algorithms(torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cpu_computes_in_full_precision() -> None:
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
