"""A real head node with a token: jobs submitted to its dashboard, drivers without the token."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE, Study, assert_equal, kill_all, wait_until

from brainseg.cli import KNOWN_ERROR

pytest.importorskip("aiohttp_cors", reason="needs the extra cluster: the dashboard takes jobs")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """A head node.

    Attributes:
        address: HOST:PORT for drivers.
        dashboard: URL for jobs.
        environment: Of a client that is let in.
    """

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str
    environment: dict[str, str]

    def submit(self, name: str, study: Study, *flags: str) -> subprocess.CompletedProcess[str]:
        """Submit the study as docs/cluster.md does."""
        there = [
            "--config",
            str(study.folder / "tiny.yaml"),
            "--storage",
            str(study.folder / "results"),
        ]
        job = [*study.command, *there, "--address", "auto"]
        call = [
            *RAY,
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--submission-id",
            name,
            *flags,
        ]
        return subprocess.run(
            [*call, "--", *job],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def driver(self) -> psutil.Process:
        """Return the process of the running job."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        found = [child for child in family if child.cmdline()[1:3] == ["-m", "study.run"]]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head as cluster.yaml does, but with processors, since there are no workers here."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    head = _start_head(folder, environment)
    yield head
    kill_all(head.process)


def _start_head(folder: Path, environment: dict[str, str]) -> Head:
    """Start a head, several times if need be: Ray gives its processes 30 s on any machine."""
    for _ in range(3):
        port, dashboard, agent, client = _free_ports(4)
        start = [
            *(*RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
            *("--disable-usage-stats", f"--temp-dir={_short_folder()}"),
        ]
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                start, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        url = f"http://127.0.0.1:{dashboard}"
        head = Head(process, f"127.0.0.1:{port}", url, environment)
        wait_until(partial(_has_settled, head))
        if process.poll() is None:
            return head
    raise AssertionError((folder / "log.txt").read_text())


@pytest.mark.exhaustive
def test_a_driver_without_the_clusters_token_is_refused(head: Head, phantom_root: Path) -> None:
    command = [sys.executable, "-m", "study.run", "--grid", "lite", "--data", str(phantom_root)]
    command += ["--set", "model.encoder_weights=none", "--plan", "--address", head.address]
    unset = {key: value for key, value in head.environment.items() if key[:9] != "RAY_AUTH_"}
    strangers = (unset, {**head.environment, "RAY_AUTH_TOKEN": "f" * 64})
    refused = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        for environment in strangers
    ]
    for process in refused:
        errors = process.communicate(timeout=PATIENCE)[1].strip().splitlines()
        assert process.returncode == KNOWN_ERROR, errors
        assert errors[-1].startswith(f"error: no Ray cluster can be used at {head.address}: ")


@pytest.mark.exhaustive
def test_a_job_whose_driver_is_killed_continues_when_submitted_again(
    head: Head, undisturbed: Study, study: Study
) -> None:
    assert head.submit("first", study, "--no-wait").returncode == 0
    study.wait_for_epoch(2)
    driver = head.driver()
    family = psutil.Process(head.process.pid).children(recursive=True)
    trials = [child for child in family if "ImplicitFunc" in child.name()]
    assert trials
    driver.kill()
    wait_until(lambda: not any(trial.is_running() for trial in trials))
    again = head.submit("second", study)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Continuing the study" in again.stdout
    assert "continues after epoch" in again.stdout
    assert_equal(study, undisturbed)


def _has_settled(head: Head) -> bool:
    return head.process.poll() is not None or _answers(head)


def _answers(head: Head) -> bool:
    """Return whether the dashboard takes jobs."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _short_folder() -> Path:
    """Return a folder for Ray's sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
