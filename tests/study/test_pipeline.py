from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from brainseg.cli import FINISHED, SOME_FAILED
from study.pipeline import _exit_code
from study.resolve import Study
from study.storage.schema import Row

TRIAL = {"variant": "raw", "fold": 0, "seed": 44, "status": "finished", "error": ""}
FAILED = TRIAL | {"status": "diverged", "error": "the loss is nan"}


def _study(folder: Path, *, searching: bool = False, left: int = 0) -> Study:
    one = SimpleNamespace(search=SimpleNamespace(group=""))
    spec = SimpleNamespace(searches=[one] if searching else [])
    found: Any = SimpleNamespace(folder=folder, spec=spec)
    found.num_open_candidates = lambda: left
    return cast("Study", found)


def test_a_failed_trial_is_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(_study(tmp_path), [TRIAL]) == FINISHED
    assert capsys.readouterr().err == ""
    assert _exit_code(_study(tmp_path), [TRIAL, FAILED]) == SOME_FAILED
    err = capsys.readouterr().err
    assert "diverged: raw fold 0 seed 44: the loss is nan" in err
    assert "--retry-failed" in err


def test_a_search_without_a_winner_or_with_candidates_left_has_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = []
    monkeypatch.setattr("study.pipeline.read_leaderboard", lambda folder, search: rows)
    assert _exit_code(_study(tmp_path, searching=True), [TRIAL]) == SOME_FAILED
    rows.append({"candidate": 0, "status": "finished", "best_val_dice": 0.5})
    assert _exit_code(_study(tmp_path, searching=True), [TRIAL]) == FINISHED
    assert _exit_code(_study(tmp_path, searching=True, left=1), [TRIAL]) == SOME_FAILED
