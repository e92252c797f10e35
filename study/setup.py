"""Everything that can be known, and can be wrong, before the first trial starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainseg.config import Experiment, load_experiment
from brainseg.encoders import check_encoder, describe_weights, find_encoder_weights
from brainseg.errors import ConfigError, StudyError
from brainseg.index import find_default_root
from brainseg.model import build_model, build_unet
from brainseg.modelfile import versions
from brainseg.patients import describe_patients
from brainseg.phantom import VERSION, generate_phantom
from brainseg.split import PARTS, assign_folds, split_by_patient
from brainseg.storage import write_text
from brainseg.store import SliceStore, cache_folder, open_dataset
from study.folder import Question, write_study
from study.plan import (
    Trial,
    TrialResources,
    disk_needed,
    num_epochs,
    plan_trials,
    refuse_grid_keys,
)
from study.results import TrialFolder, write_csv

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `python -m study.run --help`."""

    grid: str
    data: Path | None
    config: Path | None
    changes: dict[str, Any]
    folds: int
    seeds: int
    name: str | None
    storage: Path


@dataclass(frozen=True)
class Setup:
    """A study that could start.

    Attributes:
        data: The dataset, checked.
        question: What the study asks.
        trials: All of them, finished or not.
        folder: Where the study is or will be.
        sizes: Encoder -> number of the U-Net's weights.
    """

    data: SliceStore
    question: Question
    trials: list[Trial]
    folder: Path
    sizes: dict[str, int]

    def folder_of(self, trial: Trial) -> TrialFolder:
        """Return the folder of one trial."""
        return TrialFolder(self.folder / "trials" / trial.name)

    def open_trials(self, *, retry_failed: bool = False) -> list[Trial]:
        """Return the trials that have not ended, and on request those that failed."""
        return [trial for trial in self.trials if self._is_open(trial, retry_failed)]

    def _is_open(self, trial: Trial, retry_failed: bool) -> bool:
        folder = self.folder_of(trial)
        return not folder.is_finished() and (retry_failed or not folder.has_failed())


def prepare(request: Request, say: Say, *, download: bool) -> Setup:
    """Check everything that a study needs.

    Args:
        request: What the user asked for.
        say: Told what was found.
        download: Fetch ImageNet weights that are not here yet.

    Raises:
        ConfigError: If the request itself cannot be.
        BrainsegError: If data or weights cannot be used.
    """
    refuse_grid_keys(request.grid, request.changes)
    base = _load_base(request, synthetic=False)
    plan_trials(request.grid, base, request.folds, request.seeds)
    data = _open_data(request.data, say)
    if data.synthetic:
        base = _load_base(request, synthetic=True)
    base, weights_hash = _resolve_weights(base)
    trials = plan_trials(request.grid, base, request.folds, request.seeds)
    for fold in range(request.folds):
        split_by_patient(data.slices, fold, base.data.split_seed)
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
        ),
        trials,
        _folder_for(request, data.synthetic),
        _check_models(trials, download=download),
    )


def write_facts(setup: Setup, resources: TrialResources) -> None:
    """Write study.json, experiment.yaml, split.json and patients.csv."""
    data, base = setup.data, setup.question.base
    facts = {
        "first_seed": base.seed,
        "data": str(data.root),
        "synthetic": data.synthetic,
        "weights": describe_weights(base.model),
        "cpus_per_trial": resources.cpus,
        "gpus_per_trial": resources.gpus,
        "versions": versions(),
    }
    write_study(setup.folder, setup.question, facts)
    (setup.folder / "trials").mkdir(exist_ok=True)
    seed = base.data.split_seed
    rotations = [split_by_patient(data.slices, fold, seed) for fold in range(setup.question.folds)]
    record = {
        "fingerprint": data.fingerprint,
        "split_seed": seed,
        "fold_of_patient": assign_folds(data.slices, seed),
        "rotations": [split.model_dump(mode="json") for split in rotations],
    }
    write_text(setup.folder / "split.json", json.dumps(record, indent=1) + "\n")
    patients = describe_patients(data)
    write_csv(setup.folder / "patients.csv", list(patients[0]), patients)


def require_disk(setup: Setup, trials: Sequence[Trial], resources: TrialResources) -> None:
    """Refuse a study that would fill the disk.

    Raises:
        StudyError: With what is needed and what is free.
    """
    needed, free = disk_figures(setup, trials, resources)
    if free < needed:
        raise StudyError(
            f"the study needs about {needed / 1e9:.1f} GB in {setup.folder.parent}, which has "
            f"{free / 1e9:.1f} GB free: make room, or give --storage on a larger disk"
        )


def disk_figures(
    setup: Setup, trials: Sequence[Trial], resources: TrialResources
) -> tuple[int, int]:
    """Return the bytes that the trials need at their fullest, and those that are free."""
    existing = next(p for p in (setup.folder, *setup.folder.parents) if p.exists())
    needed = disk_needed(trials, setup.sizes, resources.concurrent, len(setup.data.slices))
    return needed, shutil.disk_usage(existing).free


def describe_plan(
    setup: Setup, trials: Sequence[Trial], resources: TrialResources
) -> list[tuple[str, str]]:
    """Return the lines of `--plan`: what there is, what would run, what it would take."""
    data, base = setup.data, setup.question.base
    needed, free = disk_figures(setup, trials, resources)
    stages = " + ".join(str(stage.epochs) for stage in base.stages)
    return [
        ("data", f"{data.root}{' (SYNTHETIC)' if data.synthetic else ''}"),
        ("fingerprint", data.fingerprint),
        ("slices", f"{len(data.slices):,}, of which {num_tumour_slices(data):,} with tumour"),
        *_describe_splits(setup),
        ("encoder weights", describe_weights(base.model)),
        ("trials", f"{len(setup.trials)}, {len(trials)} of them to run"),
        ("epochs", f"{stages} per trial, {num_epochs(trials):,} to run"),
        ("steps", f"{_num_steps(setup, trials):,} of {base.optimizer.batch_size} slices"),
        ("each trial", f"{resources} ({resources.workers} loader workers)"),
        ("at once", f"{resources.concurrent} trials"),
        ("disk", f"{needed / 1e9:.1f} GB at its fullest, {free / 1e9:.1f} GB free"),
        ("folder", str(setup.folder)),
    ]


def _counts(data: SliceStore) -> dict[str, int]:
    return {
        "patients": len(data.patients),
        "slices": len(data.slices),
        "tumour_slices": num_tumour_slices(data),
    }


def num_tumour_slices(data: SliceStore) -> int:
    """Return how many slices hold tumour."""
    return sum(item.tumour_pixels > 0 for item in data.slices)


def _describe_splits(setup: Setup) -> list[tuple[str, str]]:
    lines = []
    seed = setup.question.base.data.split_seed
    for fold in sorted({trial.fold for trial in setup.trials}):
        split = split_by_patient(setup.data.slices, fold, seed)
        sizes = (
            f"{part} {len(getattr(split, part))} patients, "
            f"{len(split.numbers(setup.data.slices, part)):,} slices"
            for part in PARTS
        )
        lines.append((f"split, rotation {fold}", "; ".join(sizes)))
    return lines


def _num_steps(setup: Setup, trials: Sequence[Trial]) -> int:
    steps = 0
    for trial in trials:
        split = split_by_patient(setup.data.slices, trial.fold, trial.experiment.data.split_seed)
        slices = len(split.numbers(setup.data.slices, "train"))
        steps += num_epochs([trial]) * -(-slices // trial.experiment.optimizer.batch_size)
    return steps


def _load_base(request: Request, *, synthetic: bool) -> Experiment:
    default = CONFIGS / ("phantom.yaml" if synthetic else "baseline.yaml")
    return load_experiment(request.config or default).replaced(request.changes)


def _open_data(path: Path | None, say: Say) -> SliceStore:
    root = path or find_default_root()
    if root is None:
        say(
            "No --data, no $BRAINSEG_DATA, no ./data/kaggle_3m: using generated, SYNTHETIC slices."
        )
        root = generate_phantom(cache_folder("phantom") / f"version-{VERSION}")
    data = open_dataset(root)
    for note in data.notes:
        say(f"Note: {note}")
    say(
        f"Data: {len(data.patients)} patients, {len(data.slices):,} slices, "
        f"{num_tumour_slices(data):,} with tumour, {data.size} px, "
        f"fingerprint {data.fingerprint[:12]}"
    )
    return data


def _resolve_weights(base: Experiment) -> tuple[Experiment, str]:
    """Make the path of a weight file absolute, and hash what it holds."""
    if base.model.encoder_weights in ("imagenet", "none"):
        return base, ""
    path = find_encoder_weights(base.model)
    assert path is not None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return base.replaced({"model.encoder_weights": str(path.resolve())}), digest


def _folder_for(request: Request, synthetic: bool) -> Path:
    name = request.name or (f"{request.grid}-synthetic" if synthetic else request.grid)
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name is {name!r}; it must name a folder below --storage")
    return (request.storage.expanduser() / name).resolve()


def _check_models(trials: Sequence[Trial], *, download: bool) -> dict[str, int]:
    """Build each encoder's network once: fetches its weights and proves that they fit.

    Returns:
        Encoder -> number of the U-Net's weights.
    """
    sizes = {}
    for config in dict.fromkeys(trial.experiment.model for trial in trials):
        check_encoder(config.encoder)
        model = build_model(config, seed=0) if download else build_unet(config.encoder)
        sizes[config.encoder] = sum(weight.numel() for weight in model.parameters())
    return sizes
