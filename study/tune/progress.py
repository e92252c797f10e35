"""What a study prints while it trains: a line per epoch, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

_STAGES = {1: "frozen", 2: "all"}
_HEADER = "epoch   stage  val Dice  train  val      time  left, all trials"


class Progress:
    """A line per epoch: val Dice, train and val loss, and how long the rest may take.

    Args:
        names: Trials of this start.
        epochs: Epochs of all of them together.
        console: Where to print.
        in_rounds: Whether candidates wait at rungs. Those that end say nothing of the others then.
    """

    def __init__(
        self, names: Sequence[str], epochs: int, console: Console, *, in_rounds: bool = False
    ) -> None:
        self._short = _shorten(names)
        self._width = max(len(name) for name in self._short.values())
        self._epochs, self._in_rounds, self._trained = epochs, in_rounds, 0
        self._done: dict[str, int] = {}
        self._replayed: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._header_printed = False
        self._start = time.monotonic()
        self._console = console

    def started(self, name: str) -> None:
        """Say that a trial begins."""
        self.note(f"{self._label(name)}  starts")

    def epoch(self, name: str, row: Mapping[str, Any]) -> None:
        """Print an epoch; of the epochs before a resume only the number of the last.

        Args:
            name: The trial.
            row: `EpochReport.row`, with `epoch` counted over both stages, and `replayed`.
        """
        self._done[name] = int(row["epoch"])
        if row["replayed"]:
            self._replayed[name] = int(row["epoch"])
            return
        self._trained += 1
        if self._replayed.get(name) == row["epoch"] - 1:
            self.note(f"{self._label(name)}  continues after epoch {self._replayed[name]}")
        if not self._header_printed:
            self.note(f"{'trial':<{self._width}}  {_HEADER}")
            self._header_printed = True
        self.note(
            f"{self._label(name)}  {int(row['epoch']):>3}/{int(row['epochs']):<3} "
            f"{_STAGES[int(row['stage'])]:<6}   {row['val_dice']:.3f}  {row['train_loss']:.3f}  "
            f"{row['val_loss']:.3f}  {row['seconds']:>4.0f} s  {self._left()}"
        )

    def ended(self, name: str, how: str) -> None:
        """Print how a candidate ended, and expect as many epochs of the remaining candidates.

        Args:
            name: The candidate.
            how: Its status and score.
        """
        self.note(f"{self._label(name)}  {how}")
        if self._in_rounds:
            return
        self._ended[name] = self._done.get(name, 0)
        each = sum(self._ended.values()) / len(self._ended)
        self._epochs = round(each * len(self._short))

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _label(self, name: str) -> str:
        return self._short.get(name, name).ljust(self._width)

    def _left(self) -> str:
        left = max(0, self._epochs - sum(self._done.values()))
        return _duration((time.monotonic() - self._start) / self._trained * left)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _shorten(names: Sequence[str]) -> dict[str, str]:
    """Leave fold and seed out where all trials share them."""
    tails = {name.split("-fold")[-1] for name in names}
    return {name: name.rsplit("-fold", 1)[0] if len(tails) == 1 else name for name in names}
