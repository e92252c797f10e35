"""The check command: tries a network or a filter against everything that a study asks of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from brainseg.cli import FINISHED, KNOWN_ERROR, build_parser, run_command, say, typed
from brainseg.config import Experiment, parse_changes
from brainseg.data.phantom import generate_phantom
from brainseg.data.preprocess import apply_filters
from brainseg.data.slice_store import SliceStore, open_dataset
from brainseg.errors import BrainsegError, ConfigError
from brainseg.inference.predictor import Predictor
from brainseg.model.device import Compute
from brainseg.model.networks import (
    SMP,
    build_model,
    check_architecture,
    check_network,
    set_training,
)
from brainseg.plugins import describe_error
from brainseg.training.epoch import EpochReport
from brainseg.training.trainer import Training, train_two_stage

_CPU = Compute("cpu")
_SIZES = (64, 96)
_TINY = {
    "data.size": _SIZES[0],
    "model.encoder_weights": "none",
    "stages.0.epochs": 1,
    "stages.1.epochs": 2,
    "optimizer.batch_size": 8,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _check(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "brainseg.check",
        "Try a network, and with --set preprocess.filters a filter, against everything that a\n"
        "study asks of them: shapes, gradients, freezing, determinism, resume, model file,\n"
        "prediction. On generated slices, in about a minute.",
        _EPILOG,
    )
    parser.add_argument(
        "network",
        type=_network,
        nargs="?",
        default="unet",
        metavar="NETWORK",
        help="FILE.py:FUNCTION, an entry point's name, or an architecture such as unetplusplus "
        "(default: unet)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a key of the experiment, such as model.encoder=resnet18",
    )
    return parser


def _network(text: str) -> str:
    typed(check_architecture, text)
    return text


def _check(args: argparse.Namespace) -> int:
    base = Experiment().replaced({**_TINY, "model.architecture": args.network}, "NETWORK")
    changes = parse_changes(args.changes)
    experiment = _fit_encoder(base, changes)
    sizes = (experiment.data.size,) if "data.size" in changes else _SIZES
    failed = 0
    with tempfile.TemporaryDirectory(prefix="brainseg-check-") as folder:
        root = generate_phantom(Path(folder) / "data", patients=12, slices=3, size=64)
        data = open_dataset(root)
        for name, check in _checks(experiment, data, Path(folder), sizes):
            try:
                found, ok = check(), True
            except (AssertionError, BrainsegError) as error:
                found, ok = str(error), False
            except Exception as error:  # the user's code may raise anything
                found, ok = describe_error(error), False
            failed += not ok
            say(f"{'ok    ' if ok else 'FAILED'}  {name:<12} {found}")
    say(f"{failed} of the checks failed" if failed else "A study can train this.")
    return KNOWN_ERROR if failed else FINISHED


def _fit_encoder(base: Experiment, changes: dict[str, object]) -> Experiment:
    """Return the experiment with the changes and with the kind of encoder that the network has."""
    if "model.encoder" in changes or base.model.architecture in SMP:
        return base.replaced(changes)
    own = base.replaced({"model.encoder": "own", **changes})
    try:
        build_model(own.model, 0, own.input_channels)
    except ConfigError:
        without = base.replaced({"model.encoder": "none", "stages.0.epochs": 0, **changes})
        build_model(without.model, 0, without.input_channels)
        return without
    return own


def _checks(
    experiment: Experiment, data: SliceStore, folder: Path, sizes: Sequence[int]
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name of each check and a function that returns what it found, or raises.

    Args:
        experiment: The experiment.
        data: Generated slices.
        folder: For checkpoints and a model file.
        sizes: In pixels, of the slices that the network must take.
    """
    size = experiment.data.size

    def build(seed: int = 0) -> torch.nn.Module:
        return build_model(experiment.model, seed, experiment.input_channels)

    def shapes() -> str:
        network = build()
        for side in sizes:
            check_network(experiment.replaced({"data.size": side}), network)
        weights = sum(weight.numel() for weight in network.parameters())
        shown = " and ".join(map(str, sizes))
        return f"{experiment.network}: {weights:,} weights, maps of {shown} px"

    def gradients() -> str:
        network = build()
        set_training(network, freeze_encoder=False)
        slices = torch.randn(2, experiment.input_channels, size, size)
        network(slices).square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None]
        assert not without, f"no gradient reaches {', '.join(without[:3])}"
        return "reach all weights"

    def freezing() -> str:
        network = build()
        if not hasattr(network, "encoder"):
            return "the network has no encoder: it is trained in one stage"
        before = {k: v.clone() for k, v in network.encoder.state_dict().items()}  # type: ignore[union-attr,operator]
        set_training(network, freeze_encoder=True)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
        slices = torch.randn(2, experiment.input_channels, size, size)
        network(slices).square().mean().backward()
        optimizer.step()
        after = network.encoder.state_dict()  # type: ignore[union-attr,operator]
        changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
        assert not changed, f"a step changed the frozen encoder's {', '.join(changed[:3])}"
        return "a frozen encoder keeps its bits"

    def determinism() -> str:
        one, two, other = (build(seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[key], two[key]) for key in one), (
            "two networks of one seed have different weights: draw them from torch's generator"
        )
        assert any(not torch.equal(one[key], other[key]) for key in one), (
            "the seed does not change the weights"
        )
        return "the seed decides the first weights"

    yield "shapes", shapes
    if experiment.preprocess.own_filters:
        yield "filters", lambda: _check_filters(experiment, data)
    yield "gradients", gradients
    yield "freezing", freezing
    yield "determinism", determinism
    yield "resume", lambda: _check_resume(experiment, data, folder)


def _check_filters(experiment: Experiment, data: SliceStore) -> str:
    images = [data.image(index) for index in range(3)]
    for channels in (1, 2, 3):
        for image in images:
            given = np.ascontiguousarray(image[:, :, :channels])
            before = given.copy()
            one, two = (apply_filters(given, experiment.preprocess) for _ in range(2))
            assert np.array_equal(one, two), "a filter gives other bytes the second time"
            assert np.array_equal(given, before), "a filter changes its input"
    return "keep shape and type, give the same bytes twice"


def _check_resume(experiment: Experiment, data: SliceStore, folder: Path) -> str:
    whole = train_two_stage(experiment, data, compute=_CPU)
    path = folder / "checkpoints"
    next(Training(experiment, data, compute=_CPU, checkpoints=path).epochs())
    seen: list[EpochReport] = []
    again = train_two_stage(experiment, data, seen.append, compute=_CPU, checkpoints=path)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
        for result in (whole, again)
    ]
    assert rows[0] == rows[1], "a resumed training gives other numbers"
    assert all(torch.equal(whole.weights[k], again.weights[k]) for k in whole.weights), (
        "a resumed training gives other weights"
    )
    saved = again.save(folder / "model.safetensors")
    images = [data.image(index) for index in range(3)]
    found = Predictor.load(saved, _CPU, allow_code=True).probabilities(images)
    expected = Predictor.of(again, _CPU).probabilities(images)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True)), (
        "a network read from its file predicts other maps"
    )
    return "stopped, resumed, saved and loaded: equal bits"


_EPILOG = """\
examples:
  python -m brainseg.check ./mine.py:build
  python -m brainseg.check unetplusplus --set model.encoder=resnet18
  python -m brainseg.check pan --set data.size=128
  python -m brainseg.check --set 'preprocess.filters=[./mine.py:sharpen]'

A function of your own takes the number of input channels and returns a torch.nn.Module, which maps
float32 (B, channels, H, W) to logits (B, 1, H, W). Its attribute `encoder`, if it has one, is what
the first stage freezes. Slices are of 64 and 96 px, or of data.size alone if that is set.
docs/networks.md has an example.

exit codes:
  0  all checks hold
  1  a check fails, or a file is missing
  2  a flag or value is wrong, or the function fails to build a network
"""

if __name__ == "__main__":
    sys.exit(main())
