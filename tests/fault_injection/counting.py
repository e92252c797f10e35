"""Counts calls of some functions over all processes of a test; `sitecustomize` imports it.

`BRAINSEG_TEST_COUNTS=FILE` appends a line per call: the function, what it was called for, and the
process.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

COUNTED: dict[str, dict[str, Callable[..., object]]] = {
    "brainseg.data.store_builder": {"read_slice": lambda files: files.name},
    "brainseg.data.preprocess": {
        "apply_filters": lambda image, config: ",".join(config.filters) or "none"
    },
    "brainseg.model.networks": {
        "infer_logits": lambda model, images, *rest: len(images),
        "calibrate_encoder": lambda *rest: "-",
    },
    "brainseg.training.epoch": {"train_epoch": lambda *rest: "-"},
}
"""Module -> function -> what is written of a call."""


def _counted(name: str, function: Any, about: Callable[..., object]) -> Any:
    @functools.wraps(function)
    def count(*args: Any, **options: Any) -> Any:
        line = f"{name} {about(*args)} {os.getpid()}\n".encode()
        descriptor = os.open(os.environ["BRAINSEG_TEST_COUNTS"], os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, line)  # one short append is whole, whatever other processes write
        os.close(descriptor)
        return function(*args, **options)

    return count


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for name, about in COUNTED[module.__name__].items():
            setattr(module, name, _counted(name, getattr(module, name), about))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in COUNTED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
