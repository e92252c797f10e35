from __future__ import annotations

import pytest

from brainseg.config import Experiment, load_experiment
from study.spec.configs import shipped


@pytest.mark.parametrize("name", ["baseline.yaml", "phantom.yaml", "search.yaml"])
def test_the_shipped_files_are_found_from_any_folder(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert shipped(name).is_file()


def test_the_baseline_is_the_default_experiment() -> None:
    assert load_experiment(shipped("baseline.yaml")) == Experiment()
