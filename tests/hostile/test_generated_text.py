"""Texts that nobody thought of are read, or refused by an error of the project's own."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainseg.config import Experiment, load_experiment, parse_changes, valid_keys
from brainseg.errors import BrainsegError, ConfigError
from brainseg.storage.files import read_csv, write_csv
from brainseg.storage.values import parse_yaml, shown
from study.spec.grid import checked_name, is_name, load_grid
from study.spec.search_space import load_space

pytestmark = pytest.mark.slow  # hundreds of texts

SHORT = settings(
    derandomize=True,
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MARKS = st.text(
    st.sampled_from("ab1.-+:,[]{}&*!?|>'\"%@` \n\t#=~<\\0xe_\u00e9\u2028"), max_size=40
)
WORDS = st.text(max_size=20)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.dates()
TREES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(valid_keys()) | WORDS


def _file(text: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    (folder / "file.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder / "file.yaml"


def _assert_line(error: BrainsegError) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 3_500


@SHORT
@given(MARKS | WORDS)
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        assert shown(parse_yaml(text, "here"))
    except ConfigError as error:
        _assert_line(error)


@SHORT
@given(TREES)
def test_any_tree_is_a_configuration_a_grid_and_a_space_or_refused(tree: Any) -> None:
    path = _file(yaml.safe_dump(tree, allow_unicode=True))
    for read in (
        load_experiment,
        lambda path: load_grid(str(path)),
        lambda path: load_space(path, {"a": {}}, Experiment()),
    ):
        try:
            read(path)
        except ConfigError as error:
            _assert_line(error)


@SHORT
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_any_keys_of_a_variant_and_of_a_space_are_taken_or_refused(tree: dict[str, Any]) -> None:
    grid = {"description": "x", "variants": {"a": tree}}
    try:
        load_grid(str(_file(yaml.safe_dump(grid))))
    except ConfigError as error:
        _assert_line(error)
    try:
        load_space({key: {"value": v} for key, v in tree.items()}, {"a": {}}, Experiment(), "here")
    except ConfigError as error:
        _assert_line(error)


@SHORT
@given(KEYS, MARKS | WORDS | TREES.map(str))
def test_any_pair_of_set_is_taken_or_refused(key: str, value: str) -> None:
    try:
        found = Experiment().replaced(parse_changes([f"{key}={value}"]))
    except ConfigError as error:
        _assert_line(error)
    else:
        assert Experiment.model_validate(parse_yaml(found.to_yaml(), "here")) == found


@SHORT
@given(WORDS | MARKS)
def test_a_name_is_one_part_of_a_path_and_no_formula(name: str) -> None:
    with contextlib.suppress(ConfigError):
        assert checked_name(name, "a variant") == name
        assert is_name(name)
        assert Path(name).name == name
        assert name[0].isalnum()
        assert name.isprintable()


# A NUL is refused when it is read.
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@SHORT
@given(st.lists(st.fixed_dictionaries({c: CELLS for c in "abc"}), min_size=1, max_size=3))
def test_cells_are_read_as_they_were_written(rows: list[dict[str, str]]) -> None:
    path = _file("")
    write_csv(path, rows)
    assert read_csv(path) == rows
