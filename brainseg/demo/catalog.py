"""The trained models at hand: one file, or the variants of a study, the best first.

Best is the highest validation Dice: no number of the test part chooses anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.data.slice_store import SliceStore
from brainseg.data.split import split_by_patient
from brainseg.errors import CheckpointError, DataError
from brainseg.inference.overlay import encode_picture
from brainseg.model.model_file import ModelHeader, read_header

STUDIES = Path("results")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A model file and what it says of itself.

    Attributes:
        name: Of the variant or trial.
        path: Of the file.
        header: Its header.
    """

    name: str
    path: Path
    header: ModelHeader

    @property
    def val_dice(self) -> float:
        """Global Dice of the validation part, in [0, 1]; 0 where the file does not say."""
        return self.header.metrics.get("val_dice", 0.0)

    def describe(self) -> str:
        """Return the model's card in Markdown: from its header, then the study's own if there."""
        experiment, metrics = self.header.experiment, self.header.metrics
        stage, epoch = (self.header.best.get(key, 0) for key in ("stage", "epoch"))
        filters = experiment.preprocess
        data = "generated phantoms (SYNTHETIC)" if self.header.synthetic else "MRI slices"
        lines = [
            f"U-Net with encoder {experiment.model.encoder}; first weights: {self.header.weights}",
            f"sees slices at {experiment.data.size} x {experiment.data.size} pixels, "
            + (
                f"median filter {filters.median_kernel}, CLAHE with clip limit "
                f"{filters.clip_limit:g}"
                if filters.enabled
                else "raw"
            ),
            f"trained on {data}, fingerprint `{self.header.fingerprint[:12]}`, rotation "
            f"{experiment.fold}, seed {experiment.seed}; stage {stage:.0f}, epoch {epoch:.0f}",
            _spell_scores("validation", "val_", metrics),
            _spell_scores("test", "test_", metrics),
            "knows axial slices of adults with low-grade glioma, their sequences as channels in "
            "the order pre-contrast, FLAIR, post-contrast; on anything else it answers nonsense "
            "with the same confidence",
            "**research only, not for clinical use**",
        ]
        card = self.path.with_suffix(".md")
        blocks = [f"### {self.name}", "\n".join(f"- {line}" for line in lines if line)]
        if card.is_file():
            blocks += ["---", card.read_text(encoding="utf-8", errors="replace")]
        return "\n\n".join(blocks)


def find_models(source: Path | None) -> list[TrainedModel]:
    """Find the models of a file or a study; without either, of the newest study.

    Args:
        source: A model file, a study's folder, or None for the newest study in `results`.

    Returns:
        Models, the best first; none if there is no study.

    Raises:
        CheckpointError: If the file or the folder given holds no model.
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
    studies = [path for path in folder.glob("*") if path.is_dir() and _models_of(path)]
    newest = {path: max(m.stat().st_mtime for m in _models_of(path)) for path in studies}
    return max(studies, key=lambda path: newest[path], default=None)


def _models_of(study: Path) -> list[Path]:
    """Of a study the model of each variant; of one that still runs, of each finished trial."""
    exported = sorted(study.glob(f"models/*{_SUFFIX}"))
    return exported or sorted(study.glob(f"trials/*/model{_SUFFIX}"))


def _name_of(path: Path) -> str:
    in_trial = path.parent.parent.name == "trials"
    return path.parent.name if in_trial else path.stem


def _spell_scores(part: str, prefix: str, metrics: dict[str, float]) -> str:
    """Name the Dice scores of a part; nothing where there are none."""
    names = {"dice": "global", "dice_global": "global", "dice_patient": "per patient"}
    found = [
        f"{metrics[prefix + key]:.3f} {name}"
        for key, name in names.items()
        if prefix + key in metrics
    ]
    return f"Dice on the {part} patients of its split: {', '.join(found)}" if found else ""


# --- samples ---

_MOST_SLICES = 40


@dataclass(frozen=True)
class Sample:
    """A slice on disk with its true mask, and a few words for the button that takes it."""

    label: str
    image: Path
    mask: Path


def describe_source(data: SliceStore, header: ModelHeader | None) -> str:
    """Return in words whose slices the samples are."""
    if data.synthetic:
        return "Generated phantoms, SYNTHETIC"
    is_own = header is not None and header.fingerprint == data.fingerprint
    return "Test patients of the model's split" if is_own else f"Slices of {data.root.name}"


def write_samples(data: SliceStore, header: ModelHeader | None, folder: Path) -> list[Sample]:
    """Write a large, a middling and a small tumour and a slice without, as TIFF files.

    Args:
        data: The dataset; where the model was trained on it, the test part of its split is taken.
        header: Of the model.
        folder: Where to.
    """
    numbers = unknown_slices(data, header)
    ordered = sorted(numbers, key=lambda number: data.slices[number].tumour_pixels)
    tumour = [number for number in ordered if data.slices[number].tumour_pixels]
    free = [number for number in ordered if not data.slices[number].tumour_pixels]
    chosen = {}
    if tumour:
        places = {"large": -1, "middling": len(tumour) // 2, "small": len(tumour) // 10}
        chosen = {f"{name} tumour": tumour[place] for name, place in places.items()}
    if free:
        brightest = max(free, key=lambda number: int(data.image(number).sum()))
        chosen["no tumour"] = brightest
    return [_write(data, number, label, folder) for label, number in chosen.items()]


def write_patient(data: SliceStore, header: ModelHeader | None, folder: Path) -> list[Path]:
    """Write slices and true masks of the patient with the most tumour; return all files."""
    numbers = unknown_slices(data, header)
    sums: dict[str, int] = {}
    for number in numbers:
        item = data.slices[number]
        sums[item.patient] = sums.get(item.patient, 0) + item.tumour_pixels
    patient = max(sums, key=lambda name: sums[name])
    own = [number for number in numbers if data.slices[number].patient == patient]
    step = -(-len(own) // _MOST_SLICES)
    samples = [_write(data, number, "", folder) for number in own[::step]]
    return [path for sample in samples for path in (sample.image, sample.mask)]


def unknown_slices(data: SliceStore, header: ModelHeader | None) -> list[int]:
    """Return positions of slices that a model was not trained on, as far as one can know."""
    if header is not None and header.fingerprint == data.fingerprint:
        experiment = header.experiment
        try:
            split = split_by_patient(data.slices, experiment.fold, experiment.data.split_seed)
            return [int(number) for number in split.indices(data.slices, "test")]
        except DataError:  # too few patients for folds: then nothing was trained on them either
            pass
    return list(range(len(data.slices)))


def _write(data: SliceStore, number: int, label: str, folder: Path) -> Sample:
    name = data.slices[number].name
    image, mask = folder / f"{name}.tif", folder / f"{name}_mask.tif"
    folder.mkdir(parents=True, exist_ok=True)
    image.write_bytes(encode_picture(data.image(number), ".tif"))
    mask.write_bytes(encode_picture(data.mask(number) * np.uint8(255), ".tif"))
    return Sample(label, image, mask)
