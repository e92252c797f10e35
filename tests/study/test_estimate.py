"""Hours and money of a plan: from epochs that were run, never from a guess."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from s3 import Store

from brainseg.config import Experiment, load_experiment
from study.estimate import EpochTimes, TrialKind, measure_disk
from study.resolve import Study
from study.run import main
from study.spec.grid import load_grid
from study.spec.resources import TrialResources
from study.spec.study_spec import StudySpec
from study.storage.trial_folder import TrialFolder

ONE_CPU = TrialResources(cpus=1)


def _leave(storage: Path, base: Experiment, variant: str, stages: list[list[float]]) -> None:
    """Leave a study of which one trial ran epochs that took so many seconds, stage by stage."""
    study = storage / "earlier"
    about = {
        "experiment": base.model_dump(mode="json"),
        "variants": load_grid("lite").variants,
        "slices": 72,
    }
    about |= {"grid": "lite"}
    about |= {"cpus_per_trial": 1, "gpus_per_trial": 0.0}
    folder = TrialFolder(study / "trials" / f"{variant}-fold0-seed1")
    folder.path.mkdir(parents=True)
    (study / "study.json").write_text(json.dumps(about))
    rows = [
        {"stage": stage, "epoch": epoch, "seconds": seconds, "val_loss": 0.5, "val_dice": 0.5}
        for stage, all_seconds in enumerate(stages, start=1)
        for epoch, seconds in enumerate(all_seconds, start=1)
    ]
    rows = [{"step": step, **row} for step, row in enumerate(rows, start=1)]
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
    assert re.search(r"hours +unknown: .*efficientnet_lite0 median, clahe at \d+ px", out)
    assert "lite0 raw" not in out.partition("unknown")[2]
    assert "--name probe --set stages.0.epochs=1" in out
    assert "USD" not in out


def test_a_plan_says_hours_and_money_from_finished_epochs(
    plan: list[str], base: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, variant in enumerate(load_grid("lite").variants):
        _leave(tmp_path / "all" / str(number), base, variant, [[9.0, 10.0, 500.0], [100.0]])
        (tmp_path / "all" / str(number) / "earlier").rename(tmp_path / "all" / f"study{number}")
    assert [stage.epochs for stage in base.stages] == [2, 8]
    assert main(plan) == 0
    out = capsys.readouterr().out
    assert re.search(r"trial-hours +0.46 of trials\n", out)  # two trials of 2 x 10 + 8 x 100 s
    assert re.search(r"hours, now +0.46 with 1 at once on 1 node", out)
    assert re.search(r"money, now +1.64 USD: 1 x 0.46 h x 3.6 USD", out)
    assert main([*plan, "--search", "4", "--scheduler", "none"]) == 0
    assert re.search(r", 0.91 of the search, .* at 82.0 s an epoch", capsys.readouterr().out)
    assert main([*plan, "--set", "data.size=32"]) == 0
    assert "unknown" in capsys.readouterr().out


def test_each_trial_counts_once_in_the_mean_epoch_of_a_search(
    plan: list[str], base: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant, seconds in zip(load_grid("lite").variants, (100.0, 200.0), strict=True):
        _leave(tmp_path / "all" / variant, base, variant, [[10.0], [seconds]])
        (tmp_path / "all" / variant / "earlier").rename(tmp_path / "all" / f"study-{variant}")
    assert main([*plan, "--search", "4", "--scheduler", "none"]) == 0
    # 82 s and 162 s a trial, and a winner like the first variant.
    assert "at 108.7 s an epoch" in capsys.readouterr().out


def test_a_winners_epochs_tell_of_its_own_settings(base: Experiment, tmp_path: Path) -> None:
    _leave(tmp_path, base, "winner-c0007", [[3.0], [30.0]])
    small = base.replaced({"optimizer.batch_size": 4})
    folder = tmp_path / "earlier" / "trials" / "winner-c0007-fold0-seed1"
    assert EpochTimes(tmp_path).epoch(TrialKind.of(small, 72, ONE_CPU), 2) is None
    (folder / "experiment.yaml").write_text(small.to_yaml())
    known = EpochTimes(tmp_path)
    assert known.epoch(TrialKind.of(small, 72, ONE_CPU), 2) == 30.0
    assert known.epoch(TrialKind.of(base, 72, ONE_CPU), 2) is None


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
    experiment = base.replaced(load_grid("lite").variants["raw-lite0"])
    known = EpochTimes(tmp_path)
    kind = TrialKind.of(experiment, 72, ONE_CPU)
    assert known.training(kind, experiment) == 2 * 10 + 8 * 100
    assert known.training(kind, experiment, done=3) == 7 * 100
    for other in (
        TrialKind.of(experiment, 73, ONE_CPU),
        TrialKind.of(experiment, 72, TrialResources(cpus=2)),
        TrialKind.of(experiment, 72, TrialResources(cpus=1, gpus=0.5)),
        TrialKind.of(experiment.replaced({"data.size": 32}), 72, ONE_CPU),
        TrialKind.of(experiment.replaced({"data.resident": "auto"}), 72, ONE_CPU),
    ):
        assert known.training(other, experiment) is None


def test_a_price_without_a_plan_is_a_usage_error(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan.remove("--plan")
    assert main(plan) == 2
    assert "--price-per-hour needs --plan" in capsys.readouterr().err


def test_disk_grows_with_trials_and_concurrency(tmp_path: Path) -> None:
    spec = StudySpec(
        grid="lite", variants=load_grid("lite").variants, folds=2, experiment=Experiment()
    )
    sizes = {"unet tu-tf_efficientnet_lite0": 1000}

    def needed(concurrent: int, slices: int = 0) -> int:
        study = cast(
            "Study",
            SimpleNamespace(
                spec=spec.model_copy(update={"slices": slices}), folder=tmp_path, sizes=sizes
            ),
        )
        return measure_disk(study, spec.jobs(), TrialResources(concurrent=concurrent))[0]

    # Four models, two exported ones, and three checkpoints of four copies for each at once.
    assert needed(1) == 4 * 1000 * (4 + 2 + 12)
    assert needed(2) == 4 * 1000 * (4 + 2 + 24)
    assert needed(2, slices=100) - needed(2) == 4 * 30 * 256 * 256 // 3
