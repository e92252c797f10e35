"""Everything that is known of a dataset: measured once, then shown on a page and kept as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from brainseg.config import DataConfig
from brainseg.covariates import Covariate, compare, read_table
from brainseg.narrative import summarise_in_words
from brainseg.patients import describe_patients
from brainseg.quality import check_quality, describe_dataset, verify_splits
from brainseg.store import SliceStore
from brainseg.survey import Survey, survey

Row = dict[str, Any]

_SPLIT_SEED = DataConfig().split_seed


@dataclass(frozen=True)
class Exploration:
    """Everything that is known of a dataset, from which page and JSON are written."""

    data: SliceStore
    found: Survey
    patients: list[Row]
    covariates: tuple[Covariate, ...]
    card: Row
    findings: list[str]
    splits: list[Row]
    summary: list[str]
    seed: int

    @property
    def sizes(self) -> dict[str, float]:
        """Patient -> share of its pixels that is tumour."""
        pixels = self.data.size**2
        return {r["patient"]: r["tumour_pixels"] / (r["slices"] * pixels) for r in self.patients}

    def to_json(self) -> str:
        """Return all numbers as JSON text."""
        table = [
            {key: getattr(covariate, key) for key in ("name", "test", "p_value", "adjusted")}
            for covariate in self.covariates
        ]
        tree: Row = {
            "summary": self.summary,
            "dataset": self.card,
            "findings": self.findings,
            "patients": [
                row | {"tumour_share": self.sizes[row["patient"]]} for row in self.patients
            ],
            "splits": self.splits,
            "covariates": table,
            "components": [part._asdict() for part in self.found.components],
            "slices": [
                asdict(item) | {"mean": mean, "spread": spread, "missing": missing}
                for item, mean, spread, missing in zip(
                    self.data.slices,
                    self.found.means.round(3).tolist(),
                    self.found.spreads.round(3).tolist(),
                    self.found.missing,
                    strict=True,
                )
            ],
            "seed": self.seed,
        }
        return json.dumps(_without_nan(tree), indent=1, allow_nan=False) + "\n"


def explore(data: SliceStore, seed: int) -> Exploration:
    """Measure a dataset.

    Args:
        data: The dataset.
        seed: Of the random samples.
    """
    found = survey(data)
    patients = describe_patients(data)
    table = read_table(data.root / "data.csv")
    pixels = data.size**2
    sizes = {r["patient"]: r["tumour_pixels"] / (r["slices"] * pixels) for r in patients}
    sites = {row["patient"]: {"site": row["site"]} for row in patients}
    merged = {patient: sites.get(patient, {"site": ""}) | row for patient, row in table.items()}
    covariates = compare(merged or sites, sizes)
    card = describe_dataset(data, found, patients)
    splits = verify_splits(data, _SPLIT_SEED)
    return Exploration(
        data=data,
        found=found,
        patients=patients,
        covariates=covariates,
        card=card,
        findings=check_quality(data, found, patients, table),
        splits=splits,
        summary=summarise_in_words(card, found, splits, covariates),
        seed=seed,
    )


def _without_nan(tree: Any) -> Any:
    """JSON has no NaN: a test that could not be made has no p-value."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
