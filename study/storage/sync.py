"""A study at a URL and the copy of it that this machine works on.

All code reads and writes files of the copy; a study in a local folder is its own copy. A worker
fetches its trial's folder before it begins and sends it after each epoch. The driver fetches the
results of trials before it decides what to run. Files whose presence says that others are
complete, a checkpoint's manifest and a trial's result, are sent last and removed first.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from brainseg.storage.files import FAR_WAITS, cache_folder, retry_storage
from brainseg.storage.remote import Entry, RemoteFolder, is_current, local_files, pull
from brainseg.storage.urls import Location, is_url, join_location, name_of
from study.spec.study_spec import StudySpec
from study.storage.schema import STOPPED
from study.storage.study_folder import default_name, move_aside, read_spec
from study.storage.trial_folder import ELSEWHERE, TrialFolder

_TRIALS = r"(trials|search/candidates|search/(?!candidates/)[^/]+/candidates)"
_OF_TRIALS = re.compile(rf"{_TRIALS}/.+")
_CHECKPOINTS = re.compile(rf"{_TRIALS}/[^/]+/checkpoints[^/]*/.+")
_WORKERS_ONLY = ("trials/*/model.safetensors", "tensorboard/*")
_NEVER_SENT = ("tune/*",)
_SENT_LAST = ("*/manifest.json", "*/result.json", "study.json")


class StudySync:
    """Where a study is, and the folder in which this machine works on it.

    Args:
        location: Folder or URL of the study.
        read_only: Use a separate copy, which does not disturb a driver on this machine.
    """

    def __init__(self, location: Location, *, read_only: bool = False) -> None:
        self.location = location
        self._remote = RemoteFolder(str(location)) if is_url(location) else None
        self._known: dict[str, Entry] = {}
        if self._remote is None:
            self.folder = Path(location)
        else:
            digest = hashlib.sha256(str(location).encode()).hexdigest()[:24]
            copies = cache_folder("reports" if read_only else "studies")
            self.folder = copies / digest / name_of(location)

    @property
    def is_remote(self) -> bool:
        """Whether the study is at a URL."""
        return self._remote is not None

    def exists(self) -> bool:
        """Return whether the study is there."""
        if self._remote is None:
            return self.folder.is_dir()
        return self._remote.entry("study.json") is not None

    def begun_as(self) -> StudySpec | None:
        """Return what the study asked when it began; None if it has not begun.

        Raises:
            StudyError: If its study.json cannot be read.
        """
        if self._remote is None:
            return read_spec(self.folder) if (self.folder / "study.json").exists() else None
        with tempfile.TemporaryDirectory() as folder:  # the copy is another driver's, perhaps
            fetch = partial(self._remote.fetch_file, "study.json", Path(folder))
            is_there = retry_storage(fetch, "study.json", FAR_WAITS)
            return read_spec(Path(folder)) if is_there else None

    def fetch(self) -> None:
        """Fetch what the driver needs of the study: no checkpoints, no trial's model."""
        if self._remote is None:
            return
        listing = self._fetch("", _driver_needs)
        if not listing:
            # The study was removed at the URL, so that the copy is stale.
            shutil.rmtree(self.folder, ignore_errors=True)
        self._note_elsewhere("trials/*", listing)

    def fetch_models(self, paths: Iterable[Path]) -> None:
        """Fetch the models of some trials, given by their paths relative to the study."""
        if self._remote is None:
            return
        for path in paths:
            name = (path / "model.safetensors").as_posix()
            self._retry(self._remote.fetch_file, name, self.folder, what=name)

    def trial(self, path: Path) -> TrialFolder:
        """Fetch the folder of a trial that is not running; its `commit` sends what was changed.

        Args:
            path: Of the trial, relative to the study.
        """
        if self._remote is not None:
            listing = self._fetch(f"{path.as_posix()}/", _driver_needs)
            self._note_elsewhere(path.as_posix(), listing)
        folder = TrialFolder(self.folder / path, lambda: self._commit_result(folder, path))
        return folder

    def workspace(self, path: Path, run_name: str) -> TrialFolder:
        """Fetch a trial's folder with checkpoints and model, for the process that runs the trial.

        Its `commit` sends new files, and removes from the URL what was removed locally.

        Args:
            path: Of the trial, relative to the study.
            run_name: Of its folder of TensorBoard files.
        """
        if self._remote is not None:
            self._fetch(f"{path.as_posix()}/", _worker_needs)

        def commit() -> None:
            for below in (f"{path.as_posix()}/", f"tensorboard/{run_name}/"):
                self._send_below(below, _worker_needs, is_owner=True)

        return TrialFolder(self.folder / path, commit)

    def commit(self) -> None:
        """Send what the driver wrote; the trials' folders are sent by their workers."""
        self._send_below("", lambda name: _driver_needs(name) and not _OF_TRIALS.fullmatch(name))

    def commit_file(self, path: Path) -> None:
        """Send one file of the driver's immediately."""
        if self._remote is not None:
            name = path.relative_to(self.folder).as_posix()
            self._retry(self._remote.send, self.folder, [name], what=name)

    def move_aside(self) -> Location | None:
        """Rename the study; return where it is now, or None if there is none."""
        if self._remote is None:
            return move_aside(self.folder)
        names = sorted(self._remote.list(), key=lambda name: name == "study.json")
        if not names:
            return None
        path, mark, query = str(self.location).partition("?")
        aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}{mark}{query}"
        self._remote.copy(names, RemoteFolder(aside))
        # study.json goes last: until then what is left is still a study.
        for part in (names[:-1], names[-1:]):
            self._remote.delete(part)
        return aside

    def _commit_result(self, folder: TrialFolder, path: Path) -> None:
        self._send_below(f"{path.as_posix()}/", _driver_needs)
        if self._remote is not None and folder.status == STOPPED:
            found = self._remote.list(path.as_posix())
            gone = [name for name in found if _CHECKPOINTS.fullmatch(name)]
            self._retry(self._remote.delete, gone, what=f"{path}/checkpoints")

    def _fetch(self, below: str, is_wanted: Callable[[str], bool]) -> dict[str, Entry]:
        remote = self._remote
        assert remote is not None
        (self.folder / below).parent.mkdir(parents=True, exist_ok=True)

        def work() -> dict[str, Entry]:
            return pull(remote, self.folder, is_wanted, below=below.rstrip("/"))

        listing = retry_storage(work, f"the copy of {self.location}", FAR_WAITS)
        self._known |= listing
        return listing

    def _send_below(
        self, below: str, is_wanted: Callable[[str], bool], *, is_owner: bool = False
    ) -> None:
        """Send what differs; without being the owner, only what was changed here."""
        remote = self._remote
        if remote is None:
            return

        def work() -> None:
            there = remote.list(below.rstrip("/"))
            here = [name for name in local_files(self.folder, below) if is_wanted(name)]
            new = [n for n in here if not self._is_copy(n, there)]
            if not is_owner:
                new = [n for n in new if not self._is_copy(n, self._known)]
            for part in _by_rank(new):
                self._known |= remote.send(self.folder, part)
            # Only files that this process has seen or sent: another process may have newer ones.
            gone = [
                name
                for name in there
                if is_wanted(name) and name not in here and there[name] == self._known.get(name)
            ]
            for part in _by_rank(gone, reverse=True):
                remote.delete(part)

        self._retry(work, what=below or str(self.location))

    def _is_copy(self, name: str, entries: Mapping[str, Entry]) -> bool:
        return name in entries and is_current(self.folder / name, entries[name])

    def _retry(self, work: Callable[..., object], *args: object, what: str) -> None:
        retry_storage(lambda: work(*args), what, FAR_WAITS)

    def _note_elsewhere(self, listed: str, listing: dict[str, Entry]) -> None:
        """Write into the folder of each listed trial whether its model is at the URL."""
        for note in self.folder.glob(f"{listed}/{ELSEWHERE}"):
            note.unlink()
        for name in listing:
            if fnmatch.fnmatch(name, "trials/*/model.safetensors"):
                note = self.folder / Path(name).parent / ELSEWHERE
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text("model.safetensors\n", encoding="utf-8")


def find_study(storage: Location, name: str | None, grid: str, config: Path | None) -> StudySync:
    """Return a study to read, fetched; without a name, that of real data or else of phantoms.

    Args:
        storage: Folder or URL of all studies.
        name: Of the study, if it was given one.
        grid: Its grid.
        config: Its configuration file, if it was given one.

    Raises:
        StorageError: If the storage cannot be reached.
    """
    both = [default_name(grid, config, synthetic=which) for which in (False, True)]
    names = [name] if name else both
    found = [StudySync(join_location(storage, name), read_only=True) for name in names]
    sync = next((sync for sync in found if sync.exists()), found[0])
    sync.fetch()
    return sync


def is_report_file(name: str) -> bool:
    """Return whether a file of a study belongs in a download for reading."""
    is_report = _driver_needs(name) and not fnmatch.fnmatch(name, "*/probabilities.npz")
    return is_report or (_worker_needs(name) and name.startswith("tensorboard/"))


def _driver_needs(name: str) -> bool:
    is_checkpoint = _CHECKPOINTS.fullmatch(name) is not None
    return _worker_needs(name) and not is_checkpoint and not _matches(name, _WORKERS_ONLY)


def _worker_needs(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and not _matches(name, _NEVER_SENT)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _by_rank(names: Iterable[str], *, reverse: bool = False) -> list[list[str]]:
    """Group names; files whose presence marks others as complete come last."""
    ranks: list[list[str]] = [[] for _ in range(1 + len(_SENT_LAST))]
    for name in names:
        rank = next((n for n, p in enumerate(_SENT_LAST, 1) if fnmatch.fnmatch(name, p)), 0)
        ranks[rank].append(name)
    return ranks[::-1] if reverse else ranks
