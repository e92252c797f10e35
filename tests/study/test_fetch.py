from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from s3 import Store

from brainseg.cli import FINISHED, KNOWN_ERROR, USAGE
from brainseg.storage.remote import RemoteFolder
from study.fetch import main as fetch


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_fetching_refuses_what_it_would_overwrite_and_what_is_no_study(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = store.url(f"{tmp_path.name}/lite")
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
    (tmp_path / "new" / "notes.csv").write_text("mine")
    RemoteFolder(url).write("scores.csv", b"theirs")
    assert fetch([url, str(tmp_path / "new")]) == FINISHED
    RemoteFolder(url).delete(["scores.csv"])
    assert fetch([url, str(tmp_path / "new")]) == FINISHED
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {".fetched-from", "notes.csv", "study.json"}
    (tmp_path / "new" / ".fetched-from").write_text(f"{url}\n")  # as it once was
    assert fetch([url, str(tmp_path / "new")]) == FINISHED
    assert not (tmp_path / "new" / "notes.csv").exists()
    assert fetch([store.url("another"), str(tmp_path / "new")]) == USAGE
    assert "was fetched from s3://" in capsys.readouterr().err
