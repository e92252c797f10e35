"""The command line, up to the first trial."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from s3 import Store, free_port

from brainseg.cli import KNOWN_ERROR, USAGE
from study.run import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def plan(phantom_root: Path) -> list[str]:
    weights = "model.encoder_weights=none"
    return ["--grid", "lite", "--data", str(phantom_root), "--plan", "--set", weights]


def test_a_plan_says_what_would_run_and_starts_nothing(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--folds", "2", "--seeds", "3", "--set", "data.size=64"]) == 0
    out = capsys.readouterr().out
    for pattern in (
        r"fingerprint +[0-9a-f]{64}",
        r"slices +72, of which \d+ with tumour",
        r"split, rotation 1 +train \d+ patients",
        r"trials +12, 12 of them to run",
        r"epochs +2 \+ 8 per trial, 120 to run",
        r"steps +[\d,]+ of 16 slices",
        r"each trial +1 CPU",
        r"disk +[\d.]+ GB at its fullest, [\d.]+ GB free",
        r"encoder weights +no pretrained weights",
        r"SYNTHETIC",
    ):
        assert re.search(pattern, out), pattern
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "data.sise=64"], "did you mean data.size"),
        (["--set", "data.size=100"], "multiple of 32"),
        (["--set", "model.encoder=resnet18"], "the grid lite decides it"),
        (["--set", "data.size"], "expected KEY=VALUE"),
        (["--set", "stages.².epochs=1"], "unknown key stages.².epochs"),
        (["--name", "../elsewhere"], "at most 60 letters"),
        (
            ["--search", "9", "--set", "augment.strength=0.5", "--set", "optimizer.batch_size=12"],
            "optimizer.batch_size: the experiment's own value 12 cannot be drawn",
        ),
    ],
)
def test_usage_errors_exit_with_two(
    plan: list[str], flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, *flags]) == USAGE
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--config", "--space", "--split", "--grid"])
def test_a_yaml_file_that_is_not_there_exits_with_one(
    plan: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--search", "9", flag, "nowhere.yaml"]) == KNOWN_ERROR
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: cannot read \S*nowhere.yaml: No such file or directory\n", err)


def test_a_plan_says_what_a_search_would_take(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ["--set", "stages.0.epochs=1", "--set", "stages.1.epochs=19"]
    assert main([*plan, *stages, "--search", "40", "--seeds", "3"]) == 0
    out = capsys.readouterr().out
    for pattern in (
        r"trials +9, 9 of them to run",
        r"search +40 candidates, 40 to run",
        r"sampler +tpe; the first candidates are the variants",
        r"scheduler +asha: rungs after epochs 3, 12",
        r"search epochs +\d+ by halving alone \(3\d%\), 800 in full",
        r"varied +stages.1.learning_rate: 1e-05 to 0.003 \(log\)",
    ):
        assert re.search(pattern, out), pattern
    assert not Path("results").exists()
    assert main([*plan, *stages, "--search", "40", "--scheduler", "halving"]) == 0
    out = capsys.readouterr().out
    assert "rounds; candidates wait after epochs 3, 9, the best third goes on" in out
    assert "search epochs      242 by halving alone (30%), 800 in full\n" in out
    assert main([*plan, "--search", "40", "--scheduler", "none", "--sampler", "gp"]) == 0
    assert "search epochs      400 in full\n" in capsys.readouterr().out


def test_a_configuration_alone_is_a_study_of_its_name(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("best.yaml").write_text("model: {encoder: mobilenet_v2, encoder_weights: none}\n")
    assert main(["--config", "best.yaml", *plan[2:]]) == 0
    out = capsys.readouterr().out
    assert re.search(r"folder +\S+/results/best-synthetic\n", out)
    assert re.search(r"trials +1, 1 of them to run", out)
    assert re.search(r"configured +as configured", out)
    assert main(["--config", "best.yaml", "--report-only"]) == KNOWN_ERROR
    assert "results/best holds no readable study.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gridd", "lite"], "--grid"),
        (["--grid", "lite", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--grid", "lite", "--concurrent", "0"], "from 1 to"),
        (["--grid", "lite", "--folds", "11"], "from 1 to 10"),
        (["--grid", "lite", "--search", "9", "--search-folds", "10"], "from 1 to 9"),
        (["--grid", "lite", "--fold", "2"], "unrecognized arguments"),
        ([], "give --grid NAME or FILE, or --config YAML"),
        (["--grid", "lite", "--sampler", "tpe"], "--sampler needs --search N"),
        (["--grid", "lite", "--search-folds", "2"], "--search-folds needs --search N"),
        (["--grid", "lite", "--search", "0"], "from 1 to"),
        (["--grid", "lite", "--search", "9", "--scheduler", "asah"], "median"),
    ],
)
def test_unknown_flags_exit_with_two(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == USAGE
    assert words in capsys.readouterr().err


def test_a_path_that_does_not_exist_is_never_a_fallback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--grid", "lite", "--data", "nowhere", "--plan"]) == KNOWN_ERROR
    captured = capsys.readouterr()
    assert captured.err == "error: the data folder nowhere does not exist\n"
    assert "SYNTHETIC" not in captured.out


def test_bad_slices_are_all_listed(
    plan: list[str], phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(phantom_root, tmp_path / "bad")
    bad = sorted(root.glob("*/*_2.tif"))[:3]
    for path in bad:
        path.write_bytes(b"")
    plan[3] = str(root)
    assert main(plan) == KNOWN_ERROR
    err = capsys.readouterr().err
    assert all(path.name in err for path in bad)


def test_more_than_the_machine_has_is_said_at_once(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--cpus-per-trial", "999"]) == KNOWN_ERROR
    assert "a trial asks for 999 CPUs" in capsys.readouterr().err
    assert main([*plan, "--gpus-per-trial", "nan"]) == USAGE
    assert main([*plan, "--gpus-per-trial", "99"]) == KNOWN_ERROR


def test_weights_of_another_encoder_are_noticed_before_the_start(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    plan.remove("--plan")
    plan[-1] = f"model.encoder_weights={tmp_path / 'w.safetensors'}"
    assert main(plan) == KNOWN_ERROR
    assert "does not hold the weights of encoder" in capsys.readouterr().err
    assert not Path("results").exists()


def test_nothing_listening_at_the_address_is_said_within_seconds(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, "--address", "127.0.0.1:1"]) == KNOWN_ERROR
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert main([*plan, "--address", "ray://head:10001"]) == USAGE
    assert "neither HOST:PORT" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(
    plan: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRAINSEG_CACHE", "/proc/nowhere")
    assert main(plan) == KNOWN_ERROR
    assert capsys.readouterr().err.count("\n") == 1


def test_a_plan_refuses_another_study_of_that_name(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results/lite-synthetic").mkdir(parents=True)
    Path("results/lite-synthetic/thesis.txt").write_text("x")
    assert main(plan) == KNOWN_ERROR
    assert "no readable study.json" in capsys.readouterr().err
    assert main([*plan, "--fresh"]) == 0


def test_a_report_needs_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "lite", "--report-only"]) == KNOWN_ERROR
    assert "no readable study.json" in capsys.readouterr().err


def test_data_of_the_environment_and_of_the_working_directory_are_found(
    plan: list[str],
    phantom_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del plan[2:4]
    monkeypatch.setenv("BRAINSEG_DATA", str(phantom_root))
    assert main(plan) == 0
    assert "72 slices" in capsys.readouterr().out
    monkeypatch.delenv("BRAINSEG_DATA")
    shutil.copytree(phantom_root, Path("data/kaggle_3m"))
    assert main(plan) == 0
    assert "72 slices" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["data", "weights", "storage"])
@pytest.mark.usefixtures("machine")
def test_a_url_that_nothing_answers_is_refused_at_once_in_one_line(
    kind: str, store: Store, phantom_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = store.url("there.safetensors").replace(str(store.port), str(free_port()))
    flags = {
        "data": ["--data", dead, "--plan"],
        "weights": ["--data", str(phantom_root), "--set", f"model.encoder_weights={dead}"],
        "storage": ["--data", str(phantom_root), "--storage", dead],
    }
    started = time.monotonic()
    assert main(["--grid", "lite", *flags[kind]]) == KNOWN_ERROR
    assert time.monotonic() - started < 20
    err = capsys.readouterr().err
    assert "nothing answers there" in err
    assert err.count("\n") == 1


def test_a_key_of_the_search_space_that_the_grid_decides_is_named(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "augment.strength: {low: 0.0, high: 2.0}\nmodel.encoder: {choices: [resnet18, resnet34]}\n"
    )
    assert main([*plan, "--search", "4", "--space", str(space)]) == 0
    assert "the grid lite decides model.encoder, so it is not varied" in capsys.readouterr().out
