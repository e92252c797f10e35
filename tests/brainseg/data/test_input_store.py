from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brainseg.config import Experiment, PreprocessConfig
from brainseg.data import input_store
from brainseg.data.input_store import open_inputs
from brainseg.data.inputs import Image, StoreInputs
from brainseg.data.preprocess import apply_filters
from brainseg.data.slice_store import SliceStore

CLAHE: dict[str, object] = {"preprocess.filters": ["median", "clahe"]}
SETTINGS: list[dict[str, object]] = [
    {},
    CLAHE,
    {"preprocess.intensities": "zscore", "preprocess.crop": "brain"},
    {"preprocess.filters": ["unsharp", "sobel"], "data.context": 1},
    {"data.channels": ["FLAIR"], "data.context": 2},
]


def _stores(machine: Path) -> list[Path]:
    return sorted((machine / "inputs").glob("*.bin"))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "raw")
def test_stored_inputs_are_those_that_are_prepared_anew(
    settings: dict[str, object], data: SliceStore, machine: Path
) -> None:
    experiment = Experiment().replaced({"data.size": 64, **settings})
    anew, stored = StoreInputs(data, experiment), open_inputs(data, experiment)
    assert len(_stores(machine)) == 1
    for index in range(0, len(data.slices), 5):
        assert np.array_equal(anew.image(index), stored.image(index))
        assert np.array_equal(anew.mask(index), stored.mask(index))
        assert np.array_equal(anew.picture(index), stored.picture(index))
        assert stored.image(index).flags.writeable  # augmentation may work in place
        logits = np.full((64, 64), 0.5, np.float32)
        assert np.array_equal(anew.restore(index, logits), stored.restore(index, logits))


def test_each_slice_is_filtered_once_per_machine_and_setting(
    data: SliceStore, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[float] = Counter()

    def count(image: Image, config: PreprocessConfig) -> Image:
        calls[config.clip_limit] += 1
        return apply_filters(image, config)

    monkeypatch.setattr("brainseg.data.inputs.apply_filters", count)
    for limit in (2.0, 3.0, 2.0):
        experiment = Experiment().replaced(
            {"data.size": 64, **CLAHE, "preprocess.clip_limit": limit}
        )
        opened = open_inputs(data, experiment)
        for index in range(len(data.slices)):
            opened.image(index)
    assert calls == {2.0: len(data.slices), 3.0: len(data.slices)}


def test_slices_that_need_nothing_are_not_stored(data: SliceStore, machine: Path) -> None:
    open_inputs(data, Experiment().replaced({"data.size": data.size}))
    assert _stores(machine) == []


def test_a_filter_of_the_users_own_is_not_stored(
    data: SliceStore, machine: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def same(image):\n    return image\n")
    filters = {"preprocess.filters": [f"{tmp_path}/mine.py:same"]}
    open_inputs(data, Experiment().replaced({"data.size": 64, **filters})).image(0)
    assert _stores(machine) == []


@pytest.mark.parametrize("damage", ["cut", "a bit", "no checksum", "an empty checksum"])
def test_a_damaged_store_of_inputs_is_built_again(
    data: SliceStore, machine: Path, damage: str
) -> None:
    experiment = Experiment().replaced({"data.size": 64, **CLAHE})
    before = open_inputs(data, experiment).image(7)
    (path,) = _stores(machine)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    if damage == "no checksum":
        path.with_suffix(".sum").unlink()
    elif damage == "an empty checksum":
        path.with_suffix(".sum").write_bytes(b"")
    else:
        path.write_bytes(b"cut" if damage == "cut" else changed)
    assert np.array_equal(open_inputs(data, experiment).image(7), before)
    assert path.read_bytes() == whole


def test_a_full_disk_prepares_slices_anew(
    data: SliceStore, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    experiment = Experiment().replaced({"data.size": 64, **CLAHE})
    assert np.array_equal(
        open_inputs(data, experiment).image(3), StoreInputs(data, experiment).image(3)
    )
    assert _stores(machine) == []


def test_the_stores_used_last_are_kept(
    data: SliceStore, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_store, "_KEPT", 1)
    limits = (1.0, 2.0, 3.0)
    opened = [
        open_inputs(
            data,
            Experiment().replaced({"data.size": 64, **CLAHE, "preprocess.clip_limit": limit}),
        )
        for limit in limits
    ]
    assert len(_stores(machine)) == 2
    assert len(list((machine / "inputs").glob("*.sum"))) == 2
    assert opened[0].image(0).any()  # a process that maps a store keeps it


def test_what_a_killed_process_left_behind_is_removed(data: SliceStore, machine: Path) -> None:
    experiment = Experiment().replaced({"data.size": 64, **CLAHE})
    open_inputs(data, experiment)
    (store,) = _stores(machine)
    leftover = store.with_name(f".{store.name}.4711")
    leftover.write_bytes(b"half")
    store.unlink()
    open_inputs(data, experiment)
    assert store.exists()
    assert not leftover.exists()
