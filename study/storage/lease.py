"""One driver per study: a lock on this machine and, for a study at a URL, a lease.

The lease is an object beside the study that its driver rewrites with a counter every 15 seconds. A
driver that finds another's lease watches it for 45 seconds: if the counter moves, the owner is
alive and the study is refused; if not, the lease is taken over. No clocks are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brainseg.errors import StorageError, StudyError
from brainseg.storage.remote import RemoteFolder
from study.storage.study_folder import describe_process, locked
from study.storage.sync import StudySync

BEAT_SECONDS, WATCH_SECONDS = 15.0, 45.0
_LOOK_SECONDS, _SETTLE_SECONDS = 1.0, 2.0


@contextmanager
def hold(sync: StudySync, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a study for this driver.

    Args:
        sync: The study.
        say: Called when another owner has to be watched.

    Raises:
        StudyError: If another process holds it, or takes it over.
    """
    with locked(sync.folder):
        if not sync.is_remote:
            yield
            return
        lease = Lease(str(sync.location))
        lease.acquire(say)
        try:
            yield
        except KeyboardInterrupt:
            if lease.taken_by:
                raise StudyError(
                    f"{sync.location} was taken over by {lease.taken_by}: this driver has stopped"
                ) from None
            raise
        finally:
            lease.release()


class _Record(BaseModel):
    """What the object holds."""

    model_config = ConfigDict(strict=True)

    owner: str
    token: str
    machine: str = ""
    process: int = Field(default=0, ge=0, lt=2**31)
    beat: int = 0


class Lease:
    """The object that names a study's driver.

    Args:
        url: Of the study; the object lies beside it.

    Attributes:
        taken_by: The driver that took the lease over, if one did.
    """

    def __init__(self, url: str) -> None:
        path, mark, query = url.partition("?")
        above, _, name = path.rpartition("/")
        self._url, self._name = url, f".{name}.owner"
        self._remote = RemoteFolder(above + mark + query)
        self._mine = {"owner": describe_process(), "token": uuid.uuid4().hex, **_whereabouts()}
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self.taken_by = ""

    def acquire(self, say: Callable[[str], None]) -> None:
        """Become the owner.

        Raises:
            StudyError: If another driver is active.
            StorageError: If the store cannot be written.
        """
        found = self._read()
        if found and not _has_died_here(found):
            say(f"{self._url} has an owner, {found['owner']}: watching it for {WATCH_SECONDS:g} s")
            self._watch(found)
        self._write()
        # A driver that wrote at the same moment has done so by now; the last write counts.
        time.sleep(_SETTLE_SECONDS)
        now = self._read()
        if now is None or now["token"] != self._mine["token"]:
            raise self._refusal(now)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing the lease, and delete it."""
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):
            if self._is_mine(self._read()):
                self._remote.delete([self._name])

    def _watch(self, found: dict[str, Any]) -> None:
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._refusal(now)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # While the store is gone, other drivers cannot read the lease either.
            with suppress(StorageError):
                found = self._read()
                if found is not None and not self._is_mine(found):
                    self.taken_by = found["owner"]
                    # A command that a shell started in the background ignores SIGINT.
                    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                    os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGINT)
                    return
                self._write()

    def _is_mine(self, record: dict[str, Any] | None) -> bool:
        return record is not None and record["token"] == self._mine["token"]

    def _read(self) -> dict[str, Any] | None:
        content = self._remote.read(self._name)
        if content is None:
            return None
        try:
            return _Record.model_validate_json(content).model_dump()
        except ValidationError:
            # Of another version, perhaps: watched like any other owner. The hash moves with it.
            token = hashlib.sha256(content).hexdigest()
            unknown = f"one whose file {self._name} beside the study cannot be read"
            return _Record(owner=unknown, token=token).model_dump()

    def _write(self) -> None:
        self._beat += 1
        record = {**self._mine, "beat": self._beat}
        self._remote.write(self._name, json.dumps(record).encode())

    def _refusal(self, record: dict[str, Any] | None) -> StudyError:
        owner = record["owner"] if record else "another process"
        return StudyError(f"{self._url} is being run by {owner}")


def _whereabouts() -> dict[str, Any]:
    """Return the machine and process, so that a dead owner on this machine is recognised."""
    marks = [socket.gethostname()]
    with suppress(OSError):  # Linux alone has them
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    return {"machine": " ".join(marks), "process": os.getpid()}


def _has_died_here(record: dict[str, Any]) -> bool:
    if record["machine"] != _whereabouts()["machine"] or os.name != "posix":
        return False
    try:
        os.kill(record["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
