"""What a study prints: its plan, a line per epoch with the time left, its ranked table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_STAGES = {1: "encoder frozen", 2: "all weights"}


class Progress:
    """A line per epoch, with how much of the whole is done and how long the rest may take.

    Args:
        names: Trials of this start.
        epochs: Epochs of all of them together.
        console: Where to print.
    """

    def __init__(self, names: Sequence[str], epochs: int, console: Console) -> None:
        """Start the clock."""
        self._short = _shorten(names)
        self._width = max(len(name) for name in self._short.values())
        self._epochs = epochs
        self._done: dict[str, int] = {}
        self._replayed = 0
        self._start = time.monotonic()
        self._console = console

    def started(self, name: str) -> None:
        """Say that a trial begins."""
        self.note(f"{self._label(name)}  starts")

    def epoch(self, name: str, row: Mapping[str, Any]) -> None:
        """Print an epoch.

        Args:
            name: The trial.
            row: `EpochReport.row`, with `epoch` counted over both stages.
        """
        self._done[name] = int(row["epoch"])
        stage = _STAGES[int(row["stage"])]
        self._console.print(
            f"{self._label(name)}  {int(row['epoch']):>3}/{int(row['epochs'])} {stage:<14} "
            f"val Dice {row['val_dice']:.3f}  loss {row['train_loss']:.3f}/{row['val_loss']:.3f}  "
            f"{row['seconds']:4.0f} s  {self._left()}",
            highlight=False,
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _label(self, name: str) -> str:
        return self._short.get(name, name).ljust(self._width)

    def _left(self) -> str:
        done = sum(self._done.values())
        if done >= self._epochs:
            return "all epochs done"
        seconds = (time.monotonic() - self._start) / done * (self._epochs - done)
        return f"[{100 * done // self._epochs:>2} %, {_duration(seconds)} left]".replace(
            "[", "\\["
        )


def print_ranking(
    rows: Sequence[Mapping[str, str]], title: str, caption: str, console: Console
) -> None:
    """Print a ranked table whose columns are the keys of its rows."""
    if not rows:
        return
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in rows[0]:
        table.add_column(
            column, justify="left" if column in ("", "variant", "status") else "right"
        )
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _shorten(names: Sequence[str]) -> dict[str, str]:
    """Leave fold and seed out where all trials share them."""
    tails = {name.split("-fold")[-1] for name in names}
    return {name: name.rsplit("-fold", 1)[0] if len(tails) == 1 else name for name in names}


def print_lines(lines: Sequence[tuple[str, str]], console: Console) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        console.print(f"{name:<{width}}  {value}")
