"""The sections on the findings: their numbers are those of the files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated import generate_study

from brainseg.data.about import CHANNELS
from brainseg.document import Gallery, Paragraph, Section, Table, format_number
from brainseg.storage.files import read_csv, write_csv
from study.report.figures import FigureWriter
from study.report.results import StudyResults, read_results
from study.report.sections import describe_findings, ranked_rows

pytestmark = pytest.mark.usefixtures("undrawn")


def _sections(results: StudyResults) -> dict[str, Section]:
    return {section.name: section for section in describe_findings(results, FigureWriter(results))}


def _table(section: Section) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table))


def test_the_ranking_has_the_means_of_scores_csv(generated: Path) -> None:
    variant = "raw-efficientnet-b0"
    rows = [row for row in read_csv(generated / "scores.csv") if row["variant"] == variant]
    patients: dict[str, list[float]] = {row["patient"]: [] for row in rows}
    for row in rows:
        patients[row["patient"]].append(float(row["Dice"]))
    mean = np.mean([np.mean(values) for values in patients.values()])
    (own,) = (r for r in ranked_rows(read_results(generated)) if r["variant"] == variant)
    assert own["Dice/patient"].startswith(f"{mean:.3f} (")
    assert own["patients"] == str(len(patients))


def test_means_over_different_trainings_do_not_stand_side_by_side_unsaid(
    generated: Path, small: Path
) -> None:
    results = read_results(generated)  # one of its trials failed
    section = _sections(results)["scores"]
    assert any("so they do not compare" in b.text for b in section.blocks if hasattr(b, "text"))
    shown = [float(row["Dice/patient, shared"].split()[0]) for row in _table(section).rows]
    assert shown == sorted(shown, reverse=True)
    matrix = results.matrix
    cells = np.where(
        matrix.tested.all(axis=0), matrix.dice[matrix.index(results.variants[0])], np.nan
    )
    assert shown[0] == pytest.approx(np.nanmean(np.nanmean(cells, axis=0)), abs=6e-4)
    section = _sections(read_results(small))["scores"]
    assert "Dice/patient, shared" not in _table(section).rows[0]
    assert not any("do not compare" in b.text for b in section.blocks if hasattr(b, "text"))


def test_val_losses_of_all_trained_variants_are_compared(small: Path) -> None:
    words = "The variants differ in loss and batch size: their val losses do not compare."
    assert Paragraph(words) not in _sections(read_results(small))["scores"].blocks
    results = read_results(small)
    experiment = results.experiments["raw-lite0"]
    # As a search's winner, whose changes study.json does not name among the variants.
    changed = experiment.replaced({"loss.dice_weight": 0.25, "optimizer.batch_size": 4})
    other = replace(results, experiments={**results.experiments, "winner-c0001": changed})
    assert Paragraph(words) in _sections(other)["scores"].blocks


def test_ties_share_the_first_rank(small: Path) -> None:
    rows = read_csv(small / "scores.csv")
    variants = dict.fromkeys(row["variant"] for row in rows)
    of_first = [row for row in rows if row["variant"] == "raw-lite0"]
    same = [{**row, "variant": variant} for variant in variants for row in of_first]
    write_csv(small / "scores.csv", same)
    (small / "slices.csv").unlink()  # which would contradict them
    results = read_results(small)
    assert "rank first together by Dice/patient" in results.conclusion.sentence
    assert len({row["Dice/patient"] for row in ranked_rows(results)}) == 1
    assert {item.ranks for item in results.comparison.variants} == {(0.5, 0.5)}


def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=1, seeds=2, patients=10)
    rows = ranked_rows(read_results(study))
    assert [row["patients"] for row in rows] == ["1", "1"]
    assert all(re.fullmatch(r"0\.\d{3}", row["Dice/patient"]) for row in rows)


def test_one_seed_has_no_ensemble(tmp_path: Path) -> None:
    study = generate_study(tmp_path / "s", grid="lite", folds=2, seeds=1)
    section = _sections(read_results(study))["postprocessing"]
    assert isinstance(section.blocks[-1], Paragraph)
    assert "no ensemble, because the study has only one seed" in section.blocks[-1].text


def test_seeds_without_probability_maps_have_no_ensemble(small: Path) -> None:
    (small / "ensemble.csv").unlink()
    section = _sections(read_results(small))["postprocessing"]
    assert section.blocks[-1] == Paragraph(
        "There is no ensemble, because no two seeds of one variant and fold finished with "
        "probability maps."
    )


@pytest.mark.parametrize(
    ("channels", "shown"), [(CHANNELS, "FLAIR"), (("T1", "T2", "PD"), "T2"), (("T1", "T2"), "T1")]
)
def test_pictures_are_called_by_the_channel_that_they_show(
    channels: tuple[str, ...], shown: str, small: Path
) -> None:
    about = json.loads((small / "study.json").read_text())
    (small / "study.json").write_text(json.dumps({**about, "channels": channels}))
    sections = _sections(read_results(small))
    for name in ("overview", "worst-patient", "worst-slice", "examples"):
        texts = [getattr(b, "text", getattr(b, "caption", "")) for b in sections[name].blocks]
        assert f"Pictures show {shown} with the true outline in blue" in " ".join(texts)
        galleries = [block for block in sections[name].blocks if isinstance(block, Gallery)]
        assert all(tile.alt.startswith(f"{shown} slice ") for g in galleries for tile in g.tiles)


def test_post_processing_is_chosen_on_validation(small: Path) -> None:
    rows = _table(_sections(read_results(small))["postprocessing"]).rows
    assert {row["step"] for row in rows} == {"flips", "threshold", "largest component", "ensemble"}
    assert {row["setting"] for row in rows} == {"-", "0.65", "2 seeds"}
    assert all(re.fullmatch(r"\d of [24]", row["chosen on validation"]) for row in rows)


def test_example_slices_have_a_gallery_each(small: Path) -> None:
    sections = _sections(read_results(small))
    for name, column, num_tiles in (
        ("worst-patient", "patient", 2),
        ("worst-slice", "slice", 2),
        ("examples", None, 3),
    ):
        galleries = [b for b in sections[name].blocks if isinstance(b, Gallery)]
        assert {len(gallery.tiles) for gallery in galleries} == {num_tiles}
        assert all((small / tile.path).exists() for g in galleries for tile in g.tiles)
        if column:
            rows = _table(sections[name]).rows
            assert [row[""] for row in rows] == [str(place) for place in range(1, 11)]
            assert all(row[column] in g.caption for row, g in zip(rows, galleries, strict=True))


def test_shares_of_variance_stand_in_a_table_too(small: Path) -> None:
    results = read_results(small)
    (table,) = (
        block
        for block in _sections(results)["ranks"].blocks
        if isinstance(block, Table) and block.caption.startswith("Shares of the variance")
    )
    shares = results.comparison.variance
    assert [row["source"] for row in table.rows] == list(shares)
    for row in table.rows:
        assert row["share"] == format_number(shares[row["source"]])
        assert row["what it is"]


def test_effects_and_interactions_have_a_heading_each(small: Path, tmp_path: Path) -> None:
    four = generate_study(tmp_path / "s", folds=1, seeds=1)
    sections = _sections(read_results(four))
    names = list(sections)
    assert names[names.index("differences") :][1:3] == ["effects", "interactions"]
    assert [row["levels"] for row in _table(sections["effects"]).rows] == [
        "encoder: resnet50 -> efficientnet-b0",
        "preprocessing: raw -> preprocessed",
    ]
    assert [row["levels"] for row in _table(sections["interactions"]).rows] == [
        "encoder efficientnet-b0 x preprocessing preprocessed"
    ]
    assert "interactions" not in _sections(read_results(small))  # of one factor


def test_wrong_pixels_are_those_of_the_patients_own_slice(small: Path) -> None:
    before = _table(_sections(read_results(small))["worst-slice"]).rows
    for file in ("slices.csv", "examples.csv"):
        rows = read_csv(small / file)
        write_csv(small / file, [{**r, "slice": r["slice"].rpartition("_")[2]} for r in rows])
    after = _table(_sections(read_results(small))["worst-slice"]).rows
    known = [row["slice"].partition("_19990101_") for row in before]
    assert [row["slice"] for row in after] == [f"{patient}/{name}" for patient, _, name in known]
    assert [{**row, "slice": ""} for row in after] == [{**row, "slice": ""} for row in before]
    assert len({tuple(row.values())[3:] for row in after}) > 2
