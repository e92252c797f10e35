"""A trial or a search's candidate, as the record that travels to the process that runs it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, computed_field

from brainseg.config import NUM_INNER_FOLDS, Experiment
from brainseg.storage.urls import Location
from study.spec.resources import TrialResources

_SEEDS = 2**32


class TrialJob(BaseModel):
    """One cell of variants x folds x seeds, or one candidate of a search.

    Attributes:
        variant: Name of the variant.
        fold: Rotation of the folds.
        seed: Of the training.
        experiment: The resolved experiment, with this fold and seed.
        candidate: Index of a search's candidate, in the order of drawing; None for a trial of the
            grid. A candidate is trained and validated in rotation 0 and never tested.
        group: The search that the candidate belongs to, see `StudySpec.searches`.
        num_inner_folds: Pairs of folds that a candidate is validated on.
        num_search_seeds: Trainings of a candidate on each of them, with seeds counted up.
        data: Folder or URL of the dataset, as text.
        fingerprint: Of the dataset.
        synthetic: Whether the slices are generated.
        weights_hash: SHA-256 of the file of its encoder's weights, if one was named.
        study: Folder or URL of the study, as text; empty until the job is about to run.
        resources: What the trial asks for.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    variant: str
    fold: int
    seed: int
    experiment: Experiment
    candidate: int | None = None
    group: str = ""
    num_inner_folds: int = 1
    num_search_seeds: int = 1
    data: str = ""
    fingerprint: str = ""
    synthetic: bool = False
    weights_hash: str = ""
    study: str = ""
    resources: TrialResources = TrialResources()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str:
        """Name of the trial; it does not depend on how many folds and seeds the study has."""
        if self.candidate is not None:
            return candidate_name(self.candidate, self.group)
        return trial_name(self.variant, self.fold, self.seed)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def path(self) -> Path:
        """Folder of the trial, relative to the study's."""
        if self.candidate is not None:
            return candidate_path(self.candidate, self.group)
        return Path("trials") / self.name

    @property
    def run_name(self) -> str:
        """Name of the trial's run in TensorBoard."""
        return f"{self.name} SYNTHETIC" if self.synthetic else self.name

    @property
    def experiments(self) -> list[Experiment]:
        """What is trained: for a candidate one per inner fold and seed, otherwise one."""
        if self.candidate is None:
            return [self.experiment]
        folds = inner_folds(self.experiment, self.num_inner_folds)
        seeds = [(self.seed + step) % _SEEDS for step in range(self.num_search_seeds)]
        return [
            self.experiment.replaced({"inner_fold": fold, "seed": seed})
            for seed in seeds
            for fold in folds
        ]

    @property
    def num_epochs(self) -> int:
        """Epochs of both stages of one training."""
        return self.experiment.num_epochs

    def placed(self, study: Location, resources: TrialResources) -> TrialJob:
        """Return the job with the study's location and its resources, ready to run."""
        return self.model_copy(update={"study": str(study), "resources": resources})


def inner_folds(experiment: Experiment, count: int) -> list[int]:
    """Return the inner folds of a candidate: `count` of them, from the experiment's own on."""
    return [(experiment.inner_fold + step) % NUM_INNER_FOLDS for step in range(count)]


def trial_name(variant: object, fold: object, seed: object) -> str:
    """Return the name of a trial of the grid."""
    return f"{variant}-fold{fold}-seed{seed}"


def candidate_name(index: int, group: str = "") -> str:
    """Return the name of a candidate, as it is printed."""
    return f"{group and f'{group}-'}candidate-{index:04d}"


def search_path(group: str = "") -> Path:
    """Return the folder of a search, relative to the study's."""
    return Path("search") / group


def candidate_path(index: int, group: str = "") -> Path:
    """Return the folder of a candidate, relative to the study's."""
    return search_path(group) / "candidates" / f"{index:04d}"
