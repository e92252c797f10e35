"""Conventions of the project, held by tests instead of reviewers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from brainseg import demo, explore, export, predict
from brainseg.config import Experiment, load_experiment
from study import fetch, run
from study.options import build_parser
from study.plan import GRIDS, plan_trials
from study.space import load_space

ROOT = Path(__file__).parents[1]
ORDER = [
    *("errors", "command", "storage", "place", "refusals", "remote", "copies", "keys", "config"),
    "compute",
    *("index", "phantom", "store", "patients", "split"),
    *("preprocess", "augment", "batches", "loss", "metrics", "encoders", "model", "modelfile"),
    *("checkpoint", "stage", "epoch", "training"),
    *("overlay", "survey", "covariates", "quality", "narrative", "exploration", "charts"),
    *("sheets", "exhibits", "explore", "volume", "inputs", "outputs", "predictor", "predict"),
    *("export", "evaluation", "shelf", "samples", "panels", "desk", "webpage", "demo"),
    *("plan", "results", "ranges", "space", "halving", "candidates", "standings"),
    *("scores", "resample", "variance", "compare"),
    *("conclude", "slices", "probabilities", "examples", "folder", "mirror", "lease", "setup"),
    *("forecast", "hours", "board", "breakdown", "stages", "calibration", "document", "records"),
    *("figures", "cases", "findings", "account", "latex", "cards", "page", "search_figures"),
    *("search_report", "report", "console", "token", "cluster", "waiting", "attempt", "trial"),
    *("tuning", "objective", "scheduler", "samplers", "search", "options", "run", "fetch"),
]
COMMANDS = (run, fetch, explore, predict, export, demo)
MODULES = [
    path
    for package in ("brainseg", "study")
    for path in sorted((ROOT / package).glob("*.py"))
    if path.stem != "__init__"
]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        name
        for node in nodes
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    allowed = ORDER[: ORDER.index(path.stem)]
    for name in _imports(path):
        package, _, module = name.partition(".")
        if package in ("brainseg", "study") and module:
            assert module in allowed, f"{path.stem} imports {name}, which comes after it"


@pytest.mark.parametrize("path", sorted((ROOT / "brainseg").glob("*.py")), ids=lambda p: p.stem)
def test_brainseg_never_imports_ray_or_the_study(path: Path) -> None:
    packages = {name.split(".")[0] for name in _imports(path)}
    assert not packages & {"ray", "study"}


REPORT = (
    *("plan", "results", "ranges", "space", "halving", "candidates", "standings"),
    *("options", "mirror", "fetch"),
    *("scores", "resample", "variance", "compare", "conclude", "slices"),
    *("folder", "breakdown", "stages", "calibration", "document", "records", "figures", "cases"),
    *("findings", "account", "latex", "cards", "page", "search_figures", "search_report"),
    *("report", "console"),
)


@pytest.mark.parametrize("module", REPORT)
def test_what_redoes_a_report_imports_neither_torch_nor_ray(module: str) -> None:
    names = _top_level_imports(ROOT / "study" / f"{module}.py")
    light = {"errors", "command", "storage", "keys", "config", "metrics", *REPORT}
    light |= {"place", "refusals", "remote", "copies"}
    for name in names:
        package, _, inner = name.partition(".")
        assert package not in ("torch", "ray")
        assert package not in ("brainseg", "study") or not inner or inner in light


def test_a_comparison_loads_neither_torch_nor_ray() -> None:
    code = "import sys, study.conclude; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_baseline_yaml_writes_out_every_default() -> None:
    text = (ROOT / "configs" / "baseline.yaml").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert load_experiment(ROOT / "configs" / "baseline.yaml") == Experiment()
    for key in re.findall(r"^\s*-?\s*(\w+):", Experiment().to_yaml(), re.MULTILINE):
        assert f"{key}:" in body


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_loads(path: Path) -> None:
    if path.stem == "search":
        assert all(load_space(path, GRIDS[grid], Experiment()).ranges for grid in GRIDS)
    else:
        assert load_experiment(path)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_builds(grid: str) -> None:
    trials = plan_trials(grid, Experiment(), folds=2, seeds=2)
    assert len({trial.name for trial in trials}) == 4 * len(GRIDS[grid])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_every_flag_is_read_somewhere(command: ModuleType) -> None:
    text = Path(str(command.__file__)).read_text(encoding="utf-8")
    parser = build_parser() if command is run else command._parser()
    for action in parser._actions:
        if action.dest != "help":
            assert f"args.{action.dest}" in text, f"--{action.dest} is declared, but never read"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_help_has_examples_and_exit_codes_and_fits_a_terminal(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit codes:" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_readme_names_every_file_and_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -e . && python -m study.run --grid baseline" in text
    assert 'pip install -e ".[test]" && pytest' in text
    for path in MODULES:
        assert f"  {path.name}" in text, f"{path.name} is missing from the file tree"
