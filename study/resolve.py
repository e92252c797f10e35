"""Validate the command line, and prepare the study: data, weights, networks, storage."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from brainseg.config import Experiment
from brainseg.data.inputs import StoreInputs, name_channels
from brainseg.data.layouts import find_default_root
from brainseg.data.patients import describe_patients
from brainseg.data.preprocess import apply_filters
from brainseg.data.resident import LARGEST, keeps_resident, prepared_bytes
from brainseg.data.slice_store import PHANTOM, SliceStore, open_dataset
from brainseg.data.split import check_share, count_rotations, split_of
from brainseg.errors import ConfigError, StorageError
from brainseg.model.encoders import describe_weights, find_encoder_weights
from brainseg.model.model_file import versions
from brainseg.model.networks import build_model, build_network, check_network
from brainseg.storage.files import hash_file, hide_home, write_csv, write_text
from brainseg.storage.remote import require_store
from brainseg.storage.urls import Location, join_location
from study.analysis.protocol import register
from study.external import ExternalVariant, score_external
from study.spec.grid import LEAKY, WINNER
from study.spec.request import Say, build_spec, load_base
from study.spec.resources import Cluster, TrialResources, share_cluster
from study.spec.study_spec import StudySpec
from study.spec.trial_job import TrialJob
from study.storage.leaderboard import (
    count_open,
    winner_jobs,
)
from study.storage.schema import EXTERNAL_TABLES, FAILURES
from study.storage.study_folder import default_name, read_spec, read_study, write_study
from study.storage.sync import StudySync
from study.storage.tables import external_folder
from study.storage.trial_folder import TrialFolder
from study.warm_start import add_warm_start

_SHARE = "data.tumour_share"


@dataclass(frozen=True)
class Study:
    """A study whose configuration, data and networks have been checked.

    Attributes:
        spec: Its configuration.
        data: The dataset, checked.
        sync: Where the study is or will be.
        sizes: `Experiment.network` -> its number of weights.
        external: Other tools' predictions, scored.
        begins_again: For a plan: whether what is in the folder now will be moved aside.
    """

    spec: StudySpec
    data: SliceStore
    sync: StudySync
    sizes: dict[str, int]
    external: tuple[ExternalVariant, ...] = ()
    begins_again: bool = False

    @property
    def folder(self) -> Path:
        """The study's folder on this machine."""
        return self.sync.folder

    @property
    def weights(self) -> str:
        """The origins of the encoders' weights in words."""
        origins = (describe_weights(experiment.model) for experiment in self.spec.networks())
        return ", ".join(dict.fromkeys(origins))

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
        return sum(map(self.count_open, self.spec.searches))

    def count_open(self, search: StudySpec) -> int:
        """Return how many candidates of one of the searches have yet to end."""
        return (
            search.own_search.candidates if self.begins_again else count_open(self.folder, search)
        )

    def jobs(self) -> list[TrialJob]:
        """Return all trials: the grid's and, once all searches are over, their winners'."""
        jobs = self.spec.jobs()
        if self.num_open_candidates():
            return jobs
        return jobs + [
            job for search in self.spec.searches for job in winner_jobs(self.folder, search)
        ]

    def expected_jobs(self) -> list[TrialJob]:
        """Return all trials, with placeholders for those of a winner that is not known yet."""
        if not self.num_open_candidates():
            return self.jobs()
        jobs = self.spec.jobs()
        for search in self.spec.searches:
            expected = WINNER + search.group
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
    data = _open_data(args.data, say)
    experiment = load_base(args, synthetic=data.synthetic)
    facts = {
        "fingerprint": data.fingerprint,
        "patients": len(data.patients),
        "slices": len(data.slices),
        "tumour_slices": data.num_tumour_slices,
        "data": hide_home(str(data.source)),
        "synthetic": data.synthetic,
        "channels": data.channels,
        "about": data.about,
        "notes": data.notes,
    }
    spec = build_spec(args, name_channels(experiment, data), say).model_copy(update=facts)
    spec = spec.model_copy(update={"weight_files": _hash_weights(spec)})
    sync = _find_storage(args, data.synthetic)
    begun = None if args.fresh else sync.begun_as()
    spec = add_warm_start(spec, begun, say)
    _check_splits(spec, data)
    if begun is None:
        # What has begun cannot be changed, and goes on as it did.
        _check_resident(spec, data)
        for search in spec.searches:
            search.search_space.check_draws()
    for network in spec.networks():
        StoreInputs(data, network)  # which names an unknown channel
    for job in spec.jobs()[: len(spec.variants)]:
        if job.experiment.preprocess.own_filters:
            apply_filters(data.image(0), job.experiment.preprocess)
    external = tuple(_read_predictions(args, spec, data, say))
    spec = spec.model_copy(update={"external": {one.name: one.patients for one in external}})
    sizes = _check_networks(spec.networks(), download=not args.plan)
    return Study(spec, data, sync, sizes, external)


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
        "weights": study.weights,
        "cpus_per_trial": resources.cpus,
        "gpus_per_trial": resources.gpus,
        "versions": versions(),
    }
    is_there = (study.folder / "study.json").exists()
    earlier = read_study(study.folder).get("protocol", []) if is_there else []
    # All of them: an extended search has tested winners that it may not choose again.
    trials = map(TrialFolder, (study.folder / "trials").glob("*"))
    facts["protocol"] = register(earlier, spec, sum(trial.is_finished() for trial in trials))
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
        f"{data.num_tumour_slices:,} with tumour, {data.size} px, "
        f"fingerprint {data.fingerprint[:12]}"
    )
    return data


def _hash_weights(spec: StudySpec) -> dict[str, str]:
    """Hash the files of all networks' encoder weights, by their path or URL."""
    found: dict[str, str] = {}
    for model in (experiment.model for experiment in spec.networks()):
        location = model.weights_location
        if location in ("imagenet", "none") or location in found:
            continue
        require_store(location)
        path = find_encoder_weights(model)
        assert path is not None
        found[location] = hash_file(path)
    return found


def _find_storage(args: argparse.Namespace, synthetic: bool) -> StudySync:
    name = args.name or default_name(args.grid.name, args.config, synthetic=synthetic)
    if isinstance(args.storage, Path):
        folder = (args.storage / name).resolve()
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise ConfigError(f"--storage: {there} is not a folder: name another folder or --name")
        if not os.access(there, os.W_OK | os.X_OK):
            raise StorageError(f"--storage: {there} cannot be written: name another folder")
        return StudySync(folder)
    return StudySync(join_location(args.storage, name), read_only=args.plan)


def _check_splits(spec: StudySpec, data: SliceStore) -> None:
    """Make every split that the study uses, so that a faulty one is reported before the start."""
    leaky = [name for name in spec.variants if name.startswith(LEAKY)]
    if leaky and spec.search is not None:
        raise ConfigError(f"--search: a search cannot choose by a leaky split: {', '.join(leaky)}")
    experiments = {job.experiment.data: job.experiment for job in spec.jobs()}
    shares = any(_SHARE in search.search_space.record() for search in spec.searches)
    drawn = {_SHARE: 0.5} if shares else {}
    for experiment in experiments.values():
        count = count_rotations(experiment.data, data.slices)
        if spec.folds > count:
            raise ConfigError(
                f"--folds {spec.folds}: data.split {experiment.data.split} has {count} rotations"
            )
        for fold in range(spec.folds):
            rotation = experiment.replaced({"fold": fold})
            check_share(rotation, data.slices, split_of(rotation, data.slices))
        for inner_fold in spec.inner_folds:
            changes = {"fold": 0, "inner_fold": inner_fold, **drawn}
            inner = experiment.replaced(changes)
            check_share(inner, data.slices, split_of(inner, data.slices))


def _check_resident(spec: StudySpec, data: SliceStore) -> None:
    """Refuse variants of which a GPU would keep the slices of some: they train on other noise."""
    kept: dict[bool, Experiment] = {}
    own = [job.experiment for job in spec.jobs()[: len(spec.variants)]]
    for experiment in own + spec.networks():
        if experiment.data.resident == "auto":
            kept[keeps_resident(experiment, data, torch.device("cuda"))] = experiment
    if len(kept) > 1:
        large, small = (prepared_bytes(kept[key], data) / 1e9 for key in (False, True))
        raise ConfigError(
            f"data.resident is auto, which keeps slices on a GPU up to {LARGEST / 1e9:g} GB: some "
            f"variants take {small:.1f} GB, others {large:.1f} GB, and would be augmented in two "
            "ways: set it to always or never"
        )


def _check_networks(experiments: Sequence[Experiment], *, download: bool) -> dict[str, int]:
    """Build and run each network once, which downloads weights and proves that they fit."""
    sizes = {}
    for experiment in experiments:
        config, channels = experiment.model, experiment.input_channels
        if download or config.encoder_weights != "imagenet":  # other weights are here already
            network = build_model(config, 0, channels)
        else:
            network = build_network(config, channels)
        check_network(experiment, network)
        sizes[experiment.network] = sum(weight.numel() for weight in network.parameters())
    return sizes
