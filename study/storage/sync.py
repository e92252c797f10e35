"""A study behind a URL and its copy on this machine; of a study in a folder, that folder.

All code of the study reads and writes files of the copy. A trial fetches its own folder before it
begins and sends it after each epoch; the driver fetches what trials left before it decides. What
says that other files are whole is sent last: a checkpoint's manifest, a trial's result.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from brainseg.storage.files import FAR_WAITS, cache_folder, retry_storage
from brainseg.storage.remote import Entry, RemoteFolder, is_current, local_files, pull
from brainseg.storage.urls import Location, is_url, name_of
from study.storage.study_folder import move_aside
from study.storage.tables import ELSEWHERE

_OF_TRIALS = ("trials/*", "search/candidates/*")
_LEFT_BEHIND = ("*/checkpoints*/*", "trials/*/model.safetensors", "tensorboard/*")
_NEVER = ("tune/*",)
_WHOLE_IF_THERE = ("*/manifest.json", "*/result.json")


class Mirror:
    """Where a study is, and the folder in which this machine works on it.

    Args:
        place: Of the study: a folder, or a URL.
        reading: Work on a copy of its own, beside that of a study that may be running here.
    """

    def __init__(self, place: Location, *, reading: bool = False) -> None:
        """Touch nothing behind a URL yet."""
        self.place = place
        self._remote = RemoteFolder(str(place)) if is_url(place) else None
        self._known: dict[str, Entry] = {}
        if self._remote is None:
            self.folder = Path(place)
        else:
            digest = hashlib.sha256(str(place).encode()).hexdigest()[:24]
            copies = cache_folder("reports" if reading else "studies")
            self.folder = copies / digest / name_of(place)

    @property
    def is_remote(self) -> bool:
        """Whether the study is behind a URL."""
        return self._remote is not None

    def exists(self) -> bool:
        """Return whether a study is there."""
        if self._remote is None:
            return self.folder.is_dir()
        return self._remote.entry("study.json") is not None

    def pull(self) -> None:
        """Fetch what the driver needs of the study: no checkpoints, no trial's model."""
        if self._remote is None:
            return
        listing = self._pull("", _travels)
        if not listing:
            # A copy of nothing: what is left of a study that was removed behind the URL.
            shutil.rmtree(self.folder, ignore_errors=True)
        self._note_elsewhere("trials/*", listing)

    def pull_trial(self, path: Path, *, whole: bool = False) -> None:
        """Fetch a trial's or a candidate's folder, while nobody works in it here.

        Args:
            path: Relative to the study.
            whole: With checkpoints and model, so that it can go on here.
        """
        if self._remote is None:
            return
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        listing = self._pull(f"{path.as_posix()}/", _travels_whole if whole else _travels)
        if not whole:
            self._note_elsewhere(path.as_posix(), listing)

    def pull_models(self, paths: Iterable[Path]) -> None:
        """Fetch the models of some trials."""
        if self._remote is None:
            return
        for path in paths:
            name = (path / "model.safetensors").as_posix()
            entry = self._remote.entry(name)
            if entry is not None and not is_current(self.folder / name, entry):
                self._patiently(self._remote.fetch, {name: entry}, self.folder, "", what=name)

    def push_trial(self, path: Path, board: str) -> None:
        """Send what a trial has written, and remove there what it has removed here.

        Args:
            path: Relative to the study.
            board: Name of its folder of TensorBoard files; empty for none.
        """
        self._push(f"{path.as_posix()}/", _travels_whole, is_owner=True)
        if board:
            self._push(f"tensorboard/{board}/", _travels_whole, is_owner=True)

    def push_result(self, path: Path) -> None:
        """Send what the driver wrote into a trial's or a candidate's folder."""
        self._push(f"{path.as_posix()}/", _travels)

    def drop_checkpoints(self, path: Path) -> None:
        """Remove the checkpoints of a trial that will not go on."""
        if self._remote is None:
            return
        remote = self._remote
        found = remote.list(path.as_posix())
        gone = [name for name in found if fnmatch.fnmatch(name, _LEFT_BEHIND[0])]
        self._patiently(remote.delete, gone, what=f"{path}/checkpoints")

    def push(self) -> None:
        """Send what the driver wrote; the trials' folders are theirs."""
        self._push("", lambda name: _travels(name) and not _matches(name, _OF_TRIALS))

    def push_file(self, path: Path) -> None:
        """Send one file of the driver's at once."""
        if self._remote is not None:
            name = path.relative_to(self.folder).as_posix()
            self._patiently(self._remote.send, self.folder, [name], what=name)

    def move_aside(self) -> Location | None:
        """Rename the study; return where it is now, or None if there is none."""
        if self._remote is None:
            return move_aside(self.folder)
        names = sorted(self._remote.list(), key=lambda name: name == "study.json")
        if not names:
            return None
        path, mark, query = str(self.place).partition("?")
        aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}{mark}{query}"
        self._remote.copy(names, RemoteFolder(aside))
        # What names a study goes last: until then the rest is still one.
        for part in (names[:-1], names[-1:]):
            self._remote.delete(part)
        return aside

    def _pull(self, below: str, is_wanted: Callable[[str], bool]) -> dict[str, Entry]:
        remote = self._remote
        assert remote is not None

        def work() -> dict[str, Entry]:
            return pull(remote, self.folder, is_wanted, below=below.rstrip("/"))

        listing = retry_storage(work, f"the copy of {self.place}", FAR_WAITS)
        self._known |= listing
        return listing

    def _push(
        self, below: str, is_wanted: Callable[[str], bool], *, is_owner: bool = False
    ) -> None:
        """Send what differs; who does not own it alone, only what was changed here."""
        remote = self._remote
        if remote is None:
            return

        def work() -> None:
            there = remote.list(below.rstrip("/"))
            here = [name for name in local_files(self.folder, below) if is_wanted(name)]
            new = [n for n in here if not self._is_copy(n, there)]
            if not is_owner:
                new = [n for n in new if not self._is_copy(n, self._known)]
            self._send(remote, new)
            # Only what this process has seen or sent, as it was: another one may be further.
            gone = [
                name
                for name in there
                if is_wanted(name) and name not in here and there[name] == self._known.get(name)
            ]
            for part in _by_rank(gone, reverse=True):
                remote.delete(part)

        self._patiently(work, what=below or str(self.place))

    def _is_copy(self, name: str, entries: Mapping[str, Entry]) -> bool:
        return name in entries and is_current(self.folder / name, entries[name])

    def _send(self, remote: RemoteFolder, names: Iterable[str]) -> None:
        for part in _by_rank(names):
            self._known |= remote.send(self.folder, part)

    def _patiently(self, work: Callable[..., object], *args: object, what: str) -> None:
        retry_storage(lambda: work(*args), what, FAR_WAITS)

    def _note_elsewhere(self, listed: str, listing: dict[str, Entry]) -> None:
        """Let the folder of each trial that was listed say that its model was left there."""
        for note in self.folder.glob(f"{listed}/{ELSEWHERE}"):
            note.unlink()
        for name in listing:
            if fnmatch.fnmatch(name, "trials/*/model.safetensors"):
                note = self.folder / Path(name).parent / ELSEWHERE
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text("model.safetensors\n", encoding="utf-8")


def is_for_readers(name: str) -> bool:
    """Return whether a file of a study is for people, not for going on."""
    is_report = _travels(name) and not fnmatch.fnmatch(name, "*/probabilities.npz")
    return is_report or (_travels_whole(name) and name.startswith("tensorboard/"))


def _travels(name: str) -> bool:
    return _travels_whole(name) and not _matches(name, _LEFT_BEHIND)


def _travels_whole(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and not _matches(name, _NEVER)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _by_rank(names: Iterable[str], *, reverse: bool = False) -> list[list[str]]:
    """Part names by what must be there before what."""
    ranks: list[list[str]] = [[], [], []]
    for name in names:
        rank = next((n for n, p in enumerate(_WHOLE_IF_THERE, 1) if fnmatch.fnmatch(name, p)), 0)
        ranks[rank].append(name)
    return ranks[::-1] if reverse else ranks
