"""The YAML files that come with the program: experiments and search spaces."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """Return the path of a YAML file that comes with the program.

    In a checkout they lie in `configs/` at the top, in an installed package in `study/configs/`.

    Args:
        name: Below that folder, such as `baseline.yaml`.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return (installed if installed.is_dir() else package.parent / "configs") / name
