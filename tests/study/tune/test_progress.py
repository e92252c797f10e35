from __future__ import annotations

import re
import time

import pytest
from rich.console import Console

from study.tune.progress import Progress


def test_progress_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["raw-lite0-fold0-seed44", "preprocessed-lite0-fold0-seed44"]
    progress = Progress(names, 40, Console(width=100, highlight=False))
    row = {"stage": 2, "epoch": 7, "epochs": 20, "val_dice": 0.7, "train_loss": 0.4}
    row |= {"val_loss": 0.3, "seconds": 12.3, "replayed": False}
    progress.epoch(names[1], {**row, "epoch": 6, "replayed": True})
    progress.epoch(names[1], row)
    resumed, header, line = capsys.readouterr().out.splitlines()
    assert resumed.endswith("continues after epoch 6")
    assert header.startswith("trial ")
    assert re.fullmatch(
        r"preprocessed-lite0 +7/20 +all +0\.700 +0\.400 +0\.300 +12 s +\d+ s", line
    )
    assert len(line) + len("efficientnet-b0") - len("lite0") < 80


def test_what_is_left_of_rounds_does_not_follow_from_those_that_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an epoch that is reported again count as one that was trained."""
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    progress = Progress(["c0000", "c0001"], 12, Console(width=100), in_rounds=True)
    row = {"stage": 1, "epochs": 9, "val_dice": 0.7, "train_loss": 0.4, "val_loss": 0.3}
    row |= {"seconds": 10, "replayed": False}
    progress.epoch("c0000", {**row, "epoch": 1})
    progress.epoch("c0000", {**row, "epoch": 1, "replayed": True})  # the next round
    progress.epoch("c0000", {**row, "epoch": 2})
    progress.ended("c0000", "finished")
    progress.epoch("c0001", {**row, "epoch": 1})
    lines = capsys.readouterr().out.splitlines()
    # 10 s an epoch: 11, 10 and 9 of 12 are left.
    left = [line.split()[-2:] for line in lines if "0.700" in line]
    assert left == [["2", "min"], ["2", "min"], ["90", "s"]]
