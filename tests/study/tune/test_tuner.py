"""Trials that share a process give the same results as trials that have one each."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from ray import cloudpickle, tune
from rich.console import Console

from brainseg.config import Experiment
from brainseg.data.slice_store import SliceStore
from brainseg.errors import StorageError
from brainseg.model.model_file import load_model
from study.spec.resources import TrialResources
from study.spec.trial_job import TrialJob
from study.storage.schema import TRIAL_TABLES
from study.storage.sync import StudySync
from study.storage.trial_folder import TrialFolder
from study.tune.cluster import start_cluster
from study.tune.progress import Progress
from study.tune.trainable import JOB, run_job
from study.tune.tuner import fit, hidden_errors_named, stop_signals, to_config

ONE_AT_ONCE = TrialResources(cpus=1)
CHANGES: dict[str, dict[str, Any]] = {
    "raw": {},
    "halved": {},
    "wild": {"stages.1.learning_rate": 1e10},
    "strong": {"augment.strength": 2.0, "preprocess.filters": ["median", "clahe"]},
    "again": {},
}


def _run(folder: Path, data: SliceStore, experiments: dict[str, Experiment]) -> None:
    """Run trials one after the other; each notes its process."""
    (folder / "trials").mkdir(parents=True, exist_ok=True)

    def train(config: dict[str, Any]) -> None:
        run_job(config)
        process = psutil.Process()
        seen = {"pid": os.getpid(), "rss": process.memory_info().rss // 2**20}
        seen |= {"threads": process.num_threads(), "torch": torch.get_num_threads()}
        (folder / config[JOB]["path"] / "process.json").write_text(json.dumps(seen))

    jobs = [
        TrialJob(
            variant=name,
            fold=0,
            seed=44,
            experiment=experiment,
            data=str(data.root),
            fingerprint=data.fingerprint,
            synthetic=True,
        ).placed(folder, ONE_AT_ONCE)
        for name, experiment in experiments.items()
    ]
    space = {JOB: tune.grid_search([to_config(job)[JOB] for job in jobs])}
    progress = Progress([job.name for job in jobs], 1, Console(file=io.StringIO()))
    sync = StudySync(folder)
    fit(train, ONE_AT_ONCE, sync, progress, 0, param_space=space, reuse_actors=True)


def _processes(folder: Path) -> dict[str, dict[str, int]]:
    paths = folder.glob("trials/*/process.json")
    return {path.parent.name.partition("-")[0]: json.loads(path.read_text()) for path in paths}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_trials_that_share_a_process_have_the_bits_of_trials_alone(
    tmp_path: Path, data: SliceStore, tiny: Experiment
) -> None:
    """Also after a trial that halved its batches and one that diverged."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    experiments = {name: tiny.replaced(changes) for name, changes in CHANGES.items()}
    halved = TrialFolder(shared / "trials" / "halved-fold0-seed44")
    halved.path.mkdir(parents=True)
    halved.halve_batches("as the test wants it")
    with start_cluster(None):
        _run(shared, data, experiments)
        for name in ("strong", "again"):
            _run(alone, data, {name: experiments[name]})
    seen = _processes(shared)
    assert len({row["pid"] for row in seen.values()}) == 1
    statuses = [TrialFolder(path).status for path in (shared / "trials").iterdir()]
    assert sorted(statuses) == ["diverged", *["finished"] * 4]
    assert {row["torch"] for row in seen.values()} == {1}
    pids = [row["pid"] for row in _processes(alone).values()]
    assert len({*pids, seen["strong"]["pid"]}) == 3
    for name in ("strong", "again"):
        here, there = (f / "trials" / f"{name}-fold0-seed44" for f in (shared, alone))
        for table in (*(f"{table}.csv" for table in TRIAL_TABLES), "probabilities.npz"):
            assert (here / table).read_bytes() == (there / table).read_bytes()
        weights = [load_model(path / "model.safetensors")[0] for path in (here, there)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_process_does_not_grow_from_trial_to_trial(
    tmp_path: Path, data: SliceStore, tiny: Experiment
) -> None:
    with start_cluster(None):
        _run(tmp_path, data, {f"trial{number}": tiny for number in range(5)})
    seen = [row for _, row in sorted(_processes(tmp_path).items())]
    assert len({row["pid"] for row in seen}) == 1
    assert seen[-1]["threads"] <= seen[1]["threads"]
    assert seen[-1]["rss"] < 1.1 * seen[1]["rss"]


def _needs_a_missing_module(config: dict[str, Any]) -> None:
    _Missing()


def _fills_the_memory(config: dict[str, Any]) -> None:
    time.sleep(600)  # Ray ends it, since the test allows it next to no memory


class _Missing:
    __module__, __qualname__ = "missing_there", "_Missing"


FATAL = {
    "no package there": (
        _needs_a_missing_module,
        "ModuleNotFoundError: No module named 'missing_",
    ),
    "memory": (_fills_the_memory, "1 worker(s) were killed due to the node running low on memory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FATAL)
def test_a_trial_that_ray_gives_up_has_failed_with_a_reason(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, reason = FATAL[kind]
    here = ModuleType("missing_there")
    here._Missing = _Missing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "missing_there", here)
    if kind == "memory":
        monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "trials").mkdir()
    job = TrialJob(variant="raw", fold=0, seed=0, experiment=Experiment())
    space = {JOB: tune.grid_search([to_config(job.placed(tmp_path, ONE_AT_ONCE))[JOB]])}
    said = io.StringIO()
    progress = Progress([job.name], 1, Console(file=said))
    with start_cluster(None):
        fit(train, ONE_AT_ONCE, StudySync(tmp_path), progress, 1, param_space=space)
    folder = TrialFolder(tmp_path / "trials" / job.name)
    row = folder.read()
    assert row is not None
    assert row["status"] == "failed"
    assert row["error"].startswith(reason)
    assert f"raw-fold0-seed0 continues after a failure: {reason}" in said.getvalue()
    assert f"raw-fold0-seed0 failed: {reason}" in said.getvalue()
    assert folder.batch_parts == (2 if kind == "memory" else 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "result.json"), StorageError),
        (OSError("When uploading result.json: no route to host"), StorageError),
        (StorageError("cannot write result.json: it does not answer"), StorageError),
        (ValueError("a fault of this program"), tune.TuneError),
    ],
)
def test_a_known_error_in_the_text_of_one_of_tunes_is_named(
    tmp_path: Path, error: Exception, expected: type[Exception]
) -> None:
    """Tune raises what its callbacks raise as the text of a traceback; a fault stays one."""
    try:
        raise error
    except Exception:
        text = traceback.format_exc()
    said = r"No space left.*result\.json.*continues|result\.json: .*continues|a fault of"
    with pytest.raises(expected, match=said), hidden_errors_named(tmp_path):
        raise tune.TuneError(text)


def test_a_closed_pipe_is_not_blamed_on_tunes_folder(tmp_path: Path) -> None:
    text = "Traceback\nBrokenPipeError: [Errno 32] Broken pipe\n"
    with pytest.raises(BrokenPipeError), hidden_errors_named(tmp_path):
        raise tune.TuneError(text)


def test_a_store_that_closes_the_connection_is_named(tmp_path: Path) -> None:
    text = (
        "BrokenPipeError: [Errno 32] Broken pipe\n\nThe above exception was the direct cause\n\n"
        "brainseg.errors.StorageError: s3://bucket/lite does not answer\n"
    )
    with pytest.raises(StorageError, match="s3://bucket/lite"), hidden_errors_named(tmp_path):
        raise tune.TuneError(text)


def test_a_second_signal_ends_the_run_at_once() -> None:
    """Tune's handler of the first one puts back the handler that it found."""
    ours: list[Any] = []
    with pytest.raises(KeyboardInterrupt), stop_signals() as stopped:
        ours.append(signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGUSR1, lambda *_: signal.signal(signal.SIGINT, ours[0]))
        signal.raise_signal(signal.SIGINT)
        assert stopped == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert len(stopped) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_tune_listens_ends_the_run(number: signal.Signals) -> None:
    """Also where Tune's handler of an earlier run is still there, which nothing reads any more."""
    ignored = signal.signal(signal.SIGUSR1, lambda *_: None)
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in watched]
    with pytest.raises(KeyboardInterrupt), stop_signals() as stopped:
        signal.raise_signal(number)
    assert stopped == [number]
    assert [signal.getsignal(one) for one in watched] == before
    signal.signal(signal.SIGUSR1, ignored)
