"""Folders in an S3 store that a process of its own serves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from s3 import Store, free_port

from brainseg.errors import ConfigError, StorageError
from brainseg.storage.remote import RemoteFolder, local_files, pull, require_store


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> RemoteFolder:
    return store.folder(tmp_path.name)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/data", "holds a user, a password"),
        ("s3://bucket/data?access_key=AKIA", "a key of its query"),
        ("s3://bucket/data?regoin=eu-west-1", r"regoin=\*\*\* holds .* none of region"),
        ("s3://bucket/run#2?region=eu-west-1", "choose a name without them"),
        ("s3://bucket/run?2?region=eu-west-1", "choose a name without them"),
    ],
)
def test_a_malformed_url_is_refused_without_repeating_a_secret(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        RemoteFolder(url)
    assert "secret" not in str(error.value)
    assert "AKIA" not in str(error.value)


def test_other_stores_of_pyarrow_work_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content")
    folder = RemoteFolder(f"file://{tmp_path}/there")
    folder.send(tmp_path / "a", ["file"])
    assert folder.read("file") == b"content"
    assert list(folder.list()) == ["file"]
    with pytest.raises(ConfigError, match="nosuch://x cannot be opened"):
        RemoteFolder("nosuch://x").require()


@pytest.mark.slow
def test_googles_store_that_does_not_answer_is_refused_within_a_minute() -> None:
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


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("bucketless", "there is no such bucket"),
        ("dead", "nothing answers there"),
        ("nowhere", "its host has no address"),
        pytest.param("silent", "it does not answer", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_within_seconds(
    store: Store, endpoint: str, words: str
) -> None:
    hosts = {"dead": f"127.0.0.1:{free_port()}", "nowhere": "nowhere.invalid"}
    url = store.url("studies", "missing" if endpoint == "bucketless" else "bucket")
    url = url.replace(f"127.0.0.1:{store.port}", hosts.get(endpoint, f"127.0.0.1:{store.port}"))
    if endpoint == "silent":
        store.pause()
    started = time.monotonic()
    try:
        with pytest.raises(StorageError, match=words):
            require_store(url)
    finally:
        store.go_on()
    assert time.monotonic() - started < 20


def test_credentials_that_the_store_does_not_know_are_refused(
    store: Store, tmp_path: Path
) -> None:
    guarded = Store(tmp_path / "guarded.txt", guarded=True)
    try:
        with pytest.raises(StorageError, match="give credentials in AWS_ACCESS_KEY_ID"):
            guarded.folder().require()
    finally:
        guarded.end()
