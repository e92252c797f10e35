"""The sections on what the findings rest on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from generated import EPOCHS

from brainseg.config import Experiment
from brainseg.document import Bullets, Listing, Paragraph, Section, Table
from study.report.provenance import (
    check_split,
    describe_provenance,
    describe_study,
    published_rows,
)
from study.report.results import read_results
from study.storage.study_folder import keep_grid


def _sections(study: Path) -> dict[str, Section]:
    return {section.name: section for section in describe_provenance(read_results(study))}


def _tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_a_failed_trial_is_listed_with_its_error(generated: Path) -> None:
    section = _sections(generated)["trials"]
    assert section.blocks[0] == Paragraph("15 of 16 trials finished.")
    (row,) = _tables(section)[0].rows
    assert (row["status"], row["error"]) == ("diverged", "the loss is nan in stage 2, epoch 1")


def test_trials_with_smaller_batches_are_named(small: Path) -> None:
    path = small / "trials.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[lines[0].split(",").index("batch_parts")] = "2"
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    section = _sections(small)["trials"]
    assert section.blocks[-1] == Bullets(["raw-lite0 fold 0 seed 44"])


def test_the_rule_that_ends_trainings_early_is_said_with_how_many_it_ended(small: Path) -> None:
    about = json.loads((small / "study.json").read_text())
    about["experiment"]["stopping"] = {"patience": 3, "minutes": 45.0}
    (small / "study.json").write_text(json.dumps(about))
    trained = sum(EPOCHS)
    trials = sorted((small / "trials").iterdir())
    for number, trial in enumerate(trials):  # all but the first were to train one epoch more
        second = EPOCHS[1] + bool(number)
        stages = {"stages.0.epochs": EPOCHS[0], "stages.1.epochs": second}
        (trial / "experiment.yaml").write_text(Experiment().replaced(stages).to_yaml())
    text = _sections(small)["trials"].blocks[1]
    assert isinstance(text, Paragraph)
    assert "after 3 epochs of the last stage without a lower val loss" in text.text
    assert "after 45 minutes of epochs, so that the numbers depend on the machine" in text.text
    assert f"ran {trained} to {trained} epochs; {len(trials) - 1} of {len(trials)} " in text.text


def test_published_numbers_are_no_results(generated: Path, small: Path) -> None:
    (table,) = _tables(_sections(generated)["published"])
    assert not table.is_result
    assert table.caption == "Published by others, not measured here."
    assert table.rows[0]["Dice"] == "0.8898"
    assert published_rows(read_results(small)) == []
    assert "published" not in _sections(small)


def test_cost_is_counted_over_all_trials(generated: Path) -> None:
    row = _tables(_sections(generated)["cost"])[0].rows[-1]
    epochs = 16 * sum(EPOCHS)
    hours = f"{40 * epochs / 3600:.2f}"
    assert list(row.values()) == ["all", "16", f"{epochs:,}", "40.0", hours, hours]


def test_a_patient_in_two_parts_fails_one_check(small: Path) -> None:
    assert [holds for _, holds in check_split(read_results(small))] == [True] * 4
    split = json.loads((small / "split.json").read_text())
    rotation = split["rotations"][0]
    rotation["train"].append(rotation["test"][0])
    (small / "split.json").write_text(json.dumps(split))
    failed = [check for check, holds in check_split(read_results(small)) if not holds]
    assert failed == ["no patient is in two of train, val and test"]
    assert "FAILS" in {row.get("result") for row in _tables(_sections(small)["data"])[1].rows}


def test_patients_that_a_split_leaves_out_fail_no_check(small: Path) -> None:
    split = json.loads((small / "split.json").read_text())
    rotation = {"rotation": 0, "train": [], "val": [], "test": []}
    split["rotations"] += [rotation] * (10 - len(split["rotations"]))
    (small / "split.json").write_text(json.dumps(split))
    assert ("every patient is tested", False) in check_split(read_results(small))
    (small / "split.json").write_text(json.dumps(split | {"split": "my_split.yaml"}))
    assert "every patient is tested" not in dict(check_split(read_results(small)))


def test_the_study_is_described_in_one_line(generated: Path) -> None:
    line = describe_study(read_results(generated).about)
    assert line.startswith("SYNTHETIC DATA (generated phantoms)")
    assert "20 patients · 256 px · encoder weights: no pretrained weights · 2 fold(s) x 2" in line


def test_a_size_that_variants_do_not_share_is_not_said(small: Path) -> None:
    about = dict(read_results(small).about)
    first = next(iter(about["variants"]))
    own = {first: {"data.size": 128}}
    assert " px" not in describe_study({**about, "variants": {**about["variants"], **own}})
    assert " 128 px " in describe_study({**about, "variants": own})
    searched = {"space": {"data.size": {"choices": [128, 256]}}}
    assert " px" not in describe_study({**about, "search": searched})


def test_reproduction_lists_command_versions_and_differences(generated: Path) -> None:
    blocks = _sections(generated)["repeat"].blocks
    listings = {block.caption: block.text for block in blocks if isinstance(block, Listing)}
    assert (
        "preprocess.filters=['median', 'clahe']"
        in listings["The variants and the keys in which they differ:"]
    )
    assert "seed: 44" in listings["The configuration that they share:"]
    (versions,) = (block for block in blocks if isinstance(block, Table))
    assert {"": "torch", "value": "2.13.0"} in versions.rows


def test_the_grids_file_is_listed_with_its_hash_and_its_changes(small: Path) -> None:
    assert not any("file of the grid" in t.caption for t in _tables(_sections(small)["repeat"]))
    for text in ("description: One.\n", "description: Two.\n"):
        keep_grid(small, text)
    section = _sections(small)["repeat"]
    (table,) = (t for t in _tables(section) if "file of the grid" in t.caption)
    assert table.rows[-1] == {
        "file": "grid.yaml",
        "SHA-256": hashlib.sha256(b"description: Two.\n").hexdigest(),
        "used": "latest copy",
    }
    assert len(table.rows) == 2
    texts = [block.text for block in section.blocks if isinstance(block, Listing)]
    assert "-description: One.\n+description: Two." in texts


def test_a_changed_protocol_is_a_table(small: Path) -> None:
    about = json.loads((small / "study.json").read_text())
    later = json.loads(json.dumps(about["protocol"][0]))
    later |= {"hash": "0" * 64, "tested": 3}
    later["protocol"]["seeds"] = 9
    about["protocol"].append(later)
    (small / "study.json").write_text(json.dumps(about))
    (row,) = _tables(_sections(small)["protocol"])[0].rows
    assert (row["trials tested"], row["what"], row["after"]) == ("3", "seeds", "9")
