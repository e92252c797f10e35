"""The cluster that trials run on: Ray started here, or joined where it runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from brainseg.errors import StudyError
from study.plan import Cluster, Node

_ANSWER_SECONDS = 5.0


@contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join a running cluster, and leave it afterwards.

    Args:
        address: Of a running cluster, `auto` for the one of this machine; None starts one.

    Yields:
        What the cluster has.

    Raises:
        StudyError: If there is no cluster at the address.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # "local", or Ray would join whatever cluster was last started on this machine. GPUs that
        # torch cannot use are not offered.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_gpus": torch.cuda.device_count()}
    else:
        _require_answer(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(f"no Ray cluster can be used at {address or 'here'}: {reason}") from error
    try:
        yield _measure()
    finally:
        ray.shutdown()


def require_shared_folder(study: Path) -> None:
    """Make sure that every node sees the study's folder, where trials leave their results.

    Raises:
        StudyError: Naming the nodes that do not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    answers = [
        _reads.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False))
        for node in nodes
    ]
    seen = ray.get([answer.remote(str(study / "study.json")) for answer in answers])
    blind = [node["NodeName"] for node, sees in zip(nodes, seen, strict=True) if not sees]
    if blind:
        raise StudyError(
            f"{len(blind)} of {len(nodes)} nodes do not see {study} ({', '.join(blind)}): "
            "give --storage on a disk that all of them share"
        )


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _reads(path: str) -> bool:
    return Path(path).is_file()


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
