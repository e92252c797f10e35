"""A study with data, weights and results in S3, over nodes that share no disk, with faults."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE, Study, assert_equal, trials_of, wait_until
from ray.cluster_utils import Cluster
from s3 import Store
from safetensors.torch import save_file

from brainseg.cli import FINISHED, KNOWN_ERROR
from brainseg.config import Experiment
from brainseg.model.encoders import smp
from brainseg.storage.remote import RemoteFolder
from study.fetch import main as fetch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENCODER = "tu-tf_efficientnet_lite0"
OUTAGE_SECONDS = 30.0


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Encoder weights that no seed of a trial would draw."""
    encoder = smp.encoders.get_encoder(ENCODER, weights=None)
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "lite.safetensors"
    save_file({key: value.contiguous() for key, value in encoder.state_dict().items()}, path)
    return path


class Nodes:
    """A head that takes no trials, and nodes with a processor and a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.caches: list[Path] = []
        # Short, for the sockets in it; and its own, so that no other Ray joins.
        self.temp = Path(tempfile.mkdtemp(prefix="ray"))
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": str(self.temp),
                "env_vars": {"BRAINSEG_CACHE": str(folder / "head")},
            },
        )

    def add(self) -> None:
        self.caches.append(self.folder / f"node-{len(self.caches)}")
        cache = {"BRAINSEG_CACHE": str(self.caches[-1])}
        self.cluster.add_node(num_cpus=1, env_vars=cache)

    def end(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.temp, ignore_errors=True)

    def lose_one(self) -> bool:
        """Kill a node that trains, and return whether there was one."""
        lost = next((node for node in self.cluster.worker_nodes if trials_of(node)), None)
        if lost:
            self.cluster.remove_node(lost, allow_graceful=False)
        return lost is not None


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        nodes = Nodes(tmp_path_factory.mktemp("nodes"))
        for _ in range(3):
            nodes.add()
        yield nodes
        nodes.end()


@pytest.fixture
def blind_node(nodes: Nodes, tmp_path: Path) -> Iterator[Path]:
    """A folder that one node more does not see: there, an empty disk is mounted over it."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    ray = f"{sys.executable} -m ray.scripts.scripts start --address={nodes.cluster.address}"
    # The last of the processes is Ray's own, so that ending this one ends the node.
    script = f"mount -t tmpfs none {folder} && exec {ray} --num-cpus=1 --block"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    if subprocess.run([*command[:-3], "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a node a disk of its own")
    log = tmp_path / "blind.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    wait_until(lambda: "This command will now block" in log.read_text())
    yield folder
    process.terminate()
    process.wait()


class RemoteStudy(Study):
    """A study in S3, started from machines that hold nothing of it."""

    def __init__(self, folder: Path, store: Store, data: str, experiment: Experiment) -> None:
        super().__init__(folder, folder, experiment)
        self.url = store.url("studies/lite-synthetic")
        self.remote = RemoteFolder(self.url)
        self.command[-1:] = [data, "--storage", store.url("studies")]
        self.move()

    def move(self) -> None:
        """Go to another machine."""
        number = len(list(self.folder.glob("machine-*")))
        cache = self.folder / f"machine-{number}"
        cache.mkdir()
        self.environment |= {"BRAINSEG_CACHE": str(cache), "RAY_AUTH_MODE": "disabled"}

    def wait_for_epoch(self, step: int) -> None:
        def reached() -> bool:
            names = [name for name in self.remote.list("trials") if name.endswith("history.csv")]
            rows = [(self.remote.read(name) or b"").count(b"\n") for name in names]
            return any(number > step for number in rows)

        wait_until(reached)
        names = self.remote.list("trials")
        assert not [name for name in names if name.endswith("result.json")], "missed"

    def fetch(self) -> None:
        """Bring its files to where those of a local study are."""
        assert fetch([self.url, str(self.results)]) == FINISHED


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_a_study_in_s3_survives_a_lost_node_an_outage_and_a_lost_driver(
    store: Store,
    nodes: Nodes,
    weights: Path,
    tmp_path: Path,
    phantom_root: Path,
    unhurried: Experiment,
) -> None:
    def with_weights(place: str) -> Experiment:
        return unhurried.replaced({"model.encoder_weights": place})

    data = store.upload(phantom_root, "kaggle_3m")
    store.upload(weights.parent, "weights")
    there = store.url("weights/lite.safetensors")
    study = RemoteStudy(tmp_path / "study", store, data, with_weights(there))
    alone = Study(tmp_path / "alone", phantom_root, with_weights(str(weights)))
    alone.finish()
    try:
        study.start("--address", nodes.cluster.address)
        study.wait_for_epoch(1)
        assert nodes.lose_one()
        nodes.add()
        wait_until(lambda: "continues after a failure" in study.log())
        study.wait_for_epoch(2)
        store.pause()
        time.sleep(OUTAGE_SECONDS)
        store.go_on()
        study.wait_for_epoch(3)
        study.started[-1].kill()
        study.started[-1].wait()
        study.move()
        study.finish("--address", nodes.cluster.address)
        assert "Continuing the study in s3://" in study.log()
        assert "continues after epoch" in study.log()
        study.fetch()
        assert_equal(study, alone, ("scores.csv", "split.json"))
        fetched = [cache for cache in nodes.caches if (cache / "data").exists()]
        assert len(fetched) >= 2, "each node fetches for itself"
        assert not [name for name in study.remote.list("trials") if "checkpoints" in name]
    finally:
        study.end()
        alone.end()


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_a_node_lost_every_twenty_seconds_changes_nothing(
    store: Store, nodes: Nodes, tmp_path: Path, phantom_root: Path, tiny: Experiment
) -> None:
    experiment = tiny.replaced({"stages.0.epochs": 6, "stages.1.epochs": 24})
    study = RemoteStudy(
        tmp_path / "study", store, store.upload(phantom_root, "kaggle_3m"), experiment
    )
    alone = Study(tmp_path / "alone", phantom_root, experiment)
    alone.finish()
    lost = 0
    try:
        started = study.start("--address", nodes.cluster.address, "--retries", "100")
        while not _ends_within(started, 20.0):
            if nodes.lose_one():
                nodes.add()
                lost += 1
        assert started.returncode == FINISHED, study.log()
        retried = study.log().count("continues after a failure")
        sys.stdout.write(f"{lost} nodes lost, {retried} trials went on\n")  # with -n 0 -s
        assert lost > 3
        assert retried > 3
        study.fetch()
        assert_equal(study, alone, ("scores.csv", "split.json"))
    finally:
        study.end()
        alone.end()


def test_local_paths_that_some_node_does_not_see_are_refused_before_anything_starts(
    nodes: Nodes, blind_node: Path, tmp_path: Path, phantom_root: Path, unhurried: Experiment
) -> None:
    shutil.copytree(phantom_root, blind_node / "data")
    studies = {
        "--data": Study(tmp_path / "study", blind_node / "data", unhurried),
        "--storage": Study(blind_node / "study", phantom_root, unhurried),
    }
    for flag, study in studies.items():
        study.environment["RAY_AUTH_MODE"] = "disabled"
        started = study.start("--address", nodes.cluster.address)
        assert started.wait(PATIENCE) == KNOWN_ERROR
        assert "error: 1 of 5 nodes do not see " in study.log()
        assert f"give {flag} on a disk that all nodes share, or as a URL" in study.log()
        assert "starts" not in study.log()
