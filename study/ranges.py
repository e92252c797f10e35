"""The ranges of a search: read from a YAML file and checked, key by key.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from brainseg.config import Experiment
from brainseg.errors import ConfigError

_REFUSED = {
    **dict.fromkeys(("seed", "fold", "inner_fold"), "the search sets it"),
    **dict.fromkeys(("data.size", "data.split_seed"), "scores would no longer compare"),
}
_NEAR = 0.03
Value = bool | int | float | str


class Range(BaseModel):
    """Values that one key may take: `low` to `high`, both included, one of `choices`, or `value`.

    Attributes:
        low: The lowest value.
        high: The highest value.
        log: Draw evenly on a logarithmic scale.
        choices: The values, in place of low and high.
        value: The only value, of all candidates; the grid's own trials keep theirs.
        when: Key that must be true for this one to matter; otherwise it is not varied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Value, ...] | None = None
    value: Value | None = None
    when: str | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Range:
        kinds = (self.low is not None or self.high is not None, self.choices is not None)
        if sum(kinds) + (self.value is not None) > 1 or (self.log and not kinds[0]):
            raise ValueError("takes low and high with perhaps log, or choices, or value")
        if self.value is not None:
            if self.when:
                raise ValueError("has one value, which needs no when")
        elif self.choices is not None:
            if len(set(self.choices)) < 2 or len(set(self.choices)) < len(self.choices):
                raise ValueError("needs at least two different choices")
        elif self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices, or value")
        elif not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}: low must be below high")
        elif self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}: a logarithmic scale needs low above 0")
        return self

    def __str__(self) -> str:
        """Return the values in words."""
        if self.value is not None:
            return str(self.value)
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, low and high, or the only value."""
        if self.value is not None:
            return (self.value,)
        return (self.low, self.high) if self.choices is None else self.choices

    def holds(self, value: Any) -> bool:
        """Return whether a value can be drawn."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        return bool(self.low <= value <= self.high)

    def edge(self, value: float) -> tuple[str, float, float] | None:
        """Return the end that a number lies at: its side, the end, a number beyond it.

        At an end is what lies within 3 % of the range of it, on the range's own scale.
        """
        low, high = min(self.ends), max(self.ends)
        is_log = low > 0 and (self.log or self.choices is not None)
        of = math.log if is_log else float
        place = (of(value) - of(low)) / (of(high) - of(low))
        if place <= _NEAR:
            return "low", low, low / 2 if is_log else low - (high - low) / 10
        if place >= 1 - _NEAR:
            return "high", high, high * 2 if is_log else high + (high - low) / 10
        return None


def load_ranges(path: Path, base: Experiment) -> dict[str, Range]:
    """Read and check the ranges of a file.

    Args:
        path: YAML: dotted keys, each with `low`, `high` and perhaps `log`, or with `choices`, or
            with `value`; and perhaps `when`.
        base: What all candidates share; says which keys there are, and of what kind.

    Raises:
        ConfigError: Naming the file and the key.
    """
    ranges = _parse(path)
    try:
        for key, values in ranges.items():
            _check(key, values, ranges, base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('--set: ')}") from error
    return ranges


def _parse(path: Path) -> dict[str, Range]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the search space {path}: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
        raise ConfigError(f"{path} holds no ranges by key; compare configs/search.yaml")
    ranges = {}
    for key, values in tree.items():
        try:
            ranges[str(key)] = Range.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            reason = problem["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{path}: {key}: {where and f'{where}: '}{reason}") from error
    return ranges


def _check(key: str, values: Range, ranges: Mapping[str, Range], base: Experiment) -> None:
    """Refuse a key that is none, or values that it cannot have."""
    if key in _REFUSED:
        raise ConfigError(f"{key} cannot be varied: {_REFUSED[key]}")
    now = base.value(key)
    if values.low is not None:
        if not is_number(now):
            raise ConfigError(f"{key} is {now!r}, no number: give choices")
        if isinstance(now, int) and not all(float(end).is_integer() for end in values.ends):
            raise ConfigError(f"{key}: low and high must be whole numbers")
    for end in values.ends:
        is_whole = isinstance(now, int) and isinstance(end, float) and end.is_integer()
        base.replaced({key: int(end) if is_whole else end})
    if values.when is None:
        return
    if not isinstance(base.value(values.when), bool):
        raise ConfigError(f"{key}: when names {values.when}, which is not true or false")
    if values.when in ranges and ranges[values.when].when:
        raise ConfigError(f"{key}: when names {values.when}, which has a when itself")


def is_number(value: object) -> bool:
    """Return whether a value is a number, as True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
