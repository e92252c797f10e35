"""What lost nodes cost a study: `python -m benchmarks.goodput`."""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    TWO_VARIANTS,
    Spread,
    StudyRun,
    add_data,
    add_epochs,
    add_network,
    epoch_flags,
    history,
    modified,
    network_flags,
    parser_of,
    positive,
    print_table,
    run_study,
)
from brainseg.cli import FINISHED, run_command

_DESCRIPTION = """\
Measure what a study loses to nodes that vanish: a grid of two variants on local nodes (raylets on
this machine) of one processor each. Every few seconds each node is killed with a probability, as
in Ray's own release tests, and replaced; never the last one, and never the head. The same study
left alone comes first.

  useful / paid     seconds of the epochs that the results are made of, each once, over the seconds
                    of all nodes from Tune's start to the last trial's end
  to resume         seconds from a loss until the trial that was there has got further
  epochs lost       whole epochs that were trained twice, per trial that lost its node
  unsaved, s        seconds of the epoch that was under way, per trial that lost its node"""
_EXAMPLES = """\
  python -m benchmarks.goodput
  python -m benchmarks.goodput --probability 0.24 --alternations 1
"""
_LOSS = re.compile(r"^(\S+) continues after a failure: its node was lost", re.MULTILINE)
_EPOCH = re.compile(r"^\S+ +\d+/\d+ ", re.MULTILINE)
_COLUMNS = ("study", "seconds", "useful / paid", "nodes lost", "trials hit", "to resume, s")
_MORE_COLUMNS = ("epochs lost", "unsaved, s", "results")


@dataclass
class Loss:
    """A trial that lost its node.

    Attributes:
        trial: Its name.
        when: Unix time of the loss.
        epochs: How many it had finished.
        unsaved: Seconds since the end of the last of them.
        seconds: Until it got further.
    """

    trial: str
    when: float
    epochs: int
    unsaved: float
    seconds: float | None = None


class Killer:
    """Kills and replaces nodes of a cluster beside a study, and sees what its trials do.

    Args:
        cluster: Its worker nodes have one processor each.
        probability: For each node, each time.
        every: Seconds between the times.
        seed: Of the draws.
    """

    def __init__(self, cluster: Any, probability: float, every: float, seed: int) -> None:
        self.num_killed = 0
        self.losses: list[Loss] = []
        self.num_epochs = 0
        self.begun: float | None = None
        self._cluster, self._probability, self._every = cluster, probability, every
        self._random = random.Random(seed)
        self._next: float | None = None
        self._epochs: dict[str, int] = {}
        self._ended: dict[str, float] = {}
        self._at_loss: tuple[float, dict[str, int], dict[str, float]] = (0.0, {}, {})

    def look(self, process: Any, storage: Path) -> None:
        """Note how far the trials are, and kill if it is time."""
        now = time.time()
        if self.begun is None and any(storage.glob("benchmark/tune/*")):
            self.begun = now
        for path in storage.glob("benchmark/trials/*/history.csv"):
            rows, before = len(history(path.parent)), self._epochs.get(path.parent.name, 0)
            if rows > before:  # a resumed trial writes its earlier epochs again
                self._epochs[path.parent.name] = rows
                self._ended[path.parent.name] = now
        log = (storage.parent / "log.txt").read_text(encoding="utf-8", errors="replace")
        self.num_epochs = len(_EPOCH.findall(log))
        when, epochs, ended = self._at_loss
        for trial in _LOSS.findall(log)[len(self.losses) :]:
            unsaved = when - ended.get(trial, when)
            self.losses.append(Loss(trial, when, epochs.get(trial, 0), unsaved))
        for loss in self.losses:
            result = storage / "benchmark" / "trials" / loss.trial / "result.json"
            further = self._epochs.get(loss.trial, 0) > loss.epochs or result.exists()
            if loss.seconds is None and further:
                loss.seconds = now - loss.when
        if self._next is None and self._epochs:
            self._next = now + self._every
        if self._next is not None and now >= self._next:
            self._next = now + self._every
            self._kill()

    def _kill(self) -> None:
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: str(node.unique_id))
        drawn = [node for node in nodes if self._random.random() < self._probability]
        for node in drawn[: len(nodes) - 1]:
            self._at_loss = (time.time(), dict(self._epochs), dict(self._ended))
            kill_node(self._cluster, node)
            self.num_killed += 1
            self._cluster.add_node(num_cpus=1, wait=False)


def kill_node(cluster: Any, node: Any) -> None:
    """Kill a node with all that runs on it, as a machine that is taken away."""
    import psutil

    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    family = raylet.children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in family:
        if process.is_running():
            process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _print(args))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("goodput", _DESCRIPTION, _EXAMPLES, alternations=1)
    parser.add_argument("--nodes", type=positive, default=2, help="of one processor (default: 2)")
    parser.add_argument(
        "--probability",
        type=float,
        default=0.03,
        metavar="P",
        help="that a node is killed, each time (default: 0.03)",
    )
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS", help="(default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the losses (default: 0)")
    parser.add_argument(
        "--seeds", type=positive, default=2, help="of each variant, a trial each (default: 2)"
    )
    add_data(parser)
    add_network(parser)
    add_epochs(parser, 5, 15)
    return parser


def _print(args: argparse.Namespace) -> int:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    flags = ["--grid", str(TWO_VARIANTS), "--seeds", str(args.seeds), *network_flags(args)]
    flags += epoch_flags(args.epochs)
    rows: list[Sequence[object]] = []
    for number in range(args.alternations):
        rows += _compare(args, flags, args.seed + number)
    settings = (
        f"{2 * args.seeds} trials of {sum(args.epochs)} epochs ({args.encoder}, {args.size} px), "
        f"{args.nodes} nodes, each lost with p = {args.probability:g} every {args.every:g} s, "
        f"seed {args.seed}"
    )
    print_table(settings, (*_COLUMNS, *_MORE_COLUMNS), rows, "median (min to max)")
    return FINISHED


def _compare(args: argparse.Namespace, flags: list[str], seed: int) -> list[Sequence[object]]:
    """Run the study alone and under the killer; return a row for each."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        head = {"num_cpus": 0, "temp_dir": temporary}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(args.nodes):
                cluster.add_node(num_cpus=1)
            flags = [*flags, "--address", cluster.address]
            calm = Killer(cluster, 0.0, args.every, seed)
            killer = Killer(cluster, args.probability, args.every, seed)
            with (
                run_study(flags, calm.look, every=0.2) as alone,
                run_study(flags, killer.look, every=0.2) as hit,
            ):
                same = "equal" if _read(alone.folder) == _read(hit.folder) else "DIFFERENT"
                return [
                    _row("left alone", alone, calm, args.nodes, ""),
                    _row("nodes lost", hit, killer, args.nodes, same),
                ]
        finally:
            cluster.shutdown()


def _row(name: str, run: StudyRun, killer: Killer, nodes: int, same: str) -> Sequence[object]:
    """Return the table's row of a study."""
    trials = run.trials()
    epochs = [row["seconds"] for trial in trials for row in history(trial)]
    paid = nodes * (modified(trials[-1] / "result.json") - (killer.begun or run.began))
    facts: list[object] = ["", "", ""]
    if killer.losses:
        seconds = [loss.seconds for loss in killer.losses if loss.seconds is not None]
        again = (killer.num_epochs - len(epochs)) / len(killer.losses)
        unsaved = Spread.of([loss.unsaved for loss in killer.losses])
        facts = [Spread.of(seconds), again, unsaved]
    counts = [killer.num_killed, len(killer.losses)]
    return [name, run.seconds, sum(epochs) / paid, *counts, *facts, same]


def _read(study: Path) -> dict[str, bytes]:
    """Return the bytes of a study's scores, split and weights."""
    from brainseg.model.model_file import load_model

    found = {
        name: (study / name).read_bytes() for name in ("scores.csv", "slices.csv", "split.json")
    }
    for path in sorted((study / "models").glob("*.safetensors")):
        for key, tensor in load_model(path)[0].items():
            found[f"{path.stem}.{key}"] = tensor.numpy().tobytes()
    return found


if __name__ == "__main__":
    sys.exit(main())
