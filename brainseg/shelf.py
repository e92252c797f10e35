"""The trained models at hand: one file, or the variants of a study, the best first.

Best is the highest validation Dice: no number of the test part chooses anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brainseg.errors import CheckpointError
from brainseg.modelfile import ModelHeader, read_header

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
