"""Stub searches through Tune itself, in processes of their own, killed for real and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE, trials_below, wait_until
from stubs import Drive, build_search, history_of

from study.tune.schedulers import Decisions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STUBS = Path(__file__).parents[2] / "stubs.py"


class Searching:
    """A stub search below a folder, in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options: list[str] = []
        self.started: list[subprocess.Popen[str]] = []

    def start(self, candidates: int, concurrent: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(STUBS), str(self.folder), str(candidates), str(concurrent)]
        command += self.options
        root = str(STUBS.parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        self.started.append(process)
        return process

    def finish(self, candidates: int, concurrent: int) -> dict[str, int]:
        out, _ = self.start(candidates, concurrent).communicate(timeout=PATIENCE)
        result: dict[str, int] = json.loads(out.splitlines()[-1])
        return result

    def wait_for_decisions(self, number: int) -> None:
        path = self.folder / "search" / "decisions.csv"
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > number)


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[Searching]:
    searching = Searching(tmp_path / "search")
    yield searching
    for process in searching.started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("scheduler", "candidates", "kills"),
    [
        ("halving", 4, (13,)),  # the first round has twelve, the second begins there
        # In the first candidate, between or in later ones.
        pytest.param("asha", 5, (2, 17, 29), marks=pytest.mark.exhaustive),
        pytest.param("halving", 4, (4, 13, 17), marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_search_goes_on_to_what_an_undisturbed_one_finds(
    searching: Searching,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    candidates: int,
    kills: tuple[int, ...],
) -> None:
    searching.options = ["tpe", scheduler]
    for decisions in kills:
        process = searching.start(candidates, 1)
        searching.wait_for_decisions(decisions)
        process.kill()
        process.wait()
    assert searching.finish(candidates, 1) == {"candidates": candidates, "left": 0}
    quiet = tmp_path / "quiet"
    Drive(build_search(quiet, candidates, scheduler=scheduler), quiet).run(monkeypatch)
    assert history_of(searching.folder) == history_of(quiet)
    for name in ("candidates.csv", "search/decisions.csv", "best.yaml"):
        assert (searching.folder / name).read_bytes() == (quiet / name).read_bytes()


@pytest.mark.exhaustive
def test_two_at_once_come_to_as_many_as_asked_and_may_be_extended(searching: Searching) -> None:
    process = searching.start(3, 2)
    searching.wait_for_decisions(4)
    trials_below(searching.started[-1].pid)[0].kill()  # Tune tries that candidate again
    searching.wait_for_decisions(9)
    process.kill()
    process.wait()
    assert searching.finish(3, 2) == {"candidates": 3, "left": 0}
    before = history_of(searching.folder)[:3]
    assert searching.finish(5, 2) == {"candidates": 5, "left": 0}
    after = history_of(searching.folder)
    assert after[:3] == before
    assert [trial[0] for trial in after] == list(range(5))
    assert all(trial[1] in ("COMPLETE", "PRUNED", "FAIL") for trial in after)
    decided = [entry[:2] for entry in Decisions(searching.folder / "search" / "decisions.csv")]
    assert len(decided) == len(set(decided)) == sum(len(trial[4]) for trial in after)
