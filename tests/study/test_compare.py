"""Two studies side by side: the same numbers as within one study, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from generated import generate_study

from brainseg.cli import FINISHED, KNOWN_ERROR, USAGE
from brainseg.storage.files import read_csv, write_csv, write_text
from study.compare import main as compare
from study.report.results import read_results

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A study of other variants on the patients of `small`, with one rotation."""
    return generate_study(tmp_path / "other", grid="baseline", folds=1)


def _edit(study: Path, **changes: object) -> None:
    about = json.loads((study / "study.json").read_text())
    write_text(study / "study.json", json.dumps(about | changes))


def _shift(study: Path, column: str, by: int) -> None:
    """Add a number to the cells of a column in every table that has it."""
    for path in study.glob("*.csv"):
        rows = read_csv(path)
        shifted = [
            row | {column: int(row[column]) + by} if row.get(column, "").isdigit() else row
            for row in rows
        ]
        write_csv(path, shifted, tuple(rows[0]))


def test_two_studies_are_paired_on_the_patients_that_both_tested(
    small: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compare([str(small), str(other), "--out", str(out)]) == FINISHED
    assert "small/" in capsys.readouterr().out
    pairs = read_csv(out / "comparison.csv")
    assert len(pairs) == 15  # of 2 + 4 variants
    shared = set(read_results(small).matrix.patients) & set(read_results(other).matrix.patients)
    assert {int(pair["patients"]) for pair in pairs} == {len(shared)}
    for pair in pairs:
        means = []
        for side in (pair["first"], pair["second"]):
            name, variant = side.split("/")
            scores = [
                float(row["Dice"])
                for row in read_csv(tmp_path / name / "scores.csv")
                if row["variant"] == variant and row["patient"] in shared
            ]
            means.append(sum(scores) / len(scores))
        assert float(pair["difference"]) == pytest.approx(means[0] - means[1], abs=1e-6)
    page = (out / "comparison.md").read_text()
    assert re.search(r"folds: 2 -> 1", page)
    assert page.index("How the studies differ") < page.index("Test scores")
    assert "SYNTHETIC" in page
    assert compare([str(small), str(other), "--out", str(out)]) == FINISHED  # its own folder


def test_millimetres_are_compared_only_with_one_spacing(tmp_path: Path) -> None:
    for name, spacing in (("a", 0.5), ("b", 0.5), ("c", 0.7)):
        generate_study(tmp_path / name, grid="lite", folds=1, spacing=spacing)
    for other, is_same in (("b", True), ("c", False)):
        out = tmp_path / f"a{other}"
        assert compare([str(tmp_path / "a"), str(tmp_path / other), "--out", str(out)]) == FINISHED
        page = (out / "comparison.md").read_text()
        assert ("HD95, mm" in page) == is_same
        assert ("data.spacing_mm: " in page) != is_same


def test_studies_without_a_common_seed_are_averaged(
    small: Path, other: Path, tmp_path: Path
) -> None:
    _shift(other, "seed", 10)
    about = json.loads((other / "study.json").read_text())
    _edit(other, experiment=about["experiment"] | {"seed": about["experiment"]["seed"] + 10})
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == FINISHED
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "share no seed" in page
    assert "with means over 2 and 2 seeds, not paired, " in page
    assert "with 1 seed" not in page
    assert "One seed:" not in page


def test_seeds_without_scores_pair_nothing(small: Path, other: Path, tmp_path: Path) -> None:
    """A planned seed whose trainings failed was taken for one that both studies have."""
    for name in ("scores", "slices", "stages", "calibration"):
        path = small / f"{name}.csv"
        rows = read_csv(path)
        write_csv(path, [row for row in rows if row["seed"] != "45"], tuple(rows[0]))
    rows = read_csv(small / "trials.csv")
    failed = [row | {"status": "failed"} if row["seed"] == "45" else row for row in rows]
    write_csv(small / "trials.csv", failed, tuple(rows[0]))
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == FINISHED
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "paired by seed (44); other seeds are left out" in page


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"synthetic": False}, "real data"),
        ({"fingerprint": "0" * 64}, "datasets differ"),
    ],
)
def test_other_data_are_refused(
    changes: dict[str, object], reason: str, small: Path, other: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _edit(other, **changes)
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "change", "reason"),
    [("TN", 1, "resolutions"), ("fold", 1, "rotations")],
)
def test_other_resolutions_and_rotations_are_refused(
    column: str, change: int, reason: str, small: Path, other: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (other / "slices.csv").unlink()  # whose sums would be others
    _shift(other, column, change)
    _edit(other, folds=2)
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert reason in capsys.readouterr().err


def test_a_leaky_split_is_not_compared_with_an_honest_one(
    small: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((other / "study.json").read_text())
    about["experiment"]["data"]["split"] = "slice"
    _edit(other, experiment=about["experiment"])
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert "splits differ (patient, slice)" in capsys.readouterr().err


def test_splits_of_one_kind_may_differ_too(
    small: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = json.loads((other / "study.json").read_text())["experiment"]
    experiment["data"]["split_seed"] += 1
    _edit(other, experiment=experiment)
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert "splits differ (data.split_seed 44, 45)" in capsys.readouterr().err
    _edit(other, experiment=experiment, files={})
    for number, study in enumerate((small, other)):
        experiment["data"] |= {"split_seed": 44, "split": "my.yaml"}
        _edit(study, experiment=experiment, files={"my.yaml": f"{number}" * 64})
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert "splits differ (my.yaml was changed in between)" in capsys.readouterr().err


def test_studies_without_a_shared_patient_are_refused(
    small: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scores", "slices", "stages", "ensemble", "examples", "patients"):
        rows = read_csv(other / f"{name}.csv")
        renamed = [row | {"patient": f"other-{row['patient']}"} for row in rows]
        write_csv(other / f"{name}.csv", renamed, tuple(rows[0]))
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert "no patient was tested with honest variants of both" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_of_leaky_variants_alone_is_refused(
    small: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in other.glob("*.csv"):
        rows = read_csv(path)
        if rows and "variant" in rows[0]:
            leaky = [row | {"variant": f"LEAKY-{row['variant']}"} for row in rows]
            write_csv(path, leaky, tuple(rows[0]))
    about = json.loads((other / "study.json").read_text())
    _edit(other, variants={f"LEAKY-{name}": of for name, of in about["variants"].items()})
    assert compare([str(small), str(other), "--out", str(tmp_path / "out")]) == KNOWN_ERROR
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_with_other_things_is_not_written(small: Path, other: Path) -> None:
    assert compare([str(small), str(other), "--out", str(small)]) == USAGE


def test_what_is_no_study_is_refused(small: Path, tmp_path: Path) -> None:
    assert compare([str(small), str(tmp_path / "absent")]) == KNOWN_ERROR
