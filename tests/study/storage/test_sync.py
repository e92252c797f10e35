"""A study behind a URL and its copies on several machines."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import Store

import study.storage.lease as lease
from brainseg.cli import FINISHED, KNOWN_ERROR, USAGE
from brainseg.data.slice_store import SliceStore
from brainseg.errors import StorageError, StudyError
from brainseg.storage.remote import RemoteFolder, local_files
from study.fetch import main as fetch
from study.pipeline import Request, prepare, write_facts
from study.run import main as run
from study.spec.grid import TrialResources
from study.storage import sync as mirrors
from study.storage.lease import Lease, held
from study.storage.sync import Mirror
from study.storage.tables import TrialFolder

TRIAL = Path("trials") / "raw-fold0-seed1"


@pytest.fixture
def url(store: Store, tmp_path: Path) -> str:
    return store.url(f"{tmp_path.name}/lite")


def _on(machine: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / machine))
    return Mirror(url)


def _write(mirror: Mirror, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = mirror.folder / TRIAL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _checkpoint(epoch: int) -> dict[str, str]:
    folder = f"checkpoints/stage1-epoch{epoch:04d}"
    return {f"{folder}/state.safetensors": "state", f"{folder}/manifest.json": "{}"}


def _names(url: str) -> set[str]:
    below = TRIAL.as_posix()
    return {name.removeprefix(f"{below}/") for name in RemoteFolder(url).list(below)}


def test_a_trial_goes_on_at_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _on("one", url, tmp_path, monkeypatch)
    one.pull_trial(TRIAL, whole=True)
    _write(one, {"history.csv": "1", ".history.csv.7": "half", **_checkpoint(1)})
    one.push_trial(TRIAL, "")
    other = _on("other", url, tmp_path, monkeypatch)
    assert other.folder != one.folder
    other.pull_trial(TRIAL, whole=True)
    assert (other.folder / TRIAL / "history.csv").read_text() == "1"
    assert _names(url) == {"history.csv", *_checkpoint(1)}


def test_the_first_machine_forgets_what_it_had_beyond_the_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _on("one", url, tmp_path, monkeypatch)
    _write(mirror, _checkpoint(1))
    mirror.push_trial(TRIAL, "")
    _write(mirror, _checkpoint(2))
    mirror.pull_trial(TRIAL, whole=True)
    assert not (mirror.folder / TRIAL / next(iter(_checkpoint(2)))).exists()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_says_that_all_is_whole_is_sent_last(
    failing: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses at each of the three moments between which a kill could come."""
    mirror = _on("one", url, tmp_path, monkeypatch)
    files = {"scores.csv": "", "result.json": "{}", **_checkpoint(1)}
    _write(mirror, files)
    send, calls = RemoteFolder.send, []

    def refuse(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > failing:
            raise StorageError("gone")
        return send(*args)

    monkeypatch.setattr(mirrors, "FAR_WAITS", ())
    monkeypatch.setattr(RemoteFolder, "send", refuse)
    with pytest.raises(StorageError, match="cannot write trials/raw-fold0-seed1/: gone"):
        mirror.push_trial(TRIAL, "")
    there = _names(url)
    assert len(there) == (0, 2, 3)[failing]
    assert "result.json" not in there
    assert any("manifest" in name for name in there) == (failing == 2)


def test_checkpoints_that_went_here_go_there_but_never_those_of_another_process(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = _on("late", url, tmp_path, monkeypatch)
    _write(late, _checkpoint(1) | _checkpoint(2))
    late.push_trial(TRIAL, "")
    ahead = _on("ahead", url, tmp_path, monkeypatch)
    ahead.pull_trial(TRIAL, whole=True)
    _write(ahead, _checkpoint(3))
    for name in _checkpoint(1):
        (ahead.folder / TRIAL / name).unlink()
    ahead.push_trial(TRIAL, "")
    assert _names(url) == {*_checkpoint(2), *_checkpoint(3)}
    for name in _checkpoint(2):
        (late.folder / TRIAL / name).unlink()
    late.push_trial(TRIAL, "")
    assert {*_checkpoint(3)} <= _names(url)


def test_a_driver_fetches_results_but_no_checkpoints_and_no_model(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = _on("node", url, tmp_path, monkeypatch)
    result = json.dumps({"status": "finished"})
    _write(node, {"model.safetensors": "weights", "result.json": result, **_checkpoint(1)})
    node.push_trial(TRIAL, "")
    driver = _on("driver", url, tmp_path, monkeypatch)
    driver.pull()
    found = TrialFolder(driver.folder / TRIAL)
    assert found.is_finished()
    driver.pull_trial(Path("search/candidates/0000"))
    assert found.is_finished(), "another's folder was fetched"
    assert not found.model.exists()
    assert not found.checkpoints.exists()
    driver.pull_models([TRIAL])
    assert found.model.read_text() == "weights"
    RemoteFolder(url).delete([f"{TRIAL.as_posix()}/model.safetensors"])
    other = _on("other", url, tmp_path, monkeypatch)
    other.pull()
    assert not TrialFolder(other.folder / TRIAL).is_finished()


def test_a_study_moved_aside_is_whole_there_and_gone_here(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _on("one", url, tmp_path, monkeypatch)
    assert mirror.move_aside() is None
    _write(mirror, {"history.csv": "1"})
    mirror.push_trial(TRIAL, "")
    (mirror.folder / "study.json").write_text("{}")
    mirror.push()
    before = RemoteFolder(url).list()
    aside = mirror.move_aside()
    assert isinstance(aside, str)
    assert RemoteFolder(aside).list().keys() == before.keys()
    assert RemoteFolder(url).list() == {}
    mirror.pull()
    assert not mirror.folder.exists()


def test_a_reader_sends_what_it_wrote_and_nothing_that_is_newer_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trials.csv", "report.md"):
        RemoteFolder(url).write(name, b"old")
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "one"))
    reader = Mirror(url, reading=True)
    reader.pull()
    assert reader.folder != Mirror(url).folder
    RemoteFolder(url).write("trials.csv", b"newer")
    (reader.folder / "report.md").write_text("written here")
    reader.push()
    assert RemoteFolder(url).read("trials.csv") == b"newer"
    assert RemoteFolder(url).read("report.md") == b"written here"


@pytest.mark.usefixtures("machine")
def test_data_that_changed_behind_the_url_are_refused(
    store: Store, url: str, data: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store.upload(data.root, f"{tmp_path.name}/kaggle_3m")
    weights = {"model.encoder_weights": "none"}
    storage = store.url(tmp_path.name)
    request = Request("lite", place, None, weights, 1, 1, "lite", storage)
    setup = prepare(request, print, download=True)
    setup.folder.parent.mkdir(parents=True)
    write_facts(setup, TrialResources(1, 0.0, 0, 1))
    setup.mirror.push()
    command = ["--grid", "lite", "--data", place, "--storage", storage, "--name", "lite"]
    command += ["--set", "model.encoder_weights=none", "--plan"]
    assert run(command) == FINISHED
    masks = [name for name in local_files(data.root) if name.endswith("_mask.tif")]
    store.folder(f"{tmp_path.name}/kaggle_3m").delete([masks[0], masks[0].replace("_mask", "")])
    capsys.readouterr()
    assert run(command) == KNOWN_ERROR
    assert "holds another study (fingerprint: " in capsys.readouterr().err


def test_a_study_is_fetched_for_readers_and_again_only_where_it_changed(
    store: Store, generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = store.upload(generated, f"{tmp_path.name}/generated")
    RemoteFolder(url).write("trials/raw/checkpoints/stage1/manifest.json", b"{}")
    command = [url, str(tmp_path / "here")]
    assert fetch(command) == FINISHED
    for name in ("report.html", "scores.csv", "study.json"):
        assert (tmp_path / "here" / name).read_bytes() == (generated / name).read_bytes()
    assert list((tmp_path / "here" / "figures").iterdir())
    assert not list((tmp_path / "here").glob("trials/*/checkpoints"))
    RemoteFolder(url).write("scores.csv", b"other")
    capsys.readouterr()
    assert fetch(command) == FINISHED
    assert "1 of " in capsys.readouterr().out
    assert (tmp_path / "here" / "scores.csv").read_bytes() == b"other"


def test_what_changes_while_a_study_is_fetched_is_fetched_as_it_is_then(
    store: Store, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.upload(generated, f"{tmp_path.name}/running")
    listed = RemoteFolder.list

    def then_change(remote: RemoteFolder, below: str = "") -> Any:
        found = listed(remote, below)
        if not below:
            RemoteFolder(url).write("scores.csv", b"an epoch more")
        return found

    monkeypatch.setattr(RemoteFolder, "list", then_change)
    assert fetch([url, str(tmp_path / "here")]) == FINISHED
    assert (tmp_path / "here" / "scores.csv").read_bytes() == b"an epoch more"


def test_a_name_that_would_end_the_path_of_a_url_is_refused(
    url: str, phantom_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--grid", "lite", "--data", str(phantom_root), "--storage", url, "--plan"]
    command += ["--set", "model.encoder_weights=none"]
    assert run([*command, "--name", "run#2"]) == USAGE
    assert "in a URL it must be without ? and #" in capsys.readouterr().err


def test_fetching_refuses_what_it_would_overwrite_and_what_is_no_study(
    store: Store, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "scores.csv").write_text("mine")
    assert fetch([url, str(mine)]) == USAGE
    assert "was not made by this command" in capsys.readouterr().err
    assert fetch([url, str(tmp_path / "new")]) == KNOWN_ERROR
    assert "holds no study.json" in capsys.readouterr().err
    assert fetch(["results/lite", str(tmp_path / "new")]) == USAGE
    assert not (tmp_path / "new").exists()
    RemoteFolder(url).write("study.json", b"{}")
    assert fetch([url, str(tmp_path / "new")]) == FINISHED
    assert fetch([store.url("another"), str(tmp_path / "new")]) == USAGE
    assert "was fetched from s3://" in capsys.readouterr().err


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


@pytest.fixture
def _in_the_foreground() -> Iterator[None]:
    """Listen to SIGINT, which a shell has its commands in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("brisk", "machine", "_in_the_foreground")
def test_a_driver_that_finds_itself_replaced_stops_with_a_sentence(url: str) -> None:
    expected = "was taken over by process 7 on elsewhere: this driver has stopped"
    with pytest.raises(StudyError, match=expected), held(Mirror(url), print):
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
        with held(Mirror(url), print):
            for _ in range(100):
                _leave_behind(url)
                time.sleep(0.3)
                if heard:
                    break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM]
