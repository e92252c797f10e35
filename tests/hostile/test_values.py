"""Keys and values that no study can have: each is refused by its name, and in plain words.

The rows come from the models' own fields, so that a new key is covered by being there.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hostile_cases import Answer, Case
from pydantic import BaseModel
from safetensors.torch import save_file

from brainseg.cli import clean
from brainseg.config import Experiment, load_experiment, parse_changes, valid_keys
from brainseg.data.description import Description, read_description
from brainseg.data.split import _FileRotation, count_rotations
from brainseg.errors import BrainsegError, CheckpointError, ConfigError
from brainseg.inference.predictor import Predictor
from brainseg.model.encoders import check_encoder
from brainseg.model.model_file import ModelHeader, read_header
from brainseg.storage.values import cut, keys_of
from study.cli import parse_options
from study.spec import grid as grids
from study.spec.grid import Published, SearchDefaults, load_grid
from study.spec.search_space import Range, load_space, parse_space
from study.spec.study_spec import SearchSpec, StudySpec

pytestmark = pytest.mark.slow  # hundreds of cases

JARGON = re.compile(
    r"[Ii]nput should|valid (dict|list|tuple|string|integer|number|bool)|unable to|instance of"
    r"|pydantic|tuple|dictionar|NoneType|Traceback"
)
VALUES: dict[str, Any] = {
    "true": True,
    "x": "x",
    "empty text": "",
    "empty list": [],
    "list of lists": [[[]]],
    "list of true": [True, True],
    "list of NaN": [math.nan, math.nan],
    "long list": ["x"] * 5_000,
    "empty mapping": {},
    "mapping": {"a": {"b": 1}},
    "null": None,
    "negative": -1,
    "fraction": -0.5,
    "1e23": 1e23,
    "text 1e23": "1e23",
    "text nan": "nan",
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "10**30": 10**30,
    "10**5000": 10**5000,
    "digits": "9" * 90,
    "long text": "x" * 10_000,
    "two lines": "a\nb.yaml",
    "escape": "\x1b[31m.yaml",
    "NUL": "a\0.yaml",
}
NEVER = {
    "empty mapping", "mapping", "negative", "fraction", "1e23", "nan", "infinity",
    "minus infinity", "10**30", "10**5000", "list of lists", "list of true", "list of NaN",
    "long list", "long text", "two lines", "escape", "NUL", "empty text",
}  # fmt: skip
"""The values that no key of an experiment takes."""


WRITTEN = [name for name in VALUES if name not in ("escape", "NUL", "10**5000")]
"""Those that stand in YAML text as they are."""


def _assert_plain(error: Exception, *names: str) -> None:
    text = str(error)
    assert not JARGON.search(text), text
    for name in names:
        assert name in text
    assert text.isprintable(), repr(text)
    assert len(text) < 3_500
    assert max(map(len, re.findall(r"is (\S+): expected", text)), default=0) <= 100


@pytest.mark.parametrize("key", valid_keys())
def test_a_value_that_a_key_cannot_have_is_refused(key: str) -> None:
    for name in VALUES:
        value = VALUES[name]
        try:
            found = Experiment().replaced({key: value})
        except ConfigError as error:
            _assert_plain(error, key.split(".")[-1])
        else:
            assert name not in NEVER - ({"empty list"} if key == "preprocess.filters" else set())
            is_bool = isinstance(Experiment().value(key), bool)
            assert (value is not True) or is_bool, f"{key} takes true for 1"
            assert found.to_yaml()


SECTIONS = sorted({key.rpartition(".")[0] for key in valid_keys()} | {"stages"} - {""})


@pytest.mark.parametrize("key", [section for section in SECTIONS if section])
def test_a_value_in_place_of_a_section_is_refused(key: str, tmp_path: Path) -> None:
    for name in set(VALUES) - {"empty mapping"}:
        with pytest.raises(ConfigError) as error:
            Experiment().replaced({key: VALUES[name]})
        _assert_plain(error.value, key)


MODELS: tuple[type[BaseModel], ...] = (
    Experiment, grids._GridFile, Published, SearchDefaults, Range, Description, _FileRotation,
    SearchSpec,
)  # fmt: skip


def _numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the schema of each number or text in a JSON schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number", "string") and "enum" not in schema:
            yield path, schema
        for key, below in schema.items():
            if key not in ("default", "const", "required"):
                yield from _numbers(below, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, below in enumerate(schema):
            yield from _numbers(below, f"{path}.{index}")


@pytest.mark.parametrize("model", MODELS)
def test_every_number_has_bounds_and_every_text_a_length(model: type[BaseModel]) -> None:
    found = list(_numbers(model.model_json_schema()))
    assert found
    for path, schema in found:
        if schema["type"] == "string":
            # A path is as long as the system allows; a sampler's name is one of a list.
            assert (
                "maxLength" in schema
                or schema.get("format") == "path"
                or "SearchSpec" in str(model)
            ), path
        else:
            assert {"minimum", "exclusiveMinimum"} & schema.keys(), path
            assert {"maximum", "exclusiveMaximum"} & schema.keys(), path


def _tree(keys: str, value: Any) -> dict[str, Any]:
    for part in reversed(keys.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", [*keys_of(grids._GridFile), "defaults", "search", "nonsense"])
def test_a_value_that_a_grid_cannot_have_is_refused(key: str, tmp_path: Path) -> None:
    for name in WRITTEN:
        tree = {"description": "x", "variants": {"a": {"threshold": 0.4}}}
        found = _tree(key, VALUES[name])
        if key.startswith("search.") and key != "search.candidates":
            found["search"]["candidates"] = 4
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(tree | found))
        try:
            load_grid(str(path))
        except ConfigError as error:
            _assert_plain(error, str(path))
        else:
            assert name not in ("true", "negative", "1e23", "nan", "infinity", "10**30")
            assert key != "nonsense"


@pytest.mark.parametrize("place", ["variants", "variants.a", "factors", "factors.f", "shared"])
def test_a_value_in_place_of_a_grids_keys_is_refused(place: str, tmp_path: Path) -> None:
    for name in WRITTEN:
        tree = {"description": "x", "variants": {"b": {"threshold": 0.4}}}
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(tree | _tree(place, VALUES[name])))
        try:
            load_grid(str(path))
        except ConfigError as error:
            _assert_plain(error, str(path))
        else:
            assert name in ("null", "empty mapping")


@pytest.mark.parametrize("field", [*Range.model_fields, "nonsense"])
def test_a_value_that_a_range_cannot_have_is_refused(field: str) -> None:
    for name in VALUES:
        key = "stages.1.learning_rate"
        tree = {key: {"low": 1e-6, "high": 1e-2, field: VALUES[name]}}
        if field in ("choices", "value"):
            tree = {key: {field: VALUES[name]}}
        try:
            load_space(tree, {"a": {}}, Experiment(), "space.yaml")
        except ConfigError as error:
            _assert_plain(error, "space.yaml", key)
        else:
            assert (field, name) in {("log", "true"), ("when", "null")}


@pytest.mark.parametrize("field", [*Description.model_fields, "nonsense"])
def test_a_value_that_a_description_cannot_have_is_refused(field: str, tmp_path: Path) -> None:
    for name in WRITTEN:
        tree = {"images": "{name}.png", "masks": "{name}_mask.png", "channels": ["a"]}
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(tree | {field: VALUES[name]}))
        try:
            read_description(tmp_path)
        except BrainsegError as error:
            _assert_plain(error, "dataset.yaml")
        else:
            assert name not in {"true", "nan", "1e23", "10**30", "mapping"}


@pytest.mark.parametrize("part", [*_FileRotation.model_fields, "nonsense", ""])
def test_a_value_that_a_split_cannot_have_is_refused(part: str, tmp_path: Path) -> None:
    for name in WRITTEN:
        tree: Any = {"train": ["a"], "val": ["b"], "test": ["c"]}
        path = tmp_path / "split.yaml"
        path.write_text(yaml.safe_dump({**tree, part: VALUES[name]} if part else VALUES[name]))
        data = Experiment().replaced({"data.split": str(path)}).data
        try:
            count_rotations(data, ())
        except ConfigError as error:
            _assert_plain(error, str(path))
        else:
            assert name in ("empty list", "long list")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "=1+1", "+1", "-a", "@SUM(A1)", " a", "a b", "a\nb",
     "a\tb", "\x1b[31m", "é", "a" * 61, "a" * 100_000, "%s", "{x}", "$(ls)", "~", "CON:", "a?b",
     "a#b", "|ls", "\u202ea", ".hidden"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["variants", "factors", "levels", "file", "study"])
def test_a_name_that_is_not_safe_in_paths_and_tables_is_refused(
    place: str, name: str, tmp_path: Path
) -> None:
    level = {"threshold": 0.4}
    if place == "study":
        for flags in ([], ["--report-only"]):
            with pytest.raises(ConfigError, match="at most 60 letters"):
                parse_options(["--grid", "lite", f"--name={name}", *flags])
        return
    tree: dict[str, Any] = {"description": "x", "variants": {name: level}}
    if place == "factors":
        tree["factors"] = {name: {"a": {}, "b": level}}
    elif place == "levels":
        tree["factors"] = {"f": {"a": {}, name: level}}
    if place == "file":
        if "/" in name or "\0" in name or len(name) > 200:
            return
        path = tmp_path / f"{name}.yaml"
        tree["variants"] = {"a": level}
    else:
        path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as error:
        load_grid(str(path))
    assert "at most 60 letters" in str(error.value) or "control character" in str(error.value)
    assert len(str(error.value)) < 500


def _factors(count: int, levels: int) -> dict[str, Any]:
    return {
        f"f{n}": {f"l{m}": {"threshold": (m + 1) / (levels + 2)} for m in range(levels)}
        for n in range(count)
    }


@pytest.mark.parametrize(
    "tree",
    [
        {"factors": _factors(10, 10)},
        {"factors": _factors(2, 1_000)},
        {"factors": _factors(100, 2)},
        {"variants": {"a": {"optimizer.batch_size": list(range(2, 4_000))}}},
        {"variants": {"a": {key: list(range(900)) for key in valid_keys() if "seed" in key}}},
    ],
    ids=lambda tree: next(iter(tree)),
)
def test_what_multiplies_without_bound_is_refused_before_it_is_multiplied(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tree: object, where: str, *args: Any) -> Any:
        assert where == "shared", "was multiplied"
        return {}

    monkeypatch.setattr(grids, "_checked", refuse)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"description": "x"} | tree))
    with pytest.raises(ConfigError) as error:
        load_grid(str(path))
    _assert_plain(error.value, str(path), "more than 1,000 variants")


def test_trials_and_networks_have_a_number_that_can_be_run() -> None:
    variants = {f"v{n}": {"seed": n} for n in range(1_000)}
    spec = StudySpec(grid="x", variants=variants, experiment=Experiment(), folds=10, seeds=1_000)
    with pytest.raises(ConfigError, match="make 10,000,000 trials; at most 20,000"):
        spec.jobs()
    names = [f"resnet{n}" for n in range(49)]
    space = {"model.encoder": {"choices": ["resnet50", *names]}}
    weights = [f"{n}.safetensors" for n in range(49)]
    space["model.encoder_weights"] = {"choices": ["imagenet", *weights]}
    with pytest.raises(ConfigError, match="more than 1,000 networks"):
        load_space(space, {"a": {}}, Experiment(), "here")


FLAGS = ("--seeds", "--folds", "--search", "--search-folds", "--search-seeds", "--concurrent",
         "--cpus-per-trial", "--retries", "--gpus-per-trial")  # fmt: skip


@pytest.mark.parametrize(
    "value", ["1000000000", "9" * 5_000, "-1", "1e9", "²", "nan", "inf", "true", "", "0x10", "1 0"]
)
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_with_a_number_has_bounds(flag: str, value: str) -> None:
    with pytest.raises(ConfigError) as stop:
        parse_options(["--grid", "lite", "--search", "4", f"{flag}={value}"])
    assert flag in str(stop.value)
    assert len(str(stop.value)) < 300


def test_set_may_repeat_what_all_variants_that_name_the_key_have() -> None:
    grid = grids.Grid("g", "x", {"a": {"threshold": 0.4}, "b": {"threshold": 0.4, "seed": 3}})
    grid.refuse_decided({"threshold": 0.4})
    with pytest.raises(ConfigError, match="threshold"):
        grid.refuse_decided({"threshold": 0.3})


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    "encoder",
    ["tu-", "tu-resnet5", "tu-hf-hub:somebody/model", "tu-hf_hub:somebody/resnet18",
     "tu-hf-hub:somebody.x/resnet18.y", "tu-local-dir:/tmp", "tu-local-dir:.", "tu-resnet18:x",
     "tu-resnet18.a:b", "tu-resnet18.a/b", "tu-resnet18.x.y", "tu-../../etc", "tu-file:///etc",
     "tu-https://example.org/x", "tu-timm:resnet18", "tu-RESNET18", "tu-resnet18 ", "TU-resnet18",
     "resnet5", "../resnet50", "tu-" + "x" * 90, "tu-été", "hf-hub:a/b", "local-dir:a"],
)  # fmt: skip
def test_an_encoder_that_is_no_name_of_a_list_is_refused_without_a_request(encoder: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder is") as error:
        check_encoder(encoder)
    _assert_plain(error.value)


def test_an_unknown_encoder_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean resnet50"):
        check_encoder("resnet5O")
    with pytest.raises(ConfigError, match="near: tu-resnet50"):
        check_encoder("tu-resnet5O")


def _header(changes: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = {
        "experiment": Experiment().replaced({"data.size": 64}).model_dump(mode="json"),
        "fingerprint": "f", "synthetic": True, "weights": "none", "best": {}, "metrics": {},
    }  # fmt: skip
    for key, value in changes.items():
        node, (*parents, last) = header, key.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
    return header


def _write_model(path: Path, header: str) -> None:
    save_file({"w": torch.zeros(2)}, path, {"brainseg": header})


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "a hub": ({"experiment.model.encoder": "tu-hf-hub:somebody/model"}, "timm does not have"),
    "a folder": ({"experiment.model.encoder": "tu-local-dir:/tmp"}, "timm does not have"),
    "code": ({"experiment.model.architecture": "/tmp/x.py:build"}, "--allow-code"),
    "a filter": ({"experiment.preprocess.filters": ["/tmp/x.py:f"]}, "--allow-code"),
    "a package": ({"experiment.model.architecture": "os"}, "--allow-code"),
    "huge": ({"experiment.model.encoder": "tu-convnext_xxlarge"}, "many more"),
    "another": ({"experiment.model.encoder": "resnet18"}, "do not fit the network"),
    "size": ({"experiment.data.size": 10**6}, "experiment.data.size is 1000000: expected at most"),
    "channels": ({"experiment.data.channels": ["c"] * 10**5}, "expected at most 64 entries"),
    "context": ({"experiment.data.context": 10**9}, "expected at most 5"),
    "own channels": ({"channels": ["c"] * 10**5}, "expected at most 64 entries"),
    "a new key": ({"code": "x"}, "unknown key code"),
    "a new key below": ({"experiment.model.code": "x"}, "unknown key experiment.model.code"),
    "no number": ({"best": {"stage": "x"}}, "expected a number"),
    "null": ({"experiment": None}, "experiment is null"),
}


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_before_anything_is_allocated(
    name: str, tmp_path: Path
) -> None:
    changes, said = HEADERS[name]
    path = tmp_path / "m.safetensors"
    _write_model(path, json.dumps(_header(changes)))
    with pytest.raises(CheckpointError) as error:
        Predictor.load(path)
    assert said in str(error.value)
    _assert_plain(error.value)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _raw(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


FILES: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x08\0\0",
    "text": b"no model at all",
    "no metadata": _raw(b"{}      "),
    "no JSON": _raw(b"{" * 800),
    "truncated": _raw(b"{}", 4_000),
    "promises much": _raw(b"{}", 2**62),
    "deep": _raw(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "offsets": _raw(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,999999]}}'),
    "shape": _raw(b'{"w":{"dtype":"F32","shape":[999999999,999999999],"data_offsets":[0,8]}}'),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
}
TEXTS_OF_HEADERS = {
    "no JSON": "hello", "a list": "[]", "a number": "3", "null": "null", "nothing": "",
    "deep": "[" * 5_000, "deep keys": '{"experiment":' * 5_000, "digits": "1" * 10_000,
    "NaN": "NaN", "megabytes": json.dumps(_header({"fingerprint": "f" * 3_000_000})),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(FILES[name])
    with pytest.raises(CheckpointError, match=r"m\.safetensors") as error:
        read_header(path)
    _assert_plain(error.value)


@pytest.mark.parametrize("name", TEXTS_OF_HEADERS)
def test_a_header_that_is_no_record_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    _write_model(path, TEXTS_OF_HEADERS[name])
    with pytest.raises(CheckpointError, match=r"m\.safetensors") as error:
        read_header(path)
    _assert_plain(error.value)


@pytest.mark.parametrize("field", ModelHeader.model_fields)
@pytest.mark.parametrize("value", [None, "x", [], {}, -1, {"a": []}], ids=repr)
def test_a_value_that_a_header_cannot_have_is_refused_in_plain_words(
    field: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    _write_model(path, json.dumps(_header({field: value})))
    try:
        assert read_header(path)
    except CheckpointError as error:
        _assert_plain(error, field)


PLAN = ("study.run", "--grid", "lite", "--plan")
CHANGES = ("data.size=true", "data.size=.nan", "seed=1e23", "stages.0.learning_rate=1e23",
           "data=x", "stages=[]", "nonsense=1", "stages.9.epochs=1", "data.size", "=1", "a.b.c=1",
           "stages." + "9" * 5_000 + ".epochs=1", "data.size=" + "9" * 5_000, "model.encoder={}",
           "preprocess.filters=[" * 2_000,
           "stages.-1.epochs=3", "data.channels=" + "[a, " * 300)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        Case(f"--set {text[:40]}", [*PLAN, "--set", _escaped(text)], 2, ["--set"])
        for text in (*CHANGES, "model.encoder=resnet18", "fold=3")
    ]
    + [
        Case("an unknown encoder", ["study.run", "--config", "{here}/c.yaml", "--plan"], 2,
             ["near: tu-resnet50"],
             lambda here: (here / "c.yaml").write_text(
                 "model: {encoder: tu-resnet5O, encoder_weights: none}\ndata: {size: 64}")),
        Case("a split of no user", [*PLAN, "--set", "data.split=~nobody-here/x.yaml"], 2,
             ["data.split: ~nobody-here/x.yaml is not a path"]),
        Case("a file for a user", ["study.run", "--grid", "~nobody-here/g.yaml"], 2, ["home"]),
        Case("a hub in a model", ["brainseg.predict", "{here}/m.safetensors", "{here}",
                                  "--out", "{here}/out"], 1, ["m.safetensors", "timm does not"],
             lambda here: _write_model(here / "m.safetensors",
                                       json.dumps(_header(HEADERS["a hub"][0])))),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_a_command_answers(case: Case, answer: Answer) -> None:
    answer(case)


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a\x1b[31m\x07b", "a\\x1b[31m\\x07b"),
        ("two\n lines\t", "two lines"),
        ("\u202ex\udce9", "\\u202ex\\udce9"),
        ("\x07" * 40, "\\x07" * 24 + "\\..."),
        ("Café 脳", "Café 脳"),
    ],
)
def test_a_value_is_quoted_as_a_line_shows_it(text: str, quoted: str) -> None:
    assert cut(text) == quoted
    assert cut(text) == clean(cut(text))


def test_the_space_of_a_search_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = parse_space({"augment.strength": {"low": 0.0, "high": 2.0}}, "here")
    again = parse_space(ranges, "here")
    assert again["augment.strength"] is ranges["augment.strength"]


def test_a_number_may_be_written_as_yaml_gives_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "stages:\n- {epochs: 5, learning_rate: 1e-3, freeze_encoder: true}\n"
        "- {epochs: 15.0, learning_rate: 1, freeze_encoder: false}\n"
        "augment: {strength: 1}\npreprocess: {median_kernel: 3}\n"
    )
    found = load_experiment(tmp_path / "c.yaml")
    assert [stage.learning_rate for stage in found.stages] == [1e-3, 1.0]
    assert found.stages[1].epochs == 15
    assert parse_changes(["a=1e-3"]) == {"a": "1e-3"}
