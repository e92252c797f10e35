"""The cluster that trials run on: Ray started here, or joined where it runs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import grpc
import ray
import torch
import yaml
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    get_authentication_mode,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from brainseg.errors import StudyError
from study.spec.grid import Cluster, Node

_ANSWER_SECONDS = 5.0
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone
_HEAD_SECONDS = 60.0


@contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join a running cluster, and leave it afterwards.

    Args:
        address: Of a running cluster, `auto` for the one of this machine; None starts one.

    Yields:
        What the cluster has, and what its autoscaler could start besides.

    Raises:
        StudyError: If there is no cluster at the address, or it wants another token.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local", or Ray would join whatever cluster was last started on this machine. GPUs that
        # torch cannot use are not offered.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_gpus": torch.cuda.device_count()}
    else:
        _require_answer(address)
        require_token(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except Exception as error:  # a bare one where Ray's own processes start too slowly
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(f"no Ray cluster can be used at {address or 'here'}: {reason}") from error
    try:
        yield _measure() if address is None else (*_measure(), *_coming())
    finally:
        ray.shutdown()


def require_shared(path: Path, way_out: str) -> None:
    """Make sure that every node sees a file or folder that its trials need.

    Args:
        path: As this machine sees it.
        way_out: Said to a user whose nodes do not.

    Raises:
        StudyError: Naming the nodes that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    answers = [
        _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False))
        for node in nodes
    ]
    seen = ray.get([answer.remote(str(path)) for answer in answers])
    blind = [node["NodeName"] for node, sees in zip(nodes, seen, strict=True) if not sees]
    if blind:
        raise StudyError(
            f"{len(blind)} of {len(nodes)} nodes do not see {path} ({', '.join(blind)}): {way_out}"
        )


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _sees(path: str) -> bool:
    return Path(path).exists()


def _require_answer(address: str) -> None:
    """Fail within seconds where nothing listens; Ray would try again for a quarter of an hour."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise StudyError(f"--address is {address}: expected HOST:PORT of the head node, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StudyError(f"no Ray cluster answers at {address}: {error}") from error


def _measure() -> Cluster:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Node(int(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes)


def _coming() -> Cluster:
    """Return the nodes that the cluster's autoscaler could start; none if it has no autoscaler.

    Ray 2.60 tells nobody what an autoscaler may start, so the head node is asked for the file
    that the autoscaler was started with. One outside of the head's processes (KubeRay's runs in
    a container of its own) is not found.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    head = next((node["NodeID"] for node in alive if _HEAD in node["Resources"]), None)
    if head is None:
        return ()
    on_head = NodeAffinitySchedulingStrategy(head, False)
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    try:
        answer = _read_autoscaler.options(scheduling_strategy=on_head).remote(port)
        config = ray.get(answer, timeout=_HEAD_SECONDS)
    except ray.exceptions.RayError:  # the study is not installed there, say
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
    most = max(0, int(config.get("max_workers", 0)) - present)
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
            return yaml.safe_load(path.read_text(encoding="utf-8"))
    return None


# --- token ---

_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what a driver asks a head node first
_SECONDS = 5.0


def require_token(address: str) -> None:
    """Make sure that the cluster lets this process in.

    Args:
        address: HOST:PORT of the head node, where something answers. Of `auto` only that a token
            is there can be told.

    Raises:
        StudyError: If the cluster asks for a token, and there is none or another one.
    """
    if get_authentication_mode() == AuthenticationMode.TOKEN:
        if path := _unreadable_path():
            raise StudyError(f"RAY_AUTH_TOKEN_PATH is {path}, which is no file with a token in it")
        loader = AuthenticationTokenLoader.instance()
        if not loader.has_token(ignore_auth_mode=True):
            raise StudyError(
                f"RAY_AUTH_MODE is token, but {_source()} holds none: put the cluster's there, "
                "which is in ~/.ray/auth_token on its head node"
            )
        if address != "auto" and _is_refused(address, loader.get_token_for_http_header()):
            raise StudyError(
                f"the cluster at {address} does not accept the token in {_source()}: put "
                "that of its head node there, which is in ~/.ray/auth_token"
            )
    elif address != "auto" and _is_refused(address, {}):
        raise StudyError(
            f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token, with the token "
            f"of its head node in {_source()}"
        )


def _is_refused(address: str, headers: dict[str, str]) -> bool:
    """Return whether the head node says that the token is what is wrong, nothing else."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CALL)(b"", timeout=_SECONDS, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def _source() -> str:
    """Return where Ray takes its token from."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return "$RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")


def _unreadable_path() -> str | None:
    """Return the path that Ray would end the whole process for."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN" in os.environ:
        return None
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path that may be anything
            return None if file.read().strip() else path
    except OSError:
        return path
