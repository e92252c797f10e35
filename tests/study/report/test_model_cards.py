"""Model cards describe the exported models and their limits."""

from __future__ import annotations

import re
from pathlib import Path


def test_a_card_says_what_limits_the_model(generated: Path) -> None:
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


def test_a_card_describes_the_exported_model(generated: Path) -> None:
    model = (generated / "models" / "raw-resnet50.safetensors").read_text()
    fold, seed = re.findall(r"\d+", model.removeprefix("raw-resnet50"))
    text = (generated / "models" / "raw-resnet50.md").read_text(encoding="utf-8")
    assert f"fold {fold}, seed {seed}," in text
