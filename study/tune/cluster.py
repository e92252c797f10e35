"""The cluster that trials run on: Ray started on this machine, or a running cluster joined."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.node import Node as LocalNode
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from brainseg.errors import StudyError
from brainseg.storage.values import read_yaml
from study.spec.resources import Cluster, Node

_ANSWER_SECONDS = 5.0
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone
_NODE_SECONDS = 60.0
_MAX_NODES = 10_000
_TOKEN_HINT = (
    ". If the cluster asks for a token, set RAY_AUTH_MODE=token and put its token into "
    "~/.ray/auth_token, $RAY_AUTH_TOKEN or the file that $RAY_AUTH_TOKEN_PATH names"
)


@contextmanager
def start_cluster(address: str | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join a running cluster, and leave it afterwards.

    Args:
        address: Of a running cluster, `auto` for the one of this machine; None starts one.

    Yields:
        What the cluster has, and what its autoscaler could start besides.

    Raises:
        StudyError: If no cluster answers at the address, or it refuses this driver.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local": otherwise Ray joins a cluster that was started on this machine before. GPUs that
        # torch cannot use are not offered.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_gpus": torch.cuda.device_count()}
    else:
        _require_answer(address)
        options |= {"address": address}
    try:
        with _no_usage_reporter(), _sigterm_kept():
            ray.init(**options)
    except Exception as error:  # a bare one where Ray's own processes start too slowly
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "" if address is None else _TOKEN_HINT
        message = f"no Ray cluster can be used at {address or 'here'}: {reason}{hint}"
        raise StudyError(message) from error
    try:
        yield _measure() if address is None else (*_measure(), *_find_startable())
    finally:
        ray.shutdown()


@contextmanager
def _no_usage_reporter() -> Iterator[None]:
    """Start Ray without the process that would report its use, which no switch prevents.

    Without a dashboard that is all this process does. Turned off, it still asks the addresses at
    which Amazon, Google and Microsoft would answer whether the machine is theirs.
    """
    start = LocalNode.start_api_server
    LocalNode.start_api_server = lambda *args, **options: None
    try:
        yield
    finally:
        LocalNode.start_api_server = start


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that ends the process with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def require_shared(path: Path, remedy: str) -> None:
    """Check that every node sees a file or folder that trials need.

    Args:
        path: The path on this machine.
        remedy: What the user can do if some node does not see it.

    Raises:
        StudyError: Naming the nodes that do not see it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    answers = [
        _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False))
        for node in nodes
    ]
    asked = [answer.remote(str(path)) for answer in answers]
    missing = []
    for node, reply in zip(nodes, asked, strict=True):
        try:
            sees = ray.get(reply, timeout=_NODE_SECONDS)
        except ray.exceptions.RayError as error:  # it is gone, or lacks this package
            reason = str(error).strip().splitlines()[-1]
            raise StudyError(
                f"the node {node['NodeName']} does not say whether it sees {path}: {reason}; "
                "install this package there, or remove the node"
            ) from error
        if not sees:
            missing.append(node["NodeName"])
    if missing:
        raise StudyError(
            f"{len(missing)} of {len(nodes)} nodes do not see {path} ({', '.join(missing)}): "
            f"{remedy}"
        )


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _sees(path: str) -> bool:
    return Path(path).expanduser().exists()


def _require_answer(address: str) -> None:
    """Fail within seconds if nothing listens; Ray would retry for a quarter of an hour."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:  # ValueError: no port, no host's name
        raise StudyError(f"no Ray cluster answers at {address}: {error}") from error


def _measure() -> Cluster:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Node(int(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes)


def _find_startable() -> Cluster:
    """Return the nodes that the cluster's autoscaler could start; none if it has no autoscaler.

    Ray 2.60 has no API for what an autoscaler may start, so a task on the head node reads the file
    that the autoscaler was started with. An autoscaler that is not a process of the head node
    (KubeRay's runs in its own container) is not found.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    head = next((node["NodeID"] for node in alive if _HEAD in node["Resources"]), None)
    if head is None:
        return ()
    on_head = NodeAffinitySchedulingStrategy(head, False)
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    try:
        answer = _read_autoscaler.options(scheduling_strategy=on_head).remote(port)
        config = ray.get(answer, timeout=_NODE_SECONDS)
    except ray.exceptions.RayError:  # such as: the study is not installed there
        return ()
    return startable(config, len(alive) - 1) if config else ()


def startable(config: Mapping[str, Any], present: int) -> Cluster:
    """Return the nodes that an autoscaler could start.

    Args:
        config: Its configuration: a cluster.yaml.
        present: Workers that there are already.

    Returns:
        As many nodes as are still allowed, of each type in turn.
    """
    most = min(max(0, int(config.get("max_workers", 0)) - present), _MAX_NODES)
    types = []
    for name, kind in config.get("available_node_types", {}).items():
        allowed = min(int(kind.get("max_workers", most)), most)
        has = kind.get("resources", {})
        if name != config.get("head_node_type"):
            node = Node(int(has.get("CPU", 0)), float(has.get("GPU", 0)), exists=False)
            types.append([node] * allowed)
    in_turn = chain.from_iterable(zip_longest(*types))
    return tuple([node for node in in_turn if node is not None][:most])


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _read_autoscaler(port: str) -> Any:
    """Return the configuration of the autoscaler that serves the cluster at a port of here."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if "--autoscaling-config" in flags and flags.get("--gcs-address", "").endswith(f":{port}"):
            path = Path(flags["--autoscaling-config"]).expanduser()
            return read_yaml(path)
    return None
