from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import Store

from brainseg.errors import StudyError
from brainseg.storage.remote import RemoteFolder
from study.storage import lease
from study.storage.lease import Lease, hold
from study.storage.sync import StudySync


@pytest.fixture
def url(store: Store, tmp_path: Path) -> str:
    return store.url(f"{tmp_path.name}/lite")


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners count every 0.2 s, and are watched for 2 s."""
    for name, value in (("BEAT", 0.2), ("WATCH", 2.0), ("_SETTLE", 0.1), ("_LOOK", 0.1)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", value)


def _leave_behind(url: str, **changes: Any) -> None:
    """Leave what a driver leaves that was killed."""
    path, mark, query = url.partition("?")
    above, _, name = path.rpartition("/")
    record: dict[str, Any] = {"owner": "process 7 on elsewhere", "token": "t"}
    record |= {"machine": "elsewhere", "process": 7, "beat": 3, **changes}
    RemoteFolder(above + mark + query).write(f".{name}.owner", json.dumps(record).encode())


@pytest.mark.usefixtures("brisk")
def test_a_study_with_a_living_owner_is_refused_and_the_owner_named(url: str) -> None:
    said: list[str] = []
    owner = Lease(url)
    owner.acquire(said.append)
    try:
        with pytest.raises(StudyError, match=f"is being run by process {os.getpid()} on"):
            Lease(url).acquire(said.append)
    finally:
        owner.release()
    assert len(said) == 1
    Lease(url).acquire(said.append)
    assert len(said) == 1, "a driver that has ended leaves no owner"


@pytest.mark.usefixtures("brisk")
def test_an_owner_that_does_not_move_is_taken_over(url: str) -> None:
    _leave_behind(url)
    said: list[str] = []
    started = time.monotonic()
    successor = Lease(url)
    successor.acquire(said.append)
    successor.release()
    assert time.monotonic() - started > lease.WATCH_SECONDS
    assert "process 7 on elsewhere: watching it" in said[0]


@pytest.mark.usefixtures("brisk")
def test_an_owner_that_has_died_on_this_machine_is_not_watched(url: str) -> None:
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    _leave_behind(url, machine=lease._whereabouts()["machine"], process=gone)
    said: list[str] = []
    successor = Lease(url)
    successor.acquire(said.append)
    successor.release()
    assert not said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\x80",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"owner": "a"}',
        b'{"owner": "a", "token": "t", "machine": "m", "process": "7"}',
        b'{"owner": "a", "token": "t", "machine": "m", "process": -1}',
        b'{"owner": "a", "token": "t", "machine": "m", "process": 1e99}',
        b'{"owner": null, "token": "t", "machine": "m", "process": 7}',
    ],
    ids=lambda content: repr(content[:60]),
)
def test_an_owner_that_cannot_be_read_is_watched_and_then_taken_over(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCH", 0.05), ("_SETTLE", 0.01), ("_LOOK", 0.01)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", value)
    (tmp_path / ".lite.owner").write_bytes(content)
    said: list[str] = []
    successor = Lease(f"file://{tmp_path}/lite")
    successor.acquire(said.append)
    assert len(said) == 1
    assert "one whose file .lite.owner beside the study cannot be read: watching it" in said[0]
    successor.release()
    assert not (tmp_path / ".lite.owner").exists()


def test_an_owner_that_cannot_be_read_but_moves_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCH", 5.0), ("_LOOK", 0.01)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", value)
    owner = tmp_path / ".lite.owner"
    owner.write_bytes(b"of another version: 1")
    with pytest.raises(StudyError, match="is being run by one whose file"):
        Lease(f"file://{tmp_path}/lite").acquire(
            lambda text: threading.Timer(
                0.2, owner.write_bytes, [b"of another version: 2"]
            ).start()
        )


@pytest.fixture
def _in_the_foreground() -> Iterator[None]:
    """Listen to SIGINT, which a shell has its commands in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("brisk", "machine", "_in_the_foreground")
def test_a_driver_that_finds_itself_replaced_stops_with_a_sentence(url: str) -> None:
    expected = "was taken over by process 7 on elsewhere: this driver has stopped"
    with pytest.raises(StudyError, match=expected), hold(StudySync(url), print):
        for _ in range(100):
            _leave_behind(url)  # again, like an owner that lives: one may be written over
            time.sleep(0.3)
    assert Lease(url)._read() is not None, "the successor's object is its own"


@pytest.mark.usefixtures("brisk", "machine")
def test_a_driver_in_the_background_that_is_replaced_stops_too(url: str) -> None:
    heard: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with hold(StudySync(url), print):
            for _ in range(100):
                _leave_behind(url)
                time.sleep(0.3)
                if heard:
                    break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM]
