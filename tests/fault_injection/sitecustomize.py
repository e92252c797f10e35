"""Imported by every Python process of a test: injects a fault, or counts calls.

`BRAINSEG_TEST_FAULT=ACTION:CHECKPOINT:MARKER` acts when a file of that checkpoint, of whichever
trial is first, is about to be flushed to disk; the marker file is made then, and never twice.
`BRAINSEG_TEST_COUNTS=FILE` counts, see `counting`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_flush = os.fsync


def _hang(marker: Path) -> NoReturn:
    while True:
        time.sleep(60)


def _run_out_of_memory(marker: Path) -> None:
    """Let the next training step of this process fail as torch's allocators do."""
    import torch

    epoch: Any = sys.modules["brainseg.training.epoch"]
    step = epoch.segmentation_loss

    def fail(*args: Any) -> Any:
        epoch.segmentation_loss = step
        raise torch.OutOfMemoryError("out of memory, as the test wants it")

    epoch.segmentation_loss = fail


def _act(descriptor: int) -> None:
    action, checkpoint, marker = os.environ["BRAINSEG_TEST_FAULT"].split(":")
    path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    if f"/.{checkpoint}." in path:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        {"hang": _hang, "memory": _run_out_of_memory}[action](Path(marker))


def _fsync(fd: Any) -> None:
    _act(fd if isinstance(fd, int) else fd.fileno())
    _flush(fd)


if "BRAINSEG_TEST_COUNTS" in os.environ:
    import counting  # noqa: F401

if "BRAINSEG_TEST_FAULT" in os.environ:
    os.fsync = _fsync
