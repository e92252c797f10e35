"""The errors that brainseg raises on purpose; each says what was found and what to do."""

from __future__ import annotations


class BrainsegError(Exception):
    """Base class; a command prints the message as one line and exits with code 1.

    Attributes:
        problems: One line per problem if several files or lines are at fault, else empty.
    """

    def __init__(self, message: str = "", problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []


class ConfigError(BrainsegError, ValueError):
    """A flag, key, value or name that a user wrote cannot be used; a command exits with 2."""


class DataError(BrainsegError, ValueError):
    """A file or folder that is missing or cannot be used: of data, a table, a record."""


class WeightsError(BrainsegError, RuntimeError):
    """Encoder weights that cannot be fetched or do not fit the encoder."""


class CheckpointError(BrainsegError, RuntimeError):
    """A checkpoint or model file that is missing, damaged or of another experiment."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped: training resumes earlier, with the same numbers."""


class StorageError(BrainsegError, OSError):
    """A disk or store that refuses a read or write; files that were there are intact."""


class DivergedError(BrainsegError, ArithmeticError):
    """A training or validation loss that is infinite or NaN; a repetition would diverge again."""

    def __init__(self, stage: int, epoch: int, value: float) -> None:
        super().__init__(
            f"the loss became {value} in stage {stage}, epoch {epoch}; "
            "lower that stage's learning rate"
        )
        self.stage = stage
        self.epoch = epoch
        self.value = value

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, int, float]]:
        # Exceptions are pickled with their message as the only argument.
        return DivergedError, (self.stage, self.epoch, self.value)


class StudyError(BrainsegError, RuntimeError):
    """A study that cannot start or continue as asked."""
