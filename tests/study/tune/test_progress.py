from __future__ import annotations

import re

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
