"""What a search may vary: ranges read from a YAML file, checked, and drawn from.

Needs neither Ray nor torch; Optuna's trials are handed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config import Experiment, ModelConfig
from brainseg.errors import ConfigError
from study.ranges import Range, is_number, load_ranges

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
