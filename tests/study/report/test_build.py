"""The report of generated studies: what it says, and that it says it whatever is missing."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generated import EPOCHS, generate_study

from brainseg.storage.files import read_csv, write_csv, write_text
from study.report.build import write_report
from study.report.figures import Drawer
from study.report.sections import ranked_rows

MARKS = ("SYNTHETIC", "no pretrained weights")


_BLOCK = """\
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "ray", "cv2", "tensorboard"):
            raise ImportError(name)
sys.meta_path.insert(0, NotInstalled())
"""


@pytest.fixture
def copy(generated: Path, tmp_path: Path) -> Path:
    """The generated study, to be changed."""
    return Path(shutil.copytree(generated, tmp_path / "copy"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of two variants without a report, to be changed."""
    return generate_study(tmp_path / "small", grid="lite", patients=20)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings take most of a report's time; here one stands for all."""
    names = [name for name in vars(Drawer) if not name.startswith("_")]

    def draw(drawer: Drawer, *what: object) -> str:
        for suffix in ("svg", "png"):
            write_text(drawer._folder / f"one.{suffix}", "<svg/>")
        return "figures/one.png"

    for name in names:
        monkeypatch.setattr(Drawer, name, draw)


def _page(study: Path) -> str:
    return (study / "report.html").read_text(encoding="utf-8")


def test_every_form_says_what_its_numbers_are(generated: Path) -> None:
    names = ["report.html", "report.md", "table.tex"]
    names += [str(path.relative_to(generated)) for path in generated.glob("models/*.md")]
    assert len(names) == 7
    for name in names:
        text = (generated / name).read_text(encoding="utf-8")
        for mark in MARKS:
            assert mark in text, f"{name} does not say {mark}"
    page = _page(generated)
    captions = re.findall(r'<p class="caption"[^>]*>(.*?)</p>', page)
    results = [c for c in captions if not re.match("Published|The dataset|The split|Vers", c)]
    assert len(results) > 10
    assert all(mark in caption for caption in results for mark in MARKS)


@pytest.mark.usefixtures("undrawn")
def test_real_data_with_weights_carry_no_such_mark(small: Path) -> None:
    record = json.loads((small / "study.json").read_text())
    record |= {"synthetic": False, "weights": "ImageNet"}
    (small / "study.json").write_text(json.dumps(record))
    write_report(small)
    page = _page(small)
    assert "SYNTHETIC" not in page
    assert 'class="label"' not in page
    assert "CC BY-NC-SA" in page


def test_the_page_needs_nothing_else(generated: Path) -> None:
    page = _page(generated)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 100
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)


def test_the_page_has_every_section(generated: Path) -> None:
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", _page(generated))
    assert titles == [
        "Test scores",
        "Is one better than another?",
        "How stable is the order, and what makes scores differ?",
        "Learning curves",
        "Patient by patient",
        "By group of patients and slices",
        "Are the probabilities right?",
        "Optional stages: do they earn their place?",
        "The hardest patients",
        "The hardest slices",
        "Best, median and worst slice of each variant",
        "Trials",
        "Published results, for comparison",
        "Cost",
        "Data and split",
        "How to repeat it",
    ]


def test_a_failed_trial_is_told_with_its_error(generated: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (generated / name).read_text(encoding="utf-8")
        assert "15 of 16 trials finished" in text
        assert "the loss is nan in stage 2, epoch 1" in text


@pytest.mark.usefixtures("undrawn")
def test_without_any_finished_trial_there_is_still_a_report(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=1, failed=(0, 1))
    write_report(study)
    page = _page(study)
    assert "No trial has test scores, so nothing can be concluded." in page
    assert "0 of 2 trials finished" in page
    assert not (study / "models").exists()


@pytest.mark.usefixtures("undrawn")
def test_ties_share_the_first_place(small: Path) -> None:
    rows = read_csv(small / "scores.csv")
    variants = dict.fromkeys(row["variant"] for row in rows)
    of_first = [row for row in rows if row["variant"] == "raw-lite0"]
    same = [{**row, "variant": variant} for variant in variants for row in of_first]
    write_csv(small / "scores.csv", same)
    records = write_report(small)
    assert "rank first together by Dice/patient" in records.conclusion.sentence
    assert len({row["Dice/patient"] for row in ranked_rows(records)}) == 1
    assert {item.ranks for item in records.comparison.variants} == {(0.5, 0.5)}


@pytest.mark.usefixtures("undrawn")
def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=2, patients=10)
    rows = ranked_rows(write_report(study))
    assert [row["patients"] for row in rows] == ["1", "1"]
    assert all(re.fullmatch(r"0\.\d{3}", row["Dice/patient"]) for row in rows)
    assert "nan" not in re.sub(r"data:[^\"]*", "", _page(study)).lower()


@pytest.mark.usefixtures("undrawn")
def test_one_seed_is_no_ensemble(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=2, seeds=1)
    write_report(study)
    assert "With one seed there is no ensemble over seeds." in _page(study)
    assert "One seed: intervals and p-values are about the models that were" in _page(study)


@pytest.mark.usefixtures("undrawn")
def test_an_older_study_gets_what_its_files_allow(small: Path) -> None:
    for name in ("slices", "stages", "ensemble", "calibration", "patients", "examples"):
        (small / f"{name}.csv").unlink()
    (small / "split.json").unlink()
    write_report(small)
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", _page(small))
    assert "Test scores" in titles
    assert "Is one better than another?" in titles
    assert "The hardest slices" not in titles


@pytest.mark.usefixtures("undrawn")
def test_a_leak_in_the_split_is_told(small: Path) -> None:
    write_report(small)
    page = _page(small)
    assert page.count(">holds</td>") == 4
    assert "FAILS" not in page
    split = json.loads((small / "split.json").read_text())
    rotation = split["rotations"][0]
    rotation["train"].append(rotation["test"][0])
    (small / "split.json").write_text(json.dumps(split))
    write_report(small)
    assert _page(small).count("FAILS") == 1


@pytest.mark.usefixtures("undrawn")
def test_published_numbers_are_not_ours(generated: Path, tmp_path: Path) -> None:
    text = (generated / "report.md").read_text(encoding="utf-8")
    assert "Published by others, not measured here." in text
    assert "0.8898" in text
    lite = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=1)
    write_report(lite)
    assert "Published" not in _page(lite)


def test_cost_is_counted_over_all_trials(generated: Path) -> None:
    text = (generated / "report.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| all |"))
    seconds = 40 * 16 * sum(EPOCHS)
    hours = f"{seconds / 3600:.2f}"
    assert line == f"| all | 16 | {16 * sum(EPOCHS)} | 40.0 | {hours} | {hours} |"


def test_a_model_card_says_what_limits_the_model(generated: Path) -> None:
    text = (generated / "models" / "raw-resnet50.md").read_text(encoding="utf-8")
    for words in (
        "Not for clinical use",
        "Weakest group by site:",
        "False alarms on",
        "Calibration error",
        "| Dice/patient | 0.",
        "14 train, 4 val, 2 test patients",
        'Predictor.load("raw-resnet50.safetensors")',
    ):
        assert words in text


def test_the_card_is_of_the_exported_model(generated: Path) -> None:
    model = (generated / "models" / "raw-resnet50.safetensors").read_text()
    fold, seed = re.findall(r"\d+", model.removeprefix("raw-resnet50"))
    text = (generated / "models" / "raw-resnet50.md").read_text(encoding="utf-8")
    assert f"fold {fold}, seed {seed}," in text


def test_the_table_compiles_with_booktabs(generated: Path) -> None:
    lines = (generated / "table.tex").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 4
    assert all(line.count(" & ") == 5 and line.endswith(r"\\") for line in body)
    assert r"\textbf{SYNTHETIC" in "".join(lines)
    assert not re.search(r"(?<!\\)[%_#]", "".join(lines[1:]))


def test_numbers_in_the_page_are_those_of_the_files(generated: Path) -> None:
    with (generated / "scores.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["variant"] == "raw-efficientnet-b0"]
    patients = {r["patient"]: [] for r in rows}  # type: dict[str, list[float]]
    for row in rows:
        patients[row["patient"]].append(float(row["Dice"]))
    mean = np.mean([np.mean(values) for values in patients.values()])
    assert f">{mean:.3f} <small>(" in _page(generated)


def test_without_torch_ray_and_opencv_it_is_redone_the_same(generated: Path, copy: Path) -> None:
    names = ["report.html", "report.md", "table.tex", "models/raw-resnet50.md"]
    names += [f"figures/{path.name}" for path in (generated / "figures").iterdir()]
    assert len(names) == 4 + 2 * 7
    for name in names:
        (copy / name).unlink()
    arguments = ["--grid", "baseline", "--storage", str(copy.parent), "--name", copy.name]
    code = f"{_BLOCK}from study.run import main\nsys.exit(main({[*arguments, '--report-only']}))"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    for name in names:
        assert (copy / name).read_bytes() == (generated / name).read_bytes(), name
    assert "ranks first by Dice/patient" in run.stdout
    assert max(len(line) for line in run.stdout.splitlines() if "raw-resnet50  " in line) <= 100
