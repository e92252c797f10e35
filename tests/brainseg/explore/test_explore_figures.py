from __future__ import annotations

from brainseg.data.slice_store import SliceStore
from brainseg.explore.figures import draw_samples


def test_the_same_seed_shows_the_same_samples(data: SliceStore) -> None:
    def names(seed: int) -> list[str]:
        return [axis.get_title() for axis in draw_samples(data, seed).axes]

    assert names(44) == names(44)
    assert names(44) != names(45)
