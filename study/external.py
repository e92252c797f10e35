"""Other tools' predictions as variants: scored like the study's own, but not trained here.

Their rows are written once, below `external/NAME/` in the study's folder, so that a report needs
the predicted masks no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_of
from brainseg.inference.evaluation import evaluate_masks, patient_rows, slice_rows
from brainseg.inference.predicted_masks import read_predicted_masks
from brainseg.metrics import summarise
from brainseg.storage.files import write_csv
from study.spec.study_spec import StudySpec
from study.storage.schema import EXTERNAL_TABLES, Row
from study.storage.tables import external_folder


@dataclass(frozen=True)
class ExternalVariant:
    """The scored predictions of another tool.

    Attributes:
        name: Of the variant.
        patients: Test patient -> fingerprint of the masks of the patient's slices.
        tables: Name in `EXTERNAL_TABLES` -> rows with their fold, without variant and seed.
    """

    name: str
    patients: dict[str, str]
    tables: dict[str, list[Row]]

    def write(self, study: Path) -> None:
        """Write the rows into the study's folder."""
        folder = external_folder(study, self.name)
        folder.mkdir(parents=True, exist_ok=True)
        for table, rows in self.tables.items():
            write_csv(folder / f"{table}.csv", rows, EXTERNAL_TABLES[table].names_in(rows))


def score_external(name: str, folder: Path, spec: StudySpec, data: SliceStore) -> ExternalVariant:
    """Score predicted masks on the test patients of every rotation of a study.

    A patient is scored in the rotation that tests it, against the original masks, with the same
    code as the study's own trials.

    Args:
        name: Of the variant.
        folder: Of the masks, see `read_predicted_masks`.
        spec: The study.
        data: Its dataset.

    Raises:
        DataError: If masks are missing or cannot be used.
    """
    test_of: dict[int, Sequence[int]] = {}
    for fold in range(spec.folds):
        split = split_of(spec.experiment.replaced({"fold": fold}), data.slices)
        test_of[fold] = split.indices(data.slices, "test").tolist()
    masks = read_predicted_masks(
        folder, data, [i for indices in test_of.values() for i in indices]
    )
    tables: dict[str, list[Row]] = {table: [] for table in EXTERNAL_TABLES}
    for fold, indices in test_of.items():
        predicted = [masks[index] for index in indices]
        test = evaluate_masks(data, indices, predicted, spec.experiment.data.spacing_mm)
        summary = summarise(test.plain, test.patients)
        tables["trials"].append({"fold": fold} | {f"test_{k}": v for k, v in summary.items()})
        tables["scores"] += [{"fold": fold} | row for row in patient_rows(test)]
        tables["slices"] += [{"fold": fold} | row for row in slice_rows(test, data)]
    digests: dict[str, str] = {}
    for index in sorted(masks):
        patient = data.slices[index].patient
        digest = hashlib.sha256(digests.get(patient, "").encode())
        digest.update(np.packbits(masks[index]).tobytes())
        digests[patient] = digest.hexdigest()[:16]
    return ExternalVariant(name, digests, tables)
