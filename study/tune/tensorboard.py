"""Live TensorBoard files of a trial, in the study's own folder.

`tensorboard --logdir results/<name>` shows all trials while they run: one chart per quantity, with
a curve per trial. Tune's own files are turned off: they lie below its session folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from brainseg.data.preprocess import resize
from brainseg.inference.overlay import PREDICTED, TRUE, add_outlines
from brainseg.storage.urls import name_of
from brainseg.training.epoch import EpochReport, Example
from study.spec.trial_job import TrialJob

_SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_dice": "Dice/train (global)",
    "val_dice": "Dice/val (global)",
    "val_dice_patient": "Dice/val (per patient)",
    "learning_rate": "learning rate",
}


class LiveCurves:
    """Writes the epochs of one trial to TensorBoard; a context manager that closes its file.

    Args:
        folder: Of the whole study's TensorBoard files.
        job: The trial.
    """

    def __init__(self, folder: Path, job: TrialJob) -> None:
        self._run = folder / job.run_name
        self._job = job
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> LiveCurves:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def write(self, report: EpochReport) -> None:
        """Write an epoch, unless it was replayed after a resume and is there already.

        A disk that refuses gives a warning, and the epoch is missing from the curves.
        """
        if report.replayed:
            return
        try:
            self._writer = self._writer or self._open()
            self._write(report, self._writer)
        except OSError as error:
            warnings.warn(f"no live curves of epoch {report.row['step']}: {error}", stacklevel=2)
            # The writer's thread has ended: the next epoch begins another file in the same run.
            self._writer = None

    def _open(self) -> SummaryWriter:
        writer = SummaryWriter(str(self._run), flush_secs=5)
        self._write_hyperparameters(writer)
        return writer

    def _write(self, report: EpochReport, writer: SummaryWriter) -> None:
        step = int(report.row["step"])
        for key, tag in _SCALARS.items():
            writer.add_scalar(tag, report.row[key], step)
        if report.examples:
            picture = outline_slices(report.examples)
            writer.add_image(
                "validation slices (true blue, predicted orange)", picture, step, dataformats="HWC"
            )
        writer.flush()

    def _write_hyperparameters(self, writer: SummaryWriter) -> None:
        experiment = self._job.experiment
        values: dict[str, bool | str | float | int] = {
            "variant": self._job.variant,
            "fold": self._job.fold,
            "seed": self._job.seed,
            "network": experiment.network,
            "encoder weights": name_of(experiment.model.weights_location),
            "filters": experiment.filters,
            "augment strength": experiment.augment.strength,
            "lr stage 1": experiment.stages[0].learning_rate,
            "lr stage 2": experiment.stages[1].learning_rate,
            "batch size": experiment.optimizer.batch_size,
            "size": experiment.data.size,
        }
        # Written into this run: SummaryWriter.add_hparams would open a second one beside it.
        # Its table then follows these curves live, not only once the trial has ended.
        metrics = {tag: 0.0 for tag in ("Dice/val (global)", "loss/val")}
        for summary in hparams(values, metrics)[:2]:  # type: ignore[no-untyped-call]
            writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


def outline_slices(examples: Sequence[Example], side: int = 256) -> NDArray[np.uint8]:
    """Draw slices with true and predicted outlines, two in a row.

    Args:
        examples: At least one.
        side: Of each slice in the picture, in pixels.

    Returns:
        uint8 (rows * side, 2 * side, 3), black where there is no slice.
    """
    tiles = [
        add_outlines(resize(e.image, side).copy(), (e.true, TRUE), (e.predicted, PREDICTED))
        for e in examples
    ]
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.concatenate(tiles[n : n + 2], axis=1) for n in range(0, len(tiles), 2)]
    return np.concatenate(rows)
