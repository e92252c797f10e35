"""Clusters that grow, shrink and start nodes by themselves: real raylets on this machine."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import ray
from processes import kill_all, wait_until
from ray import tune
from ray.cluster_utils import Cluster as LocalCluster
from rich.console import Console

from brainseg.config import Experiment
from brainseg.errors import StudyError
from study.spec.resources import Node, TrialResources, share_cluster
from study.spec.trial_job import TrialJob
from study.storage.sync import StudySync
from study.tune.cluster import require_shared, start_cluster, startable
from study.tune.progress import Progress
from study.tune.trainable import JOB
from study.tune.tuner import fit, to_config
from study.tune.waiting import WaitNotice

HEAD_ID = "f" * 51 + "00000"


@pytest.fixture(scope="module")
def with_token() -> Iterator[None]:
    """Let all nodes ask for this machine's token.

    A cluster that a process starts for itself makes a token and turns tokens on, which cannot be
    undone in that process. An earlier test may have done so: this one always does.
    """
    with start_cluster(None):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        yield


class Machines:
    """A head that takes no trials, and the nodes that joined it, each by `ray start`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie below it
        head = {"num_cpus": 0, "temp_dir": str(self.folder)}
        # Ray notes the address of each cluster there, also of one with a folder of its own.
        Path("/tmp/ray").mkdir(exist_ok=True)
        self._head = LocalCluster(initialize_head=True, head_node_args=head)
        self.address = self._head.address
        self._joined: list[subprocess.Popen[bytes]] = []

    def join(self, cpus: int, gpus: int = 0) -> subprocess.Popen[bytes]:
        flags = [f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        self._joined.append(_ray_start(self.folder, *flags, "--object-store-memory=80000000"))
        return self._joined[-1]

    def leave(self) -> None:
        while self._joined:
            kill_all(self._joined.pop())

    def shutdown(self) -> None:
        self.leave()
        self._head.shutdown()


def _ray_start(folder: Path, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *flags]
    environment = {**os.environ, **environment}
    with (folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [*command, "--disable-usage-stats"], env=environment, stdout=out, stderr=out
        )


@pytest.fixture(scope="module")
def machines(with_token: None) -> Iterator[Machines]:
    machines = Machines()
    yield machines
    machines.shutdown()


@pytest.fixture
def nodes(machines: Machines) -> Iterator[Machines]:
    yield machines
    machines.leave()
    with start_cluster(machines.address):
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)


class Stub:
    """Trials that leave a marker, wait for the test's permission, and end."""

    def __init__(self, folder: Path, trials: int, resources: TrialResources) -> None:
        (folder / "trials").mkdir()
        self.folder, self.text = folder, io.StringIO()
        self.resources = resources
        self.jobs = [
            TrialJob(variant=f"stub{n}", fold=0, seed=0, experiment=Experiment())
            for n in range(trials)
        ]

    def run(self, story: Callable[[], None]) -> None:
        """Run all trials, and beside them what happens to the cluster."""
        folder = self.folder
        failed: list[BaseException] = []

        def train(config: dict[str, Any]) -> None:
            marker = folder / f"{config[JOB]['name']}.{os.getpid()}"
            marker.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            while not (folder / "go").exists():
                time.sleep(0.02)

        def tell() -> None:
            try:
                story()
            except BaseException as error:
                failed.append(error)
            (folder / "go").touch()

        progress = Progress([job.name for job in self.jobs], 1, Console(file=self.text))
        placed = [to_config(job.placed(folder, self.resources))[JOB] for job in self.jobs]
        space = {JOB: tune.grid_search(placed)}
        thread = threading.Thread(target=tell)
        thread.start()
        with patch("study.tune.tuner.WaitNotice", partial(WaitNotice, quiet=1.0)):
            fit(train, self.resources, StudySync(folder), progress, 3, param_space=space)
        thread.join()
        assert not failed, (failed, self.text.getvalue())

    def started(self) -> list[Path]:
        return sorted(self.folder.glob("stub*.*"))

    def wait_for(self, number: int) -> None:
        wait_until(lambda: len(self.started()) >= number)

    def wait_for_text(self, words: str) -> None:
        wait_until(lambda: words in self.text.getvalue())


@pytest.mark.slow
def test_two_small_trials_share_a_gpu(nodes: Machines, tmp_path: Path) -> None:
    nodes.join(cpus=4, gpus=1)
    with start_cluster(nodes.address):
        wait_until(lambda: len(ray.nodes()) == 2)
    with start_cluster(nodes.address) as there:
        resources = share_cluster(there, 2, gpus=0.5)
        stub = Stub(tmp_path, 2, resources)
        stub.run(lambda: stub.wait_for(2))
    assert (resources.concurrent, resources.cpus) == (2, 2)
    assert [marker.read_text() for marker in stub.started()] == ["0", "0"]


@pytest.mark.slow
def test_trials_follow_nodes_that_join_and_wait_with_a_reason_for_one_that_is_lost(
    nodes: Machines, tmp_path: Path
) -> None:
    resources = TrialResources(cpus=1, gpus=1, grows=True)
    stub = Stub(tmp_path, 3, resources)

    def story() -> None:
        only = nodes.join(cpus=1, gpus=1)
        stub.wait_for(1)
        kill_all(only)
        stub.wait_for_text("no node is large enough")
        nodes.join(cpus=3, gpus=3)
        stub.wait_for(4)  # all three at once, one of them for the second time

    with start_cluster(nodes.address):
        stub.run(story)
    said = stub.text.getvalue()
    assert "waiting: 3 trials for 1 GPU and 1 CPU each; in use are 0 of 0 CPU and 0 of 0" in said
    assert "continues after a failure" in said


@pytest.fixture
def autoscaled(with_token: None) -> Iterator[str]:
    """The address of a head without processors, whose autoscaler may start two nodes of one."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    worker = {"CPU": 1, "object_store_memory": 80_000_000}
    steps = ["initialization", "setup", "head_setup", "worker_setup"]
    steps += ["head_start_ray", "worker_start_ray"]
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"{host}:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {"resources": worker, "node_config": {}, "max_workers": 5},
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{step}_commands": [] for step in steps},
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    flags = ["--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder}"]
    flags += [f"--autoscaling-config={folder / 'cluster.json'}", "--include-dashboard=false"]
    flags += ["--object-store-memory=80000000", "--dashboard-agent-listen-port=0"]
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD_ID
    head = _ray_start(folder, *flags, **environment)
    wait_until(lambda: "Ray runtime started" in (folder / "out.txt").read_text())
    yield f"{host}:{port}"
    kill_all(head)


@pytest.mark.slow
def test_trials_wait_for_nodes_that_an_autoscaler_starts(autoscaled: str, tmp_path: Path) -> None:
    with start_cluster(autoscaled) as there:
        assert there == (Node(0, 0.0), *[Node(1, 0.0, exists=False)] * 2)
        with pytest.raises(StudyError, match="which no single node has"):
            share_cluster(there, 4, cpus=2, grows=True)
        resources = share_cluster(there, 4, grows=True)
        assert (resources.cpus, resources.concurrent, resources.coming) == (1, 2, 2)
        stub = Stub(tmp_path, 4, resources)
        stub.run(lambda: stub.wait_for(2))
    assert len(stub.started()) == 4


def test_an_autoscaler_starts_no_more_than_it_may_and_some_of_each_type() -> None:
    config = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 8}},
            "cpu": {"resources": {"CPU": 16}, "max_workers": 10},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
        },
    }
    small, large = Node(16, 0.0, exists=False), Node(8, 1.0, exists=False)
    assert startable(config, present=0) == (small, large, small, large)
    assert startable(config, present=3) == (small,)
    assert startable(config, present=4) == ()


def test_a_cluster_leaves_sigterm_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end the process by sys.exit(15), also after it was shut down."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "nodes", list)
    with start_cluster(None):
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_node_that_cannot_look_for_a_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "NodeID": "a" * 56, "NodeName": name} for name in ("head", "small")]

    def get(reply: object, timeout: float) -> bool:
        raise ray.exceptions.RayTaskError(
            "_sees", "Traceback\nno module named study", ValueError()
        )

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr("study.tune.cluster._sees", MagicMock())
    with pytest.raises(StudyError, match=r"node head does not say whether .*: no module named"):
        require_shared(tmp_path, "give --data as a URL")


def test_a_cluster_that_refuses_is_one_line_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster\nat great length")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(StudyError) as caught, start_cluster("auto"):
        pass
    message = str(caught.value)
    assert message.startswith("no Ray cluster can be used at auto: Failed to connect to Ray clus")
    assert "RAY_AUTH_MODE=token" in message
    assert "\n" not in message
