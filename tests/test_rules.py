"""Conventions of the project, held by tests instead of reviewers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from brainseg import check, export, predict
from brainseg.config import Experiment, load_experiment
from brainseg.demo import __main__ as demo
from brainseg.explore import __main__ as explore
from study import compare, fetch, run
from study.cli import build_parser
from study.spec.grid import load_grid, shipped_grids
from study.spec.search_space import load_space
from study.spec.study_spec import StudySpec

_READERS = ("cli", "spec/request", "resolve", "pipeline")
NAMES = [grid.name for grid in shipped_grids()]
ROOT = Path(__file__).parents[1]
ARROWS = (
    "brainseg.errors brainseg.storage brainseg.cli brainseg.plugins brainseg.config",
    "brainseg.metrics brainseg.document brainseg.data brainseg.model brainseg.training",
    "brainseg.inference brainseg.explore brainseg.demo brainseg.predict brainseg.export",
    "brainseg.check brainseg",
    "study.spec study.storage study.analysis study.report study.cli study.tune",
    "study.external study.warm_start study.resolve study.estimate study.pipeline study.run",
    "study.fetch study.compare",
)
ORDER = " ".join(ARROWS).split()
"""What may import what: a package or a module at the top imports from its left."""
LIGHT = (
    *("brainseg.document", "study.spec", "study.storage"),
    *("study.analysis", "study.report", "study.cli"),
)
COMMANDS = (run, fetch, compare, explore, predict, export, demo, check)
MODULES = [
    path
    for package in ("brainseg", "study")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.stem != "__init__"
]

PACKAGES = [
    path.parent
    for package in ("brainseg", "study")
    for path in sorted((ROOT / package).glob("*/__init__.py"))
]


def _room(module: str) -> str:
    """Return the package of a stage, or the module at the top, that a dotted name is in."""
    return ".".join(module.split(".")[:2])


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_imports_follow_the_arrows(path: Path) -> None:
    room = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in _imports(path):
        package = name.split(".")[0]
        if package in ("brainseg", "study"):
            assert ORDER.index(_room(name)) <= ORDER.index(room), f"{room} imports {name}"
        assert package != "ray" or room == "study.tune", "only study/tune/ imports Ray"
        assert package != "torch" or room not in LIGHT, f"{room} works without torch"


def test_a_report_loads_neither_torch_nor_ray() -> None:
    code = "import sys, study.report.build; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
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
        assert all(
            load_space(path, load_grid(grid).variants, Experiment()).ranges for grid in NAMES
        )
    else:
        assert load_experiment(path)


@pytest.mark.parametrize("grid", NAMES)
def test_every_grid_builds(grid: str) -> None:
    read = load_grid(grid)
    read.check_variants(Experiment().replaced(read.shared))
    spec = StudySpec.of(read, experiment=Experiment().replaced(read.shared), folds=2, seeds=2)
    assert len({job.name for job in spec.jobs()}) == 4 * len(read.variants)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_every_flag_is_read_somewhere(command: ModuleType) -> None:
    files = [Path(str(command.__file__))]
    if command is run:
        files += [ROOT / "study" / f"{name}.py" for name in _READERS]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
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


@pytest.mark.parametrize("name", ["study.run", "brainseg.predict", "brainseg.explore.__main__"])
def test_help_loads_nothing_that_takes_seconds(name: str) -> None:
    code = (
        f"import sys; from {name} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {module.split(".")[0] for module in run.stdout.split("\n")[-2].split()}
    heavy = {"torch", "ray", "pandas", "scipy", "sklearn", "matplotlib", "cv2", "optuna"}
    assert "brainseg" in loaded
    assert loaded & heavy == set()


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: f"{path.parts[-2]}-{path.name}")
def test_the_docstring_of_a_package_names_every_module(path: Path) -> None:
    text = ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8"))) or ""
    stems = {module.stem for module in path.glob("*.py") if not module.stem.startswith("__")}
    assert {stem for stem in stems if not re.search(rf"`{stem}\b", text)} == set()


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert {name for name in names if names.count(name) > 1} == set()
