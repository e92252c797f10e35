from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pandas as pd

from brainseg.data.slice_store import SliceStore
from brainseg.explore.figures import draw_patients, draw_samples


def test_the_same_seed_shows_the_same_samples(data: SliceStore) -> None:
    def names(seed: int) -> list[str]:
        return [axis.get_title() for axis in draw_samples(data, seed).axes]

    assert names(44) == names(44)
    assert names(44) != names(45)


def test_a_patients_name_is_no_formula(data: SliceStore) -> None:
    slices = tuple(replace(item, patient="P_$x_$") for item in data.slices)
    draw_samples(replace(data, slices=slices), 44).savefig(BytesIO())


def test_a_sites_name_is_no_formula() -> None:
    patients = pd.DataFrame({"site": ["$x_$"], "slices": [3], "tumour_slices": [1]})
    draw_patients(patients).savefig(BytesIO(), format="svg")
