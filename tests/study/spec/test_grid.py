from __future__ import annotations

import pytest

from brainseg.config import Experiment
from brainseg.errors import ConfigError
from study.spec.grid import GRIDS, refuse_grid_keys


def test_baseline_is_the_published_four() -> None:
    variants = [Experiment().replaced(changes) for changes in GRIDS["baseline"].values()]
    assert {(e.model.encoder, e.preprocess.enabled) for e in variants} == {
        (encoder, enabled)
        for encoder in ("resnet50", "efficientnet-b0")
        for enabled in (False, True)
    }


@pytest.mark.parametrize("key", ["model.encoder", "preprocess.enabled", "fold"])
def test_keys_that_the_grid_decides_cannot_be_set(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        refuse_grid_keys("baseline", {key: "x"})
