"""A search that really trains, by the command, killed for real; its winner among the variants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Study, assert_equal, wait_until

from brainseg.config import Experiment, load_experiment
from brainseg.storage.files import read_csv
from study.storage.leaderboard import ranked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
stages.0.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
stages.1.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
augment.strength: {low: 0.0, high: 2.0}
"""
LIMITS = ["--concurrent", "1", "--cpus-per-trial", "1"]


def _study(folder: Path, data: Path, tiny: Experiment, candidates: int) -> Study:
    changes = {"stages.0.learning_rate": 1e-5, "stages.1.learning_rate": 1e-5}
    study = Study(folder, data, tiny.replaced(changes | {"stages.1.epochs": 3}))
    (folder / "space.yaml").write_text(SPACE)
    flags = ["--search", str(candidates), "--space", "space.yaml", "--search-folds", "2"]
    study.command += [*flags, *LIMITS]
    return study


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, phantom_root: Path, tiny: Experiment) -> Study:
    """A search that was left alone."""
    study = _study(tmp_path_factory.mktemp("quiet"), phantom_root, tiny, 3)
    study.finish()
    return study


@pytest.fixture
def searching(tmp_path: Path, phantom_root: Path, tiny: Experiment) -> Iterator[Study]:
    """The same search, not started yet."""
    study = _study(tmp_path / "study", phantom_root, tiny, 3)
    yield study
    study.end()


def _wait_for_candidate(study: Study, number: int, epochs: int) -> None:
    path = study.results / "search" / "candidates" / f"{number:04d}" / "history.csv"
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) > epochs)


def test_the_winner_stands_beside_the_variants(quiet: Study) -> None:
    rows = read_csv(quiet.results / "candidates.csv")
    best = ranked(rows)[0]
    winner = f"winner-c{int(best['candidate']):04d}"
    trials = read_csv(quiet.results / "trials.csv")
    assert [row["variant"] for row in trials] == ["raw-lite0", "preprocessed-lite0", winner]
    assert {row["status"] for row in trials} == {"finished"}
    assert {row["seed"] for row in trials} == {"44"}
    trained = load_experiment(quiet.results / "trials" / f"{winner}-fold0-seed44/experiment.yaml")
    assert trained == load_experiment(quiet.results / "best.yaml")
    report = (quiet.results / "report.md").read_text()
    assert "## Search" in report
    assert winner in report
    left = {path.name for path in (quiet.results / "search" / "candidates").glob("*/*")}
    assert left <= {"params.json", "history.csv", "result.json", "experiment.yaml"}


@pytest.mark.exhaustive
def test_a_killed_search_goes_on_to_the_same_winner_and_the_same_bits(
    quiet: Study, searching: Study
) -> None:
    for number, epochs in ((0, 1), (2, 2)):
        searching.start()
        _wait_for_candidate(searching, number, epochs)
        searching.kill()
    searching.finish()
    assert "continues after epoch" in searching.log()
    for name in ("candidates.csv", "search/decisions.csv", "best.yaml"):
        assert (searching.results / name).read_bytes() == (quiet.results / name).read_bytes()
    assert_equal(searching, quiet)


OWN = """
description: Two learning rates, each with a search of its own over two seeds.
names: "{rate}"
factors:
  rate:
    low: {stages.1.learning_rate: 1.0e-5}
    high: {stages.1.learning_rate: 1.0e-3}
search:
  per: rate
  candidates: 2
  seeds: 2
  scheduler: none
  sampler: random
  space: {augment.strength: {low: 0.0, high: 2.0}}
"""


@pytest.mark.exhaustive
def test_each_level_has_a_search_and_a_winner_of_its_own_killed_or_not(
    tmp_path: Path, phantom_root: Path, tiny: Experiment
) -> None:
    studies = []
    for name in ("quiet", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.yaml").write_text(OWN)
        study = Study(tmp_path / name, phantom_root, tiny)
        study.command[study.command.index("lite")] = "own.yaml"
        study.command += LIMITS
        study.results = study.results.with_name("own-synthetic")
        studies.append(study)
    quiet, killed = studies
    quiet.finish()
    killed.start()
    folder = killed.results / "search" / "high" / "candidates" / "0001"
    wait_until((folder / "history.csv").exists)
    killed.kill()
    killed.finish()
    for level in ("low", "high"):
        for file in ("candidates.csv", "best.yaml"):
            name = f"search/{level}/{file}"
            assert (killed.results / name).read_bytes() == (quiet.results / name).read_bytes()
        rows = read_csv(quiet.results / "search" / level / "candidates.csv")
        assert [row["status"] for row in rows] == ["finished", "finished"]
        assert {row["variant"] for row in rows} == {level}
    assert_equal(killed, quiet)
    best = {
        level: ranked(read_csv(quiet.results / f"search/{level}/candidates.csv"))[0]
        for level in ("low", "high")
    }
    winners = {f"winner-{level}-c0001" for level, row in best.items() if row["candidate"] == "1"}
    trials = {row["variant"] for row in read_csv(quiet.results / "trials.csv")}
    assert trials == {"low", "high"} | winners
    report = (quiet.results / "report.md").read_text()
    assert "## Search of low" in report
    assert "## Search of high" in report
    assert "the mean over 1 inner fold(s) x 2 seed(s)" in report
