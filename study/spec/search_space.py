"""What a search may vary: ranges read from a YAML file, checked, and drawn from.

Needs neither Ray nor torch; Optuna's trials are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from brainseg.config import Experiment, ModelConfig
from brainseg.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial

VARIANT = "variant"
"""Name of the parameter that says which of the grid's variants a candidate is."""

Changes = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Which candidates there can be: a variant of the grid, and a value for each varied key.

    Attributes:
        variants: Name -> the keys that the variant decides.
        base: What all candidates share.
        ranges: Dotted key -> its values; keys that others wait for come first.
        values: Dotted key -> what all candidates have in place of the base's, a shorter stage say.
        fixed: Keys of the file that the grid decides instead.
    """

    variants: Mapping[str, Changes]
    base: Experiment
    ranges: Mapping[str, Range]
    values: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def suggest(self, trial: Trial) -> tuple[str, Changes]:
        """Draw a candidate.

        Args:
            trial: Optuna's; asked only for what matters to this candidate.

        Returns:
            Its variant, and the dotted keys in which it differs from the base, the variant's own
            ones included.
        """
        variant = str(trial.suggest_categorical(VARIANT, list(self.variants)))
        changes = self.shared(variant)
        for key, values in self._varied(changes):
            changes[key] = self._draw(trial, key, values)
        return variant, changes

    def baseline(self, variant: str) -> Changes:
        """Return the parameters of a variant whose other keys are as in the base."""
        found: Changes = {VARIANT: variant}
        changes = self.shared(variant)
        for key, _ in self._varied(changes):
            found[key] = changes[key] = self.base.value(key)
        return found

    def shared(self, variant: str) -> Changes:
        """Return the keys in which all candidates of a variant differ from the base."""
        return {**self.values, **self.variants[variant]}

    def edges(self, variant: str, changes: Changes) -> list[str]:
        """Return a sentence for each range that looks too narrow: the value lies at its edge.

        An edge that the key itself has, such as an augmentation strength of 0, is none.

        Args:
            variant: Of the winner.
            changes: Of the winner.
        """
        sentences = []
        known = self.shared(variant)
        for key, values in self._varied(known):
            value = known[key] = changes[key]
            edge = values.edge(value) if all(map(is_number, values.ends)) else None
            if edge and self._allows(key, edge[2]):
                sentences.append(f"{key}: {value:.3g} lies at the {edge[0]} end, {edge[1]:.3g}")
        return sentences

    def stage_epochs(self) -> tuple[int, int]:
        """Return the longest stage 1, and the most epochs of both stages together."""
        frozen = max(self._most(variant, "stages.0.epochs") for variant in self.variants)
        both = max(
            self._most(variant, "stages.0.epochs") + self._most(variant, "stages.1.epochs")
            for variant in self.variants
        )
        return frozen, both

    def models(self) -> list[ModelConfig]:
        """Return every encoder with its weights that a candidate may have."""
        found = [self.base.replaced(self.shared(variant)).model for variant in self.variants]
        for key in ("model.encoder", "model.encoder_weights"):
            if key in self.ranges:
                name = key.removeprefix("model.")
                ends = self.ranges[key].ends
                found = [model.model_copy(update={name: end}) for model in found for end in ends]
        return list(dict.fromkeys(found))

    def to_record(self) -> dict[str, Any]:
        """Return the ranges for study.json."""
        ranges = {
            key: values.model_dump(mode="json", exclude_defaults=True)
            for key, values in self.ranges.items()
        }
        return ranges | {key: {"value": value} for key, value in self.values.items()}

    def _varied(self, changes: Changes) -> Iterator[tuple[str, Range]]:
        """Yield what is varied, given what is already decided; `changes` grows meanwhile."""
        for key, values in self.ranges.items():
            if key in changes:
                continue
            if values.when and not changes.get(values.when, self.base.value(values.when)):
                continue
            yield key, values

    def _draw(self, trial: Trial, key: str, values: Range) -> Any:
        if values.choices is not None:
            return trial.suggest_categorical(key, list(values.choices))
        low, high = values.ends
        if isinstance(self.base.value(key), int):
            return trial.suggest_int(key, int(low), int(high), log=values.log)
        return trial.suggest_float(key, low, high, log=values.log)

    def _allows(self, key: str, beyond: float) -> bool:
        """Return whether a key can have a value, made whole if need be."""
        is_whole = isinstance(self.base.value(key), int)
        try:
            self.base.replaced({key: round(beyond) if is_whole else beyond})
        except ConfigError:
            return False
        return True

    def _most(self, variant: str, key: str) -> int:
        if key in self.ranges and key not in self.variants[variant]:
            return int(max(self.ranges[key].ends))
        return int(self.base.replaced(self.shared(variant)).value(key))


def load_space(path: Path, variants: Mapping[str, Changes], base: Experiment) -> Space:
    """Read what a search may vary.

    Args:
        path: YAML; see `load_ranges`.
        variants: Of the grid. What all of them decide is not varied.
        base: What all candidates share; its own values must be among those that can be drawn.

    Raises:
        ConfigError: Naming the file and the key.
    """
    ranges = load_ranges(path, base)
    fixed = tuple(k for k in ranges if all(k in changes for changes in variants.values()))
    values = {k: v.value for k, v in ranges.items() if v.value is not None and k not in fixed}
    free = {k: v for k, v in ranges.items() if k not in fixed and k not in values}
    if not free:
        raise ConfigError(f"{path} names nothing that the grid leaves to vary")
    ordered = dict(sorted(free.items(), key=lambda item: item[1].when is not None))
    space = Space(variants, base, ordered, values, fixed)
    for variant in variants:
        for key, value in space.baseline(variant).items():
            if key != VARIANT and not free[key].holds(value):
                raise ConfigError(
                    f"{path}: {key}: the experiment's own value {value} cannot be drawn, but the "
                    "first candidates are the grid's variants as they are: widen the range, or "
                    f"give --set {key}=VALUE"
                )
    return space


# --- ranges ---

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
