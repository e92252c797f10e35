"""The report as a whole: its files, its labels, and what it does without some input files."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from generated import generate_study
from rich.console import Console

from brainseg.errors import StudyError
from study.report.build import publish, write_report
from study.storage.sync import StudySync

LABELS = ("SYNTHETIC", "no pretrained weights")

_BLOCK = """\
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "ray", "cv2", "tensorboard", "optuna"):
            raise ImportError(name)
sys.meta_path.insert(0, NotInstalled())
"""


def _page(study: Path) -> str:
    return (study / "report.html").read_text(encoding="utf-8")


def _titles(study: Path) -> list[str]:
    return [html.unescape(title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", _page(study))]


def test_every_file_carries_the_labels(generated: Path) -> None:
    names = ["report.html", "report.md", "checklist.md", "table.tex"]
    names += [str(path.relative_to(generated)) for path in generated.glob("models/*.md")]
    assert len(names) == 8
    for name in names:
        text = (generated / name).read_text(encoding="utf-8")
        for label in LABELS:
            assert label in text, f"{name} lacks {label}"
    captions = re.findall(r'<p class="caption"[^>]*>(.*?)</p>', _page(generated))
    results = [
        c
        for c in captions
        if not re.match(
            "Published|The (dataset|split|checklists|items|file)|Vers|What was fixed", c
        )
    ]
    assert len(results) > 10
    assert all(label in caption for caption in results for label in LABELS)


@pytest.mark.usefixtures("undrawn")
def test_real_data_with_pretrained_weights_carry_no_labels(small: Path) -> None:
    about = json.loads((small / "study.json").read_text())
    about |= {"synthetic": False, "weights": "ImageNet"}
    (small / "study.json").write_text(json.dumps(about))
    write_report(small)
    page = _page(small)
    assert "SYNTHETIC" not in page
    assert 'class="label"' not in page
    cards = [path.read_text(encoding="utf-8") for path in (small / "models").glob("*.md")]
    assert all("CC BY-NC-SA" in text for text in (page, *cards))
    assert "SYNTHETIC" not in "".join(cards)


def test_the_page_loads_nothing_and_describes_every_picture(generated: Path) -> None:
    page = _page(generated)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 100
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)


def test_the_page_has_every_section(generated: Path) -> None:
    assert _titles(generated) == [
        "At a glance",
        "Test scores",
        "Differences between variants",
        "Effects of the grid's factors",
        "Interactions of the grid's factors",
        "Ranks and sources of variance",
        "Learning curves",
        "Scores per patient",
        "Scores by group",
        "Calibration",
        "Post-processing",
        "Hardest patients",
        "Hardest slices",
        "Best, median and worst slice of each variant",
        "Who was studied",
        "Trials",
        "Published results, for comparison",
        "Cost",
        "Protocol of the study",
        "Data and split",
        "How to reproduce this study",
        "Reporting checklists",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_study_without_finished_trials_has_a_report(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=1, failed=(0, 1))
    write_report(study)
    page = _page(study)
    assert "No trial has test scores, so nothing can be concluded." in page
    assert "0 of 2 trials finished" in page
    assert not (study / "models").exists()


@pytest.mark.usefixtures("undrawn")
def test_sections_without_their_files_are_left_out(small: Path) -> None:
    for name in ("slices", "stages", "ensemble", "calibration", "patients", "examples"):
        (small / f"{name}.csv").unlink()
    (small / "split.json").unlink()
    write_report(small)
    assert {"Test scores", "Differences between variants"} < set(_titles(small))
    assert not {"Scores by group", "Calibration", "Hardest slices"} & set(_titles(small))


@pytest.mark.usefixtures("undrawn")
def test_one_patient_has_scores_without_an_interval(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=2, patients=10)
    write_report(study)
    assert re.search(r'<td class="number">0\.\d{3}</td>', _page(study))
    assert "nan" not in re.sub(r"data:[^\"]*", "", _page(study)).lower()


def test_the_table_compiles_with_booktabs(generated: Path) -> None:
    lines = (generated / "table.tex").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 4
    assert all(line.count(" & ") == 5 and line.endswith(r"\\") for line in body)
    assert r"\textbf{SYNTHETIC" in "".join(lines)
    assert "so they do not compare" in "".join(lines)  # one of the trials failed
    assert not re.search(r"(?<!\\)[%_#]", "".join(lines[1:]))


@pytest.mark.slow
def test_without_torch_ray_and_opencv_the_report_is_the_same(
    generated: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(generated, tmp_path / "copy"))
    names = ["report.html", "report.md", "checklist.md", "table.tex", "models/raw-resnet50.md"]
    names += [f"figures/{path.name}" for path in (generated / "figures").iterdir()]
    assert len(names) == 5 + 2 * 9
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


@pytest.mark.usefixtures("undrawn")
def test_publishing_prints_the_ranking(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(shutil.copytree(generated, tmp_path / "study"))
    publish(StudySync(study), Console(width=100))
    text = capsys.readouterr().out
    row = r"^ *1 +preprocessed-resnet50 +0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)"
    assert re.search(row, text, re.MULTILINE)
    assert re.search(r"^ *raw-resnet50 +0\.890", text, re.MULTILINE)  # published
    assert "so they do not compare" in " ".join(text.split())
    assert str(study) in text.replace("\n", "")


def test_publishing_needs_the_tables(small: Path) -> None:
    (small / "trials.csv").unlink()
    with pytest.raises(StudyError, match=r"has no trials\.csv yet.*without --report-only"):
        publish(StudySync(small), Console())
