"""README.md and docs/: short, and true of the files, commands and links that they name."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def _tree() -> set[Path]:
    """Return the paths that the README's tree names."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if block.startswith("brainseg/"))
    paths, top = set(), ROOT
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        if line.startswith(" "):
            paths |= {top / name for name in names}
        else:
            top = ROOT / names[0]
            paths.add(top)
    return paths


def _anchors(page: Path) -> set[str]:
    """Return the names that the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_names_both_set_up_commands() -> None:
    assert len(README.splitlines()) <= 150
    assert "pip install -e . && python -m study.run --grid baseline" in README
    assert 'pip install -e ".[test]" && pytest' in README


def test_the_tree_names_every_package_and_only_what_exists() -> None:
    tree = _tree()
    assert [path for path in tree if not path.exists()] == []
    assert {ROOT / "configs", ROOT / "docs", ROOT / "tests"} <= tree
    for package in (ROOT / "brainseg", ROOT / "study"):
        entries = {path for path in package.iterdir() if path.suffix in ("", ".py")}
        entries -= {package / "__init__.py", package / "__pycache__"}
        assert entries <= tree, f"not in the tree: {entries - tree}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_link_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:study|brainseg)[\w.]*\w)", text):
        assert importlib.util.find_spec(module), f"{page.name} names python -m {module}"
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}"
        assert not anchor or anchor in _anchors(target), f"{page.name} links to {path}#{anchor}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ("LOG", "CHANGELOG")])
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:brainseg|study|tests|docs|configs)/[\w./-]+)`", text):
        if not name.startswith("study/configs"):  # only in an installed package
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)]*)\)", README))


def test_contributing_lists_every_private_name_of_another_package() -> None:
    """What no public way replaces is listed with its reason; names defined here are ours."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("brainseg", "study")
        for path in (ROOT / package).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    ours |= {node.id for node in nodes if isinstance(node, ast.Name)}
    ours |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in attributes} | {a.name for node in imports for a in node.names}
    used |= {part for node in imports for part in (node.module or "").split(".")}
    private = {name for name in used - ours if re.match(r"_[^_]", name)} - {"_asdict"}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {name for name in private if name not in page} == set()


@pytest.mark.parametrize("grid", ["recipe", "searched"])
def test_a_frozen_recipe_is_the_one_that_the_results_name(grid: str) -> None:
    digest = hashlib.sha256((ROOT / f"configs/grids/{grid}.yaml").read_bytes()).hexdigest()
    assert digest in (ROOT / "docs/results.md").read_text(encoding="utf-8")
