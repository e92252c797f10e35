"""Studies in processes of their own, stopped and killed for real, continued, and compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from brainseg.config import Experiment
from brainseg.modelfile import load_model
from study.run import FINISHED, STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE = 300.0  # seconds; on an idle machine everything here takes less than 30


class Study:
    """A lite study of tiny trials below a folder of its own."""

    def __init__(self, folder: Path, data: Path, experiment: Experiment) -> None:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(experiment.to_yaml())
        self.folder = folder
        self.results = folder / "results" / "lite-synthetic"
        flags = ["--grid", "lite", "--config", "tiny.yaml", "--data", str(data)]
        self.command = [sys.executable, "-m", "study.run", *flags]
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        self.started.append(process)
        return process

    def end(self) -> None:
        """Leave nothing running, however the test ended."""
        for process in self.started:
            process.kill()
            process.wait()

    def finish(self) -> None:
        assert self.start().wait(PATIENCE) == FINISHED, (self.folder / "log.txt").read_text()

    def wait_for_epoch(self, step: int) -> None:
        """Return once a trial has finished so many epochs, and none has ended."""

        def reached() -> bool:
            histories = list(self.results.glob("trials/*/history.csv"))
            return any(len(path.read_text().splitlines()) > step for path in histories)

        wait_until(reached)
        assert not list(self.results.glob("trials/*/result.json")), "the moment was missed"

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{path.stem}.{key}": value
            for path in sorted((self.results / "models").iterdir())
            for key, value in load_model(path)[0].items()
        }


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def assert_equal(one: Study, other: Study) -> None:
    for name in ("scores.csv", "split.json", "experiment.yaml"):
        assert (one.results / name).read_bytes() == (other.results / name).read_bytes()
    left, right = one.weights(), other.weights()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def experiment(tiny: Experiment) -> Experiment:
    return tiny.replaced({"stages.0.epochs": 3, "stages.1.epochs": 5})


@pytest.fixture(scope="module")
def quiet(
    tmp_path_factory: pytest.TempPathFactory, phantom_root: Path, experiment: Experiment
) -> Study:
    study = Study(tmp_path_factory.mktemp("quiet") / "study", phantom_root, experiment)
    study.finish()
    return study


@pytest.fixture
def study(tmp_path: Path, phantom_root: Path, experiment: Experiment) -> Iterator[Study]:
    study = Study(tmp_path / "study", phantom_root, experiment)
    yield study
    study.end()


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, 3),
        (signal.SIGKILL, 2),
        (signal.SIGKILL, 3),
        (signal.SIGKILL, 5),
    ],
    ids=["Ctrl-C", "SIGTERM", "kill in stage 1", "kill at the change", "kill in stage 2"],
)
def test_an_interrupted_study_continues_to_the_same_bits(
    quiet: Study, study: Study, number: signal.Signals, step: int
) -> None:
    process = study.start()
    study.wait_for_epoch(step)
    process.send_signal(number)
    expected = -signal.SIGKILL if number == signal.SIGKILL else STOPPED
    assert process.wait(PATIENCE) == expected
    study.finish()
    assert "goes on after epoch" in (study.folder / "log.txt").read_text()
    assert_equal(study, quiet)


def test_a_killed_driver_leaves_no_trial_running(study: Study) -> None:
    process = study.start()
    study.wait_for_epoch(1)
    family = psutil.Process(process.pid).children(recursive=True)
    trials = [child for child in family if "ImplicitFunc" in child.name()]
    assert trials
    process.kill()
    wait_until(lambda: not any(trial.is_running() for trial in trials))


def test_a_killed_trial_is_tried_again_and_ends_with_the_same_bits(
    quiet: Study, study: Study
) -> None:
    process = study.start()
    study.wait_for_epoch(2)
    children = psutil.Process(process.pid).children(recursive=True)
    trial = next(child for child in children if "ImplicitFunc" in child.name())
    os.kill(trial.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == FINISHED
    assert_equal(study, quiet)


def test_another_seed_is_noticed(
    quiet: Study, tmp_path: Path, phantom_root: Path, experiment: Experiment
) -> None:
    other = Study(tmp_path / "study", phantom_root, experiment.replaced({"seed": 45}))
    other.finish()
    with pytest.raises(AssertionError):
        assert_equal(other, quiet)


def test_the_same_study_cannot_run_twice_at_once(study: Study) -> None:
    first = study.start()
    study.wait_for_epoch(1)
    refused = subprocess.run(
        study.command, cwd=study.folder, capture_output=True, timeout=PATIENCE
    )
    assert refused.returncode == 1
    assert f"is being run by process {first.pid}".encode() in refused.stderr
