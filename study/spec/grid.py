"""The grids: named sets of variants, each a difference from the base experiment."""

from __future__ import annotations

from typing import Any

from brainseg.errors import ConfigError

Changes = dict[str, Any]
"""Dotted key of an experiment -> its value, such as `{"model.encoder": "resnet50"}`."""

_LITE = "timm-tf_efficientnet_lite0"

GRIDS: dict[str, dict[str, Changes]] = {
    "baseline": {
        f"{name}-{encoder}": {"model.encoder": encoder, "preprocess.enabled": enabled}
        for encoder in ("resnet50", "efficientnet-b0")
        for name, enabled in (("raw", False), ("preprocessed", True))
    },
    "lite": {
        f"{name}-lite0": {"model.encoder": _LITE, "preprocess.enabled": enabled}
        for name, enabled in (("raw", False), ("preprocessed", True))
    },
    "one": {"configured": {}},
}
"""Name of a grid -> name of a variant -> the keys in which it differs from the base experiment."""

ONE = "one"
"""The grid with a single variant: the base experiment, unchanged."""

WINNER = "winner-c"
"""Prefix of the variant that is a search's winner; the index of its candidate follows."""


def refuse_grid_keys(grid: str, changes: Changes) -> None:
    """Refuse `--set` for a key that the grid or the product of folds decides.

    Raises:
        ConfigError: Naming the key.
    """
    decided = {key for variant in GRIDS[grid].values() for key in variant}
    for key in changes:
        if key in decided:
            raise ConfigError(f"--set {key}: the grid {grid} decides it, variant by variant")
        if key == "fold":
            raise ConfigError("--set fold: use --folds N, which runs rotations 0 to N-1")
