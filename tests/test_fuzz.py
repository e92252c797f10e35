"""The readers over the fuzzers' corpus; what the fuzzers make of it, they try by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainseg.errors import BrainsegError
from fuzz import __main__ as command
from fuzz import targets
from fuzz.targets import CORPUS, TARGETS, check

SEEDS = sorted(path for path in CORPUS.glob("*/*"))


def test_each_target_has_a_small_corpus_and_a_name_on_the_command_line() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS) == set(command._TARGETS)
    assert sum(path.stat().st_size for path in SEEDS) < 64_000


@pytest.mark.parametrize("target", TARGETS)
def test_some_file_of_the_corpus_is_read(target: str, tmp_path: Path) -> None:
    """Otherwise a fuzzer would stop at the reader's first line."""
    refused = 0
    seeds = [path for path in SEEDS if path.parent.name == target]
    for seed in seeds:
        folder = tmp_path / seed.name
        folder.mkdir()
        try:
            TARGETS[target](folder, seed.read_bytes())
        except BrainsegError:
            refused += 1
        check(target, seed.read_bytes())
    assert refused < len(seeds)


def test_another_error_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, content: bytes) -> None:
        raise KeyError("as the test wants it")

    monkeypatch.setattr(targets, "TARGETS", {"images": fail})
    with pytest.raises(KeyError):
        check("images", b"")
