"""Encoders of segmentation-models-pytorch (smp) and their pretrained weights."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import constants, get_session, try_to_load_from_cache
from safetensors.torch import save_file

from brainseg.config import ModelConfig
from brainseg.errors import ConfigError, WeightsError
from brainseg.storage.files import (
    FAR_WAITS,
    cache_folder,
    retry_storage,
    user_path,
    write_atomically,
)
from brainseg.storage.remote import RemoteFolder
from brainseg.storage.urls import is_url, name_of
from brainseg.storage.values import cut, did_you_mean

_TIMM_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)
_PROBE_SECONDS = 10.0
_RETRY_SECONDS = 30.0
_RESUMES = 5


def _import_smp() -> Any:
    """Import smp, also if the build of torchvision does not fit that of torch.

    PyPI's torchvision for Linux is a CUDA build. Beside a CPU build of torch its compiled
    operators do not load and its import fails, although none of them is used here. Declaring the
    two that it refers to lets the import pass.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            for operator in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", signature)
        import segmentation_models_pytorch

    return segmentation_models_pytorch


smp = _import_smp()
timm: Any = sys.modules["timm"]  # smp has imported it, beside its torchvision


def check_encoder(encoder: str) -> None:
    """Refuse an encoder that segmentation-models-pytorch does not have.

    Raises:
        ConfigError: With the valid names.
    """
    if encoder in smp.encoders.encoders:
        return
    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-")
        # Other characters make timm ask a hub or read a folder, whose content is not checked.
        if _TIMM_NAME.fullmatch(name) and timm.is_model(name):
            return
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models())
        names = ", ".join(f"tu-{one}" for one in near)
        raise ConfigError(
            f"model.encoder is {cut(encoder)}, which timm does not have; "
            + (f"near: {names}" if near else "tu- stands before a name of timm.list_models()")
        )
    hint = did_you_mean(encoder, smp.encoders.encoders)
    names = ", ".join(sorted(smp.encoders.encoders))
    raise ConfigError(
        f"model.encoder is {cut(encoder)}, which is unknown; {hint}Valid: tu-<any timm model>, "
        f"{names}"
    )


def describe_weights(config: ModelConfig) -> str:
    """Return the origin of the encoder's initial weights in words, for tables and reports."""
    source = config.weights_location
    if source == "none":
        return "no pretrained weights"
    return "ImageNet" if source == "imagenet" else name_of(source)


def find_encoder_weights(config: ModelConfig) -> Path | None:
    """Return the file of the encoder's weights; download it if this machine does not have it.

    Returns:
        A safetensors file, or None for random weights.

    Raises:
        WeightsError: If the file does not exist or cannot be downloaded.
        StorageError: If a URL cannot be read.
    """
    location = config.weights_location
    if location == "none":
        return None
    if location == "imagenet":
        return _fetch_imagenet(config.encoder)
    if is_url(location):
        return _fetch_file(location)
    path = user_path(location, "model.encoder_weights")
    if not path.is_file():
        raise WeightsError(f"model.encoder_weights is {path}, which is not a file")
    return path


def _fetch_file(url: str) -> Path:
    """This machine's copy of a file behind a URL, made equal to it."""
    path, mark, query = url.partition("?")
    above, _, name = path.rpartition("/")
    folder = cache_folder("encoders") / hashlib.sha256(url.encode()).hexdigest()[:24]
    remote = RemoteFolder(above + mark + query)
    with FileLock(f"{folder}.lock"):
        what = f"the copy of {url}"
        if not retry_storage(lambda: remote.fetch_file(name, folder), what, FAR_WAITS):
            raise WeightsError(f"model.encoder_weights is {url}, where there is no such file")
    return folder / name


def _fetch_imagenet(encoder: str) -> Path:
    """The ImageNet weights of an encoder, downloaded by smp; one process at a time downloads."""
    target = cache_folder("encoders") / f"{encoder.replace('/', '_')}.imagenet.safetensors"
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        if known := _find_in_hub_cache(encoder):
            with write_atomically(target) as aside:
                shutil.copyfile(known, aside)
            return target
        _require_hub(encoder)
        try:
            with warnings.catch_warnings(), _bounded_retries():
                warnings.simplefilter("ignore")
                module = smp.encoders.get_encoder(encoder, weights="imagenet")
        except Exception as error:  # the hub client raises a dozen kinds, smp KeyError
            reason = str(error.__cause__ or error).strip() or type(error).__name__
            raise _no_weights(encoder, reason.splitlines()[0].rstrip(".")) from error
        with write_atomically(target) as aside:
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, aside)
    return target


def _find_in_hub_cache(encoder: str) -> str | None:
    """The file in the cache of the hub's client, if another program has downloaded it."""
    settings = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    if "imagenet" not in settings:
        return None
    source = settings["imagenet"]
    found = try_to_load_from_cache(
        source["repo_id"], "model.safetensors", revision=source["revision"]
    )
    return found if isinstance(found, str) else None


def _require_hub(encoder: str) -> None:
    """Fail within seconds if the hub cannot be reached; its client would retry for minutes."""
    endpoint = constants.ENDPOINT
    failures = ["no answer"]

    def probe() -> None:
        try:
            get_session().head(endpoint, timeout=_PROBE_SECONDS, follow_redirects=False)
            failures.clear()
        except Exception as error:  # of the HTTP client that the hub's library uses
            failures[:] = [type(error).__name__]

    # In a thread, since resolving a name has no time limit of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 2)
    if failures:
        raise _no_weights(encoder, f"{endpoint} cannot be reached ({failures[0]})")


@contextlib.contextmanager
def _bounded_retries() -> Iterator[None]:
    """Limit the retries of the hub's client, which resumes broken downloads without end."""
    end = time.monotonic() + _RETRY_SECONDS
    resumed = 0

    def refuse(request: Any) -> None:
        nonlocal resumed
        resumes = "range" in request.headers
        resumed += resumes
        if resumed > _RESUMES or (time.monotonic() > end and not resumes):
            raise TimeoutError("the hub does not give the whole file, asked again and again")

    hooks = get_session().event_hooks["request"]
    hooks.append(refuse)
    try:
        yield
    finally:
        hooks.remove(refuse)


def _no_weights(encoder: str, reason: str) -> WeightsError:
    return WeightsError(
        f"no ImageNet weights for encoder {encoder}: {reason}. Three ways out: connect this "
        "machine to the network once; --set model.encoder_weights=FILE.safetensors with weights "
        "from elsewhere; or --set model.encoder_weights=none to train from random weights"
    )
