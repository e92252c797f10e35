"""The study's folder: made, found again, refused where it is another study's, moved aside."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from brainseg.config import Experiment, differences
from brainseg.errors import StudyError
from brainseg.storage.files import write_text
from study.spec.grid import GRIDS, ONE
from study.storage.candidates import Search

METRIC, MODE = "val_dice", "max"
"""What schedulers, searchers and the report judge by, and in which direction."""


@dataclass(frozen=True)
class Question:
    """What a study asks; two studies of one name must ask the same.

    Attributes:
        grid: Name of the grid.
        base: What the variants share.
        weights_hash: SHA-256 of the encoder's weight file, where one was named.
        fingerprint: Of the dataset.
        counts: Of its patients, slices and tumour slices.
        folds: Rotations; a study may grow, but not shrink.
        seeds: Per variant and fold; likewise.
        search: That extends the grid, if one does.
    """

    grid: str
    base: Experiment
    weights_hash: str
    fingerprint: str
    counts: dict[str, int]
    folds: int = 1
    seeds: int = 1
    search: Search | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the part of study.json that is compared."""
        return {
            "grid": self.grid,
            "variants": GRIDS[self.grid],
            "metric": METRIC,
            "mode": MODE,
            "folds": self.folds,
            "seeds": self.seeds,
            "fingerprint": self.fingerprint,
            **self.counts,
            "weights_hash": self.weights_hash,
            "experiment": self.base.model_dump(mode="json"),
            "search": self.search and self.search.to_record(),
        }

    def changes_from(self, record: dict[str, Any]) -> list[str]:
        """Return a line for each difference from the study of a study.json."""
        theirs = Experiment.model_validate(record["experiment"])
        if self.weights_hash and self.weights_hash == record["weights_hash"]:
            # The same weights under another path are the same weights.
            theirs = theirs.replaced({"model.encoder_weights": self.base.model.encoder_weights})
        lines = differences(self.base, theirs)
        ours = self.to_record()
        for key in ("grid", "variants", "fingerprint", *self.counts, "weights_hash"):
            if ours[key] != record[key]:
                lines.append(f"{key}: {_short(record[key])} -> {_short(ours[key])}")
        for key in ("folds", "seeds"):
            if getattr(self, key) < record[key]:
                lines.append(f"{key}: {record[key]} -> {getattr(self, key)}, which may only grow")
        before = record.get("search")
        if before:
            left_out = [f"search: {before['candidates']} candidates -> none"]
            lines += self.search.changes_from(before) if self.search else left_out
        return lines


def default_name(grid: str, config: Path | None, *, synthetic: bool) -> str:
    """Return what a study is called that was given no name: after its grid, or its one file."""
    name = config.stem if grid == ONE and config is not None else grid
    return f"{name}-synthetic" if synthetic else name


def check_folder(folder: Path, question: Question) -> bool:
    """Make sure that a folder may be written by this study; changes nothing.

    Args:
        folder: `<storage>/<name>`.
        question: What this study asks.

    Returns:
        Whether the study is there already.

    Raises:
        StudyError: If another study has the name, with the difference.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    record = read_study(folder)
    try:
        changed = question.changes_from(record)
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"{folder}/study.json is of another version of this program ({_one_line(error)}): "
            "choose another --name, or --fresh to move it aside"
        ) from error
    if changed:
        raise StudyError(
            f"{folder} holds another study ({'; '.join(changed)}): choose another --name, "
            "or --fresh to move it aside"
        )
    return True


def move_aside(folder: Path) -> Path | None:
    """Rename a study's folder; return its new path, or None if there was none."""
    if not folder.exists():
        return None
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    folder.rename(aside)
    return aside


def read_study(folder: Path) -> dict[str, Any]:
    """Return study.json.

    Raises:
        StudyError: If the folder holds none.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(
            f"{folder} holds no readable study.json, so it is no study: choose another --name"
        ) from error
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study for one driver; the system frees the lock when its owner dies.

    The lock lies beside the folder, so that a folder cannot be moved aside while it is held.

    Raises:
        StudyError: If another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    owner = folder.with_name(f".{folder.name}.owner")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
        raise StudyError(f"{folder} is being run by {who}") from error
    try:
        write_text(owner, describe_process() + "\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def write_study(folder: Path, question: Question, facts: dict[str, Any]) -> None:
    """Write study.json; each start of a study adds itself to `starts`.

    Args:
        folder: The study's.
        question: What it asks.
        facts: What else a reader wants to know, `versions` among it.
    """
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": _command(),
        "commit": _commit(),
        "versions": facts["versions"],
    }
    earlier = read_study(folder)["starts"] if (folder / "study.json").exists() else []
    record = {"name": folder.name, **facts, **question.to_record(), "starts": [*earlier, start]}
    write_text(folder / "study.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "experiment.yaml", question.base.to_yaml())


def _command() -> str:
    return shlex.join(["python", "-m", "study.run", *sys.argv[1:]])


def describe_process() -> str:
    """Name this process to whoever finds that it holds a study."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"


def _commit() -> str:
    """Commit of this code, with a + where files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
