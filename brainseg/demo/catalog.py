"""Finds the trained models to show, and writes example slices to try them on.

Models are ordered by validation Dice: the test part chooses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg.data.inputs import describe_preparation
from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_of
from brainseg.document import escape_markdown
from brainseg.errors import CheckpointError, ConfigError, DataError
from brainseg.inference.overlay import encode_picture
from brainseg.model.model_file import ModelHeader, read_header

STUDIES = Path("results")

_SUFFIX = ".safetensors"
_MAX_SLICES = 40
_CHANNELS_OF_FILES = (1, 3, 4)
"""What one file of OpenCV holds; of other slices there are no examples."""
_DICE = {"dice": "global", "dice_global": "global", "dice_patient": "per patient"}


@dataclass(frozen=True)
class TrainedModel:
    """A model file.

    Attributes:
        name: The name of the variant or trial.
        path: The file.
        header: The header of the file.
    """

    name: str
    path: Path
    header: ModelHeader

    @property
    def val_dice(self) -> float:
        """Global Dice of the validation part, in [0, 1]; 0 if the header does not hold it."""
        return self.header.metrics.get("val_dice", 0.0)

    def describe(self) -> str:
        """Return the model's card in Markdown: its header, and the study's own card if any."""
        experiment, best = self.header.experiment, self.header.best
        data = "generated phantoms (SYNTHETIC)" if self.header.synthetic else "MRI slices"
        lines = [
            f"network {experiment.network}; initial weights: {self.header.weights}",
            f"input: slices at {experiment.data.size} x {experiment.data.size} pixels, "
            f"{describe_preparation(experiment)}",
            f"trained on {data}, fingerprint `{self.header.fingerprint[:12]}`, rotation "
            f"{experiment.fold}, seed {experiment.seed}; stage {best.get('stage', 0):.0f}, epoch "
            f"{best.get('epoch', 0):.0f}",
            self._scores("validation", "val_"),
            self._scores("test", "test_"),
            f"for slices like those, with the channels {', '.join(self.header.channels)}; its "
            "predictions for anything else are meaningless",
            "**research only, not for clinical use**",
        ]
        # A file from elsewhere may hold any text.
        shown = "\n".join(f"- {escape_markdown(line)}" for line in lines if line)
        blocks = [f"### {escape_markdown(self.name)}", shown]
        card = self.path.with_suffix(".md")
        if card.is_file():
            blocks += ["---", card.read_text(encoding="utf-8", errors="replace")]
        return "\n\n".join(blocks)

    def _scores(self, part: str, prefix: str) -> str:
        """Return the Dice scores of a part in words; empty if the header has none."""
        metrics = self.header.metrics
        found = [
            f"{metrics[prefix + key]:.3f} {name}"
            for key, name in _DICE.items()
            if prefix + key in metrics
        ]
        return f"Dice on the {part} patients of its split: {', '.join(found)}" if found else ""


def find_models(source: Path | None) -> list[TrainedModel]:
    """Find the models of a file or a study.

    Args:
        source: A model file, a study's folder, or None for the newest study in `results`.

    Returns:
        The models, the best first; none if `source` is None and there is no study.

    Raises:
        CheckpointError: If the file or folder holds no model.
    """
    if source is None:
        source = newest_study(STUDIES)
        if source is None:
            return []
    paths = [source] if source.is_file() else _models_of(source)
    if not paths:
        raise CheckpointError(f"{source} holds no finished model: name a model file or a study")
    models = [TrainedModel(_name_of(path), path, read_header(path)) for path in paths]
    return sorted(models, key=lambda model: -model.val_dice)


def newest_study(folder: Path) -> Path | None:
    """Return the study with the newest model in a folder of studies, or None."""
    newest = {
        path: max(model.stat().st_mtime for model in models)
        for path in folder.glob("*")
        if (models := _models_of(path))
    }
    return max(newest, key=lambda path: newest[path], default=None)


def _models_of(study: Path) -> list[Path]:
    """Return the model of each variant; of a running study, that of each finished trial."""
    exported = sorted(study.glob(f"models/*{_SUFFIX}"))
    return exported or sorted(study.glob(f"trials/*/model{_SUFFIX}"))


def _name_of(path: Path) -> str:
    return path.parent.name if path.parent.parent.name == "trials" else path.stem


class Example(NamedTuple):
    """A slice on disk with its true mask, and the label of the button that takes it."""

    label: str
    image: Path
    mask: Path


class Examples(NamedTuple):
    """The examples of the page.

    Attributes:
        about: Whose slices they are, in words.
        slices: Single slices.
        patient: The files of one patient's slices and true masks.
    """

    about: str
    slices: Sequence[Example]
    patient: Sequence[Path]


def write_examples(data: SliceStore, header: ModelHeader, folder: Path) -> Examples:
    """Write example slices as TIFF files.

    The single slices have a large, a medium and a small tumour, and none. The patient is the one
    with the most tumour.

    Args:
        data: The dataset; only the test part is used if the model was trained on it. There are no
            examples if its channels are not the model's.
        header: The header of the model.
        folder: The folder to write.
    """
    about = f"Slices of {data.root.name}"
    if data.synthetic:
        about = "Generated phantoms, SYNTHETIC"
    elif header.fingerprint == data.fingerprint:
        about = "Test patients of the model's split"
    if data.channels != header.channels:
        return Examples(
            f"None: the slices at hand have the channels {', '.join(data.channels)}, not those of "
            "the model. Start the demo with --data and a dataset like the model's.",
            [],
            [],
        )
    indices = unseen_slices(data, header)
    if len(data.channels) not in _CHANNELS_OF_FILES:
        about = f"None: a file of {len(data.channels)} channels cannot be written"
        return Examples(about, [], [])
    slices = [  # in a folder each: two patients may have slices of one name
        _write(data, index, label, folder / str(index))
        for label, index in _choose(data, indices).items()
    ]
    areas: Counter[str] = Counter()
    for index in indices:
        areas[data.slices[index].patient] += data.slices[index].tumour_pixels
    patient = areas.most_common(1)[0][0]
    own = [index for index in indices if data.slices[index].patient == patient]
    step = -(-len(own) // _MAX_SLICES)
    files = [_write(data, index, "", folder / "patient") for index in own[::step]]
    return Examples(about, slices, [path for item in files for path in (item.image, item.mask)])


def unseen_slices(data: SliceStore, header: ModelHeader) -> list[int]:
    """Return the indices of slices that a model was not trained on, as far as is known.

    Raises:
        DataError: If the file of the training's split cannot be used.
    """
    if header.fingerprint == data.fingerprint:
        try:
            indices = split_of(header.experiment, data.slices).indices(data.slices, "test")
            return [int(index) for index in indices]
        except (ConfigError, DataError) as error:
            if "." in header.experiment.data.split:  # its file is not here, or was changed
                raise DataError(
                    f"the split that the model was trained with: {error}; put its file back, or "
                    "give --data of other slices",
                    error.problems,
                ) from error
            # Else there are too few patients for a split: no model was trained on them.
    return list(range(len(data.slices)))


def _choose(data: SliceStore, indices: Sequence[int]) -> dict[str, int]:
    """Return label -> index of the single slices."""
    ordered = sorted(indices, key=lambda index: data.slices[index].tumour_pixels)
    tumour = [index for index in ordered if data.slices[index].tumour_pixels]
    free = ordered[: len(ordered) - len(tumour)]
    chosen = {}
    if tumour:
        positions = {"large": -1, "medium": len(tumour) // 2, "small": len(tumour) // 10}
        chosen = {f"{name} tumour": tumour[position] for name, position in positions.items()}
    if free:
        chosen["no tumour"] = max(free, key=lambda index: int(data.image(index).sum()))
    return chosen


def _write(data: SliceStore, index: int, label: str, folder: Path) -> Example:
    name = data.slices[index].name
    image, mask = folder / f"{name}.tif", folder / f"{name}_mask.tif"
    folder.mkdir(parents=True, exist_ok=True)
    image.write_bytes(encode_picture(data.image(index), ".tif"))
    mask.write_bytes(encode_picture(data.mask(index) * np.uint8(255), ".tif"))
    return Example(label, image, mask)
