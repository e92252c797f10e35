"""What users write: YAML text, read strictly, and checked against a model in plain words."""

from __future__ import annotations

import difflib
import functools
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo
from yaml.reader import Reader, ReaderError

from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import regular_file
from brainseg.storage.urls import escape, redact

Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_MAX_NODES = 50_000
_MAX_DIGITS = 100
_MAX_SHOWN = 100
_MAX_PROBLEMS = 5
_YAML = "tag:yaml.org,2002:"

_EXPECTED = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text, in quotes if it looks like a number, a date, true, false or null",
    "string_unicode": "a text in UTF-8",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "path_type": "a path",
    "none_required": "null",
}
"""Pydantic's type of an error -> what was expected, with the names of its context."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line, without control characters")
    return text


Line = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_one_line)]
"""A text of one line, such as a path."""


class Checked(BaseModel):
    """Base of all that users write: frozen, without unknown keys, NaN or true in place of 1.

    An unknown key is an error, so that a misspelt key does not stand for its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        if _holds_bool(value) and not _may_hold_bool(cls, str(info.field_name)):
            raise ValueError("expected a number; true and false are not numbers")
        return value


def _holds_bool(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return isinstance(value, bool)
    return any(map(_holds_bool, value))


@functools.cache
def _may_hold_bool(model: type[BaseModel], field: str) -> bool:
    """Whether a field can hold true or false, or holds no number that could be mistaken for it."""
    leaves = set(_leaves(model.model_fields[field].annotation))
    return not leaves & {int, float} or bool(leaves & {bool, Any})


def _leaves(annotation: Any) -> Iterable[Any]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, arguments)
    elif get_origin(annotation) is Annotated:
        yield from _leaves(arguments[0])
    elif arguments:
        for argument in arguments:
            yield from _leaves(argument)
    else:
        yield annotation


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, see `parse_yaml`; JSON is YAML.

    Raises:
        ConfigError: Naming the file and the line of what is no YAML.
        DataError: If there is no such file, or it cannot be read.
    """
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"cannot read {path}: it has more than {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"cannot read {path}: line {line} is not UTF-8 text") from error
    return parse_yaml(text, f"cannot read {path}")


def parse_yaml(text: str, where: str) -> Any:
    """Return the content of a YAML text: mappings with texts as keys, lists and plain values.

    Args:
        text: One document, without tags, dates or keys that are there twice.
        where: Begins the messages.

    Raises:
        ConfigError: Naming the line. Depth, length of numbers and, with all aliases written out,
            the number of values are limited, so that a short text fills no memory.
    """
    try:
        return _Loader(text).get_single_data()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"line {line} holds the control character U+{error.character:04X}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = f"line {line}: {cut(error.problem or error.context or 'not YAML')}"
    except (yaml.YAMLError, ValueError) as error:  # such as 0x without digits
        reason = cut(f"the value is not YAML: {error}")
    raise ConfigError(f"{where}: {reason}")


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._total = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a value, unless it is one that no configuration needs."""
        event, before = self.peek_event(), self._total  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"the tag {event.tag} is not allowed", event)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _refusal(f"lists and keys lie more than {_MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _refusal(f"*{event.anchor} lies in what it stands for", event)
            self._total += self._sizes[node]
        elif node is not None:
            _check(node)
            self._total += 1
            self._sizes[node] = self._total - before
        if self._total > _MAX_NODES:
            raise _refusal(f"there are more than {_MAX_NODES:,} values", event)
        return node


def _check(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        found = Reader.NON_PRINTABLE.search(node.value)
        if found:
            raise _refusal(f"a text holds the control character U+{ord(found[0]):04X}", node)
        if node.tag == f"{_YAML}timestamp":
            raise _refusal(f"{node.value} is a date: write it in quotes", node)
        if len(node.value) > _MAX_DIGITS and node.tag in (f"{_YAML}int", f"{_YAML}float"):
            raise _refusal(f"a number has {len(node.value):,} digits", node)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if key.tag not in (f"{_YAML}str", f"{_YAML}merge"):
                kind = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _refusal(f"the key {kind or 'null'} is not a text: write it in quotes", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value} is there twice", key)
            seen.add(key.value)


def _refusal(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """An error at the beginning of an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def validated(
    model: type[Model], tree: Any, origin: str, known: Sequence[str] | None = None
) -> Model:
    """Return the record that a tree of keys and values describes.

    Args:
        model: Of the record.
        tree: As `read_yaml` returns it.
        origin: Where the tree is from, for messages.
        known: All dotted keys (default: those of the model).

    Raises:
        ConfigError: Naming the keys, what was found there and what was expected.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{origin} holds no keys; expected {', '.join(model.model_fields)}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, tree, known or keys_of(model))}") from error


def explain(error: ValidationError, tree: Any = None, known: Sequence[str] = ()) -> str:
    """Return in plain words what a model did not take.

    Args:
        error: Pydantic's.
        tree: What was given; None takes each key as pydantic has it, with the kinds of value that
            it tried.
        known: All dotted keys.
    """
    problems: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_key(problem, tree), []).append(problem)
    lines = [_sentence(key, found, known) for key, found in problems.items()]
    more = [f"and {len(lines) - _MAX_PROBLEMS} more."] if lines[_MAX_PROBLEMS:] else []
    text = "; ".join(lines[:_MAX_PROBLEMS] + more)
    return text + (_valid(known) if "unknown key " in text else "")


def _key(problem: ErrorDetails, tree: Any) -> str:
    """The dotted key of an error, without the kinds of value that a union has tried."""
    if tree is None:
        return ".".join(map(str, problem["loc"]))
    parts = []
    *above, last = problem["loc"] or ("",)
    for part in (*above, last):
        try:
            tree = tree[part]
        except (LookupError, TypeError):
            if part != last or problem["type"] != "missing":
                continue
        parts.append(str(part))
    return ".".join(parts)


def _sentence(key: str, problems: Sequence[ErrorDetails], known: Sequence[str]) -> str:
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return _unknown(key, known)
    if first["type"] == "missing":
        return f"{key} is missing"
    reasons = [_reason(problem) for problem in problems]
    told = [text for text, is_expected in reasons if not is_expected]
    told += [" or ".join(dict.fromkeys(text for text, expected in reasons if expected))]
    told[-1] = f"expected {told[-1]}" if told[-1] else ""
    reason = "; ".join(filter(None, told))
    # A validator of a whole section names the keys itself.
    of_section = first["type"] == "value_error" and isinstance(first["input"], dict)
    return reason if of_section or not key else f"{cut(key)} is {shown(first['input'])}: {reason}"


def _reason(problem: ErrorDetails) -> tuple[str, bool]:
    """Why a value was refused, and whether the words are what was expected."""
    pattern = _EXPECTED.get(problem["type"])
    if pattern is not None:
        return pattern.format(**problem.get("ctx", {})), True
    text = problem["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:], False


def unknown(key: str, known: Sequence[str]) -> str:
    """Return a sentence on an unknown key, with the nearest one and all."""
    return _unknown(key, known) + _valid(known)


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key[:_MAX_SHOWN], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"unknown key {cut(key) or repr(key)}{hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question whether the nearest known name was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _valid(known: Sequence[str]) -> str:
    return f" Valid keys: {', '.join(known)}" if known else ""


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the dotted keys of a model."""
    found = []
    for name, field in model.model_fields.items():
        below = [
            f"{name}.{key}"
            for leaf in _leaves(field.annotation)
            if isinstance(leaf, type) and issubclass(leaf, BaseModel)
            for key in keys_of(leaf)
        ]
        found += below or [name]
    return found


def shown(value: Any) -> str:
    """Return a value as a message quotes it: as in YAML, and cut."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return cut(_SHORT.repr(value))
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _MAX_SHOWN


def cut(text: str) -> str:
    """Return a text as a message quotes it: one line of at most 100 characters."""
    # Redacted first: a cut URL no longer shows that a part of it is a password.
    text = escape(" ".join(redact(text[:8_000]).split()))
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
