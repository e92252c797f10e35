"""The configuration of a whole study, as one record: the core of study.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from brainseg.config import Experiment, differences
from brainseg.data.about import CHANNELS, LGG, About
from brainseg.errors import ConfigError
from brainseg.storage.files import hide_home
from study.spec.grid import (
    PER_VARIANT,
    Candidates,
    Changes,
    ChosenOn,
    Folds,
    Grid,
    InnerFolds,
    Levels,
    Published,
    Sampler,
    Scheduler,
    Seeds,
    winner_name,
)
from study.spec.halving import Halving
from study.spec.search_space import VARIANT, Range, SearchSpace
from study.spec.trial_job import TrialJob, inner_folds

METRIC, MODE = "val_dice", "max"
"""The metric that trials report to Tune, and its direction; it chooses nothing in a grid."""

SCORE = "best_val_dice"
"""What candidates are compared by: the highest val Dice (global) so far."""

SAMPLERS: tuple[str, ...] = get_args(Sampler)
SCHEDULERS: tuple[str, ...] = get_args(Scheduler)
_HALF_OF_ALL_SEEDS = 2**31
_MAX_TRIALS = 20_000
_WEIGHTS = "model.encoder_weights"
_ONLY_GROW = ", which may only grow"


class SearchSpec(BaseModel):
    """The configuration of a search.

    Attributes:
        candidates: How many are drawn, including the grid's variants, unchanged.
        sampler: One of `SAMPLERS`; draws candidates.
        scheduler: One of `SCHEDULERS`; stops poor candidates.
        folds: Inner folds per candidate.
        seeds: Trainings per candidate and inner fold.
        per: `variant` or a factor: each variant, or each level of it, has a search of its own with
            this specification. Empty: one search for all variants.
        space: Dotted key -> what it may be, without the keys that the grid decides.
        warm_start: Name of the study whose best candidates are among the first of this search;
            until `study.warm_start` has read it, its folder. Empty: no study.
        starts: The parameters of these candidates, in this search's space.
        group: In `StudySpec.searches`: the variant or level that is searched; not stored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    candidates: Candidates
    sampler: str = SAMPLERS[0]
    scheduler: str = SCHEDULERS[0]
    folds: InnerFolds = 1
    seeds: Seeds = 1
    per: str = ""
    space: dict[str, Range]
    warm_start: str = ""
    starts: tuple[Changes, ...] = ()
    group: str = Field(default="", exclude=True)

    @property
    def trainings(self) -> int:
        """Trainings per candidate."""
        return self.folds * self.seeds

    @field_serializer("space")
    def _dump_space(self, space: dict[str, Range]) -> dict[str, Any]:
        return {k: v.model_dump(mode="json", exclude_defaults=True) for k, v in space.items()}

    def differences(self, other: SearchSpec) -> list[str]:
        """Return a line for each way in which a later search differs; candidates may grow."""
        ours, theirs = self.model_dump(), other.model_dump()
        lines = [
            f"search {key}: {ours[key]} -> {theirs[key]}"
            for key in ("per", "sampler", "scheduler", "folds", "seeds")
            if ours[key] != theirs[key]
        ]
        for key in dict.fromkeys((*self.space, *other.space)):
            before, now = (side["space"].get(key, "not varied") for side in (ours, theirs))
            if before != now:
                lines.append(f"search space {key}: {before} -> {now}")
        if self.starts != other.starts:
            before, now = (f"{len(s.starts)} of {s.warm_start or 'none'}" for s in (self, other))
            lines.append(f"search warm_start: {before} -> {now}")
        if other.candidates < self.candidates:
            lines.append(f"search candidates: {self.candidates} -> {other.candidates}{_ONLY_GROW}")
        return lines


class StudySpec(BaseModel):
    """The configuration of a study; two studies of one name must have the same.

    Field names are those of study.json, so that `StudySpec.model_validate` reads one.

    Attributes:
        grid: Name of the grid.
        description: What the grid compares, in a sentence.
        variants: Name of a variant -> the keys in which it differs from `experiment`.
        factors: Variant -> factor -> its level, for variants that combine levels.
        published: The published table to compare with, if the grid names one.
        chosen_on: Patients by which an earlier search chose the settings of some variants, if the
            grid names them.
        metric: What trials report to Tune.
        mode: `max`: higher is better.
        folds: Rotations 0 to folds - 1 of the ten folds; may only grow.
        seeds: Trainings per variant and rotation, with seeds counted up from the experiment's
            own; may only grow.
        fingerprint: Of the dataset.
        patients: Number of patients.
        slices: Number of slices.
        tumour_slices: Number of slices with tumour.
        weight_files: Path or URL of a file of an encoder's weights -> its SHA-256.
        files: File of a user's code or split that the study uses -> its fingerprint.
        experiment: The base experiment, which the variants share.
        search: The search that extends the grid, if there is one.
        external: Variant that was not trained here -> test patient -> fingerprint of its masks.
        data: Folder or URL of the dataset, as text; not compared.
        synthetic: Whether the slices are generated.
        channels: Names of the channels of the dataset's images; the fingerprint implies them.
        about: What the report says of the dataset; not compared.
        notes: What of the dataset's folder is not used, a sentence each; not compared.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    grid: str
    description: str = ""
    variants: dict[str, Changes]
    factors: dict[str, Levels] = {}
    published: Published | None = None
    chosen_on: ChosenOn | None = None
    metric: str = METRIC
    mode: str = MODE
    folds: Folds = 1
    seeds: Seeds = 1
    fingerprint: str = ""
    patients: int = 0
    slices: int = 0
    tumour_slices: int = 0
    weight_files: dict[str, str] = {}
    files: dict[str, str] = {}
    experiment: Experiment
    search: SearchSpec | None = None
    external: dict[str, dict[str, str]] = {}
    data: str = ""
    synthetic: bool = False
    channels: tuple[str, ...] = CHANNELS
    about: About = LGG
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_one_weight_file(cls, tree: Any) -> Any:
        # An earlier study.json has the hash of the base experiment's file alone.
        digest = tree.get("weights_hash") if isinstance(tree, dict) else None
        with suppress(LookupError, TypeError):
            if digest:
                path = tree["experiment"]["model"]["encoder_weights"]
                return {**tree, "weight_files": {path: digest}}
        return tree

    @classmethod
    def of(cls, grid: Grid, **fields: Any) -> StudySpec:
        """Return the specification of a study of a grid; `fields` are the other attributes."""
        return cls(
            grid=grid.name,
            description=grid.description,
            variants=grid.variants,
            factors=grid.factors,
            published=grid.published,
            chosen_on=grid.chosen_on,
            **fields,
        )

    def jobs(self) -> list[TrialJob]:
        """Return the trials of the grid: all variants of one fold and seed before the next.

        Raises:
            ConfigError: If a variant's keys do not fit the experiment, or there are too many.
        """
        count = len(self.variants) * self.folds * self.seeds
        if count > _MAX_TRIALS:
            raise ConfigError(
                f"{len(self.variants):,} variants, {self.folds} folds and {self.seeds:,} seeds "
                f"make {count:,} trials; at most {_MAX_TRIALS:,}: lower --folds or --seeds"
            )
        return [
            self._job(variant, self._experiment(variant, {"fold": fold, "seed": seed}))
            for seed in self._seeds
            for fold in range(self.folds)
            for variant in self.variants
        ]

    def candidate(self, index: int, params: Changes) -> TrialJob:
        """Return a candidate of the search.

        Args:
            index: From 0, in the order of drawing.
            params: As `SearchSpace.suggest` draws them.
        """
        search = self.own_search
        # The scheduler stops candidates; a rule of their own would end inner folds apart.
        stopping = {"stopping.patience": None, "stopping.minutes": None}
        changes = {"fold": 0, "seed": self.training_seed, **stopping}
        experiment = self.search_space.experiment(params).replaced(changes)
        job = self._job(params[VARIANT], experiment)
        counts = {"num_inner_folds": search.folds, "num_search_seeds": search.seeds}
        return job.model_copy(update={"candidate": index, "group": search.group, **counts})

    def retrained(self, index: int, params: Changes) -> list[TrialJob]:
        """Return the trials in which a candidate is trained in full, as one more variant."""
        name = winner_name(index, self.group)
        experiment = self.search_space.experiment(params)
        return [
            self._job(name, experiment.replaced({"fold": fold, "seed": seed}))
            for seed in self._seeds
            for fold in range(self.folds)
        ]

    @property
    def own_search(self) -> SearchSpec:
        """The search, of a study that has one."""
        assert self.search is not None
        return self.search

    @property
    def group(self) -> str:
        """The variant or level that is searched; empty if one search is for all variants."""
        return self.search.group if self.search else ""

    @property
    def searches(self) -> list[StudySpec]:
        """One study per search, with the variants that it starts from; none without a search.

        With `per`, each of them has its `group`, which names the folder and the winner.
        """
        if self.search is None:
            return []
        if not self.search.per:
            return [self]
        groups: dict[str, dict[str, Changes]] = {}
        for variant, changes in self.variants.items():
            levels = {PER_VARIANT: variant, **self.factors.get(variant, {})}
            groups.setdefault(levels[self.search.per], {})[variant] = changes
        return [
            # Not model_copy, which would copy the cached search space of all variants.
            StudySpec(
                **{
                    **dict(self),
                    "variants": variants,
                    "search": self.search.model_copy(
                        update={
                            "per": "",
                            "group": group,
                            "starts": tuple(
                                start
                                for start in self.search.starts
                                if start.get(VARIANT) in variants
                            ),
                        }
                    ),
                }
            )
            for group, variants in groups.items()
        ]

    @cached_property
    def search_space(self) -> SearchSpace:
        """What the search may vary."""
        return SearchSpace.of(self.variants, self.experiment, self.own_search.space)

    @property
    def training_seed(self) -> int:
        """Seed of all candidates: the variants' first seed plus 2**31, modulo 2**32."""
        return (self.experiment.seed + _HALF_OF_ALL_SEEDS) % (2 * _HALF_OF_ALL_SEEDS)

    @property
    def halving(self) -> Halving:
        """The halving of the search, which has no rungs with some schedulers."""
        return Halving.of(self.own_search.scheduler, self.search_space.stage_epochs())

    @property
    def rungs(self) -> list[int]:
        """The epochs at which the report compares scores: those of a scheduler in rounds, or else
        of ASHA.
        """
        stage_epochs = self.search_space.stage_epochs()
        halving = self.halving
        return (halving if halving.in_rounds else Halving.of("asha", stage_epochs)).rungs()

    @property
    def inner_folds(self) -> list[int]:
        """The inner folds that candidates are validated on; none without a search."""
        return inner_folds(self.experiment, self.search.folds) if self.search else []

    def networks(self) -> list[Experiment]:
        """Return an experiment for every network, with its weights, that the study may train."""
        found = [self._experiment(variant, {}) for variant in self.variants]
        found += [one for search in self.searches for one in search.search_space.networks()]
        return list({(e.model, e.input_channels, e.data.size): e for e in found}.values())

    def differences(self, other: StudySpec) -> list[str]:
        """Return a line for each way in which a later study of the same name differs.

        Folds, seeds and candidates may grow. A search and external variants may be added, and
        so may variants unless a search has drawn among them. The location of the data may change,
        and so may the paths of the variants' weights if the weights are the same; not those that
        a search chooses from.
        """
        # Version 0.1 wrote paths below the home folder in full.
        self = StudySpec.model_validate_json(hide_home(self.model_dump_json()))
        changed_weights = self._changed_weights(other)
        self = self._with_paths_of(other)
        lines = differences(other.experiment, self.experiment) + changed_weights
        counts = ("patients", "slices", "tumour_slices")
        lines += self._changed_variants(other)
        for path, digest in self.files.items():
            if other.files.get(path) != digest:
                lines.append(f"files: {path} is not the same")
        for key in ("grid", "fingerprint", *counts):
            before, now = getattr(self, key), getattr(other, key)
            if before != now:
                lines.append(f"{key}: {_short(before)} -> {_short(now)}")
        for key in ("folds", "seeds"):
            before, now = getattr(self, key), getattr(other, key)
            if now < before:
                lines.append(f"{key}: {before} -> {now}{_ONLY_GROW}")
        lines += self._changed_predictions(other)
        if self.search and other.search:
            lines += self.search.differences(other.search)
        elif self.search:
            lines.append(f"search: {self.search.candidates} candidates -> none")
        return lines

    def _weights(self, variant: str) -> tuple[str, str]:
        """Return where the weights of a variant's encoder are, and their SHA-256 if known."""
        location = self._experiment(variant, {}).model.weights_location
        return location, self.weight_files.get(location, "")

    def _changed_weights(self, other: StudySpec) -> list[str]:
        """Return a line for each variant whose encoder has other weights, and each other file."""
        lines, ours = [], set()
        for name in (name for name in self.variants if name in other.variants):
            (path, before), (_, now) = self._weights(name), other._weights(name)
            ours.add(path)
            if before and now and before != now:
                lines.append(f"variant {name}: the weights of its encoder are not the same")
        return lines + [
            f"weights: {path} does not hold the same"
            for path, digest in self.weight_files.items()
            if path not in ours and other.weight_files.get(path, digest) != digest
        ]

    def _with_paths_of(self, other: StudySpec) -> StudySpec:
        """Return the study with the other's paths of weights, if they are the variants' own."""
        variants = dict(self.variants)
        for name in (name for name in variants if name in other.variants):
            (path, before), (moved, now) = self._weights(name), other._weights(name)
            if before != now or (not now and path != moved):
                return self
            if _WEIGHTS in variants[name] and _WEIGHTS in other.variants[name]:
                own = {_WEIGHTS: other.variants[name][_WEIGHTS]}
                variants[name] = variants[name] | own
        experiment = self.experiment.replaced({_WEIGHTS: other.experiment.model.encoder_weights})
        return self.model_copy(update={"experiment": experiment, "variants": variants})

    def _changed_variants(self, other: StudySpec) -> list[str]:
        before, now = self.variants, other.variants
        lines = [f"variant {name} is gone" for name in before if name not in now]
        lines += [
            f"variant {name}: {json.dumps(keys)} -> {json.dumps(now[name])}"
            for name, keys in before.items()
            if now.get(name, keys) != keys
        ]
        if self.search:
            added = [name for name in now if name not in before]
            lines += [f"variant {name} is new, and the search chose without it" for name in added]
            for search in [] if lines else self.searches:
                order = list(search.variants)
                if order != [name for name in now if name in order]:
                    names = ", ".join(order)
                    lines.append(f"the search draws among variants in this order: {names}")
        return lines

    def _changed_predictions(self, other: StudySpec) -> list[str]:
        lines = []
        for name, patients in self.external.items():
            now_has = other.external.get(name)
            if now_has is None:
                lines.append(f"external {name}: give --predictions {name}=DIR again")
                continue
            changed = [p for p in patients if now_has.get(p, patients[p]) != patients[p]]
            if changed:
                lines.append(f"external {name}: other masks of {', '.join(changed[:3])}")
        return lines

    def to_record(self) -> dict[str, Any]:
        """Return the fields for study.json, and of a search what readers of the file need."""
        record = self.model_dump(mode="json")
        if self.search is not None:
            facts = {"training_seed": self.training_seed, "rungs": self.rungs}
            record["search"] |= facts | {"epochs": self.halving.longest}
        return record

    def _experiment(self, variant: str, cell: Changes) -> Experiment:
        where = f"grid {self.grid}, variant {variant}"
        return self.experiment.replaced({**self.variants[variant], **cell}, where)

    @property
    def _seeds(self) -> range:
        return range(self.experiment.seed, self.experiment.seed + self.seeds)

    def _job(self, variant: str, experiment: Experiment) -> TrialJob:
        return TrialJob(
            variant=variant,
            fold=experiment.fold,
            seed=experiment.seed,
            experiment=experiment,
            data=self.data,
            fingerprint=self.fingerprint,
            synthetic=self.synthetic,
            weights_hash=self.weight_files.get(experiment.model.weights_location, ""),
        )


def _short(value: str | int | Mapping[str, Any]) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
