"""A study's folder: its study.json, its name, its lock; refused if it is another study's."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from brainseg import __version__
from brainseg.errors import DataError, StudyError
from brainseg.storage.files import check_record, hide_home, read_json, read_text, write_text
from brainseg.storage.urls import redact
from study.spec.grid import ONE
from study.spec.study_spec import StudySpec

GRID_FILE = "grid.yaml"
"""The copy of a user's own grid in the study's folder."""

_BEFORE_STUDY = {"experiment.yaml", "split.json", "patients.csv", "external", GRID_FILE}
"""What may be there before study.json: a start that was killed leaves no more than these."""


def _file_name(name: str) -> str:
    if not name or name.startswith(".") or Path(name).name != name or not name.isprintable():
        raise ValueError("expected the name of a folder")
    return name


class _Start(BaseModel):
    """A start of a study."""

    time: str
    command: str
    commit: str
    versions: dict[str, str]


class _Registered(BaseModel):
    """A protocol in study.json; see `study.analysis.protocol`."""

    time: str
    hash: str
    tested: int = Field(ge=0)
    protocol: dict[str, str | int]


class StudyRecord(StudySpec):
    """What study.json holds: what the study asks, where it ran and how it was started."""

    name: Annotated[str, AfterValidator(_file_name)]
    first_seed: int = Field(ge=0)
    weights: str
    cpus_per_trial: int = Field(ge=1)
    gpus_per_trial: float = Field(ge=0)
    versions: dict[str, str]
    starts: list[_Start] = Field(min_length=1)
    protocol: list[_Registered] = Field(default=[])


class _Part(BaseModel):
    """A rotation in split.json."""

    model_config = ConfigDict(strict=True, extra="allow")

    rotation: int = Field(ge=0)
    train: list[str]
    val: list[str]
    test: list[str]


class _Splits(BaseModel):
    """What split.json holds."""

    model_config = ConfigDict(strict=True, extra="allow")

    patients: list[str]
    rotations: list[_Part]
    search: list[_Part] = []


def default_name(grid: str, config: Path | None, *, synthetic: bool) -> str:
    """Return the name of a study that was given none: its grid's, or its configuration file's."""
    name = config.stem if grid == ONE.name and config is not None else grid
    return f"{name}-synthetic" if synthetic else name


def check_folder(folder: Path, spec: StudySpec) -> bool:
    """Check that a folder may be written by this study; changes nothing.

    Args:
        folder: `<storage>/<name>`.
        spec: What this study asks.

    Returns:
        Whether the study is there already.

    Raises:
        StudyError: If another study has the name, with the differences.
    """
    if not folder.exists():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names <= _BEFORE_STUDY:
        return False
    changed = read_spec(folder).differences(spec)
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
        StudyError: If the folder holds none, or one of another version.
        DataError: If the file cannot be read.
    """
    path = folder / "study.json"
    if not path.exists():
        raise StudyError(
            f"{folder} holds no readable study.json, so it is not a study: choose another --name"
        )
    record = read_json(path)
    try:
        return check_record(path, record, StudyRecord).model_dump(mode="json")
    except DataError as error:
        raise StudyError(
            f"{error}: the file was changed, or is of another version of this program; choose "
            "another --name, or --fresh to move it aside"
        ) from error


def read_spec(folder: Path) -> StudySpec:
    """Return what a study asks.

    Raises:
        StudyError: As `read_study` does.
        DataError: As `read_study` does.
    """
    return StudySpec.model_validate(read_study(folder))


def read_split(folder: Path) -> dict[str, Any]:
    """Return split.json; empty if there is none.

    Raises:
        DataError: If the file cannot be read, or holds something else.
    """
    path = folder / "split.json"
    return check_record(path, read_json(path), _Splits).model_dump() if path.exists() else {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a study for one driver; the system frees the lock when the process dies.

    The lock lies beside the folder, so that the folder cannot be moved aside while it is locked.

    Raises:
        StudyError: If another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    owner = folder.with_name(f".{folder.name}.owner")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        text = owner.read_bytes()[:200] if owner.is_file() else b""
        found = text.decode("utf-8", errors="replace").strip()
        raise StudyError(f"{folder} is being run by {found or 'another process'}") from error
    try:
        write_text(owner, describe_process() + "\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def write_study(folder: Path, spec: StudySpec, facts: dict[str, Any]) -> None:
    """Write study.json and experiment.yaml; each start of a study is added to `starts`.

    Args:
        folder: The study's.
        spec: What the study asks.
        facts: What else a reader wants to know, including `versions`.
    """
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redact(hide_home(shlex.join(["python", "-m", "study.run", *sys.argv[1:]]))),
        "commit": find_commit(),
        "versions": facts["versions"],
    }
    earlier = read_study(folder)["starts"] if (folder / "study.json").exists() else []
    record = {"name": folder.name, **facts, **spec.to_record(), "starts": [*earlier, start]}
    write_text(folder / "study.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "experiment.yaml", spec.experiment.to_yaml())


def keep_grid(folder: Path, text: str) -> list[str]:
    """Copy the file of a user's own grid into a study, without secrets and the home folder.

    Of a file that was changed since, the earlier copy stays, as `grid.<time>.yaml`.

    Args:
        folder: The study's.
        text: The content of the grid's file; empty for a grid that comes with the program.

    Returns:
        The lines that differ from the earlier copy; none if there is none.
    """
    path, text = folder / GRID_FILE, redact(hide_home(text))
    if not text:
        return []
    earlier = read_text(path) if path in grid_copies(folder) else ""
    if earlier == text:
        return []
    if earlier:
        path.rename(path.with_suffix(f".{time.strftime('%Y%m%d-%H%M%S')}.yaml"))
    write_text(path, text)
    return changed_lines(earlier, text) if earlier else []


def changed_lines(earlier: str, text: str) -> list[str]:
    """Return the lines in which two texts differ, those that went with `-`, new ones with `+`."""
    lines = difflib.unified_diff(earlier.splitlines(), text.splitlines(), n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def grid_copies(folder: Path) -> list[Path]:
    """Return the copies of a user's own grid in a study, the earliest first; often none.

    A study may come from a stranger: links that lead out of it are none.
    """
    found = [*sorted(folder.glob("grid.*.yaml")), folder / GRID_FILE]
    inside = folder.resolve()
    return [path for path in found if path.is_file() and path.resolve().parent == inside]


def describe_process() -> str:
    """Return a sentence part that names this process, for messages on other machines."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"


def find_commit() -> str:
    """Return the commit of this code, with a + if files differ; its version outside a checkout."""
    top = Path(__file__).parents[2]
    if not (top / "pyproject.toml").exists():  # installed, perhaps within another repository
        return f"version {__version__}"
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=top, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"version {__version__}"
    return run.stdout.strip()
