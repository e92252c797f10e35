"""What a study does how often, over all its processes: a guard of its speed that does not time."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Study

from brainseg.config import Experiment, load_experiment
from brainseg.data.slice_store import open_dataset
from brainseg.data.split import split_of
from brainseg.model.networks import build_model, normalise, set_training
from brainseg.storage.files import read_csv

CPU = torch.device("cpu")
INJECTION = Path(__file__).parents[1] / "fault_injection"


@pytest.fixture(scope="module")
def counted(
    phantom_root: Path, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Study, Path]:
    """A study of two variants and two seeds on a machine with an empty cache, and its calls."""
    folder = tmp_path_factory.mktemp("counts")
    study = Study(folder, phantom_root, tiny.replaced({"data.size": 64, "stages.1.epochs": 1}))
    calls = folder / "calls.txt"
    calls.touch()
    paths = [str(INJECTION), *filter(None, [os.environ.get("PYTHONPATH")])]
    study.environment |= {
        "BRAINSEG_CACHE": str(folder / "cache"),
        "BRAINSEG_TEST_COUNTS": str(calls),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    study.command += ["--seeds", "2"]
    study.finish()
    return study, calls


def _calls(path: Path, name: str) -> list[list[str]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return [rest for called, *rest in lines if called == name]


@pytest.mark.slow
def test_a_study_does_nothing_twice(counted: tuple[Study, Path]) -> None:
    study, path = counted
    experiment = load_experiment(study.folder / "tiny.yaml")
    data = open_dataset(Path(study.command[study.command.index("--data") + 1]))
    num_slices = len(data.slices)
    trials = read_csv(study.results / "trials.csv")
    assert [row["status"] for row in trials] == ["finished"] * 4
    decoded = Counter(name for name, _ in _calls(path, "read_slice"))
    first = decoded.pop(data.slices[0].name)
    assert set(decoded.values()) == {1}, "each slice is decoded once per machine"
    assert len(decoded) == num_slices - 1
    assert first == 2, "the first one also tells the size"
    filtered = Counter(filters for filters, _ in _calls(path, "apply_filters"))
    assert filtered["median,clahe"] == num_slices, "once per machine and setting"
    cache = study.folder / "cache"
    assert len(list(cache.glob("slices/*/slices.bin"))) == 1, "one copy of the dataset"
    assert len(list(cache.glob("inputs/*.bin"))) == 2, "one prepared array per setting"
    processes = {pid for _, pid in _calls(path, "train_epoch")}
    assert len(processes) <= len(os.sched_getaffinity(0)), "trials share processes"
    split = split_of(experiment, data.slices)
    num_val, num_test = (len(split.indices(data.slices, part)) for part in ("val", "test"))
    num_epochs = sum(stage.epochs for stage in experiment.stages)
    views = sum(int(count) for count, _ in _calls(path, "infer_logits"))
    each = num_epochs * num_val + 4 * (num_val + num_test)
    assert views == len(trials) * each, "four views of each slice that is tested, one in epochs"
    assert len(_calls(path, "calibrate_encoder")) == len(trials)


def test_a_frozen_encoder_computes_no_gradients(tiny: Experiment) -> None:
    model = build_model(tiny.model, seed=1)
    images = torch.from_numpy(np.zeros((2, 32, 32, 3), np.uint8))
    encoder: torch.nn.Module = model.encoder  # type: ignore[assignment]
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    frozen = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    for is_frozen, expected in ((True, len(convolutions) - len(frozen)), (False, None)):
        set_training(model, freeze_encoder=is_frozen)
        names = _backward_nodes(model(normalise(images, CPU)).sum())
        assert names["ConvolutionBackward0"] == (expected or len(convolutions))


def _backward_nodes(result: torch.Tensor) -> Counter[str]:
    """Return how many nodes of each kind the backward pass from a result has."""
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return Counter(node.name() for node in seen)
