"""Every number of the report for programs: report.json and table.csv.

An estimate is `{"point", "low", "high"}` with a 95 % interval; null stands for what is undefined.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from study.report.results import StudyResults
from study.storage.schema import FINISHED, Row

PIXELS = "pixels of the slice"
UNITS = {
    "Dice/patient": "1",
    "global Dice": "1",
    "Dice/slice": "1",
    "IoU": "1",
    "precision": "1",
    "recall": "1",
    "HD95": PIXELS,
    "HD95, worst case": PIXELS,
    "NSD": "1",
    "volume similarity": "1",
    "HD95, mm": "mm",
    "HD95, worst case, mm": "mm",
    "NSD, mm": "1",
}
"""Score -> unit; 1 is a share. HD95 is the better the lower, the others the higher."""


def describe_numbers(results: StudyResults) -> dict[str, Any]:
    """Return what the report shows as plain lists, dictionaries, numbers and texts.

    Attributes of the classes in `study.analysis` are the keys; their docstrings say what each is.
    """
    about, comparison = results.about, results.comparison
    shown = {
        "study": {key: about.get(key) for key in ("name", "grid", "synthetic", "fingerprint")},
        "labels": results.labels,
        "conclusion": results.conclusion.sentence,
        "limits": results.points,
        "protocol": about.get("protocol"),
        "patients_compared": comparison.num_shared,
        "variants": _describe_variants(results),
        "differences": comparison.pairs,
        "effects": comparison.effects,
        "variance": comparison.variance,
        "rankings": results.rankings,
        "leaks": results.leaks,
        "groups": results.breakdowns,
        "slice_errors": results.slice_errors,
        "calibration": results.calibrations,
        "postprocessing": results.effects_of_postprocessing,
    }
    return {name: _plain(value) for name, value in shown.items()}


def score_rows(results: StudyResults) -> list[Row]:
    """Return the rows of table.csv: a row per variant and score."""
    return [
        {
            "variant": item["variant"],
            "score": name,
            "unit": score["unit"],
            "patients": score["n"],
            **{key: score[key] for key in ("point", "low", "high")},
        }
        for item in _describe_variants(results)
        for name, score in item["scores"].items()
    ]


def _describe_variants(results: StudyResults) -> list[dict[str, Any]]:
    variants = []
    for item in results.comparison.variants:
        scores = {**item.scores, "Dice/slice": results.slice_dice.get(item.variant)}
        variants.append(
            {
                "variant": item.variant,
                "patients": item.num_patients,
                "trials": len(results.trials_of(item.variant)),
                "finished": len(results.trials_of(item.variant, FINISHED)),
                "ranks": item.ranks,
                "shared": _plain(item.shared),
                "scores": {
                    name: {"unit": UNITS[name], "n": item.num_patients, **_plain(found)}
                    for name, found in scores.items()
                    if found is not None
                },
            }
        )
    return variants


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
