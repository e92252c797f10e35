"""Validate the command line, and prepare the study: data, weights, networks, storage."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainseg.config import Experiment, load_experiment, parse_changes
from brainseg.data.inputs import StoreInputs, name_channels
from brainseg.data.layouts import find_default_root
from brainseg.data.patients import describe_patients
from brainseg.data.preprocess import apply_filters
from brainseg.data.slice_store import PHANTOM, SliceStore, open_dataset
from brainseg.data.split import count_rotations, split_of
from brainseg.errors import ConfigError
from brainseg.model.encoders import describe_weights, find_encoder_weights
from brainseg.model.model_file import versions
from brainseg.model.networks import build_model, build_network, check_network, names_code
from brainseg.plugins import absolute, fingerprint
from brainseg.storage.files import hash_file, write_csv, write_text
from brainseg.storage.remote import require_store
from brainseg.storage.urls import Location, is_url, join_location
from study.analysis.protocol import register
from study.external import ExternalVariant, score_external
from study.spec.configs import shipped
from study.spec.grid import LEAKY, WINNER, Changes, Grid, SearchDefaults
from study.spec.resources import Cluster, TrialResources, share_cluster
from study.spec.search_space import load_space
from study.spec.study_spec import SearchSpec, StudySpec
from study.spec.trial_job import TrialJob
from study.storage.leaderboard import count_open, winner_jobs
from study.storage.study_folder import default_name, read_spec, read_study, write_study
from study.storage.sync import StudySync
from study.storage.tables import EXTERNAL_TABLES, external_folder
from study.storage.trial_folder import FAILURES, TrialFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study whose configuration, data and networks have been checked.

    Attributes:
        spec: Its configuration.
        data: The dataset, checked.
        sync: Where the study is or will be.
        sizes: `Experiment.network` -> its number of weights.
        external: Other tools' predictions, scored.
    """

    spec: StudySpec
    data: SliceStore
    sync: StudySync
    sizes: dict[str, int]
    external: tuple[ExternalVariant, ...] = ()

    @property
    def folder(self) -> Path:
        """The study's folder on this machine."""
        return self.sync.folder

    def has_new_predictions(self) -> bool:
        """Return whether predictions were given that study.json does not have yet."""
        if not self.spec.external:
            return False
        if not (self.folder / "study.json").exists():
            return True
        tables = [
            external_folder(self.folder, name) / f"{table}.csv"
            for name in self.spec.external
            for table in EXTERNAL_TABLES
        ]
        is_known = read_spec(self.folder).external == self.spec.external
        return not (is_known and all(path.exists() for path in tables))

    def num_open_candidates(self) -> int:
        """Return how many candidates of all searches have yet to end; 0 without a search."""
        return sum(count_open(self.folder, search) for search in self.spec.searches)

    def jobs(self) -> list[TrialJob]:
        """Return all trials: the grid's and, once all searches are over, their winners'."""
        jobs = self.spec.jobs()
        if self.num_open_candidates():
            return jobs
        return jobs + [
            job for search in self.spec.searches for job in winner_jobs(self.folder, search)
        ]

    def expected_jobs(self, *, begun: bool = True) -> list[TrialJob]:
        """Return all trials, with placeholders for those of a winner that is not known yet.

        Args:
            begun: False for a study that begins again, whatever is in the folder now.
        """
        if self.spec.search is None or (begun and not self.num_open_candidates()):
            return self.jobs()
        jobs = self.spec.jobs()
        for search in self.spec.searches:
            expected = WINNER + (search.search.group if search.search else "")
            first = next(iter(search.variants))
            jobs += [
                job.model_copy(update={"variant": expected})
                for job in self.spec.jobs()
                if job.variant == first
            ]
        return jobs

    def open_jobs(self, jobs: Sequence[TrialJob], *, retry_failed: bool) -> list[TrialJob]:
        """Return the trials that have not ended, and on request those that failed."""
        folders = [TrialFolder(self.folder / job.path) for job in jobs]
        return [
            job
            for job, folder in zip(jobs, folders, strict=True)
            if not folder.is_finished() and (retry_failed or folder.status not in FAILURES)
        ]


def resolve(args: argparse.Namespace, say: Say) -> Study:
    """Check everything that a study needs before it starts.

    Args:
        args: The command line, see `study.cli`. With `--plan`, missing ImageNet weights are not
            downloaded.
        say: Called with what was found.

    Raises:
        ConfigError: If a flag, a key or a file of the command line is invalid.
        BrainsegError: If data or weights cannot be used.
    """
    changes = parse_changes(args.changes)
    args.grid.refuse_decided(changes)
    # First without the data, which may take minutes to open, so that mistakes are told early.
    will_generate = args.data is None and find_default_root() is None
    _build_spec(args, _load_base(args, changes, synthetic=will_generate)).jobs()
    data = _open_data(args.data, say)
    experiment, weights_hash = _resolve_weights(
        _load_base(args, changes, synthetic=data.synthetic)
    )
    facts = {
        "fingerprint": data.fingerprint,
        "patients": len(data.patients),
        "slices": len(data.slices),
        "tumour_slices": num_tumour_slices(data),
        "data": str(data.source),
        "synthetic": data.synthetic,
        "channels": data.channels,
        "about": data.about,
        "notes": data.notes,
        "weights_hash": weights_hash,
    }
    spec = _build_spec(args, name_channels(experiment, data), say).model_copy(update=facts)
    _check_splits(spec, data)
    for network in spec.networks():
        StoreInputs(data, network)  # which names an unknown channel
    for job in spec.jobs()[: len(spec.variants)]:
        if job.experiment.preprocess.own_filters:
            apply_filters(data.image(0), job.experiment.preprocess)
    external = tuple(_read_predictions(args, spec, data, say))
    spec = spec.model_copy(update={"external": {one.name: one.patients for one in external}})
    sizes = _check_networks(spec.networks(), download=not args.plan)
    return Study(spec, data, _find_storage(args, data.synthetic), sizes, external)


def _read_predictions(
    args: argparse.Namespace, spec: StudySpec, data: SliceStore, say: Say
) -> Iterator[ExternalVariant]:
    names = set(spec.variants)
    splits = {job.experiment.data.split for job in spec.jobs()} | {spec.experiment.data.split}
    if args.predictions and (len(splits) > 1 or spec.experiment.is_leaky):
        raise ConfigError(
            f"--predictions: the variants have the splits {', '.join(sorted(splits))}; other "
            "tools' predictions are compared under one split by patient"
        )
    for name, folder in args.predictions:
        if name in names or name.startswith((WINNER, LEAKY, "checkpoints")):
            raise ConfigError(f"--predictions {name}={folder}: this name is taken")
        names.add(name)
        found = score_external(name, folder, spec, data)
        say(f"Predictions of {name}: {len(found.patients)} test patients, from {folder}")
        yield found


def allocate(args: argparse.Namespace, study: Study, nodes: Cluster) -> TrialResources:
    """Decide what each trial gets of a cluster; a study that continues keeps what it had."""
    is_new = args.fresh or not (study.folder / "study.json").exists()
    record = {} if is_new else read_study(study.folder)
    cpus, gpus = args.cpus_per_trial, args.gpus_per_trial
    candidates = study.spec.search.candidates if study.spec.search else 0
    jobs = study.spec.jobs() if is_new else study.jobs()
    return share_cluster(
        nodes,
        max(len(jobs), candidates),
        cpus=record.get("cpus_per_trial") if cpus is None else cpus,
        gpus=record.get("gpus_per_trial") if gpus is None else gpus,
        concurrent=args.concurrent,
        grows=args.address is not None,
    )


def write_facts(study: Study, resources: TrialResources) -> None:
    """Write study.json, experiment.yaml, split.json and patients.csv, before anything trains."""
    spec, data, experiment = study.spec, study.data, study.spec.experiment
    facts = {
        "first_seed": experiment.seed,
        "weights": describe_weights(experiment.model),
        "cpus_per_trial": resources.cpus,
        "gpus_per_trial": resources.gpus,
        "versions": versions(),
    }
    is_there = (study.folder / "study.json").exists()
    earlier = read_study(study.folder).get("protocol", []) if is_there else []
    tested = [job for job in study.jobs() if TrialFolder(study.folder / job.path).is_finished()]
    facts["protocol"] = register(earlier, spec, len(tested))
    # Before study.json, which says that they are there.
    for external in study.external:
        external.write(study.folder)
    write_study(study.folder, spec, facts)
    (study.folder / "trials").mkdir(exist_ok=True)
    seed = experiment.data.split_seed

    def split(fold: int, inner_fold: int) -> dict[str, object]:
        changes = {"fold": fold, "inner_fold": inner_fold}
        return split_of(experiment.replaced(changes), data.slices).model_dump(mode="json")

    record = {
        "fingerprint": data.fingerprint,
        "split_seed": seed,
        "split": experiment.data.split,
        "patients": data.patients,
        "rotations": [split(fold, experiment.inner_fold) for fold in range(spec.folds)],
    }
    if spec.search is not None:
        record["search"] = [split(0, inner_fold) for inner_fold in spec.inner_folds]
    write_text(study.folder / "split.json", json.dumps(record, indent=1) + "\n")
    patients = describe_patients(data)
    write_csv(study.folder / "patients.csv", patients)


def num_tumour_slices(data: SliceStore) -> int:
    """Return how many slices have tumour."""
    return sum(item.tumour_pixels > 0 for item in data.slices)


def _build_spec(
    args: argparse.Namespace, experiment: Experiment, say: Say = lambda text: None
) -> StudySpec:
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
    return spec.model_copy(update={"search": _check_space(args, spec, say)})


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
    )


def _check_space(args: argparse.Namespace, spec: StudySpec, say: Say) -> SearchSpec:
    """Return the search with its space, which leaves every search something to vary."""
    assert spec.search is not None
    source = args.space or (args.grid.search and args.grid.search.space) or shipped("search.yaml")
    where = str(source) if isinstance(source, Path) else f"grid {spec.grid}, search.space"
    space = load_space(source, spec.variants, spec.experiment, where)
    for key in space.fixed:
        say(f"Note: {where}: the grid {spec.grid} decides {key}, so it is not varied")
    for search in spec.searches:
        load_space(source, search.variants, spec.experiment, where)
    return spec.search.model_copy(update={"space": space.record()})


def _load_base(args: argparse.Namespace, changes: Changes, *, synthetic: bool) -> Experiment:
    default = shipped("phantom.yaml" if synthetic else "baseline.yaml")
    base = load_experiment(args.config or default)
    if args.split is not None:
        changes = {**changes, "data.split": args.split}
    return base.replaced(args.grid.shared, f"grid {args.grid.name}, shared").replaced(changes)


def _open_data(path: Location | None, say: Say) -> SliceStore:
    source = path or find_default_root()
    if source is None:
        say(
            "No --data, no $BRAINSEG_DATA, no ./data/kaggle_3m: using generated, SYNTHETIC slices."
        )
    require_store(source or Path())
    data = open_dataset(source or PHANTOM)
    for note in data.notes:
        say(f"Note: {note}")
    say(
        f"Data: {len(data.patients)} patients, {len(data.slices):,} slices, "
        f"{num_tumour_slices(data):,} with tumour, {data.size} px, "
        f"fingerprint {data.fingerprint[:12]}"
    )
    return data


def _resolve_weights(experiment: Experiment) -> tuple[Experiment, str]:
    """Make the path of a weight file absolute, and hash its content; a URL stays as it is."""
    weights = experiment.model.encoder_weights
    if weights in ("imagenet", "none"):
        return experiment, ""
    require_store(weights)
    path = find_encoder_weights(experiment.model)
    assert path is not None
    if not is_url(weights):
        experiment = experiment.replaced({"model.encoder_weights": str(path.resolve())})
    return experiment, hash_file(path)


def _find_storage(args: argparse.Namespace, synthetic: bool) -> StudySync:
    name = args.name or default_name(args.grid.name, args.config, synthetic=synthetic)
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name is {name!r}; it must name a folder below --storage")
    if isinstance(args.storage, Path):
        return StudySync((args.storage.expanduser() / name).resolve())
    if any(mark in name for mark in "?#"):
        raise ConfigError(f"--name is {name!r}; in a URL it must be without ? and #")
    return StudySync(join_location(args.storage, name), read_only=args.plan)


def _check_splits(spec: StudySpec, data: SliceStore) -> None:
    """Make every split that the study uses, so that a faulty one is told before the start."""
    leaky = [name for name in spec.variants if name.startswith(LEAKY)]
    if leaky and spec.search is not None:
        raise ConfigError(f"--search: a search cannot choose by a leaky split: {', '.join(leaky)}")
    experiments = {job.experiment.data: job.experiment for job in spec.jobs()}
    for experiment in experiments.values():
        count = count_rotations(experiment.data, data.slices)
        if spec.folds > count:
            raise ConfigError(
                f"--folds {spec.folds}: data.split {experiment.data.split} has {count} rotations"
            )
        for fold in range(spec.folds):
            split_of(experiment.replaced({"fold": fold}), data.slices)
        for inner_fold in spec.inner_folds:
            split_of(experiment.replaced({"fold": 0, "inner_fold": inner_fold}), data.slices)


def _check_networks(experiments: Sequence[Experiment], *, download: bool) -> dict[str, int]:
    """Build and run each network once, which downloads weights and proves that they fit."""
    sizes = {}
    for experiment in experiments:
        config, channels = experiment.model, experiment.input_channels
        network = build_model(config, 0, channels) if download else build_network(config, channels)
        check_network(experiment, network)
        sizes[experiment.network] = sum(weight.numel() for weight in network.parameters())
    return sizes


def _resolve_files(grid: Grid, experiment: Experiment) -> tuple[Grid, Experiment, dict[str, str]]:
    """Make the paths of a user's code and splits absolute, and take the fingerprint of each."""
    find: dict[str, Callable[[Any], Any]] = {
        "model.architecture": absolute,
        "preprocess.filters": lambda names: [absolute(name) for name in names],
        "data.split": lambda path: str(Path(path).expanduser().resolve()) if "." in path else path,
    }
    experiment = experiment.replaced({key: f(experiment.value(key)) for key, f in find.items()})
    variants = {
        name: {key: find[key](v) if key in find else v for key, v in changes.items()}
        for name, changes in grid.variants.items()
    }
    found = [experiment.replaced(changes) for changes in variants.values()]
    networks = [e.model.architecture for e in found if names_code(e.model)]
    filters = [name for e in found for name in e.preprocess.own_filters]
    files = {name: fingerprint(name) for name in (*networks, *filters)}
    splits = [Path(e.data.split) for e in found if "." in e.data.split]
    files |= {str(path): hash_file(path) for path in splits if path.is_file()}
    return replace(grid, variants=variants), experiment, files
