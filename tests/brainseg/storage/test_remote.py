"""Folders in S3, served by a process of its own: fetched, sent, refused in a sentence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from s3 import Store, free_port

from brainseg.cli import KNOWN_ERROR
from brainseg.config import Experiment
from brainseg.data.layouts import find_default_root
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import ConfigError, DataError, StorageError, WeightsError
from brainseg.model.encoders import find_encoder_weights
from brainseg.storage.files import cache_folder
from brainseg.storage.remote import RemoteFolder, local_files, pull
from brainseg.storage.urls import join_location, name_of
from study.run import main

URL = "s3://bucket/studies?endpoint_override=127.0.0.1:9&scheme=http"


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> RemoteFolder:
    return store.folder(tmp_path.name)


def test_what_lies_below_a_url_is_named_before_its_query() -> None:
    joined = "s3://bucket/studies/lite?endpoint_override=127.0.0.1:9&scheme=http"
    assert join_location(URL, "lite") == joined
    assert join_location(Path("results"), "lite") == Path("results/lite")
    assert name_of(joined) == "lite"
    assert name_of("weights/lite?.safetensors") == "lite?.safetensors"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/data", "holds a password"),
        ("s3://bucket/data?access_key=AKIA", "holds a password"),
        ("s3://bucket/data?regoin=eu-west-1", "regoin is unknown; valid: region"),
        ("s3://bucket/run#2?region=eu-west-1", "choose a name without them"),
        ("s3://bucket/run?2?region=eu-west-1", "choose a name without them"),
    ],
)
def test_a_url_that_must_not_be_is_refused_without_repeating_a_secret(
    url: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        RemoteFolder(url)
    assert "secret" not in str(error.value)
    assert "AKIA" not in str(error.value)


def test_another_kind_of_store_works_alike(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content")
    folder = RemoteFolder(f"file://{tmp_path}/there")
    folder.send(tmp_path / "a", ["file"])
    assert folder.read("file") == b"content"
    assert list(folder.list()) == ["file"]
    with pytest.raises(ConfigError, match="nosuch://x cannot be opened"):
        RemoteFolder("nosuch://x").require()


@pytest.mark.slow
def test_googles_store_that_does_not_answer_is_a_sentence_too() -> None:
    url = "gs://anonymous@bucket/data?scheme=http&endpoint_override=127.0.0.1:9"
    started = time.monotonic()
    with pytest.raises(StorageError, match="gs://"):
        RemoteFolder(url).require()
    assert time.monotonic() - started < 60


def test_only_what_changed_is_fetched_again(folder: RemoteFolder, tmp_path: Path) -> None:
    for name in ("one", "below/two", "three"):
        folder.write(name, name.encode())
    here = tmp_path / "here"
    pull(folder, here, lambda name: True)
    assert local_files(here) == ["below/two", "one", "three"]
    inodes = {name: (here / name).stat().st_ino for name in local_files(here)}
    folder.write("one", b"other")
    folder.delete(["three"])
    pull(folder, here, lambda name: True)
    assert local_files(here) == ["below/two", "one"]
    assert (here / "one").read_bytes() == b"other"
    assert (here / "below/two").stat().st_ino == inodes["below/two"]


def test_a_file_sent_is_not_fetched_again(folder: RemoteFolder, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_bytes(bytes(20_000_000))
    folder.send(here, ["file", "gone"])
    inode = (here / "file").stat().st_ino
    assert set(pull(folder, here, lambda name: True)) == {"file"}
    assert (here / "file").stat().st_ino == inode


def test_a_fetch_that_was_killed_is_completed_and_cleaned(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    folder.write("one", b"one")
    here = tmp_path / "here"
    here.mkdir()
    (here / ".one.123.part").write_bytes(b"o")
    pull(folder, here, lambda name: True)
    assert sorted(path.name for path in here.iterdir()) == ["one"]


def test_a_deleted_folder_leaves_nothing(folder: RemoteFolder) -> None:
    names = [f"checkpoints/stage1/{number}" for number in range(3)]
    for name in names:
        folder.write(name, b"")
    folder.delete([*names, "checkpoints/stage1/never"])
    assert folder.list() == {}


def test_a_dataset_behind_a_url_is_the_same_dataset(
    store: Store, data: SliceStore, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.upload(data.root, "kaggle_3m")
    monkeypatch.setenv("BRAINSEG_DATA", url)
    assert find_default_root() == url
    found = open_dataset(url)
    assert found.fingerprint == data.fingerprint
    assert found.source == url
    assert found.root.is_relative_to(machine)
    first = next(name for name in local_files(data.root) if name.endswith("_mask.tif"))
    store.folder("kaggle_3m").delete([first])
    with pytest.raises(DataError, match="lack their other half"):
        open_dataset(url)
    store.folder("kaggle_3m").write(first, (data.root / first).read_bytes())
    assert open_dataset(url).fingerprint == data.fingerprint


def test_nothing_behind_a_url_is_no_dataset(store: Store, machine: Path) -> None:
    with pytest.raises(DataError, match="nothing is below s3://bucket/nowhere"):
        open_dataset(store.url("nowhere"))


def test_weights_behind_a_url_are_fetched_once(store: Store, machine: Path) -> None:
    store.folder("weights").write("a.safetensors", b"12")
    url = store.url("weights/a.safetensors")
    model = Experiment().replaced({"model.encoder_weights": url}).model
    path = find_encoder_weights(model)
    assert path is not None
    inode = path.stat().st_ino
    assert find_encoder_weights(model) == path
    assert path.stat().st_ino == inode
    store.folder("weights").write("a.safetensors", b"123")
    find_encoder_weights(model)
    assert path.read_bytes() == b"123"
    other = Experiment().replaced({"model.encoder_weights": store.url("b.safetensors")}).model
    with pytest.raises(WeightsError, match="where there is no such file"):
        find_encoder_weights(other)
    assert not list(cache_folder("encoders").glob("**/b.safetensors"))


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [("bucketless", "there is no such bucket"), ("dead", "nothing answers there"),
     ("nowhere", "its host has no address"),
     pytest.param("silent", "it does not answer", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_refused_in_a_sentence_at_once(
    store: Store, endpoint: str, words: str, tiny: Experiment, tmp_path: Path, data: SliceStore,
    machine: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hosts = {"dead": f"127.0.0.1:{free_port()}", "nowhere": "nowhere.invalid"}
    url = store.url("studies", "missing" if endpoint == "bucketless" else "bucket")
    url = url.replace(f"127.0.0.1:{store.port}", hosts.get(endpoint, f"127.0.0.1:{store.port}"))
    if endpoint == "silent":
        store.pause()
    started = time.monotonic()
    try:
        command = ["--grid", "lite", "--data", str(data.root), "--storage", url]
        assert main(command) == KNOWN_ERROR
    finally:
        store.go_on()
    assert time.monotonic() - started < 20
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("machine")
def test_data_and_weights_behind_a_dead_url_are_refused_at_once(
    store: Store, data: SliceStore, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = store.url("there").replace(str(store.port), str(free_port()))
    weights = f"model.encoder_weights={dead.replace('there', 'there.safetensors')}"
    for flags in (["--data", dead], ["--data", str(data.root), "--set", weights]):
        started = time.monotonic()
        assert main(["--grid", "lite", "--plan", *flags]) == KNOWN_ERROR
        assert time.monotonic() - started < 20
        err = capsys.readouterr().err
        assert "nothing answers there" in err
        assert err.count("\n") == 1


def test_a_dataset_is_waited_for_once_a_study_has_begun(
    store: Store, machine: Path, data: SliceStore
) -> None:
    url = store.upload(data.root, "waited")
    store.pause()
    timer = threading.Timer(8, store.go_on)
    timer.start()
    try:
        assert open_dataset(url).fingerprint == data.fingerprint
    finally:
        timer.join()


def test_keys_that_the_store_does_not_know_are_refused_in_a_sentence(
    store: Store, tmp_path: Path
) -> None:
    guarded = Store(tmp_path / "guarded.txt", guarded=True)
    try:
        with pytest.raises(StorageError, match="give credentials in AWS_ACCESS_KEY_ID"):
            guarded.folder().require()
    finally:
        guarded.end()
