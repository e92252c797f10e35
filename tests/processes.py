"""Studies in processes of their own, for tests that stop, kill and starve them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from brainseg.cli import FINISHED
from brainseg.config import Experiment
from brainseg.model.model_file import load_model

PATIENCE = 600.0  # seconds; on two idle cores everything here takes less than 160
_INJECTION = Path(__file__).parent / "fault_injection"


class Study:
    """A lite study of tiny trials below a folder of its own."""

    def __init__(self, folder: Path, data: Path, experiment: Experiment) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(experiment.to_yaml())
        self.folder = folder
        self.results = folder / "results" / "lite-synthetic"
        flags = ["--grid", "lite", "--config", "tiny.yaml", "--data", str(data)]
        self.command = [sys.executable, "-m", "study.run", *flags]
        self.environment = dict(os.environ)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        process = subprocess.Popen(
            [*self.command, *flags],
            cwd=self.folder,
            stdout=log,
            stderr=log,
            env=self.environment,
        )
        self.started.append(process)
        return process

    def start_with_fault(self, action: str, checkpoint: str) -> subprocess.Popen[bytes]:
        """Start, and return once the fault was met; see tests/fault_injection."""
        marker = self.folder / "marker"
        quiet = self.environment
        paths = [str(_INJECTION), *filter(None, [quiet.get("PYTHONPATH")])]
        fault = {"BRAINSEG_TEST_FAULT": f"{action}:{checkpoint}:{marker}"}
        self.environment = quiet | fault | {"PYTHONPATH": os.pathsep.join(paths)}
        process = self.start()
        self.environment = quiet
        wait_until(marker.exists)
        return process

    def kill(self) -> None:
        """Kill the driver, and return once its trials are gone, seconds later."""
        trials = self.trial_processes()
        self.started[-1].kill()
        self.started[-1].wait()
        wait_until(lambda: not any(trial.is_running() for trial in trials))

    def end(self) -> None:
        """Leave nothing running, however the test ended."""
        for process in self.started:
            process.kill()
            process.wait()

    def finish(self, *flags: str) -> None:
        assert self.start(*flags).wait(PATIENCE) == FINISHED, self.log()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def wait_for_epoch(self, step: int) -> None:
        """Return once a trial has finished so many epochs, and none has ended."""

        def reached() -> bool:
            histories = list(self.results.glob("trials/*/history.csv"))
            return any(len(path.read_text().splitlines()) > step for path in histories)

        wait_until(reached)
        assert not list(self.results.glob("trials/*/result.json")), "the moment was missed"

    def trial_processes(self) -> list[psutil.Process]:
        return trials_below(self.started[-1].pid)

    def checkpoints(self) -> dict[str, list[Path]]:
        """Trial -> its checkpoints, the newest last."""
        folders = sorted((self.results / "trials").iterdir())
        return {f.name: sorted(f.glob("checkpoints/stage*")) for f in folders}

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{path.stem}.{key}": value
            for path in sorted((self.results / "models").glob("*.safetensors"))
            for key, value in load_model(path)[0].items()
        }


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def trials_below(pid: int) -> list[psutil.Process]:
    """Return the processes of trials among all that a process has started."""
    family = psutil.Process(pid).children(recursive=True)
    return [child for child in family if "ImplicitFunc" in child.name()]


def trials_of(node: Any) -> list[psutil.Process]:
    """Return the processes of the trials on a node of Ray's."""
    return trials_below(node.all_processes["raylet"][0].process.pid)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a node with all that it started, unless it is gone already."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (*family, process):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(PATIENCE)


def assert_equal(
    one: Study,
    other: Study,
    names: Sequence[str] = ("scores.csv", "split.json", "experiment.yaml"),
) -> None:
    for name in names:
        assert (one.results / name).read_bytes() == (other.results / name).read_bytes()
    left, right = one.weights(), other.weights()
    assert left
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
