from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from brainseg.errors import ConfigError, StorageError
from brainseg.storage import files
from brainseg.storage.files import (
    cache_folder,
    damage_checksum,
    new_folder,
    read_csv,
    retry_storage,
    write_atomically,
    write_csv,
    write_folder,
    write_text,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_once_it_is_complete(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with write_atomically(tmp_path / "file") as aside:
        aside.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
        assert aside.name == f".file.{os.getpid()}"
    assert (tmp_path / "file").read_text() == "new"
    assert _names(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "file") as aside:
        aside.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append((tmp_path / "file").exists()))
    write_text(tmp_path / "file", "new")
    assert synced == [False]


def test_a_folder_above_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "file", "")
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "new" / "file", "")


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path, fails: bool) -> None:
    def write() -> None:
        with write_folder(tmp_path / "above" / "folder") as aside:
            (aside / "file").write_text("")
            assert not (tmp_path / "above" / "folder").exists()
            if fails:
                raise OSError

    if fails:
        with pytest.raises(OSError):
            write()
        assert _names(tmp_path / "above") == []
    else:
        write()
        assert _names(tmp_path / "above") == ["folder"]
        assert _names(tmp_path / "above" / "folder") == ["file"]


def test_a_users_folder_may_be_empty_but_not_hold_anything(tmp_path: Path) -> None:
    with new_folder(tmp_path) as aside:
        (aside / "file").write_text("")
    with pytest.raises(ConfigError, match="is there already"), new_folder(tmp_path):
        pass
    assert _names(tmp_path) == ["file"]


def test_csv_cells_are_texts_and_missing_ones_empty(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, [{"a": 1, "b": 0.1, "left out": 3}, {"b": "x,\ny"}], ["a", "b"])
    assert path.read_bytes() == b'a,b\n1,0.1\n,"x,\ny"\n'
    assert read_csv(path) == [{"a": "1", "b": "0.1"}, {"a": "", "b": "x,\ny"}]


def test_a_lone_carriage_return_stays_in_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [{"a": "x\ry", "b\r": "1"}, {"a": "z", "b\r": ""}, {"a": "\r", "b\r": "\r\n"}]
    write_csv(path, rows)
    assert path.read_bytes() == b'"a","b\r"\n"x\ry","1"\nz,\n"\r","\r\n"\n'
    assert read_csv(path) == rows


def test_csv_columns_are_those_of_the_first_row_by_default(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"b": 1, "a": 2}])
    assert (tmp_path / "table.csv").read_text() == "b,a\n1,2\n"


def test_a_csv_file_of_a_spreadsheet_is_read_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbfPatient,b\r\n1,2\r\n")
    assert read_csv(tmp_path / "table.csv") == [{"Patient": "1", "b": "2"}]
    assert read_csv(tmp_path / "none.csv") == []


def test_a_short_outage_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("brainseg.storage.files.time.sleep", waits.append)
    outcomes: list[Exception | str] = [OSError("gone"), OSError("gone"), "written"]

    def work() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert retry_storage(work, "the file") == "written"
    assert waits == [1, 4]
    outcomes = [OSError("still gone")] * 4
    with pytest.raises(StorageError, match="cannot write the file: still gone"):
        retry_storage(work, "the file")
    assert waits == [1, 4, 1, 4, 15]


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSEG_CACHE", str(tmp_path / "cache"))
    assert cache_folder("slices") == tmp_path / "cache" / "slices"
    assert (tmp_path / "cache" / "slices").is_dir()


def test_a_checksum_covers_each_byte_and_the_order_of_blocks(tmp_path: Path) -> None:
    raw = bytearray(np.random.default_rng(0).bytes(3 * 2**20 + 5))
    known = {_checksum(tmp_path, raw)}
    for position in (0, 2**20, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[position] ^= 1
        known.add(_checksum(tmp_path, changed))
    known.add(_checksum(tmp_path, raw[2**20 : 2**21] + raw[: 2**20] + raw[2**21 :]))
    known.add(_checksum(tmp_path, raw[:-1]))
    known.add(_checksum(tmp_path, b""))
    assert len(known) == 8
    assert _checksum(tmp_path, raw) in known


def _checksum(folder: Path, content: bytes | bytearray) -> str:
    (folder / "a").write_bytes(content)
    return damage_checksum(folder / "a")
