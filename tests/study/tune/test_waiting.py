from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import ray

from study.tune.waiting import WaitNotice, _read_report


def test_what_an_autoscaler_is_starting_is_read_from_its_report() -> None:
    report = {"pending_launches": {"gpu": 2}, "pending_nodes": [["10.0.0.7", "gpu", "setting-up"]]}
    assert _read_report(json.dumps({"autoscaler_report": report}).encode()) == {"gpu": 3}
    assert not _read_report(json.dumps({"autoscaler_report": None}).encode())
    assert not _read_report(None)


def test_a_wait_that_cannot_be_explained_is_said_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("the head does not answer")

    monkeypatch.setattr(ray, "nodes", fail)
    said: list[str] = []
    notice = WaitNotice(said.append, quiet=0.0)
    asked = SimpleNamespace(required_resources={"CPU": 2.0, "GPU": 0.5})
    notice.notify([SimpleNamespace(status="PENDING", placement_group_factory=asked)] * 3)
    assert said == ["waiting: 3 trials for 0.5 GPU and 2 CPU each (the head does not answer)"]


def test_a_wait_is_said_at_growing_intervals_and_anew_after_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("study.tune.waiting.time.monotonic", lambda: now[0])
    monkeypatch.setattr("study.tune.waiting.describe_wait", lambda *_: f"at {now[0]:.0f}")
    said: list[str] = []
    notice = WaitNotice(said.append)
    asked = SimpleNamespace(required_resources={"CPU": 1.0})
    trials = [SimpleNamespace(status="PENDING", placement_group_factory=asked)]
    for second in range(200):
        now[0] = float(second)
        if second == 110:
            notice.started()
        notice.notify(trials)
    assert said == ["at 15", "at 45", "at 105", "at 125", "at 155"]
