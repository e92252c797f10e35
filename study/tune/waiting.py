"""Notices of why trials wait: what they ask for, what the cluster has and what it is starting."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from study.spec.resources import Node, TrialResources, trials_on

_QUIET_SECONDS = 15.0
_STATUS_KEY = "__autoscaling_status"  # where an autoscaler leaves its report


class WaitNotice:
    """Prints why trials wait while nothing starts or reports, after 15 s, 30 s, 60 s and so on.

    Args:
        say: Called with one line each time.
        quiet: Seconds without news before the first line.
    """

    def __init__(self, say: Callable[[str], None], quiet: float = _QUIET_SECONDS) -> None:
        self._say, self._quiet = say, quiet
        self.started()

    def started(self) -> None:
        """Note that a trial has begun: the next wait is a new one."""
        self._wait = self._quiet
        self.reported()

    def reported(self) -> None:
        """Note that a trial has reported: the cluster works."""
        self._news = time.monotonic()

    def notify(self, trials: Sequence[Any]) -> None:
        """Print a notice if it is time for one.

        Args:
            trials: All of Tune's trials.
        """
        if time.monotonic() - self._news < self._wait:
            return
        self._news = time.monotonic()
        waiting = Counter(
            _asked(trial.placement_group_factory.required_resources)
            for trial in trials
            if trial.status == "PENDING"
        )
        running = sum(trial.status == "RUNNING" for trial in trials)
        for (cpus, gpus), number in waiting.items():
            self._wait *= 2
            asked = TrialResources(cpus=cpus, gpus=gpus)
            try:
                self._say(describe_wait(number, asked, running))
            except Exception as error:  # a notice must never end a study
                self._say(f"waiting: {_count(number, 'trial')} for {asked} each ({error})")


def describe_wait(number: int, asked: TrialResources, running: int) -> str:
    """Return a line that says why trials wait.

    Args:
        number: How many trials wait.
        asked: What each of them asks for.
        running: How many trials run.
    """
    there = [node for node in ray.nodes() if node["Alive"]]
    fits = any(trials_on(_node(node["Resources"]), asked.cpus, asked.gpus) for node in there)
    total, free = _node(ray.cluster_resources()), _node(ray.available_resources())
    used = f"{total.cpus - free.cpus} of {total.cpus} CPU"
    if total.gpus or asked.gpus:
        used += f" and {total.gpus - free.gpus:g} of {total.gpus:g} GPU"
    text = f"waiting: {_count(number, 'trial')} for {asked} each; in use are {used} on "
    text += _count(len(there), "node")
    coming, lost = _starting(), len(ray.nodes()) - len(there)
    if coming:
        text += f"; the autoscaler is starting {coming}"
    elif not fits:
        gone = f", {lost} gone since the cluster began" if lost else ""
        text += f"; no node is large enough{gone}: they start when one joins"
    elif not running:
        text += "; processes are being started"
    elif trials_on(free, asked.cpus, asked.gpus):
        text += "; free resources are spread over several nodes, or about to be used"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _starting() -> str:
    """Return what the cluster's autoscaler is starting, as `2 x gpu_worker`; else nothing."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        names = Counter(node.ray_node_type_name for node in status.pending_nodes)
        for launch in status.pending_launches:
            names[launch.ray_node_type_name] += launch.count
    else:
        names = _read_report(_internal_kv_get(_STATUS_KEY))
    return ", ".join(f"{number} x {name}" for name, number in sorted(names.items()))


def _read_report(text: bytes | None) -> Counter[str]:
    """Count the nodes that are being started, by type, in the report of an autoscaler."""
    try:
        report = (json.loads(text or b"{}").get("autoscaler_report")) or {}
        names = Counter(report.get("pending_launches") or {})
        names.update(node[1] for node in report.get("pending_nodes") or [])
    except (ValueError, AttributeError, TypeError, LookupError):  # another version of Ray's
        return Counter()
    return names


def _asked(resources: Mapping[str, float]) -> tuple[int, float]:
    return int(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def _node(resources: Mapping[str, float]) -> Node:
    return Node(*_asked(resources))
