from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from s3 import Store

from brainseg.data.image_files import read_image
from brainseg.data.layouts import find_default_root, find_slices, read_slice
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import DataError
from brainseg.storage.files import cache_folder
from brainseg.storage.remote import local_files


def test_the_store_holds_the_pixels_of_the_files(data: SliceStore, phantom_root: Path) -> None:
    for number in (0, 17, len(data.slices) - 1):
        image, mask = read_slice(find_slices(phantom_root)[number])
        assert np.array_equal(data.image(number), image)
        assert np.array_equal(data.mask(number), mask)
        assert data.slices[number].tumour_pixels == mask.sum()


def test_a_second_opening_decodes_nothing(data: SliceStore, phantom_root: Path) -> None:
    before = (data.folder / "slices.bin").stat().st_mtime_ns
    again = open_dataset(phantom_root)
    assert again == data
    assert (data.folder / "slices.bin").stat().st_mtime_ns == before


def test_the_fingerprint_depends_on_content_not_on_the_folder(
    data: SliceStore, phantom_root: Path, tmp_path: Path
) -> None:
    moved = open_dataset(shutil.copytree(phantom_root, tmp_path / "moved"))
    assert moved.fingerprint == data.fingerprint
    assert moved.folder != data.folder


def test_a_changed_slice_changes_the_fingerprint(data: SliceStore, tmp_path: Path) -> None:
    root = shutil.copytree(data.root, tmp_path / "changed")
    image = next(iter(sorted(root.glob("*/*_1.tif"))))
    pixels = read_image(image)
    pixels[0, 0] ^= 1
    cv2.imwrite(str(image), pixels[:, :, ::-1])
    assert open_dataset(root).fingerprint != data.fingerprint


def test_the_store_is_in_the_cache_and_not_beside_the_data(data: SliceStore) -> None:
    assert data.folder.is_relative_to(cache_folder("slices"))
    assert not list(data.root.glob("**/*.npy"))


def test_a_store_pickles_without_its_pixels(data: SliceStore) -> None:
    assert data.pixels.nbytes > 200_000
    packed = pickle.dumps(data)
    assert len(packed) < 20_000
    assert np.array_equal(pickle.loads(packed).pixels, data.pixels)


def test_pixels_are_read_only(data: SliceStore) -> None:
    with pytest.raises(ValueError, match="read-only"):
        data.pixels[0, 0, 0, 0] = 1


def test_two_processes_that_build_at_once_do_not_collide(
    phantom_root: Path, data: SliceStore, tmp_path: Path
) -> None:
    opening = f"open_dataset({str(phantom_root)!r})"
    code = f"from brainseg.data.slice_store import open_dataset; print({opening}.fingerprint)"
    environment = {**os.environ, "BRAINSEG_CACHE": str(tmp_path / "fresh")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=60)[0].decode().strip() for process in started]
    assert printed == [data.fingerprint] * 3
    stores = [f for f in (tmp_path / "fresh" / "slices").iterdir() if f.is_dir()]
    assert len(stores) == 1


def _damage(raw: bytes, how: str) -> bytes | None:
    """Return what is left of a file's content, or None if it is gone."""
    changed = bytearray(raw)
    if how == "a bit":
        changed[len(raw) // 2] ^= 4
    elif how == "a zeroed page":
        changed[len(raw) // 3 : len(raw) // 3 + 4096] = bytes(4096)
    return {"none": None, "half": raw[: len(raw) // 2], "empty": b""}.get(how, bytes(changed))


@pytest.mark.parametrize("how", ["none", "half", "empty", "a bit", "a zeroed page"])
@pytest.mark.parametrize("name", ["table.json", "slices.bin"])
def test_a_damaged_store_is_built_anew(
    data: SliceStore, tmp_path: Path, name: str, how: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAINSEG_CACHE", str(tmp_path))
        folder = open_dataset(data.root).folder
        left = _damage((folder / name).read_bytes(), how)
        (folder / name).unlink()
        if left is not None:
            (folder / name).write_bytes(left)
        (tmp_path / "slices" / f".{folder.name}.123").mkdir()  # left by a process that died
        again = open_dataset(data.root)
        assert again.slices == data.slices
        assert np.array_equal(again.pixels, data.pixels)
        assert [f.name for f in folder.parent.iterdir() if f.is_dir()] == [folder.name]


def test_the_real_slices_are_counted(real_data: SliceStore) -> None:
    tumour = sum(item.tumour_pixels > 0 for item in real_data.slices)
    known = {40: (1449, 514), 110: (3929, 1373)}  # a subset, and the whole dataset
    if len(real_data.patients) not in known:
        pytest.skip("another choice of patients")
    assert (len(real_data.slices), tumour) == known[len(real_data.patients)]
    assert not real_data.synthetic


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


def test_a_url_without_files_is_refused(store: Store, machine: Path) -> None:
    with pytest.raises(DataError, match="nothing is below s3://bucket/nowhere"):
        open_dataset(store.url("nowhere"))


@pytest.mark.slow
def test_opening_waits_for_a_store_that_is_gone_for_seconds(
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
