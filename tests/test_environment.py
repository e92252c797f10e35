"""What SECURITY.md lists is complete: environment variables, versions; nothing reports our use."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import study.tune  # noqa: F401 - turns Ray's reports off

ROOT = Path(__file__).parents[1]
SOURCES = [p for part in ("brainseg", "study") for p in sorted((ROOT / part).rglob("*.py"))]
OFF = {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def _variables(path: Path) -> Iterator[str]:
    """Yield the variable of each use of os.environ; constants of the module are looked up."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    known = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            key = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os.environ."):
            key = node.args[0]
        else:
            continue
        known += 1
        yield key.value if isinstance(key, ast.Constant) else values[ast.unparse(key)]  # type: ignore[misc]
    uses = sum(ast.unparse(n) == "os.environ" for n in ast.walk(tree) if isinstance(n, ast.expr))
    assert uses == known, f"{path} uses os.environ in another way"
    assert "getenv" not in path.read_text(encoding="utf-8")


def test_security_lists_every_variable_that_is_read_or_set_and_no_other() -> None:
    used = {name for path in SOURCES for name in _variables(path)}
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.split("## Environment variables")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert sorted(listed) == sorted(used)
    assert len(used) > 10


@pytest.mark.parametrize("name", OFF)
def test_what_reports_our_use_is_turned_off_at_one_place(name: str) -> None:
    places = [path for path in SOURCES for found in _variables(path) if found == name]
    assert len(places) == 1
    assert places[0].name == "__init__.py", "imported before the package that reads it"


@pytest.mark.parametrize("name", OFF)
def test_the_switch_has_been_set_by_importing_the_project(name: str) -> None:
    # Gradio writes the hub's switch again when it is imported, as True.
    assert os.environ[name] in (OFF[name], "True" if OFF[name] == "1" else "False")


def test_packages_understand_the_switches() -> None:
    from huggingface_hub import constants
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert constants.HF_HUB_DISABLE_TELEMETRY
    assert not usage_stats_enabled()


def test_gradio_understands_its_switch() -> None:
    analytics = pytest.importorskip("gradio.analytics")
    assert not analytics.analytics_enabled()


def test_advisories_are_compared_with_the_versions_that_are_pinned() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.split("## Known advisories")[1].split("\n## ")[0]
    pins = dict(
        re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    rows = [row for row in rows if len(row) == 5][2:]
    named = set(re.findall(r"CVE-[\d-]+", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert named <= set(re.findall(r"CVE-[\d-]+", section))
    for package, _, fixed, pinned, _ in rows:
        assert pins[package] == pinned
        if fixed[0].isdigit():
            assert [*map(int, pinned.split("."))] >= [*map(int, fixed.split("."))]
    assert len(rows) >= len(named)


def test_licences_are_printed() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["make", "--silent", "licences"],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path},
    )  # fmt: skip
    names = {line.partition(" ")[0] for line in run.stdout.splitlines()}
    assert {"ray", "torch", "pydantic"} <= names
    assert re.search(r"^pillow \S+: \w+", run.stdout, re.MULTILINE)
