from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from brainseg.data.slice_store import SliceStore
from brainseg.explore import __main__ as command
from brainseg.explore.exploration import Exploration
from brainseg.inference.overlay import encode_picture


def test_the_command_leaves_page_figures_and_numbers(
    data: SliceStore, exploration: Exploration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    assert command.main(["--data", str(data.root), "--out", str(out)]) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    page = (out / "explore.html").read_text()
    figures = sorted(path.name for path in (out / "figures").iterdir())
    alts = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', page)
    assert len(figures) == len(alts) == 12
    assert all(len(alt) > 30 for alt in alts)
    assert "SYNTHETIC DATA" in page
    for sentence in exploration.summary:
        assert sentence.split(":")[0].replace("'", "&#39;") in page
    # It opens offline: nothing is fetched from anywhere.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    numbers = json.loads((out / "explore.json").read_text())
    assert numbers["dataset"]["tumour_slices"] == exploration.card["tumour_slices"]
    assert len(numbers["slices"]) == len(data.slices)
    assert [row["tumour_share"] for row in numbers["patients"]] == list(
        exploration.patients["tumour_share"]
    )
    assert command.main(["--data", str(data.root), "--out", str(out)]) == 2  # kept as it is


@pytest.mark.slow
def test_a_dataset_of_hardly_any_tumour_and_no_folds_has_a_page(
    small_dataset: Path, tmp_path: Path
) -> None:
    for n, path in enumerate(sorted(small_dataset.glob("*/*_mask.tif"))):
        mask = np.zeros((32, 32), np.uint8)
        mask[10:12, 10:12] = 255 * (n == 0)
        path.write_bytes(encode_picture(mask, ".tif"))
    assert command.main(["--data", str(small_dataset), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "explore.html").read_text()
    assert "1 slices (10.0%) hold tumour" in page
    assert "Every patient has 5 slices" in page
    assert "10 of 10 rotations cannot be built" in page
