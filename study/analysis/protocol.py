"""The analysis fixed before the first trial: what is compared, by which test, on which patients.

study.json keeps it with its hash and the time at which it was written (a preregistration in one
line). What changes later, such as more seeds, is kept beside it with its own time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

from study.analysis.bootstrap import NUM_RESAMPLES
from study.analysis.comparison import LEVEL
from study.spec.study_spec import StudySpec

PRIMARY = {
    "primary metric": "Dice/patient: the Dice of all slices of a patient, mean over test patients",
    "comparison": "every pair of variants, paired by patient and seed",
    "test": "two-sided sign-flip test on the patients' mean differences",
    "correction": "Holm's method over all pairs",
    "level": f"{LEVEL:g}, and the 95 % interval of the difference excludes 0",
    "intervals": f"crossed bootstrap of patients and seeds, {NUM_RESAMPLES:,} resamples",
    "selection": "lowest validation loss of each training; each model is tested once",
}
"""What the report calls primary; all else in it is secondary."""


def describe_protocol(spec: StudySpec) -> dict[str, Any]:
    """Return what is fixed: the analysis, the variants, and how often each is trained on what."""
    return {
        **PRIMARY,
        "variants": ", ".join(spec.variants),
        "external": ", ".join(spec.external),
        "rotations": spec.folds,
        "seeds": spec.seeds,
        "split": spec.experiment.data.split,
        "dataset": spec.fingerprint,
        "candidates of searches": spec.search.candidates if spec.search else 0,
    }


def _hash(protocol: dict[str, Any]) -> str:
    """Return the SHA-256 of a protocol, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def register(
    earlier: Sequence[dict[str, Any]], spec: StudySpec, num_tested: int
) -> list[dict[str, Any]]:
    """Return the protocols of a study with the current one, which is added if it is new.

    Args:
        earlier: Those of study.json, the first one first.
        spec: What the study asks now.
        num_tested: Trials that were tested already.
    """
    protocol = describe_protocol(spec)
    digest = _hash(protocol)
    if earlier and earlier[-1]["hash"] == digest:
        return list(earlier)
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record = {"time": now, "hash": digest, "tested": num_tested, "protocol": protocol}
    return [*earlier, record]


def describe_changes(registered: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return a row for each later change of the protocols that `register` returned."""
    rows = []
    for before, after in itertools.pairwise(registered):
        old, new = before["protocol"], after["protocol"]
        rows += [
            {
                "changed on": after["time"],
                "trials tested": str(after["tested"]),
                "what": key,
                "before": str(old.get(key, "")),
                "after": str(new.get(key, "")),
            }
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    return rows
