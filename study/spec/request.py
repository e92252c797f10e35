"""Builds the StudySpec of a command line; needs neither torch nor the dataset."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from brainseg.config import Experiment, load_experiment, parse_changes
from brainseg.plugins import NETWORK_GROUP, absolute_reference, fingerprint, installed, is_path
from brainseg.storage.files import hash_file, hide_home, user_path
from brainseg.storage.urls import is_url
from study.spec.configs import shipped
from study.spec.grid import Grid, SearchDefaults
from study.spec.search_space import load_space, parse_space
from study.spec.study_spec import SearchSpec, StudySpec

_WEIGHTS = "model.encoder_weights"
Say = Callable[[str], None]


def check_options(args: argparse.Namespace, *, synthetic: bool) -> None:
    """Check the flags, keys and files of a command line, before anything slow is loaded.

    Args:
        args: The command line, see `study.cli`.
        synthetic: Whether the slices will be generated.

    Raises:
        ConfigError: If one of them is wrong.
        DataError: If a file that they name is missing.
    """
    jobs = build_spec(args, load_base(args, synthetic=synthetic)).jobs()
    files = {job.experiment.data for job in jobs if "." in job.experiment.data.split}
    if files:
        from brainseg.data.split import count_rotations  # slow to import

        for data in files:
            count_rotations(data, ())


def load_base(args: argparse.Namespace, *, synthetic: bool) -> Experiment:
    """Return the experiment that the variants of a command line share.

    Args:
        args: The command line, see `study.cli`.
        synthetic: Whether the slices are generated, which has other defaults.

    Raises:
        ConfigError: If a file, key or value is wrong.
    """
    changes = parse_changes(args.changes)
    args.grid.refuse_decided(changes)
    default = shipped("phantom.yaml" if synthetic else "baseline.yaml")
    base = load_experiment(args.config or default)
    shared = base.replaced(args.grid.shared, f"grid {args.grid.name}, shared").replaced(changes)
    if args.split is None:
        return shared
    found = shared.replaced({"data.split": args.split}, "--split")
    if "." in args.split:
        user_path(args.split, "--split")
    return found


def build_spec(
    args: argparse.Namespace, experiment: Experiment, say: Say = lambda text: None
) -> StudySpec:
    """Return what a command line asks, without what the dataset says.

    Args:
        args: The command line, see `study.cli`.
        experiment: As `load_base` returns it.
        say: Called with what is ignored.

    Raises:
        ConfigError: If a file, key or value is wrong.
    """
    grid, experiment, files = _resolve_files(args.grid, experiment)
    grid.check_variants(experiment)
    spec = StudySpec.of(
        grid,
        folds=args.folds or grid.folds,
        seeds=args.seeds or grid.seeds,
        files=files,
        experiment=experiment,
        search=_build_search(args),
    )
    if spec.search is None:
        return spec
    spec = spec.model_copy(update={"search": _check_space(args, spec, say)})
    drawn = [one for search in spec.searches for one in search.search_space.networks()]
    return spec.model_copy(update={"files": files | _fingerprint_networks(drawn)})


def _fingerprint_networks(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Return the fingerprint of each network of the user's own, or of a package."""
    names = {experiment.model.architecture for experiment in experiments}
    own = sorted(name for name in names if is_path(name) or name in installed(NETWORK_GROUP))
    return {name: fingerprint(name) for name in own}


def _build_search(args: argparse.Namespace) -> SearchSpec | None:
    """Return the search of the flags or else of the grid, with an empty space."""
    if args.search is args.grid.search is None:
        return None
    default = args.grid.search or SearchDefaults(candidates=args.search)
    return SearchSpec(
        candidates=args.search or default.candidates,
        per=default.per,
        sampler=args.sampler or default.sampler,
        scheduler=args.scheduler or default.scheduler,
        folds=args.search_folds or default.folds,
        seeds=args.search_seeds or default.seeds,
        space={},
        warm_start=str(args.warm_start or default.warm_start or ""),
    )


def _check_space(args: argparse.Namespace, spec: StudySpec, say: Say) -> SearchSpec:
    """Return the search with its space, which leaves every search something to vary."""
    source = args.space or (args.grid.search and args.grid.search.space) or shipped("search.yaml")
    where = str(source) if isinstance(source, Path) else f"grid {spec.grid}, search.space"
    ranges = parse_space(source, where)
    for key in _OF_FILES.keys() & ranges.keys():
        values = ranges[key]
        choices = values.choices and tuple(map(_OF_FILES[key], values.choices))
        whole = {"choices": choices, "value": _OF_FILES[key](values.value)}
        ranges |= {key: values.model_copy(update=whole)}
    space = load_space(ranges, spec.variants, spec.experiment, where)
    for key in space.fixed:
        say(f"Note: {where}: the grid {spec.grid} decides {key}, so it is not varied")
    for search in spec.searches:
        load_space(ranges, search.variants, spec.experiment, where)
    return spec.own_search.model_copy(update={"space": space.record()})


def _absolute_path(text: str, key: str) -> str:
    path = user_path(text, key)
    # The file itself may be a link to one whose name says nothing.
    return hide_home(str(path.parent.resolve() / path.name))


def _absolute_code(value: Any) -> Any:
    return absolute_reference(value) if isinstance(value, str) else value


def _absolute_split(value: Any) -> Any:
    is_file = isinstance(value, str) and "." in value
    return _absolute_path(value, "data.split") if is_file else value


def _absolute_weights(value: Any) -> Any:
    # What is no text is refused where the variants are checked.
    if not isinstance(value, str) or value in ("imagenet", "none") or is_url(value):
        return value
    return _absolute_path(value, _WEIGHTS)


_OF_FILES: dict[str, Callable[[Any], Any]] = {
    "model.architecture": _absolute_code,
    _WEIGHTS: _absolute_weights,
}
"""What of a search's space may name a file -> how its path is made absolute."""


def _resolve_files(grid: Grid, experiment: Experiment) -> tuple[Grid, Experiment, dict[str, str]]:
    """Make the paths of a user's code, splits and weights absolute, and fingerprint the code and
    the splits.
    """
    find: dict[str, Callable[[Any], Any]] = {
        **_OF_FILES,
        "preprocess.filters": lambda names: [absolute_reference(name) for name in names],
        "data.split": _absolute_split,
    }
    experiment = experiment.replaced({key: f(experiment.value(key)) for key, f in find.items()})
    variants = {
        name: {key: find[key](v) if key in find else v for key, v in changes.items()}
        for name, changes in grid.variants.items()
    }
    found = [experiment.replaced(changes) for changes in variants.values()]
    files = _fingerprint_networks(found)
    files |= {name: fingerprint(name) for e in found for name in e.preprocess.own_filters}
    splits = [Path(e.data.split) for e in found if "." in e.data.split]
    files |= {
        str(path): hash_file(path.expanduser()) for path in splits if path.expanduser().is_file()
    }
    return replace(grid, variants=variants), experiment, files
