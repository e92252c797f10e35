"""Grids: what a study compares, as a YAML file of named variants and factors.

A variant is a set of keys in which it differs from the base experiment. Factors have named levels,
which multiply. `configs/grids/` holds the grids that come with the program; docs/studies.md shows
how to write one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from brainseg.config import NUM_FOLDS, NUM_INNER_FOLDS, Experiment, Name
from brainseg.errors import ConfigError, DataError
from brainseg.storage.files import read_text, user_path
from brainseg.storage.values import (
    Checked,
    Line,
    cut,
    did_you_mean,
    read_yaml,
    shown,
    validated,
)
from study.spec.configs import shipped

Changes = dict[str, Any]
"""Dotted key of an experiment -> its value, such as `{"model.encoder": "resnet50"}`."""

Levels = dict[str, str]
"""Factor -> the level that a variant has."""

Sampler = Literal["tpe", "random", "gp"]
Scheduler = Literal["asha", "hyperband", "halving", "median", "none"]

PER_VARIANT = "variant"
"""The `per` of a grid whose variants have a search each."""

LEAKY = "LEAKY-"
"""Prefix of the variants whose split lets slices of one patient train and test."""

WINNER = "winner-"
"""Prefix of the variant that is a search's winner, see `winner_name`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_WINNER_NAME = re.compile(rf"{WINNER}(?:(?P<group>.+)-)?c(?P<index>\d{{4,}})")
_OF_ONE_SEARCH = "candidates"
_ORIGIN = "base variant"
"""The folder below `search/` of the candidates of a study's only search."""

MAX_VARIANTS = 1_000
MAX_SEEDS = 1_000
MAX_CANDIDATES = 10_000
"""Per search."""

Text = Annotated[str, Field(max_length=2_000)]
Folds = Annotated[int, Field(ge=1, le=NUM_FOLDS)]
InnerFolds = Annotated[int, Field(ge=1, le=NUM_INNER_FOLDS)]
Seeds = Annotated[int, Field(ge=1, le=MAX_SEEDS)]
Candidates = Annotated[int, Field(ge=1, le=MAX_CANDIDATES)]

_INHERITS, _SHARED = "inherits", "shared"
_OF_ALL = ("stopping.", "data.spacing_mm", "data.split_seed")
DECIDED = {
    "fold": "--folds N runs rotations 0 to N-1",
    "seed": "--seeds N counts up from the seed of the configuration",
    "inner_fold": "it belongs to a search",
}
"""Key that no grid sets -> what sets it."""


def winner_name(index: int, group: str = "") -> str:
    """Return the name under which a search's candidate is trained in full."""
    return f"{WINNER}{group and f'{group}-'}c{index:04d}"


def parse_winner(variant: str) -> tuple[str, int] | None:
    """Return the group and the candidate's index of a winner, or None for another variant."""
    found = _WINNER_NAME.fullmatch(variant)
    return (found["group"] or "", int(found["index"])) if found else None


class Published(Checked):
    """A published table, to stand beside a study's own.

    Attributes:
        source: Who published it, and where.
        measured: What it was measured on.
        scores: Variant -> name of a score -> value.
    """

    source: Text
    measured: Text
    scores: dict[str, dict[str, Annotated[float, Field(ge=-1e9, le=1e9)]]]


class _Defaults(Checked):
    folds: Folds = 1
    seeds: Seeds = 1


class SearchDefaults(Checked):
    """The search that belongs to a grid; flags of the command line override all but `per`.

    Attributes:
        per: `variant` or a factor's name: each variant, or each level of the factor, has a search
            of its own with the same budget. Empty: one search for all variants.
        candidates: Per search, including the variants, unchanged.
        folds: Inner folds per candidate.
        seeds: Seeds per candidate.
        sampler: Draws candidates.
        scheduler: Stops poor candidates.
        space: What varies, or the path of its file, relative to the grid's.
        warm_start: Folder of a study whose search is over, relative to the current directory: its
            best candidates follow the variants.
    """

    candidates: Candidates
    per: Annotated[str, Field(max_length=100)] = ""
    folds: InnerFolds = 1
    seeds: Seeds = 1
    sampler: Sampler = "tpe"
    scheduler: Scheduler = "asha"
    space: Path | dict[str, Any] | None = None
    warm_start: Line | None = None


class ChosenOn(Checked):
    """Patients by which an earlier search chose the settings of some variants.

    The report states them.

    Attributes:
        variants: Names of these variants.
        judged: Patients whose scores chose.
        trained: Patients that candidates were trained on, which no score was taken of.
    """

    variants: Annotated[tuple[Name, ...], Field(min_length=1)]
    judged: Annotated[tuple[Line, ...], Field(min_length=1)]
    trained: tuple[Line, ...] = ()


class _GridFile(Checked):
    """The keys of a grid file."""

    description: Text
    chosen_on: ChosenOn | None = None
    published: Line | None = None
    defaults: _Defaults = _Defaults()
    search: SearchDefaults | None = None
    shared: dict[str, Any] = Field({})
    names: Annotated[Line, Field(max_length=300)] | None = None
    factors: dict[str, dict[str, dict[str, Any] | None]] = Field({})
    variants: dict[str, dict[str, Any] | None] = Field({})


@dataclass(frozen=True)
class Grid:
    """What a study compares.

    Attributes:
        name: The file's name without suffix.
        description: A sentence.
        variants: Name -> the keys in which the variant differs from the base experiment.
        shared: Keys of the base experiment that the grid sets for all its variants.
        factors: Variant -> factor -> level; a variant that is no combination of levels is absent.
        folds: Rotations to run where the command line does not say.
        seeds: Seeds to run where the command line does not say.
        search: The search to run, if the grid has one.
        published: The published table to compare with, if there is one.
        chosen_on: Patients by which an earlier search chose the settings of some variants, if the
            grid names them.
        text: The content of a user's own file; empty for a grid that comes with the program.
    """

    name: str
    description: str
    variants: dict[str, Changes]
    shared: Changes = field(default_factory=dict)
    factors: dict[str, Levels] = field(default_factory=dict)
    folds: int = 1
    seeds: int = 1
    search: SearchDefaults | None = None
    published: Published | None = None
    chosen_on: ChosenOn | None = None
    text: str = ""

    def refuse_decided(self, changes: Changes) -> None:
        """Refuse `--set` for a key that the product of folds or a variant decides otherwise.

        Raises:
            ConfigError: Naming the key.
        """
        for key, value in changes.items():
            decided = [variant[key] for variant in self.variants.values() if key in variant]
            if any(own != value for own in decided):
                raise ConfigError(
                    f"--set {key}: the grid {self.name} decides it, variant by variant: leave it "
                    "out, or change it in a copy of the grid"
                )
            if key == "fold":
                raise ConfigError("--set fold: use --folds N, which runs rotations 0 to N-1")

    def check_variants(self, base: Experiment) -> None:
        """Refuse two variants that are the same experiment, and a leaky one that is not so named.

        Raises:
            ConfigError: Naming the variants, or a key that does not fit.
        """
        seen: list[tuple[str, Experiment]] = []
        for variant, changes in self.variants.items():
            experiment = base.replaced(changes, f"grid {self.name}, variant {variant}")
            if experiment.is_leaky != variant.startswith(LEAKY):
                raise ConfigError(
                    f"grid {self.name}: the name {variant} must begin with {LEAKY}, since its "
                    "data.split is slice"
                    if experiment.is_leaky
                    else f"grid {self.name}: {variant} begins with {LEAKY}, but its data.split is "
                    f"{experiment.data.split}"
                )
            for other, earlier in seen:
                if experiment == earlier:
                    raise ConfigError(
                        f"grid {self.name}: {other} and {variant} are the same experiment; "
                        "remove one of them"
                    )
            seen.append((variant, experiment))
        if all(experiment.is_leaky for _, experiment in seen):
            raise ConfigError(
                f"grid {self.name}: all variants are leaky and none is ranked: add an honest one"
            )
        splits = sorted({one.data.split for _, one in seen if not one.is_leaky})
        if len(splits) == 1 and splits != [base.data.split]:
            raise ConfigError(
                f"grid {self.name}: its variants set data.split to {splits[0]}, but the study's "
                f"is {base.data.split}: give --split {splits[0]}, or take the key out of the "
                "variants"
            )
        if len(splits) > 1:
            raise ConfigError(
                f"grid {self.name}: the variants have the splits {' and '.join(splits)}, which "
                "test other patients: give all of them one data.split"
            )


ONE = Grid("one", "The configured experiment alone.", {"configured": {}})
"""The grid of a study without `--grid`: the base experiment, unchanged."""


def load_grid(source: str) -> Grid:
    """Read a grid.

    Args:
        source: The path of a YAML file, or the name of a grid that comes with the program.

    Raises:
        ConfigError: Naming the file, and the variant, factor or key that is wrong.
        DataError: If the file, or one that it names, is missing.
    """
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = user_path(source, "--grid")
        return replace(_read_grid(path), text=read_text(path))
    if source == ONE.name:
        return ONE
    path = shipped("grids") / f"{source}.yaml"
    if not _NAME.fullmatch(source) or not path.is_file():
        names = [found.stem for found in _shipped_files()]
        hint = did_you_mean(source, names)
        raise ConfigError(
            f"--grid {cut(source)}: there is no grid of this name; {hint}Give one of "
            f"{', '.join(names)}, or the path of a YAML file"
        )
    return _read_grid(path)


def shipped_grids() -> list[Grid]:
    """Return the grids that come with the program, in alphabetical order."""
    return [_read_grid(path) for path in _shipped_files()]


def _shipped_files() -> list[Path]:
    return sorted(shipped("grids").glob("*.yaml"))


def _read_grid(path: Path) -> Grid:
    file = validated(_GridFile, read_yaml(path), str(path))
    try:
        shared = _checked(file.shared, _SHARED)
        variants, factors = _multiply(file, shared)
        return Grid(
            name=checked_name(path.stem, "the file's name"),
            description=file.description,
            variants=variants,
            shared=shared,
            factors=factors,
            folds=file.defaults.folds,
            seeds=file.defaults.seeds,
            search=_checked_search(file.search, variants, factors, path),
            published=_read_published(file.published, path),
            chosen_on=_checked_choice(file.chosen_on, variants),
        )
    except (ConfigError, DataError) as error:
        raise type(error)(f"{path}: {error}") from error


def _checked_choice(chosen: ChosenOn | None, variants: Mapping[str, Changes]) -> ChosenOn | None:
    for name in chosen.variants if chosen else ():
        if name not in variants:
            raise ConfigError(
                f"chosen_on names {name}, which is not a variant; these are: {', '.join(variants)}"
            )
    return chosen


def _multiply(file: _GridFile, shared: Changes) -> tuple[dict[str, Changes], dict[str, Levels]]:
    """Return all variants of a file, those of the factors first, and their levels."""
    variants: dict[str, Changes] = {}
    factors: dict[str, Levels] = {}
    multiplied: dict[str, str] = {}

    def add(name: str, changes: Changes, levels: Levels) -> None:
        if checked_name(name, "a variant").startswith(WINNER):
            raise ConfigError(f"variant {name}: {WINNER} begins the names of searches' winners")
        if name in variants:
            raise ConfigError(f"there are two variants {name}")
        if len(variants) == MAX_VARIANTS:
            raise ConfigError(f"there are more than {MAX_VARIANTS:,} variants")
        variants[name] = changes
        if levels:
            factors[name] = levels

    for levels, changes in _combinations(file.factors, shared):
        add(_name(file, levels), changes, levels)
    for name, tree in file.variants.items():
        own = dict(tree or {})
        inherited = _inherited(name, own.pop(_INHERITS, None), variants)
        own = _flat(own, f"variant {name}")
        for suffix, levels, changes in _products(own, f"variant {name}", {**shared, **inherited}):
            add(f"{name}{suffix}", {**inherited, **changes}, levels)
            multiplied[f"{name}{suffix}"] = name
    _tell_origins(factors, multiplied)
    if not variants:
        raise ConfigError("there is nothing to compare: give factors or variants")
    return variants, factors


def _tell_origins(factors: dict[str, Levels], multiplied: Mapping[str, str]) -> None:
    """Where several variants have lists of the same keys, make which of them it is a factor too.

    Args:
        factors: Variant -> factor -> its level; changed in place.
        multiplied: Product of a variant's lists -> the variant; without lists it is its own.
    """
    products = {name: origin for name, origin in multiplied.items() if name in factors}
    origins: dict[frozenset[str], set[str]] = {}
    for name, origin in products.items():
        origins.setdefault(frozenset(factors[name]), set()).add(origin)
    for name, origin in products.items():
        if len(origins[frozenset(factors[name])]) > 1:
            factors[name] = {_ORIGIN: origin, **factors[name]}


def _inherited(name: str, parent: str | None, variants: Mapping[str, Changes]) -> Changes:
    if parent is None:
        return {}
    if not isinstance(parent, str) or parent not in variants:
        raise ConfigError(
            f"variant {name} inherits from {cut(str(parent))}, which is not above it in the file; "
            f"there are {cut(', '.join(variants)) or 'none'}"
        )
    return variants[parent]


def _combinations(
    factors: Mapping[str, Mapping[str, Mapping[str, Any] | None]], shared: Changes
) -> Iterator[tuple[Levels, Changes]]:
    """Yield the levels and the keys of each combination; the last factor varies fastest."""
    if not factors:
        return
    _limit("factors", factors.values())
    sides = []
    for factor, levels in factors.items():
        checked_name(factor, "a factor")
        if len(levels) < 2:
            raise ConfigError(f"factor {factor} has {len(levels)} level, and needs at least 2")
        sides.append(
            [
                (factor, checked_name(level, f"a level of {factor}"), changes or {})
                for level, changes in levels.items()
            ]
        )
    for cell in itertools.product(*sides):
        merged: Changes = {}
        for factor, level, changes in cell:
            checked = _checked(changes, f"factor {factor}, level {level}", shared)
            if twice := sorted(set(merged) & set(checked)):
                raise ConfigError(f"factor {factor} sets {twice[0]}, as another factor does")
            merged |= checked
        yield {factor: level for factor, level, _ in cell}, merged


def _name(file: _GridFile, levels: Levels) -> str:
    pattern = file.names or "-".join(f"{{{factor}}}" for factor in levels)
    name = pattern
    for factor, level in levels.items():
        if f"{{{factor}}}" not in pattern:
            raise ConfigError(f"names is {pattern!r}, which lacks {{{factor}}}")
        name = name.replace(f"{{{factor}}}", level)
    return name


def _products(keys: Changes, where: str, below: Changes) -> Iterator[tuple[str, Levels, Changes]]:
    """Yield the suffix of the name, the levels and the keys of each product of a variant's lists.

    A list is multiplied out, unless the key itself takes that list.
    """
    many = {k: v for k, v in keys.items() if isinstance(v, list) and not _takes(k, v)}
    if empty := [key for key, values in many.items() if not values]:
        raise ConfigError(f"{where}: {empty[0]} is an empty list; give at least one value")
    _limit(where, many.values())
    for values in itertools.product(*many.values()):
        chosen = dict(zip(many, values, strict=True))
        levels = {key: _slug(value) for key, value in chosen.items()}
        suffix = "".join(f"-{level}" for level in levels.values())
        yield suffix, levels, _checked({**keys, **chosen}, where, below)


def _limit(what: str, sides: Iterable[Sized]) -> None:
    count = math.prod(map(len, sides))
    if count > MAX_VARIANTS:
        raise ConfigError(f"{what}: there are more than {MAX_VARIANTS:,} variants: {count:,}")


def _takes(key: str, value: Any) -> bool:
    try:
        Experiment().replaced({key: value})
    except ConfigError:
        return False
    return True


def _slug(value: Any) -> str:
    """A value as part of a variant's name: `[median, clahe]` becomes `median-clahe`."""
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-") or "none"


def _checked(
    tree: Mapping[str, Any], where: str, below: Mapping[str, Any] | None = None
) -> Changes:
    """Return nested or dotted keys as dotted ones, each of which an experiment has.

    Args:
        tree: The keys.
        where: What messages call them.
        below: Dotted keys that they change: a warm-up fits if these have a schedule with one.
    """
    changes = _flat(tree, where)
    for key in changes:
        if key in DECIDED:
            raise ConfigError(f"{where}: {key} cannot vary in a grid: {DECIDED[key]}")
        if key.startswith(_OF_ALL) and where != _SHARED:
            raise ConfigError(f"{where}: {key} holds for all variants: put it under {_SHARED}")
    Experiment().replaced({**(below or {}), **changes}, where)
    return changes


def _flat(tree: Mapping[str, Any], where: str) -> Changes:
    changes: Changes = {}
    for key, value in tree.items():
        below = _flat(value, where) if isinstance(value, dict) else {"": value}
        for rest, leaf in below.items():
            dotted = f"{key}.{rest}".rstrip(".")
            if dotted in changes:
                raise ConfigError(f"{where}: {dotted} is there twice")
            changes[dotted] = leaf
    return changes


def is_name(name: str) -> bool:
    """Return whether a variant can have a name, see `checked_name`."""
    return bool(_NAME.fullmatch(name))


def checked_name(name: str, what: str) -> str:
    """Return a name, or refuse one that would not be safe in paths and tables.

    Args:
        name: Of a variant, a factor, a level or a study.
        what: What has the name, for the message.

    Raises:
        ConfigError: Saying what is allowed.
    """
    if not is_name(name):
        raise ConfigError(
            f"{what} is named {shown(name)}; at most 60 letters, digits, '.', '_' and '-', the "
            "first a letter or digit"
        )
    return name


def _checked_search(
    search: SearchDefaults | None,
    variants: Mapping[str, Changes],
    factors: Mapping[str, Levels],
    path: Path,
) -> SearchDefaults | None:
    """Check what a grid's searches are per, and find the file of their space."""
    if search is None:
        return None
    of_own = [*variants] if search.per == PER_VARIANT else []
    of_own += [levels[search.per] for levels in factors.values() if search.per in levels]
    if _OF_ONE_SEARCH in of_own:
        raise ConfigError(
            f"search: what is named {_OF_ONE_SEARCH} cannot have a search of its own, whose "
            "folder would be that of the candidates: choose another name"
        )
    if search.per not in ("", PER_VARIANT):
        without = [name for name in variants if search.per not in factors.get(name, {})]
        known = dict.fromkeys(factor for levels in factors.values() for factor in levels)
        if len(without) == len(variants):
            raise ConfigError(
                f"search: per is {cut(search.per)}; it must be {', '.join([PER_VARIANT, *known])}"
            )
        if without:
            raise ConfigError(
                f"search: per is {search.per}, but the variant {without[0]} has no level of it"
            )
    if isinstance(search.space, Path):
        return search.model_copy(
            update={"space": path.parent / user_path(search.space, "search.space")}
        )
    return search


def _read_published(name: str | None, grid: Path) -> Published | None:
    if name is None:
        return None
    known = {path.stem: path for path in sorted(shipped("published").glob("*.yaml"))}
    if name in known:
        path = known[name]
    elif name.endswith((".yaml", ".yml")):
        path = grid.parent / user_path(name, "published")
    else:
        raise ConfigError(
            f"published is {cut(name)}, which is unknown; valid: {', '.join(known)}, or the path "
            "of a YAML file"
        )
    return validated(Published, read_yaml(path), str(path))
