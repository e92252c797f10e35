"""Hours and money of a plan: from epochs that were run, never from a guess."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from s3 import Store

from brainseg.config import Experiment, load_experiment
from study.estimate import Kind, Known
from study.run import main
from study.spec.grid import GRIDS, TrialResources
from study.storage.tables import TrialFolder

ONE_CPU = TrialResources(1, 0.0, 0, 1)


def _leave(storage: Path, base: Experiment, variant: str, stages: list[list[float]]) -> None:
    """Leave a study of which one trial ran epochs that took so many seconds, stage by stage."""
    study = storage / "earlier"
    about = {"experiment": base.model_dump(mode="json"), "variants": GRIDS["lite"], "slices": 72}
    about |= {"cpus_per_trial": 1, "gpus_per_trial": 0.0}
    folder = TrialFolder(study / "trials" / f"{variant}-fold0-seed1")
    folder.path.mkdir(parents=True)
    (study / "study.json").write_text(json.dumps(about))
    rows = [
        {"stage": stage, "seconds": seconds}
        for stage, all_seconds in enumerate(stages, start=1)
        for seconds in all_seconds
    ]
    folder.write_history(rows)


@pytest.fixture
def plan(phantom_root: Path, tmp_path: Path) -> list[str]:
    flags = ["--grid", "lite", "--data", str(phantom_root), "--storage", str(tmp_path / "all")]
    flags += ["--set", "model.encoder_weights=none", "--cpus-per-trial", "1", "--concurrent", "1"]
    return [*flags, "--plan", "--price-per-hour", "3.6"]


@pytest.fixture
def base() -> Experiment:
    path = Path(__file__).parents[2] / "configs" / "phantom.yaml"
    return load_experiment(path).replaced({"model.encoder_weights": "none"})


def test_hours_that_nothing_tells_are_unknown_and_how_to_know_them_is_said(
    plan: list[str], base: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _leave(tmp_path / "all", base, "raw-lite0", [[10.0], [100.0]])
    assert main(plan) == 0
    out = capsys.readouterr().out
    assert re.search(r"hours +unknown: .*efficientnet_lite0 preprocessed at \d+ px", out)
    assert "lite0 raw" not in out.partition("unknown")[2]
    assert "--name probe --set stages.0.epochs=1" in out
    assert "USD" not in out


def test_a_plan_says_hours_and_money_from_finished_epochs(
    plan: list[str], base: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, variant in enumerate(GRIDS["lite"]):
        _leave(tmp_path / "all" / str(number), base, variant, [[9.0, 10.0, 500.0], [100.0]])
        (tmp_path / "all" / str(number) / "earlier").rename(tmp_path / "all" / f"study{number}")
    assert [stage.epochs for stage in base.stages] == [2, 8]
    assert main(plan) == 0
    out = capsys.readouterr().out
    assert re.search(r"trial-hours +0.46 of trials\n", out)  # two trials of 2 x 10 + 8 x 100 s
    assert re.search(r"hours, now +0.46 with 1 at once on 1 node", out)
    assert re.search(r"money, now +1.64 USD: 1 x 0.46 h x 3.6 USD", out)
    assert main([*plan, "--search", "4", "--scheduler", "none"]) == 0
    assert re.search(r", 0.91 of the search .* at 82.0 s an epoch", capsys.readouterr().out)
    assert main([*plan, "--set", "data.size=32"]) == 0
    assert "unknown" in capsys.readouterr().out


def test_a_winners_epochs_tell_of_its_own_settings(base: Experiment, tmp_path: Path) -> None:
    _leave(tmp_path, base, "winner-c0007", [[3.0], [30.0]])
    small = base.replaced({"optimizer.batch_size": 4})
    folder = tmp_path / "earlier" / "trials" / "winner-c0007-fold0-seed1"
    assert Known(tmp_path).num_epochs(Kind.of(small, 72, ONE_CPU)) == 0
    (folder / "experiment.yaml").write_text(small.to_yaml())
    known = Known(tmp_path)
    assert known.epoch(Kind.of(small, 72, ONE_CPU), 2) == 30.0
    assert known.num_epochs(Kind.of(base, 72, ONE_CPU)) == 0


def test_a_plan_behind_a_url_says_where_hours_can_be_known(
    plan: list[str], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--storage", store.url(f"{tmp_path.name}/studies")]) == 0
    assert "--storage results, and plan with that storage" in " ".join(
        capsys.readouterr().out.split()
    )


def test_epochs_of_other_slices_processors_or_sizes_tell_nothing(
    base: Experiment, tmp_path: Path
) -> None:
    _leave(tmp_path, base, "raw-lite0", [[10.0], [100.0]])
    experiment = base.replaced(GRIDS["lite"]["raw-lite0"])
    known = Known(tmp_path)
    kind = Kind.of(experiment, 72, ONE_CPU)
    assert known.training(kind, experiment) == 2 * 10 + 8 * 100
    assert known.training(kind, experiment, done=3) == 7 * 100
    for other in (
        Kind.of(experiment, 73, ONE_CPU),
        Kind.of(experiment, 72, TrialResources(2, 0.0, 0, 1)),
        Kind.of(experiment, 72, TrialResources(1, 0.5, 0, 1)),
        Kind.of(experiment.replaced({"data.size": 32}), 72, ONE_CPU),
    ):
        assert known.training(other, experiment) is None


def test_a_price_without_a_plan_is_a_usage_error(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan.remove("--plan")
    with pytest.raises(SystemExit) as caught:
        main(plan)
    assert caught.value.code == 2
    assert "give --plan too" in capsys.readouterr().err
