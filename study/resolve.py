"""From the command line to a study that could start: reads, checks and downloads what it needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg.config import Experiment, ModelConfig, load_experiment, parse_changes
from brainseg.data.layouts import find_default_root
from brainseg.data.slice_store import PHANTOM, SliceStore, open_dataset
from brainseg.data.split import split_by_patient
from brainseg.errors import ConfigError
from brainseg.model.encoders import check_encoder, find_encoder_weights
from brainseg.model.networks import build_model, build_unet
from brainseg.storage.files import hash_file
from brainseg.storage.remote import require_store
from brainseg.storage.urls import Location, is_url, join_location
from study.spec.configs import shipped
from study.spec.grid import GRIDS, WINNER, refuse_grid_keys
from study.spec.search_space import load_space
from study.spec.study_spec import SAMPLERS, SCHEDULERS, SearchSpec, StudySpec
from study.spec.trial_job import TrialJob
from study.storage.leaderboard import count_open, winner_jobs
from study.storage.study_folder import default_name
from study.storage.sync import StudySync
from study.storage.trial_folder import FAILURES, TrialFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study that could start.

    Attributes:
        spec: What it asks.
        data: The dataset, checked.
        sync: Where the study is or will be.
        sizes: Encoder -> number of weights of its U-Net.
    """

    spec: StudySpec
    data: SliceStore
    sync: StudySync
    sizes: dict[str, int]

    @property
    def folder(self) -> Path:
        """The study's folder on this machine."""
        return self.sync.folder

    def num_open_candidates(self) -> int:
        """Return how many candidates of the search have yet to end; 0 without a search."""
        return count_open(self.folder, self.spec)

    def jobs(self) -> list[TrialJob]:
        """Return all trials: the grid's and, once the search is over, its winner's."""
        jobs = self.spec.jobs()
        return jobs if self.num_open_candidates() else jobs + winner_jobs(self.folder, self.spec)

    def expected_jobs(self, *, begun: bool = True) -> list[TrialJob]:
        """Return all trials, with copies of the first variant's in place of an unknown winner's.

        Args:
            begun: False for a study that begins anew, whatever is in the folder now.
        """
        if self.spec.search is None or (begun and not self.num_open_candidates()):
            return self.jobs()
        jobs = self.spec.jobs()
        first = [job for job in jobs if job.variant == jobs[0].variant]
        return jobs + [job.model_copy(update={"variant": WINNER}) for job in first]

    def open_jobs(self, jobs: Sequence[TrialJob], *, retry_failed: bool) -> list[TrialJob]:
        """Return the trials that have not ended, and on request those that failed."""
        folders = [TrialFolder(self.folder / job.path) for job in jobs]
        return [
            job
            for job, folder in zip(jobs, folders, strict=True)
            if not folder.is_finished() and (retry_failed or folder.status not in FAILURES)
        ]


def resolve(args: argparse.Namespace, say: Say) -> Study:
    """Check everything that a study needs, before anything is started.

    Args:
        args: The command line, see `study.cli`. With `--plan`, ImageNet weights that are not here
            are not downloaded.
        say: Called with what was found.

    Raises:
        ConfigError: If a flag, a key or a file of the command line cannot be.
        BrainsegError: If data or weights cannot be used.
    """
    changes = parse_changes(args.changes)
    refuse_grid_keys(args.grid, changes)
    # Once before the data is opened, which may take minutes, so that mistakes are told at once.
    _ask(args, _load_base(args, synthetic=False)).jobs()
    data = _open_data(args.data, say)
    experiment, weights_hash = _resolve_weights(_load_base(args, synthetic=data.synthetic))
    facts = {
        "fingerprint": data.fingerprint,
        "patients": len(data.patients),
        "slices": len(data.slices),
        "tumour_slices": num_tumour_slices(data),
        "data": str(data.source),
        "synthetic": data.synthetic,
        "weights_hash": weights_hash,
    }
    spec = _ask(args, experiment).model_copy(update=facts)
    for fold in range(spec.folds):
        split_by_patient(data.slices, fold, experiment.data.split_seed, experiment.inner_fold)
    sizes = _check_models(spec.models(), download=not args.plan)
    return Study(spec, data, _find_storage(args, data.synthetic), sizes)


def num_tumour_slices(data: SliceStore) -> int:
    """Return how many slices have tumour."""
    return sum(item.tumour_pixels > 0 for item in data.slices)


def _ask(args: argparse.Namespace, experiment: Experiment) -> StudySpec:
    variants, search = GRIDS[args.grid], None
    if args.search is not None:
        path = args.space or shipped("search.yaml")
        search = SearchSpec(
            candidates=args.search,
            sampler=args.sampler or SAMPLERS[0],
            scheduler=args.scheduler or SCHEDULERS[0],
            folds=args.search_folds or 1,
            space=load_space(path, variants, experiment).record(),
        )
    return StudySpec(
        grid=args.grid,
        variants=variants,
        folds=args.folds,
        seeds=args.seeds,
        experiment=experiment,
        search=search,
    )


def _load_base(args: argparse.Namespace, *, synthetic: bool) -> Experiment:
    default = shipped("phantom.yaml" if synthetic else "baseline.yaml")
    return load_experiment(args.config or default).replaced(parse_changes(args.changes))


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
    name = args.name or default_name(args.grid, args.config, synthetic=synthetic)
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name is {name!r}; it must name a folder below --storage")
    if isinstance(args.storage, Path):
        return StudySync((args.storage.expanduser() / name).resolve())
    if any(mark in name for mark in "?#"):
        raise ConfigError(f"--name is {name!r}; in a URL it must be without ? and #")
    return StudySync(join_location(args.storage, name), reading=args.plan)


def _check_models(models: Sequence[ModelConfig], *, download: bool) -> dict[str, int]:
    """Build each encoder's network once, which downloads its weights and proves that they fit."""
    sizes = {}
    for config in models:
        check_encoder(config.encoder)
        model = build_model(config, seed=0) if download else build_unet(config.encoder)
        sizes[config.encoder] = sum(weight.numel() for weight in model.parameters())
    return sizes
