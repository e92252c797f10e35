from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from generated import generate_study
from stubs import Drive, build_search

from brainseg.config import Experiment
from brainseg.document import Figure, Paragraph, Section, Table
from brainseg.storage.files import read_csv
from study.report.build import write_report
from study.report.figures import Drawer
from study.report.results import Records, read_records
from study.report.search_section import describe_search, importances, restrict
from study.storage.candidates import candidate_folder
from study.storage.leaderboard import ranked, write_standings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two variants and a winner on two rotations, its scores and curves invented."""
    folder = generate_study(tmp_path_factory.mktemp("study") / "lite", grid="baseline", seeds=1)
    search = build_search(folder, 24, base=Experiment())
    with pytest.MonkeyPatch.context() as patch:
        Drive(search, folder).run(patch)
    number = int(ranked(read_csv(folder / "candidates.csv"))[0]["candidate"])
    for path in folder.glob("*.csv"):
        text = path.read_text().replace("raw-efficientnet-b0", f"winner-c{number:04d}")
        path.write_text(text)
    about = json.loads((folder / "study.json").read_text())
    variants = {name: dict(changes) for name, changes in search.space.variants.items()}
    about |= {"search": search.to_record(), "variants": variants}
    (folder / "study.json").write_text(json.dumps(about))
    split = json.loads((folder / "split.json").read_text())
    split["search"] = split["rotations"][:1]
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture(scope="module")
def records(study: Path) -> Records:
    return read_records(study)


@pytest.fixture(scope="module")
def section(records: Records) -> Section:
    drawer = Drawer(records.study, records.matrix.variants, records.labels)
    (section,) = describe_search(records, drawer)
    return section


def _table(section: Section, words: str) -> Table:
    return next(b for b in section.blocks if isinstance(b, Table) and words in b.caption)


def test_a_search_says_what_it_found(section: Section, study: Path) -> None:
    text = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    rows = read_csv(study / "candidates.csv")
    finished = sum(row["status"] == "finished" for row in rows)
    assert f"{finished} finished" in text
    assert f"The best is candidate {ranked(rows)[0]['candidate']}" in text
    top = _table(section, "The best 5").rows
    assert [row["candidate"] for row in top] == [r["candidate"] for r in ranked(rows)[:5]]


def test_every_drawing_is_there(section: Section, study: Path) -> None:
    names = {block.path for block in section.blocks if isinstance(block, Figure)}
    kinds = ("progress", "importance", "slices", "parallel")
    assert names == {f"figures/search_{kind}.png" for kind in kinds}
    for name in names:
        assert (study / name).stat().st_size > 5_000
        assert "SYNTHETIC" in (study / name).with_suffix(".svg").read_text()


def test_what_stopping_saved_is_in_epochs_and_hours(section: Section, study: Path) -> None:
    trained, full = _table(section, "saved").rows
    rows = read_csv(study / "candidates.csv")
    assert trained["epochs"] == str(sum(int(row["epochs"]) for row in rows))
    assert float(trained["share"]) < float(full["share"]) == 1
    assert _table(section, "Do scores at a rung").rows[0]["after epoch"] == "7"


def test_the_winner_is_compared_on_patients_that_the_search_never_saw(
    section: Section, records: Records
) -> None:
    rows = _table(section, "what it gains").rows
    groups = {row["test patients"]: int(row["number"]) for row in rows}
    first = records.split["rotations"][0]
    assert groups["those whom the search never saw"] == len(first["test"])
    assert groups["all"] == len(records.matrix.patients)
    tested = {p for r in records.split["rotations"] for p in r["test"]}
    expected = len(tested - set(first["val"]))
    assert groups["those who did not judge candidates"] == expected
    assert {row["against"] for row in rows} == {
        name for name in records.matrix.variants if not name.startswith("winner")
    }


def test_the_factors_of_the_grid_are_compared_without_the_winner(records: Records) -> None:
    assert records.comparison.effects == ()  # one of the four became the winner
    kept = [patient for patient in records.matrix.patients if patient.endswith("9")]
    few = restrict(records.matrix, kept)
    assert few.patients == tuple(kept)
    assert few.dice.shape[-1] == few.folds.shape[-1] == len(kept)


def test_what_matters_is_found_important(tmp_path: Path) -> None:
    text = "augment.strength: {low: 0.0, high: 2.0}\noptimizer.weight_decay: {low: 0.0, high: 1.0}"
    search = build_search(tmp_path, 30, text=text)
    points = [
        {
            "variant": "raw-lite0",
            "augment.strength": n / 15,
            "optimizer.weight_decay": n * 7 % 30 / 30,
        }
        for n in range(30)
    ]
    found = importances(search, points, [n / 15 for n in range(30)])
    for values in found.values():
        assert values["augment.strength"] > 0.8
    assert set(found) == {"fANOVA", "PED-ANOVA"}
    assert importances(search, points[:3], [1.0, 2.0, 3.0]) == {}


def test_a_search_of_one_candidate_is_reported_even_if_it_never_trained(tmp_path: Path) -> None:
    folder = generate_study(tmp_path / "study", grid="lite", seeds=1, patients=10, slices=4)
    search = build_search(folder, 1, base=Experiment())
    with pytest.MonkeyPatch.context() as patch:
        Drive(search, folder).run(patch)
    about = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(about | {"search": search.to_record()}))

    def describe() -> Section:
        records = read_records(folder)
        drawer = Drawer(folder, records.matrix.variants, records.labels)
        (section,) = describe_search(records, drawer)
        return section

    _table(describe(), "What stopping early saved")
    candidate = candidate_folder(folder, 0)
    (candidate.path / "history.csv").unlink()
    result = {"status": "failed", "error": "out of memory"}
    (candidate.path / "result.json").write_text(json.dumps(result))
    write_standings(folder, search, "SYNTHETIC")
    assert not [b for b in describe().blocks if isinstance(b, Table) and "saved" in b.caption]


def test_a_study_without_a_search_has_no_such_section(tmp_path: Path) -> None:
    folder = generate_study(tmp_path / "study", grid="lite", seeds=1, patients=10, slices=4)
    records = read_records(folder)
    drawer = Drawer(folder, records.matrix.variants, records.labels)
    assert describe_search(records, drawer) == []


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
    assert b"Each line is a candidate" in before
