"""What a store or a network refuses, in one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from brainseg.errors import StorageError

_REASONS = (
    (r"NO_SUCH_BUCKET", "there is no such bucket: create it first, or correct the URL"),
    (
        r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CLIENT_ID",
        "access is denied: give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in "
        "~/.aws/credentials, or to this machine's role, that may list, read, write and delete",
    ),
    (r"curlCode: 6", "its host has no address: correct the URL, or connect this machine"),
    (r"curlCode: 7", "nothing answers there: start the server, or correct the URL"),
    (r"curlCode: 28", "it does not answer: start the server, or correct the URL"),
)


@contextmanager
def sentences(url: str) -> Iterator[None]:
    """Turn what pyarrow raises into a StorageError of one sentence about the URL."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        text = first_line(error)
        found = (words for pattern, words in _REASONS if re.search(pattern, text))
        raise StorageError(f"{url}: {next(found, text)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its type's name if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
