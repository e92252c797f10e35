from __future__ import annotations

import json

from brainseg.config import Experiment
from study.spec.resources import TrialResources
from study.spec.trial_job import TrialJob

JOB = TrialJob(variant="raw", fold=0, seed=44, experiment=Experiment())


def test_a_job_survives_the_way_to_a_worker_and_carries_its_name() -> None:
    placed = JOB.placed("s3://bucket/study", TrialResources(cpus=3, gpus=0.5))
    config = json.loads(json.dumps(placed.model_dump(mode="json")))
    assert TrialJob.model_validate(config) == placed
    assert (config["name"], config["path"]) == ("raw-fold0-seed44", "trials/raw-fold0-seed44")


def test_inner_folds_validate_on_other_patients_of_the_same_rotation() -> None:
    candidate = JOB.model_copy(update={"candidate": 3, "num_inner_folds": 4})
    assert [e.inner_fold for e in candidate.experiments] == [0, 1, 2, 3]
    assert {e.fold for e in candidate.experiments} == {0}
    last = Experiment().replaced({"inner_fold": 7})
    again = candidate.model_copy(update={"experiment": last})
    assert [e.inner_fold for e in again.experiments] == [7, 8, 0, 1]
    assert JOB.experiments == [JOB.experiment]
