"""Which failures are a trial's own; what lost nodes do to its retries, by Tune's own rule."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from rich.console import Console

from study.storage.sync import StudySync
from study.tune.failures import Failures, as_failure, is_lost_node
from study.tune.progress import Progress
from study.tune.tuner import Reporter


def _died(message: str, death: int | None = None) -> ActorDiedError:
    """Return the error that Ray makes of what the head says of an actor's death."""
    said = ActorDiedErrorContext(error_message=message, actor_id=b"a" * 16)
    if death is not None:
        said.node_death_info.CopyFrom(NodeDeathInfo(reason=death))
    return ActorDiedError(cause=said)


LOST: dict[str, Callable[[], Exception]] = {
    "the machine vanished with its process": lambda: ActorUnavailableError("closed", b"a" * 16),
    "the machine was found dead": lambda: _died(
        "The actor died because its node has died. Node Id: 5d\n\tthe actor's node was terminated "
        "unexpectedly: health check failed due to missing too many heartbeats"
    ),
    "the machine was stopped": lambda: _died(
        "The actor died because its node has died. Node Id: 49\n\tthe actor's node was terminated "
        "expectedly: received SIGTERM"
    ),
    "the machine was drained": lambda: _died("", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
    "a task's node": lambda: NodeDiedError("Task failed due to the node dying."),
}
OWN: dict[str, Callable[[], Exception]] = {
    "the process died": lambda: _died(
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
        "Worker exit detail: Worker unexpectedly exits with a connection error code 2."
    ),
    "the memory monitor ended it": lambda: _died(
        "Task was killed due to the node running low on memory."
    ),
    "out of memory": lambda: OutOfMemoryError("Task was killed due to the node running low"),
    "an exception": lambda: RayTaskError("train", "Traceback", ValueError("its node has died")),
    "unknown": lambda: ActorDiedError(),
}


@pytest.mark.parametrize("make", LOST.values(), ids=LOST)
def test_a_node_that_is_gone_is_not_the_trials_fault(make: Callable[[], Exception]) -> None:
    assert is_lost_node(make())


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_other_failures_are_its_own(make: Callable[[], Exception]) -> None:
    assert not is_lost_node(make())


@pytest.mark.parametrize("make", [*LOST.values(), *OWN.values()], ids=[*LOST, *OWN])
def test_tune_takes_any_error_of_rays_for_a_failure(make: Callable[[], Exception]) -> None:
    error = make()
    failure = as_failure(error)
    assert isinstance(failure, RayActorError | RayTaskError)
    assert is_lost_node(failure) == is_lost_node(error)
    assert str(error) in str(failure)


def test_an_error_of_another_program_is_no_failure() -> None:
    error = ValueError("a fault of Tune's own")
    assert as_failure(error) is error


def test_a_process_ended_for_its_memory_is_an_actor_that_failed(failures: Failures) -> None:
    told: list[tuple[str, str]] = []
    actor = SimpleNamespace(
        actor_id=1, _on_error=lambda _, error: told.append(("actor", f"{error}"))
    )
    task = SimpleNamespace(
        _tracked_actor=actor, _on_error=lambda _, e: told.append(("task", f"{e}"))
    )
    manager = MagicMock()
    RayActorManager._actor_task_failed(manager, task, OWN["out of memory"]())
    said = "OutOfMemoryError: Task was killed due to the node running low"
    assert told == [("actor", said), ("task", said)]
    manager._cleanup_actor.assert_called_once()


def test_a_process_that_died_between_two_trials_is_one_failure(
    trial: Trial, failures: Failures
) -> None:
    """Tune tells of it twice: first of the actor, then of the task that was to begin the trial."""
    controller = MagicMock(_resetting_trials={trial})
    for error in (OWN["the process died"](), OWN["the process died"]()):
        for status in (Trial.RUNNING, Trial.PENDING):
            trial.status = status
            TuneController._process_trial_failure(controller, trial, error)
    assert trial.num_failures == 2
    assert controller._try_recover.call_count == 2
    assert not controller._callbacks.on_trial_error.called
    assert not controller._resetting_trials, "Tune would wait for its reset for ever"


def _trial(folder: Path, max_failures: int) -> Trial:
    """Return one of Tune's own trials, which leaves its errors in a folder."""
    config = {"job": {"path": "trials/a"}}
    trial = Trial("stub", stub=True, max_failures=max_failures, config=config)
    trial.storage = SimpleNamespace(trial_driver_staging_path=str(folder))
    return trial


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return _trial(tmp_path, 2)


@pytest.fixture
def failures() -> Iterator[Failures]:
    counting = Failures()
    with counting.handled():
        yield counting


def test_any_number_of_lost_nodes_leaves_all_retries(trial: Trial, failures: Failures) -> None:
    for number, make in enumerate([*LOST.values()] * 4, 1):
        trial.handle_error(make())
        assert trial.should_recover()
        assert failures.lost_nodes(trial) == number
    assert trial.num_failures == 0
    for recovers in (True, True, False):
        trial.handle_error(OWN["the process died"]())
        assert trial.should_recover() == recovers
        assert failures.lost_nodes(trial) == 0
        trial.handle_error(LOST["the machine was drained"]())
        assert trial.should_recover() == recovers
    assert failures.num_lost_nodes == 23


def test_a_limit_holds_for_each_trial(tmp_path: Path, trial: Trial) -> None:
    other = _trial(tmp_path, 0)
    counting, lose = Failures(2), LOST["the machine vanished with its process"]
    with counting.handled():
        for recovers in (True, True, False):
            trial.handle_error(lose())
            assert trial.should_recover() == recovers
        other.handle_error(lose())
        assert other.should_recover()
    other.handle_error(lose())
    assert not other.should_recover(), "outside the block Tune counts as it does"


def test_the_console_says_whose_fault_a_failure_was(
    tmp_path: Path, trial: Trial, failures: Failures
) -> None:
    text = io.StringIO()
    progress = Progress(["a"], 1, Console(file=text))
    reporter = Reporter(StudySync(tmp_path), progress, failures)
    result = tmp_path / "trials" / "a" / "result.json"
    result.parent.mkdir(parents=True)
    row = {"variant": "a", "fold": 0, "seed": 44, "status": "failed", "error": "out of memory"}
    result.write_text(json.dumps(row))
    for make in (LOST["a task's node"], OWN["out of memory"], LOST["a task's node"]):
        trial.handle_error(make())
        failed: Any = SimpleNamespace(trial_id=trial.trial_id, config=trial.config, error_file="")
        reporter.on_trial_recover(1, [], failed)
    said = [line.partition("failure: ")[2] for line in text.getvalue().splitlines()]
    assert said == [
        "its node was lost, 1 so far; this is not one of its retries",
        "unknown",
        "its node was lost, 2 so far; this is not one of its retries",
    ]
    assert not result.exists(), "a driver killed now would take the trial for one that has failed"
    result.write_text(json.dumps({**row, "status": "finished", "val_loss": 0.5}))
    reporter.on_trial_recover(1, [], failed)
    assert result.exists(), "what failed came after the trial's end"
