"""Everything that can be known, and can be wrong, before the first trial starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainseg.config import Experiment, ModelConfig, load_experiment
from brainseg.data.layouts import find_default_root
from brainseg.data.patients import describe_patients
from brainseg.data.slice_store import PHANTOM, SliceStore, open_dataset
from brainseg.data.split import assign_folds, split_by_patient
from brainseg.errors import ConfigError
from brainseg.model.encoders import check_encoder, describe_weights, find_encoder_weights
from brainseg.model.model_file import versions
from brainseg.model.networks import build_model, build_unet
from brainseg.storage.files import hash_file, write_csv, write_text
from brainseg.storage.remote import require_store
from brainseg.storage.urls import Location, is_url, join_location
from study.spec.configs import shipped
from study.spec.grid import GRIDS, WINNER, Trial, TrialResources, plan_trials, refuse_grid_keys
from study.spec.search_space import load_space
from study.storage.candidates import Search, check_search
from study.storage.leaderboard import count_ended, winner_trials
from study.storage.study_folder import Question, default_name, write_study
from study.storage.sync import Mirror
from study.storage.tables import TrialFolder, trials_to_export

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `python -m study.run --help`."""

    grid: str
    data: Location | None
    config: Path | None
    changes: dict[str, Any]
    folds: int
    seeds: int
    name: str | None
    storage: Location
    search: int | None = None
    space: Path | None = None
    sampler: str = "tpe"
    scheduler: str = "asha"
    search_folds: int = 1


@dataclass(frozen=True)
class Setup:
    """A study that could start.

    Attributes:
        data: The dataset, checked.
        question: What the study asks.
        trials: All of them, finished or not; a search's winner's too once there is one.
        mirror: Where the study is or will be.
        sizes: Encoder -> number of the U-Net's weights.
    """

    data: SliceStore
    question: Question
    trials: list[Trial]
    mirror: Mirror
    sizes: dict[str, int]

    @property
    def folder(self) -> Path:
        """The study's folder on this machine."""
        return self.mirror.folder

    def folder_of(self, trial: Trial) -> TrialFolder:
        """Return the folder of one trial."""
        return TrialFolder(self.folder / trial.path)

    @property
    def search(self) -> Search | None:
        """The search that extends the grid, if one does."""
        return self.question.search

    def num_open_candidates(self) -> int:
        """Return how many candidates of the search have not ended."""
        if self.search is None:
            return 0
        return self.search.candidates - count_ended(self.folder)

    def with_winner(self) -> Setup:
        """Return the setup with the trials of the search's winner, and those of former ones."""
        if self.search is None:
            return self
        question = self.question
        more = winner_trials(self.folder, self.search, question.folds, question.seeds)
        return replace(self, trials=[*self.trials, *more])

    def with_stand_in(self) -> Setup:
        """Return the setup with trials in the place of those of a winner not known yet."""
        if self.search is None:
            return self
        first = self.trials[0].variant
        more = [replace(t, variant=WINNER) for t in self.trials if t.variant == first]
        return replace(self, trials=[*self.trials, *more])

    def open_trials(self, *, retry_failed: bool = False) -> list[Trial]:
        """Return the trials that have not ended, and on request those that failed."""
        return [trial for trial in self.trials if self._is_open(trial, retry_failed)]

    def fetch_results(self) -> None:
        """Bring what the trials left to this machine, if the study is not here."""
        self.mirror.push()
        self.mirror.pull()
        self.mirror.pull_models(t.path for t in trials_to_export(self.folder, self.trials))

    def _is_open(self, trial: Trial, retry_failed: bool) -> bool:
        folder = self.folder_of(trial)
        return not folder.is_finished() and (retry_failed or not folder.has_failed())


def prepare(request: Request, say: Say, *, download: bool) -> Setup:
    """Check everything that a study needs.

    Args:
        request: What the user asked for.
        say: Told what was found.
        download: Fetch ImageNet weights that are not here yet; False only looks.

    Raises:
        ConfigError: If the request itself cannot be.
        BrainsegError: If data or weights cannot be used.
    """
    refuse_grid_keys(request.grid, request.changes)
    base = _load_base(request, synthetic=False)
    plan_trials(request.grid, base, request.folds, request.seeds)
    _plan_search(request, base)
    data = _open_data(request.data, say)
    if data.synthetic:
        base = _load_base(request, synthetic=True)
    base, weights_hash = _resolve_weights(base)
    trials = plan_trials(request.grid, base, request.folds, request.seeds)
    search = _plan_search(request, base)
    for fold in range(request.folds):
        split_by_patient(data.slices, fold, base.data.split_seed, base.inner_fold)
    models = [trial.experiment.model for trial in trials]
    return Setup(
        data,
        Question(
            request.grid,
            base,
            weights_hash,
            data.fingerprint,
            _counts(data),
            request.folds,
            request.seeds,
            search,
        ),
        trials,
        _mirror_for(request, data.synthetic, reading=not download),
        _check_models([*models, *(search.space.models() if search else [])], download=download),
    )


def write_facts(setup: Setup, resources: TrialResources) -> None:
    """Write study.json, experiment.yaml, split.json and patients.csv."""
    data, base = setup.data, setup.question.base
    facts = {
        "first_seed": base.seed,
        "data": str(data.source),
        "synthetic": data.synthetic,
        "weights": describe_weights(base.model),
        "cpus_per_trial": resources.cpus,
        "gpus_per_trial": resources.gpus,
        "versions": versions(),
    }
    write_study(setup.folder, setup.question, facts)
    (setup.folder / "trials").mkdir(exist_ok=True)
    seed = base.data.split_seed
    rotations = [
        split_by_patient(data.slices, fold, seed, base.inner_fold)
        for fold in range(setup.question.folds)
    ]
    record = {
        "fingerprint": data.fingerprint,
        "split_seed": seed,
        "fold_of_patient": assign_folds(data.slices, seed),
        "rotations": [split.model_dump(mode="json") for split in rotations],
    }
    if setup.search is not None:
        splits = [
            split_by_patient(data.slices, 0, seed, inner) for inner in setup.search.inner_folds
        ]
        record["search"] = [split.model_dump(mode="json") for split in splits]
    write_text(setup.folder / "split.json", json.dumps(record, indent=1) + "\n")
    patients = describe_patients(data)
    write_csv(setup.folder / "patients.csv", patients)


def _counts(data: SliceStore) -> dict[str, int]:
    return {
        "patients": len(data.patients),
        "slices": len(data.slices),
        "tumour_slices": num_tumour_slices(data),
    }


def num_tumour_slices(data: SliceStore) -> int:
    """Return how many slices hold tumour."""
    return sum(item.tumour_pixels > 0 for item in data.slices)


def _plan_search(request: Request, base: Experiment) -> Search | None:
    if request.search is None:
        return None
    space = load_space(request.space or shipped("search.yaml"), GRIDS[request.grid], base)
    return check_search(
        Search(space, request.search, request.sampler, request.scheduler, request.search_folds)
    )


def _load_base(request: Request, *, synthetic: bool) -> Experiment:
    default = shipped("phantom.yaml" if synthetic else "baseline.yaml")
    return load_experiment(request.config or default).replaced(request.changes)


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


def _resolve_weights(base: Experiment) -> tuple[Experiment, str]:
    """Make the path of a weight file absolute, and hash what it holds; a URL stays one."""
    if base.model.encoder_weights in ("imagenet", "none"):
        return base, ""
    require_store(base.model.encoder_weights)
    path = find_encoder_weights(base.model)
    assert path is not None
    if is_url(base.model.encoder_weights):
        return base, hash_file(path)
    return base.replaced({"model.encoder_weights": str(path.resolve())}), hash_file(path)


def _mirror_for(request: Request, synthetic: bool, *, reading: bool) -> Mirror:
    name = request.name or default_name(request.grid, request.config, synthetic=synthetic)
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name is {name!r}; it must name a folder below --storage")
    if isinstance(request.storage, Path):
        return Mirror((request.storage.expanduser() / name).resolve())
    if any(mark in name for mark in "?#"):
        raise ConfigError(f"--name is {name!r}; in a URL it must be without ? and #")
    return Mirror(join_location(request.storage, name), reading=reading)


def _check_models(models: Sequence[ModelConfig], *, download: bool) -> dict[str, int]:
    """Build each encoder's network once: fetches its weights and proves that they fit.

    Returns:
        Encoder -> number of the U-Net's weights.
    """
    sizes = {}
    for config in dict.fromkeys(models):
        check_encoder(config.encoder)
        model = build_model(config, seed=0) if download else build_unet(config.encoder)
        sizes[config.encoder] = sum(weight.numel() for weight in model.parameters())
    return sizes
