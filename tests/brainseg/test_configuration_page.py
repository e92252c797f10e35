"""docs/configuration.md, the reference of all keys, is made of the docstrings of `config.py`."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from brainseg.config import Experiment, StageConfig, valid_keys

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEAD = """\
# Every key of an experiment

`--set KEY=VALUE` sets one, `--config YAML` several, and a [grid](studies.md#a-grid-of-your-own)
those in which its variants differ. The defaults are the published protocol at 256 pixels. `null`
stands for none.
This page is made of the docstrings of `brainseg/config.py` (`make tables`).
"""


def _meanings(config: type[BaseModel]) -> dict[str, str]:
    """Return what a class says of each of its attributes."""
    attributes = inspect.cleandoc(config.__doc__ or "").split("Attributes:\n")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {key: " ".join(text.split()) for key, text in entries}


def _table(config: type[BaseModel], values: dict[str, Any], prefix: str) -> Iterator[str]:
    yield from ("", "| key | default | meaning |", "| --- | --- | --- |")
    meanings = _meanings(config)
    for key, value in values.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        meaning = meanings[key].replace("None", "`null`").replace("|", "\\|")
        yield f"| `{prefix}{key}` | `{shown}` | {meaning} |"


def _page() -> str:
    defaults, lines = Experiment().model_dump(mode="json"), [HEAD.rstrip()]
    own = {key: value for key, value in defaults.items() if not isinstance(value, (dict, list))}
    for name, field in Experiment.model_fields.items():
        if name in own:
            continue
        config = StageConfig if name == "stages" else field.annotation
        assert isinstance(config, type)
        about = " ".join(inspect.cleandoc(config.__doc__ or "").split("\n\n")[0].split())
        lines += ["", f"## {name}", "", about]
        parts = [defaults[name]] if name != "stages" else defaults[name]
        for number, values in enumerate(parts):
            prefix = f"{name}.{number}." if name == "stages" else f"{name}."
            lines += _table(config, values, prefix)
    lines += ["", "## The rest", *_table(Experiment, own, "")]
    return "\n".join(lines) + "\n"


def test_the_page_has_every_key_with_its_default() -> None:
    if os.environ.get("BRAINSEG_WRITE_TABLES"):
        PAGE.write_text(_page(), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    assert text == _page(), "run: make tables"
    assert re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE) == list(valid_keys())
