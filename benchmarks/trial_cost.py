"""What a trial costs besides training: `python -m benchmarks.trial_cost`."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.measure import EXIT_CODES, environment, positive
from brainseg.cli import FINISHED, build_parser, run_command

_DESCRIPTION = """\
Measure what a trial costs besides training.

Trials that only report go through the study's own `fit` and `Reporter` on local nodes (raylets on
this machine) of one processor each. The result is one JSON line. CPU seconds are those of
processes, so other work on the machine changes them little; it does change seconds by the
clock."""
_EXAMPLES = """\
examples:
  python -m benchmarks.trial_cost
  python -m benchmarks.trial_cost --trials 20 --nodes 2 --imports study.tune.trainable --fresh
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _print(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser("benchmarks.trial_cost", _DESCRIPTION, _EXAMPLES + EXIT_CODES)
    parser.add_argument("--trials", type=positive, default=100, help="(default: 100)")
    parser.add_argument(
        "--nodes", type=positive, default=8, help="of one processor each (default: 8)"
    )
    parser.add_argument("--results", type=positive, default=3, help="of each trial (default: 3)")
    parser.add_argument(
        "--rate", type=float, default=1000.0, help="results a second and trial (default: 1000)"
    )
    parser.add_argument(
        "--imports", default="json", help="module that trials import (default: json)"
    )
    parser.add_argument("--fresh", action="store_true", help="a process for each trial")
    return parser


def _print(args: argparse.Namespace) -> int:
    os.environ |= environment() | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    print(json.dumps(measure(args)))
    return FINISHED


def _stub(results: int, rate: float, imports: str) -> Any:
    """Return a trial that only reports, and writes what it has cost beside its results."""

    def train(config: dict[str, Any]) -> None:
        import importlib
        import json
        import os
        import time
        from pathlib import Path

        import psutil
        from ray import tune

        process = psutil.Process()
        times = {"called": time.time(), "cpu_called": time.process_time()}
        importlib.import_module(imports)
        times |= {"imported": time.time(), "cpu_imported": time.process_time()}
        for step in range(1, results + 1):
            time.sleep(max(0.0, times["imported"] + step / rate - time.time()))
            tune.report({"step": step, "sent": time.time(), "val_dice": 0.0})
        times |= {"ended": time.time(), "cpu_ended": time.process_time()}
        times |= {"born": process.create_time(), "rss": process.memory_info().rss}
        times |= {"pid": os.getpid(), "threads": process.num_threads()}
        job = config["job"]
        folder = Path(job["study"]) / job["path"]
        folder.mkdir()
        row = {key: job[key] for key in ("variant", "fold", "seed")}
        row |= {"status": "finished", "error": "", "val_loss": 0.0, "batch_parts": 1, **times}
        (folder / "result.json").write_text(json.dumps(row))

    return train


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the trials and return what they cost."""
    from ray import tune
    from ray.cluster_utils import Cluster
    from ray.tune.execution.tune_controller import TuneController
    from rich.console import Console

    from brainseg.config import Experiment
    from study.spec.resources import TrialResources
    from study.spec.trial_job import TrialJob
    from study.storage.sync import StudySync
    from study.tune import tuner as tuning
    from study.tune.cluster import start_cluster
    from study.tune.progress import Progress

    folder, temporary = Path(tempfile.mkdtemp()), tempfile.mkdtemp(prefix="ray")
    resources = TrialResources(concurrent=args.nodes)
    (folder / "trials").mkdir()
    own, snapshots = psutil.Process(), [0.0]
    seen: list[tuple[str, int, float]] = []
    memory: dict[int, float] = {}

    class Listener(tuning.Reporter):
        ended = 0

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return dict, ()  # Tune pickles it, and this function's variables with it

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
        ) -> None:
            seen.append((str(trial), result["step"], time.time() - result["sent"]))
            self._waiting.reported()

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.ended += 1
            if self.ended in (10, 100, 500, 1000):
                memory[self.ended] = own.memory_info().rss / 2**20

    save = TuneController.checkpoint

    def timed(*given: Any, **named: Any) -> None:
        before = time.process_time()
        save(*given, **named)
        snapshots[0] += time.process_time() - before

    TuneController.checkpoint = timed
    jobs = [
        TrialJob(variant=f"stub{n}", fold=0, seed=0, experiment=Experiment())
        for n in range(args.trials)
    ]
    configs = [tuning.to_config(job.placed(folder, resources)) for job in jobs]
    setattr(tuning, "Reporter", Listener)  # noqa: B010 - a type, to mypy
    progress = Progress(["stub"], 1, Console(file=io.StringIO()))
    local = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": temporary})
    for _ in range(args.nodes - 1):
        local.add_node(num_cpus=1)
    with start_cluster(local.address):
        began, cpu = time.time(), own.cpu_times().user + own.cpu_times().system
        stub = _stub(args.results, args.rate, args.imports)
        space = {"job": tune.grid_search([config["job"] for config in configs])}
        reuse = not args.fresh
        sync = StudySync(folder)
        tuning.fit(stub, resources, sync, progress, 0, param_space=space, reuse_actors=reuse)
        seconds, rss = time.time() - began, round(own.memory_info().rss / 2**20)
        driver = own.cpu_times().user + own.cpu_times().system - cpu
        ray_cpu = _cpu_of_ray(temporary)
        state = sum(f.stat().st_size for f in folder.glob("tune/start-1/*") if f.is_file())
    local.shutdown()
    trials = [json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")]
    shutil.rmtree(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    return _describe(args, trials, seen) | {
        "seconds": round(seconds, 1),
        "driver_cpu_ms_per_trial": round(1000 * driver / args.trials, 1),
        "of_it_snapshots_ms": round(1000 * snapshots[0] / args.trials, 1),
        "ray_cpu_ms_per_trial": round(1000 * ray_cpu / args.trials, 1),
        "state_bytes_per_trial": round(state / args.trials),
        "driver_rss_mb": {number: round(size) for number, size in memory.items()},
        "driver_rss_mb_at_end": rss,
    }


def _cpu_of_ray(folder: str) -> float:
    """Return CPU seconds of the raylets and the head, found by a folder in their command lines."""
    total = 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        words = process.info["cmdline"] or [""]
        if Path(words[0]).name in ("raylet", "gcs_server") and folder in " ".join(words):
            total += process.info["cpu_times"].user + process.info["cpu_times"].system
    return total


def _describe(
    args: argparse.Namespace,
    trials: list[dict[str, float]],
    seen: list[tuple[str, int, float]],
) -> dict[str, Any]:
    """Combine what the trials wrote and what the driver received."""
    late = sorted(delay for *_, delay in seen)
    first = {row["pid"]: row for row in sorted(trials, key=lambda row: -row["called"])}.values()
    order = sorted(trials, key=lambda row: row["ended"])
    per_trial = {
        "process_start_cpu_s": sum(row["cpu_called"] for row in first) / len(trials),
        "imports_cpu_s": sum(r["cpu_imported"] - r["cpu_called"] for r in trials) / len(trials),
        "results_cpu_s": sum(r["cpu_ended"] - r["cpu_imported"] for r in trials) / len(trials),
        "born_to_called_s": median(row["called"] - row["born"] for row in first),
        "called_to_imported_s": median(row["imported"] - row["called"] for row in trials),
    }
    return {
        "trials": len(trials),
        "processes": len(first),
        **{name: round(value, 3) for name, value in per_trial.items()},
        "results_lost": args.trials * args.results - len({entry[:2] for entry in seen}),
        "results_twice": len(seen) - len({entry[:2] for entry in seen}),
        "late_ms": [round(1000 * late[int(q * (len(late) - 1))]) for q in (0.5, 0.99, 1)],
        "worker_rss_mb": [round(order[n]["rss"] / 2**20) for n in (0, len(order) // 2, -1)],
        "worker_threads": [int(order[n]["threads"]) for n in (0, len(order) // 2, -1)],
    }


if __name__ == "__main__":
    sys.exit(main())
