"""The command line, up to the first trial."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from study.run import KNOWN_ERROR, USAGE, main


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
        (["--folds", "11"], "1 to 10"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--name", "../elsewhere"], "must name a folder"),
    ],
)
def test_usage_errors_exit_with_two(
    plan: list[str], flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, *flags]) == USAGE
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gridd", "lite"], "--grid"),
        (["--grid", "basline"], "baseline"),
        (["--grid", "lite", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--grid", "lite", "--concurrent", "0"], "at least 1"),
        (["--grid", "lite", "--fold", "2"], "unrecognized arguments"),
    ],
)
def test_unknown_flags_and_grids_exit_with_two(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == USAGE
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
    with pytest.raises(SystemExit):
        main([*plan, "--gpus-per-trial", "nan"])
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
    assert main([*plan, "--address", "ray://head:10001"]) == KNOWN_ERROR
    assert "expected HOST:PORT" in capsys.readouterr().err


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
