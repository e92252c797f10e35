"""The errors raised on purpose; each message says what was found, expected and to do."""

from __future__ import annotations


class BrainsegError(Exception):
    """Base of every error raised on purpose; a command prints it as one line and exits with 1."""


class ConfigError(BrainsegError, ValueError):
    """A key, value or flag that cannot be used."""


class DataError(BrainsegError, ValueError):
    """A dataset, image or mask that cannot be used.

    Attributes:
        problems: One line per problem where several files are at fault, else empty.
    """

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        """Keep the list of problems beside the summary."""
        super().__init__(message)
        self.problems = problems or []


class WeightsError(BrainsegError, RuntimeError):
    """Encoder weights that cannot be fetched or do not fit the encoder."""


class CheckpointError(BrainsegError, RuntimeError):
    """A checkpoint or model file that is missing, damaged or of another experiment."""


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over: more than one epoch is trained again, to the same numbers."""


class StorageError(BrainsegError, OSError):
    """A disk that refuses a write, for lack of space or altogether; what was there is intact."""


class DivergedError(BrainsegError, ArithmeticError):
    """A loss that is no longer a finite number; repeating the training would end the same way."""

    def __init__(self, stage: int, epoch: int, value: float) -> None:
        """Name the place at which the training diverged."""
        super().__init__(
            f"the training loss became {value} in stage {stage}, epoch {epoch}; "
            "lower that stage's learning rate"
        )
        self.stage = stage
        self.epoch = epoch
        self.value = value

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, int, float]]:
        """Cross process borders whole: exceptions are rebuilt from their arguments."""
        return DivergedError, (self.stage, self.epoch, self.value)


class StudyError(BrainsegError, RuntimeError):
    """A study that cannot start or go on as asked."""
