from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from brainseg.errors import StudyError
from study.analysis.protocol import describe_changes
from study.cli import parse_options
from study.resolve import Study, allocate, resolve, write_facts
from study.spec.resources import Node, TrialResources
from study.storage.study_folder import check_folder, read_spec, read_study
from study.storage.trial_folder import TrialFolder, candidate_folder

FLAGS = ["--grid", "lite", "--plan", "--set", "model.encoder_weights=none", "--folds", "2"]


def _args(root: Path, storage: Path, *flags: str) -> argparse.Namespace:
    return parse_options([*FLAGS, "--data", str(root), "--storage", str(storage), *flags])


@pytest.fixture
def study(phantom_root: Path, tmp_path: Path) -> Study:
    study = resolve(_args(phantom_root, tmp_path), print)
    study.folder.mkdir()
    write_facts(study, TrialResources(cpus=3))
    return study


def test_what_was_resolved_is_written_and_read_back(study: Study) -> None:
    assert read_spec(study.folder) == study.spec
    assert (study.spec.patients, study.spec.slices) == (12, 72)
    for name in ("experiment.yaml", "split.json", "patients.csv"):
        assert (study.folder / name).stat().st_size > 0
    assert study.sizes.keys() == {"unet tu-tf_efficientnet_lite0"}


def test_a_trial_is_open_until_it_has_ended_and_again_on_request(study: Study) -> None:
    jobs = study.jobs()
    assert study.open_jobs(jobs, retry_failed=False) == jobs
    folder = TrialFolder(study.folder / jobs[1].path)
    folder.path.mkdir(parents=True)
    folder.write_failure(jobs[1], "diverged", "the loss is nan")
    assert study.open_jobs(jobs, retry_failed=False) == [jobs[0], *jobs[2:]]
    assert study.open_jobs(jobs, retry_failed=True) == jobs


def test_a_winner_not_known_yet_counts_as_one_more_variant(
    phantom_root: Path, tmp_path: Path
) -> None:
    study = resolve(_args(phantom_root, tmp_path, "--search", "2"), print)
    assert study.num_open_candidates() == 2
    assert [len(study.jobs()), len(study.expected_jobs())] == [4, 6]
    for index, variant in enumerate(study.spec.variants):  # both have ended, without a winner
        job = study.spec.candidate(index, study.spec.search_space.baseline(variant))
        folder = candidate_folder(study.folder, index)
        folder.write_params(study.spec.search_space.baseline(variant))
        folder.write_failure(job, "diverged", "the loss is nan")
    assert study.num_open_candidates() == 0
    assert [len(study.jobs()), len(study.expected_jobs())] == [4, 4]
    assert len(study.expected_jobs(begun=False)) == 6


def test_a_study_that_continues_gives_each_trial_what_it_began_with(
    study: Study, phantom_root: Path, tmp_path: Path
) -> None:
    nodes = (Node(cpus=16, gpus=0),)
    assert read_study(study.folder)["cpus_per_trial"] == 3
    assert allocate(_args(phantom_root, tmp_path), study, nodes).cpus == 3
    assert allocate(_args(phantom_root, tmp_path, "--cpus-per-trial", "2"), study, nodes).cpus == 2
    assert allocate(_args(phantom_root, tmp_path, "--fresh"), study, nodes).cpus == 4


def test_a_study_grows_by_variants_and_says_so(phantom_root: Path, tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    text = "description: x\nvariants: {low: {threshold: 0.4}"
    grid.write_text(f"{text}}}")
    storage = tmp_path / "results"
    first = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    first.folder.mkdir(parents=True)
    write_facts(first, TrialResources(cpus=1))

    grid.write_text(f"{text}, high: {{threshold: 0.6}}}}")
    more = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    assert check_folder(more.folder, more.spec)
    assert [job.name for job in more.jobs() if job not in first.jobs()] == [
        "high-fold0-seed44",
        "high-fold1-seed44",
    ]
    write_facts(more, TrialResources(cpus=1))
    (sentence,) = describe_changes(read_study(more.folder)["protocol"])
    assert "variants: low -> low, high" in sentence

    grid.write_text("description: x\nvariants: {low: {threshold: 0.3}}")
    other = resolve(_args(phantom_root, storage, "--grid", str(grid)), print)
    with pytest.raises(StudyError, match=r"variant high is gone; variant low: .*0\.4.*0\.3"):
        check_folder(other.folder, other.spec)
