"""The benchmark of a GPU, run on a CPU: the same code, small numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore


@pytest.fixture(scope="module")
def setup(data: SliceStore, tiny: Experiment) -> gpu.EncoderSetup:
    return gpu.EncoderSetup(tiny, data, torch.device("cpu"))


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| mobilenet_v2")]
    return [line.strip("| ").split(" | ") for line in lines]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_tables_have_a_row_for_each_measurement(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    small = ["--size", "32", "--encoders", "mobilenet_v2", "--workers", "0", "1"]
    short = ["--seconds", "0.1", "--packed", "1", "2", "--set", "augment.strength=0.5"]
    assert gpu.main(["--device", "cpu", *small, *short, "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "**CPU run**" in text
    assert f"torch {torch.__version__}, CUDA none" in text
    assert "80 SYNTHETIC phantoms, trained at 32 px in batches of 16, float32; augment" in text
    rows = _rows(text)
    speeds = [row for row in rows if row[1] in ("frozen", "unfrozen")]
    for stage in ("frozen", "unfrozen"):
        feeds = [row[2] for row in speeds if row[1] == stage]
        assert feeds[:2] == [gpu.MEMORY, "loader, 0 workers"]
        assert feeds[-1] == gpu.RESIDENT
        assert f"- mobilenet_v2, {stage}: 95 % of the step rate takes " in text
    assert all(float(row[3]) > 0 and row[5] == "unknown" for row in speeds)
    packed = [row for row in rows if len(row) == 4]
    assert [row[1] for row in packed] == ["1", "2"]
    assert packed[0][3] == "100 %"
    assert all(float(row[2]) > 0 for row in packed)
    resumed = [row for row in rows if row[1] in ("never", "always")]
    assert [(row[1], row[5]) for row in resumed] == [("never", "yes"), ("always", "yes")]
    assert all(re.fullmatch(r"\d+ MB \d+\.\d\d s \d+\.\d %", " ".join(r[2:5])) for r in resumed)


def test_a_measurement_that_does_not_fit_says_so_and_the_others_go_on(
    setup: gpu.EncoderSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    budget = gpu.Budget(1, 3, seconds=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "ResidentBatches", fail)
        rows, need, resident = gpu._measure_stage(setup, True, [0], budget)
    assert [row[3:] for row in rows][-1] == ["out of memory", "", "", ""]
    assert math.isnan(resident.slices)
    assert float(rows[1][3]) > 0
    assert "95 % of the step rate takes" in need
    monkeypatch.setattr(gpu, "Steps", fail)
    rows, need, _ = gpu._measure_stage(setup, True, [0], budget)
    assert [row[3] for row in rows] == ["out of memory"] * 3
    assert "unknown" in need


def test_a_resume_with_other_weights_is_said_to_differ(
    setup: gpu.EncoderSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 0.25])}])

    def train(*args: object, epochs: int) -> float:
        folder = args[3]
        assert isinstance(folder, Path)
        (folder / "stage2-epoch0001").mkdir(parents=True, exist_ok=True)
        return 0.5

    monkeypatch.setattr(gpu, "_train", train)
    monkeypatch.setattr(gpu, "_last_weights", lambda *args: next(found))
    row = gpu._measure_resume(setup, "always", gpu.Rate(6000.0))
    assert row[3:] == ["0.50 s", "50.0 %", "no, by up to 2.5e-01"]


def test_time_is_divided_among_the_measurements_that_are_left() -> None:
    budget = gpu.Budget(minutes=1, planned=6, seconds=None)
    assert budget.take() == pytest.approx(6, abs=0.2)
    budget.skip(3)
    assert budget.take() == pytest.approx(18, abs=0.5)
    assert gpu.Budget(minutes=0, planned=6, seconds=None).take() > 0
    assert gpu.Budget(minutes=1, planned=6, seconds=2.5).take() == 2.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "device cuda cannot be used here" in capsys.readouterr().err
