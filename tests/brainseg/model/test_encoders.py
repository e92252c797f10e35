"""The encoder's weights from a hub that works, one that breaks, a file and a URL.

The hub is a server of this machine. Its client reads the environment on import: hence processes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from s3 import Store
from safetensors.torch import load_file, save, save_file

from brainseg.config import ModelConfig
from brainseg.errors import WeightsError
from brainseg.model.encoders import find_encoder_weights, smp
from brainseg.model.networks import build_model
from brainseg.storage.files import cache_folder

State = dict[str, torch.Tensor]
Answers = list[tuple[str, float]]  # error, empty where there is none, and seconds
ENCODER, OTHER = "mobilenet_v2", "resnet18"
PLACE = smp.encoders.encoders[ENCODER]["pretrained_settings"]["imagenet"]
WEIGHTS = f"/{PLACE['repo_id']}/resolve/{PLACE['revision']}/model.safetensors"
CONFIG = WEIGHTS.replace("model.safetensors", "config.json")
REASONS = {"cut": "peer closed connection", "cut long": "does not give the whole file"}
WAYS_OUT = ("connect this machine to the network", "FILE.safetensors", "encoder_weights=none")

PRELUDE = """
import json, multiprocessing, sys, time
from safetensors.torch import save_file
from brainseg.config import ModelConfig
from brainseg.model.encoders import find_encoder_weights
from brainseg.errors import WeightsError
from brainseg.model.networks import build_model
config = ModelConfig(encoder=sys.argv[1], encoder_weights="imagenet")
"""
# Asks once for each line that it is sent, and answers each with a line.
ASK = f"""{PRELUDE}
for _ in sys.stdin:
    start, error = time.monotonic(), ""
    try:
        find_encoder_weights(config)
        state = build_model(config, seed=7).encoder.state_dict()
        save_file({{key: value.contiguous() for key, value in state.items()}}, "result")
    except WeightsError as caught:
        error = str(caught)
    print(json.dumps([error, time.monotonic() - start]), flush=True)
"""
ASK_AT_ONCE = f"""{PRELUDE}
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(len(set(pool.map(find_encoder_weights, [config] * 3, chunksize=1))))
"""


class Hub(ThreadingHTTPServer):
    """One repository, whose weights `fault` befalls: a status, "slow", or "cut" half-way."""

    def __init__(self, weights: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {WEIGHTS: weights, CONFIG: b"{}"}
        self.fault, self.seen = "", list[str]()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        fault = self.server.fault if self.path == WEIGHTS else ""
        status, body = 200, self.server.files.get(self.path, b"")
        if fault.startswith("404") or not body:
            status, body = 404, b""
        elif fault.startswith("500") or (fault.startswith("403") and self.command == "GET"):
            status, body = int(fault[:3]), b""
        time.sleep(fault == "slow")
        self.send_response(status)
        self.send_header("X-Repo-Commit", PLACE["revision"])
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        for name in ("ETag", "X-Linked-ETag"):
            self.send_header(name, f'"{len(body):064x}"')
        for name in ("Content-Length", "X-Linked-Size"):
            self.send_header(name, str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.close_connection = fault.startswith("cut")
            self.wfile.write(body[: len(body) // 2] if self.close_connection else body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


def start(folder: Path, endpoint: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    alien = re.compile("HF_|HUGGINGFACE_|BRAINSEG_|PYTHON|.*_PROXY$", re.IGNORECASE)
    environment = {key: value for key, value in os.environ.items() if not alien.match(key)}
    environment |= {"BRAINSEG_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_ENDPOINT": endpoint, **variables}
    command, pipe = [sys.executable, *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def ask(folder: Path, endpoint: str, hub: Hub | None = None, **variables: str) -> Answers:
    """Build the model; where a hub is given, heal it and let the same process try again."""
    with start(folder, endpoint, "-c", ASK, ENCODER, **variables) as process:
        assert process.stdin and process.stdout
        print(file=process.stdin, flush=True)
        lines = [process.stdout.readline()]
        if hub is not None:
            assert max(path.lstat().st_size for path in folder.rglob("*")) < 10**5, (
                "a part is left"
            )
            hub.fault = ""
            print(file=process.stdin, flush=True)
        rest, errors = process.communicate()
    assert process.returncode == 0, errors
    return [(error, seconds) for error, seconds in map(json.loads, lines + rest.splitlines())]


@pytest.fixture(scope="module")
def served() -> State:
    """Weights that no initialisation gives: every floating-point number is drawn anew."""
    generator = torch.Generator().manual_seed(11)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in smp.encoders.get_encoder(ENCODER).state_dict().items()
    }


@pytest.fixture
def hub(served: State) -> Iterator[Hub]:
    with Hub(save(served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def closed() -> Iterator[str]:
    """An endpoint that refuses connections; nobody else can open it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def assert_built(folder: Path, expected: State) -> None:
    found = load_file(folder / "result")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    (folder / "result").unlink()


def assert_refused(error: str, *parts: str) -> None:
    assert all(part in error for part in (ENCODER, *parts, *WAYS_OUT))
    assert "\n" not in error and ".." not in error


@pytest.mark.slow
def test_downloaded_weights_are_those_of_the_hub_and_downloaded_once(
    hub: Hub, served: State, tmp_path: Path
) -> None:
    assert ask(tmp_path, hub.endpoint)[0][0] == ""
    assert_built(tmp_path, served)
    hub.seen.clear()
    hub.shutdown()
    hub.server_close()
    assert ask(tmp_path, hub.endpoint)[0][0] == ""
    assert_built(tmp_path, served)
    assert hub.seen == []


@pytest.mark.slow
def test_the_cache_of_the_hubs_client_serves_a_machine_that_is_offline(
    hub: Hub, closed: str, served: State, tmp_path: Path
) -> None:
    assert ask(tmp_path, hub.endpoint)[0][0] == ""
    assert ask(tmp_path, closed, BRAINSEG_CACHE="other", HF_HUB_OFFLINE="1")[0][0] == ""
    assert_built(tmp_path, served)


@pytest.mark.slow
def test_processes_that_ask_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.fault = "slow"
    with start(tmp_path, hub.endpoint, "-c", ASK_AT_ONCE, ENCODER) as process:
        output, errors = process.communicate()
    assert output.strip() == "1", errors
    assert [line for line in hub.seen if WEIGHTS in line] == [f"HEAD {WEIGHTS}", f"GET {WEIGHTS}"]


@pytest.mark.slow
def test_a_silent_hub_is_an_error_with_three_ways_out_within_20_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for endpoint in (f"http://127.0.0.1:{silent.getsockname()[1]}", "http://hub.invalid"):
            [(error, seconds)] = ask(tmp_path, endpoint)
            assert_refused(error, endpoint)
            assert seconds < 20


LONG = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.mark.parametrize(
    "fault",
    [
        *(
            pytest.param(fault, marks=pytest.mark.slow)
            for fault in ("404 Not Found", "403 Forbidden", "cut")
        ),
        pytest.param("500 Internal Server Error", marks=LONG),
        pytest.param("cut long", marks=LONG),
    ],
)
def test_a_hub_that_fails_is_an_error_and_a_later_call_succeeds(
    hub: Hub, served: State, tmp_path: Path, fault: str
) -> None:
    if fault == "cut long":  # each 10 MiB that come through let the client count its retries anew
        hub.files[WEIGHTS] = save(served, {"padding": "-" * 2**24})
    hub.fault = fault
    (error, seconds), (repeated, _) = ask(tmp_path, hub.endpoint, hub)
    assert_refused(error, REASONS.get(fault, fault))
    assert seconds < 60 and repeated == ""
    assert_built(tmp_path, served)


@pytest.mark.slow
def test_the_command_line_ends_with_one_line_and_no_folder_where_there_is_no_hub(
    closed: str, tmp_path: Path
) -> None:
    options = ("--grid", "lite", "--set", "model.encoder_weights=imagenet")
    began = time.monotonic()
    with start(tmp_path, closed, "-m", "study.run", *options) as process:
        _, errors = process.communicate()
    assert process.returncode == 1 and len(errors.splitlines()) == 1
    assert all(way in errors for way in WAYS_OUT)
    assert time.monotonic() - began < 40 and not (tmp_path / "results").exists()


def test_weights_of_another_encoder_are_refused_by_name(served: State, tmp_path: Path) -> None:
    save_file(served, path := tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=rf"weights\.safetensors .* encoder {OTHER}: "):
        build_model(ModelConfig(encoder=OTHER, encoder_weights=str(path)), seed=0)


def test_a_missing_file_of_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError, match=r"missing\.safetensors, which is not a file"):
        find_encoder_weights(ModelConfig(encoder=ENCODER, encoder_weights=path))


def test_weights_behind_a_url_are_fetched_once(store: Store, machine: Path) -> None:
    store.folder("weights").write("a.safetensors", b"12")
    url = store.url("weights/a.safetensors")
    model = ModelConfig(encoder_weights=url)
    path = find_encoder_weights(model)
    assert path is not None
    inode = path.stat().st_ino
    assert find_encoder_weights(model) == path
    assert path.stat().st_ino == inode
    store.folder("weights").write("a.safetensors", b"123")
    find_encoder_weights(model)
    assert path.read_bytes() == b"123"
    other = ModelConfig(encoder_weights=store.url("b.safetensors"))
    with pytest.raises(WeightsError, match="where there is no such file"):
        find_encoder_weights(other)
    assert not list(cache_folder("encoders").glob("**/b.safetensors"))
