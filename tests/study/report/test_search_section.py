"""The section on a search, of a study whose scores and curves are invented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from generated import generate_study
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState
from stubs import Drive, build_search

from brainseg.config import Experiment
from brainseg.document import Figure, Paragraph, Section, Table
from brainseg.storage.files import read_csv
from study.report.build import write_report
from study.report.figures import FigureWriter
from study.report.results import StudyResults, read_results
from study.report.search_section import _summary, describe_search, to_optuna
from study.storage.leaderboard import ranked, read_candidates, write_leaderboard
from study.storage.study_folder import read_spec
from study.storage.trial_folder import candidate_folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two variants and a winner on two rotations, its scores and curves invented."""
    folder = generate_study(tmp_path_factory.mktemp("study") / "lite", grid="baseline", seeds=1)
    spec = build_search(folder, 24, base=Experiment())
    with pytest.MonkeyPatch.context() as patch:
        Drive(spec, folder).run(patch)
    index = int(ranked(read_csv(folder / "candidates.csv"))[0]["candidate"])
    names = {
        "raw-resnet50": "raw-lite0",
        "preprocessed-resnet50": "preprocessed-lite0",
        "raw-efficientnet-b0": f"winner-c{index:04d}",
    }
    for path in folder.glob("*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if "preprocessed-efficientnet-b0" not in line)
        for old, new in names.items():
            text = text.replace(old, new)
        path.write_text(text)
    about = json.loads((folder / "study.json").read_text())
    variants = {name: dict(changes) for name, changes in spec.variants.items()}
    about |= {"search": spec.to_record()["search"], "variants": variants}
    (folder / "study.json").write_text(json.dumps(about))
    split = json.loads((folder / "split.json").read_text())
    split["search"] = split["rotations"][:1]
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture(scope="module")
def results(study: Path) -> StudyResults:
    return read_results(study)


@pytest.fixture(scope="module")
def section(results: StudyResults) -> Section:
    (section,) = describe_search(results, FigureWriter(results))
    return section


def _table(section: Section, words: str) -> Table:
    return next(b for b in section.blocks if isinstance(b, Table) and words in b.caption)


def test_the_section_names_the_best_candidates(section: Section, study: Path) -> None:
    text = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    rows = read_csv(study / "candidates.csv")
    finished = sum(row["status"] == "finished" for row in rows)
    assert f"{finished} finished" in text
    assert f"The best is candidate {ranked(rows)[0]['candidate']}" in text
    top = _table(section, "The best 5").rows
    assert [row["candidate"] for row in top] == [r["candidate"] for r in ranked(rows)[:5]]


def test_every_figure_is_drawn(section: Section, study: Path) -> None:
    names = {block.path for block in section.blocks if isinstance(block, Figure)}
    kinds = ["history", "curves", "importance_fanova", "importance_ped_anova", "parallel"]
    assert names == {f"figures/search_{kind}.png" for kind in [*kinds, "slices_1", "slices_2"]}
    for name in names:
        assert (study / name).stat().st_size > 5_000
        assert "SYNTHETIC" in (study / name).with_suffix(".svg").read_text()


def test_early_stopping_is_measured_in_epochs_and_hours(section: Section, study: Path) -> None:
    trained, full = _table(section, "early stopping saved").rows
    rows = read_csv(study / "candidates.csv")
    assert trained["epochs"] == str(sum(int(row["epochs"]) for row in rows))
    assert float(trained["share"]) < float(full["share"]) == 1
    assert _table(section, "Do scores at a rung").rows[0]["after epoch"] == "7"


def test_the_winner_is_compared_on_patients_new_to_the_search(
    section: Section, results: StudyResults
) -> None:
    rows = _table(section, "difference from each variant").rows
    groups = {row["test patients"]: int(row["patients"]) for row in rows}
    first = results.split["rotations"][0]
    tested = {p for r in results.split["rotations"] for p in r["test"]}
    assert groups == {
        "all": len(results.matrix.patients),
        "not used to judge candidates": len(tested - set(first["val"])),
        "never seen by the search": len(first["test"]),
    }
    assert {row["against"] for row in rows} == {
        name for name in results.matrix.variants if not name.startswith("winner")
    }


def test_the_factors_of_the_grid_are_compared_without_the_winner(results: StudyResults) -> None:
    assert results.comparison.effects == ()  # two of the four variants are gone
    kept = [patient for patient in results.matrix.patients if patient.endswith("9")]
    few = results.matrix.of_patients(kept)
    assert few.patients == tuple(kept)
    assert few.dice.shape[-1] == few.folds.shape[-1] == len(kept)


def test_candidates_become_an_optuna_study(tmp_path: Path) -> None:
    text = "augment.strength: {low: 0.0, high: 2.0}\noptimizer.weight_decay: {low: 0.0, high: 1.0}"
    spec = build_search(tmp_path, 30, text=text)
    points = [
        {
            "variant": "raw-lite0",
            "augment.strength": n / 15,
            "optimizer.weight_decay": n * 7 % 30 / 30,
        }
        for n in range(30)
    ]
    scores = [None, *(n / 15 for n in range(1, 30))]
    study = to_optuna(spec, points, scores, [{1: n / 20, 2: n / 15} for n in range(30)])
    assert [trial.params for trial in study.trials] == points
    assert [trial.value for trial in study.trials] == scores
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[3].intermediate_values == {1: 3 / 20, 2: 3 / 15}
    for evaluator in (FanovaImportanceEvaluator(seed=44), PedAnovaImportanceEvaluator()):
        assert get_param_importances(study, evaluator=evaluator)["augment.strength"] > 0.8


def test_a_candidate_that_never_trained_is_reported(tmp_path: Path) -> None:
    folder = generate_study(tmp_path / "study", grid="lite", seeds=1, patients=10, slices=4)
    spec = build_search(folder, 1, base=Experiment())
    with pytest.MonkeyPatch.context() as patch:
        Drive(spec, folder).run(patch)
    about = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(about | {"search": spec.to_record()["search"]}))

    def describe() -> Section:
        results = read_results(folder)
        (section,) = describe_search(results, FigureWriter(results))
        return section

    _table(describe(), "What early stopping saved")
    candidate = candidate_folder(folder, 0)
    (candidate.path / "history.csv").unlink()
    result = {"variant": "raw-lite0", "fold": 0, "seed": 44}
    result |= {"status": "failed", "error": "out of memory"}
    (candidate.path / "result.json").write_text(json.dumps(result))
    write_leaderboard(folder, spec, "SYNTHETIC")
    assert not [b for b in describe().blocks if isinstance(b, Table | Figure)]


def test_a_study_without_a_search_has_no_such_section(small: Path) -> None:
    results = read_results(small)
    assert describe_search(results, FigureWriter(results)) == []


@pytest.mark.slow
def test_a_report_with_a_search_needs_neither_torch_nor_ray(study: Path) -> None:
    write_report(study)
    before = (study / "report.html").read_bytes()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from study.report.build import write_report\n"
        f"write_report(Path({str(study)!r}))\n"
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (study / "report.html").read_bytes() == before
    assert b"Each curve is a candidate" in before


def test_settings_chosen_before_the_study_are_compared_on_new_patients(small: Path) -> None:
    about = json.loads((small / "study.json").read_text())
    tested = read_results(small).matrix.patients
    judged, trained = list(tested[:1]), list(tested[1:2])
    chosen = {"variants": ["raw-lite0"], "judged": judged, "trained": trained}
    (small / "study.json").write_text(json.dumps(about | {"chosen_on": chosen}))
    results = read_results(small)
    (section,) = describe_search(results, FigureWriter(results))
    assert section.name == "chosen"
    rows = _table(section, "difference from each variant").rows
    assert [int(row["patients"]) for row in rows] == [len(tested) - n for n in (0, 1, 2)]
    assert {row["against"] for row in rows} == {"preprocessed-lite0"}


def test_a_search_without_a_scheduler_stops_none_early(study: Path, results: StudyResults) -> None:
    (spec,) = read_spec(study).searches
    search = spec.search.model_copy(update={"scheduler": "none"}) if spec.search else None
    rows, params = read_csv(study / "candidates.csv"), read_candidates(study, spec)
    rows[0]["status"] = "failed"
    text = next(_summary(spec.model_copy(update={"search": search}), rows, params))
    assert isinstance(text, Paragraph)
    assert "and none stopped early: " in text.text
    assert "1 failed" in text.text
