from __future__ import annotations

import pytest

from brainseg.config import Experiment
from study.analysis.protocol import PRIMARY, describe_changes, register
from study.spec.study_spec import StudySpec


@pytest.fixture
def spec() -> StudySpec:
    return StudySpec(grid="g", variants={"a": {}, "b": {}}, experiment=Experiment(), seeds=1)


def test_a_protocol_is_written_once(spec: StudySpec) -> None:
    first = register([], spec, 0)
    assert len(first) == 1
    assert first[0]["protocol"]["primary metric"] == PRIMARY["primary metric"]
    assert first[0]["protocol"]["variants"] == "a, b"
    assert register(first, spec, 5) == first
    assert describe_changes(first) == []


def test_a_later_change_stays_beside_what_was_fixed_first(spec: StudySpec) -> None:
    first = register([], spec, 0)
    more = register(first, spec.model_copy(update={"seeds": 3}), 2)
    assert more[0] == first[0]
    assert more[1]["hash"] != more[0]["hash"]
    (row,) = describe_changes(more)
    assert row["trials tested"] == "2"
    assert (row["what"], row["before"], row["after"]) == ("seeds", "1", "3")
