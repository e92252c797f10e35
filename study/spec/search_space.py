"""What a search may vary: ranges from a YAML file, checked, and the candidates drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from brainseg.config import Experiment
from brainseg.errors import ConfigError
from brainseg.storage.values import Checked, Line, cut, read_yaml, validated
from study.spec.grid import Changes

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

VARIANT = "variant"
"""Name of the parameter that holds the variant of a candidate."""

_REFUSED = {
    **dict.fromkeys(("seed", "fold", "inner_fold"), "the search sets it"),
    "data.size": "scores would no longer compare; to begin with small slices, search at another "
    "size and give that study's folder to --warm-start",
    **dict.fromkeys(("data.split", "data.split_seed"), "scores would no longer compare"),
    **dict.fromkeys(
        ("flips", "largest_component"), "val Dice after an epoch does not depend on it"
    ),
    **dict.fromkeys(
        ("stopping.patience", "stopping.minutes", "data.spacing_mm"), "it holds for all variants"
    ),
}
_NETWORK_KEYS = {
    "data.context",
    *(
        f"model.{key}"
        for key in ("architecture", "decoder_attention", "encoder", "encoder_weights")
    ),
}
_NEAR = 0.03
_NUM_DRAWS = 200
_MAX_NETWORKS = 1_000
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Whole = Annotated[int, Field(ge=-(10**9), le=10**9)]
Value = bool | Whole | Number | Line | None


class Range(Checked):
    """Values that one key may take: `low` to `high` inclusive, one of `choices`, or `value`.

    Attributes:
        low: The lowest value.
        high: The highest value.
        log: Draw uniformly on a logarithmic scale.
        choices: The values, instead of low and high; null switches off a key that may be null.
        value: The only value, for all candidates; the grid's own trials keep theirs.
        when: Key that must be true for this one to matter, or `KEY=VALUE`: the key must have this
            value, or hold it if it is a list; otherwise this one is not varied.
    """

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: Annotated[tuple[Value, ...], Field(max_length=100)] | None = None
    value: Value = None
    when: Line | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Range:
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

    @property
    def listed(self) -> Sequence[Any]:
        """All values of a key of whole numbers or of choices."""
        if self.choices is not None or self.value is not None:
            return self.ends
        low, high = self.ends
        return range(int(low), int(high) + 1)

    def holds(self, value: Any) -> bool:
        """Return whether a value can be drawn."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.ends
        return isinstance(value, int | float) and bool(low <= value <= high)

    def edge(self, value: float) -> tuple[str, float, float] | None:
        """Return the end near a number, as (side, end, a number beyond it); None if none is near.

        Near means within 3 % of the range, on the range's own scale.
        """
        low, high = min(self.ends), max(self.ends)
        is_log = low > 0 and (self.log or self.choices is not None)
        of = math.log if is_log else float
        position = (of(value) - of(low)) / (of(high) - of(low))
        if position <= _NEAR:
            return "low", low, low / 2 if is_log else low - (high - low) / 10
        if position >= 1 - _NEAR:
            return "high", high, high * 2 if is_log else high + (high - low) / 10
        return None


@dataclass(frozen=True)
class SearchSpace:
    """The candidates that a search can draw: a variant of the grid, and a value per varied key.

    Attributes:
        variants: Name -> the keys that the variant decides.
        base: The experiment that all candidates share.
        ranges: Dotted key -> what is drawn; keys with a `when` come last.
        values: Dotted key -> the value that all candidates have instead of the base's.
        fixed: Keys of the file that all variants decide, so that they are not varied.
    """

    variants: Mapping[str, Changes]
    base: Experiment
    ranges: Mapping[str, Range]
    values: Mapping[str, Any]
    fixed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, variants: Mapping[str, Changes], base: Experiment, space: Mapping[str, Range]
    ) -> SearchSpace:
        """Sort the keys of a space into those that are drawn, set for all, and fixed."""
        fixed = tuple(k for k in space if all(k in changes for changes in variants.values()))
        free = {k: v for k, v in space.items() if k not in fixed}
        values = {k: v.value for k, v in free.items() if v.value is not None}
        ranges = {k: v for k, v in free.items() if v.value is None}
        ordered = dict(sorted(ranges.items(), key=lambda item: item[1].when is not None))
        return cls(variants, base, ordered, values, fixed)

    def record(self) -> dict[str, Range]:
        """Return the space without its fixed keys, as study.json has it."""
        return {**self.ranges, **{key: Range(value=value) for key, value in self.values.items()}}

    def suggest(self, trial: BaseTrial) -> None:
        """Draw a candidate's variant and its varied keys into an Optuna trial's `params`."""
        changes = self.shared(str(trial.suggest_categorical(VARIANT, list(self.variants))))
        for key, values in self._varied(changes):
            changes[key] = self._draw(trial, key, values)

    def check(self, params: Changes) -> None:
        """Check that a candidate's parameters are ones that `suggest` draws.

        Raises:
            ConfigError: Naming the key.
        """
        variant = params.get(VARIANT)
        if variant not in self.variants:
            known = ", ".join(self.variants)
            raise ConfigError(f"{VARIANT}: found {variant!r:.80}; expected one of {known}")
        changes = self.shared(str(variant))
        left = params.keys() - {VARIANT}
        for key, values in self._varied(changes):
            if key not in params or not values.holds(params[key]):
                found = f"{params[key]!r:.80}" if key in params else "nothing"
                raise ConfigError(f"{key}: found {found}; expected {values}")
            changes[key] = params[key]
            left -= {key}
        if left:
            raise ConfigError(f"{min(left)[:80]!r} is not varied for {variant}")

    def check_draws(self) -> None:
        """Draw candidates at random, so that values that do not fit are reported in time.

        Raises:
            ConfigError: With such a candidate's values.
        """
        import optuna  # takes a second, and most commands do not search

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(_NUM_DRAWS):
            trial = study.ask()
            self.suggest(trial)
            try:
                self.experiment(trial.params)
            except ConfigError as error:
                drawn = ", ".join(f"{key} {value}" for key, value in trial.params.items())
                raise ConfigError(
                    "the search can draw a candidate that cannot be trained "
                    f"({str(error).removeprefix('--set: ')}): {drawn}. Narrow the ranges, or give "
                    "a key a when"
                ) from error

    def baseline(self, variant: str) -> Changes:
        """Return the parameters of the candidate that is a variant with the base's values."""
        found: Changes = {VARIANT: variant}
        changes = self.shared(variant)
        for key, _ in self._varied(changes):
            found[key] = changes[key] = self.base.value(key)
        return found

    def nearest_params(self, experiment: Experiment) -> Changes:
        """Return the parameters of the candidate that is nearest to an experiment.

        It has the experiment's value of every key that is varied, and the base's of all others.

        Raises:
            ConfigError: If no variant decides its keys as the experiment has them, or a value
                cannot be drawn.
        """
        decided = {key for changes in self.variants.values() for key in changes}
        for variant, changes in self.variants.items():
            whole = self.base.replaced(self.shared(variant))
            # What other variants decide matters here too, unless it is drawn.
            keys = [key for key in decided if key in changes or key not in self.ranges]
            if all(whole.value(key) == experiment.value(key) for key in keys):
                break
        else:
            values = (f"{key} {experiment.value(key)}" for key in sorted(decided))
            raise ConfigError(f"no variant has {', '.join(values)}")
        found, known = {VARIANT: variant}, self.shared(variant)
        for key, _ in self._varied(known):
            found[key] = known[key] = experiment.value(key)
        self.check(found)
        return found

    def shared(self, variant: str) -> Changes:
        """Return the keys in which all candidates of a variant differ from the base."""
        return {**self.values, **self.variants[variant]}

    def experiment(self, params: Changes) -> Experiment:
        """Return the experiment that a candidate's parameters describe."""
        changes = {key: value for key, value in params.items() if key != VARIANT}
        return self.base.replaced(self.shared(params[VARIANT]) | changes)

    def is_variant(self, params: Changes) -> bool:
        """Return whether a candidate is one of the grid's variants, unchanged."""
        variant = self.base.replaced(dict(self.variants[params[VARIANT]]))
        return self.experiment(params) == variant

    def edges(self, variant: str, changes: Changes) -> list[str]:
        """Return a sentence for each value at an end of its range: the range may be too narrow.

        An end that the key itself has, such as an augmentation strength of 0, is left out.

        Args:
            variant: Variant of the winner.
            changes: Values of the winner.
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
        stages = [
            [self._most(variant, f"stages.{stage}.epochs") for stage in (0, 1)]
            for variant in self.variants
        ]
        return max(first for first, _ in stages), max(map(sum, stages))

    def networks(self) -> list[Experiment]:
        """Return an experiment for every network, with its weights, that a candidate may have."""
        found = []
        for variant in self.variants:
            options = [self.shared(variant)]
            for key, values in self.ranges.items():
                if key in _NETWORK_KEYS:
                    options = [more for one in options for more in self._expand(one, key, values)]
            found += [self.base.replaced(changes) for changes in options]
        return found

    def _expand(self, changes: Changes, key: str, values: Range) -> Iterator[Changes]:
        """Yield the changes with each value of one more key of the network, where it is varied."""
        asked = (values.when or "").partition("=")[0]
        # Whether the key matters is open if that depends on what is drawn and not expanded here.
        is_open = asked in self.ranges and asked not in _NETWORK_KEYS | changes.keys()
        matters = not asked or is_open or self._matters(str(values.when), changes)
        if key in changes or not matters or is_open:
            yield changes
        if key not in changes and matters:
            yield from ({**changes, key: value} for value in values.listed)

    def _varied(self, changes: Changes) -> Iterator[tuple[str, Range]]:
        """Yield the keys to draw; the caller adds each drawn value to `changes`."""
        for key, values in self.ranges.items():
            if key in changes:
                continue
            if values.when and not self._matters(values.when, changes):
                continue
            yield key, values

    def _matters(self, when: str, changes: Changes) -> bool:
        key, _, wanted = when.partition("=")
        value = changes.get(key, self.base.value(key))
        if not wanted:
            return bool(value)
        return wanted in map(str, value if isinstance(value, list | tuple) else [value])

    def _draw(self, trial: BaseTrial, key: str, values: Range) -> Any:
        if values.choices is not None:
            return trial.suggest_categorical(key, list(values.choices))
        low, high = values.ends
        if isinstance(self.base.value(key), int):
            return trial.suggest_int(key, int(low), int(high), log=values.log)
        return trial.suggest_float(key, low, high, log=values.log)

    def _allows(self, key: str, beyond: float) -> bool:
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


def load_space(
    source: Path | Mapping[str, Any],
    variants: Mapping[str, Changes],
    base: Experiment,
    where: str = "",
) -> SearchSpace:
    """Read and check what a search may vary.

    Args:
        source: A YAML file, its content, or what `parse_space` made of it: dotted keys, each with
            `low`, `high` and perhaps `log`, or with `choices`, or with `value`; and perhaps
            `when`.
        variants: Of the grid. A key that all of them decide is not varied.
        base: The experiment that all candidates share; its own values must be in the ranges.
        where: What messages call the source (default: its path).

    Raises:
        ConfigError: Naming the source and the key.
    """
    where = where or str(source)
    ranges = parse_space(source, where)
    try:
        fixed = {key: values.value for key, values in ranges.items() if values.value is not None}
        for key, values in ranges.items():
            _check(key, values, ranges, base, fixed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('--set: ')}") from error
    space = SearchSpace.of(variants, base, ranges)
    ends = [len(space.ranges[key].listed) for key in _NETWORK_KEYS & space.ranges.keys()]
    if math.prod(ends, start=len(variants)) > _MAX_NETWORKS:
        raise ConfigError(
            f"{where}: the variants and the choices of {', '.join(sorted(_NETWORK_KEYS))} make "
            f"more than {_MAX_NETWORKS:,} networks"
        )
    if not space.ranges:
        raise ConfigError(
            f"{where} names nothing that the grid leaves to vary in {', '.join(variants)}"
        )
    for variant in variants:
        for key, value in space.baseline(variant).items():
            if key != VARIANT and not space.ranges[key].holds(value):
                raise ConfigError(
                    f"{where}: {key}: the experiment's own value {value} cannot be drawn, but the "
                    "first candidates are the grid's variants, unchanged: widen the range, or "
                    f"give --set {key}=VALUE"
                )
    return space


def parse_space(source: Path | Mapping[str, Any], where: str) -> dict[str, Range]:
    """Read the ranges of a space; `load_space` checks whether they fit a study.

    Args:
        source: A YAML file, or its content.
        where: What messages call it.

    Raises:
        ConfigError: Naming the source and the key.
    """
    tree = read_yaml(source) if isinstance(source, Path) else source
    if not isinstance(tree, Mapping) or not all(
        isinstance(v, dict | Range) for v in tree.values()
    ):
        raise ConfigError(f"{where} holds no ranges by key; compare configs/search.yaml")
    return {
        key: found if isinstance(found, Range) else validated(Range, found, f"{where}: {cut(key)}")
        for key, found in tree.items()
    }


def _check(
    key: str, values: Range, ranges: Mapping[str, Range], base: Experiment, fixed: Changes
) -> None:
    if key in _REFUSED:
        raise ConfigError(f"{key} cannot be varied: {_REFUSED[key]}")
    now = base.value(key)
    if values.low is not None:
        if not is_number(now):
            raise ConfigError(f"{key} is {now!r}, which is not a number: give choices")
        if isinstance(now, int) and not all(float(end).is_integer() for end in values.ends):
            raise ConfigError(f"{key}: low and high must be whole numbers")
    name, _, wanted = (values.when or "").partition("=")
    # Some values are allowed only where the key matters, as a warm-up is with a schedule.
    where = {name: wanted} if wanted and isinstance(base.value(name), str) else {}
    for end in values.ends:
        is_whole = isinstance(now, int) and isinstance(end, float) and end.is_integer()
        base.replaced({**fixed, **where, key: int(end) if is_whole else end})
    if values.when is None:
        return
    if not wanted and not isinstance(base.value(name), bool):
        raise ConfigError(
            f"{key}: when names {name}, which is not true or false: give when: {name}=VALUE"
        )
    if wanted:
        base.value(name)
    if name in ranges and ranges[name].when:
        raise ConfigError(f"{key}: when names {values.when}, which has a when itself")


def is_number(value: object) -> bool:
    """Return whether a value is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
