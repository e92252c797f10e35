from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest

from brainseg.data.slice_store import SliceStore
from brainseg.explore.covariates import Covariate
from brainseg.explore.exploration import Exploration, explore, summarise_in_words


def test_the_card_counts_what_is_there(data: SliceStore, exploration: Exploration) -> None:
    card = exploration.card
    tumour = sum(item.tumour_pixels > 0 for item in data.slices)
    assert (card["tumour_slices"], card["tumour_free_slices"]) == (tumour, 72 - tumour)
    assert card["sites"] == {"CS": 3, "DU": 3, "FG": 3, "HT": 3}
    assert f"{tumour} slices ({tumour / 72:.1%}) hold tumour" in exploration.summary[0]
    assert not any("published" in sentence for sentence in exploration.summary)


def test_the_summary_of_the_public_dataset_mentions_the_swapped_table(
    exploration: Exploration,
) -> None:
    card = exploration.card | {"patients": 110, "slices": 3929, "tumour_slices": 1373}
    card |= {"tumour_free_slices": 2556, "tumour_slice_share": 1373 / 3929, "synthetic": False}
    rest = exploration.found, exploration.splits, exploration.covariates
    words = " ".join(summarise_in_words(card, *rest))
    assert "1,373 slices (34.9%) hold tumour, 2,556 (65.1%) do not" in words
    assert "swaps these two numbers" in words
    for change in ({"synthetic": True}, {"slices": 3928}, {"patients": 109}):
        assert "swaps" not in " ".join(summarise_in_words(card | change, *rest))


def test_a_covariate_without_a_test_is_null_in_json(exploration: Exploration) -> None:
    patients = pd.DataFrame({"value": ["1", "2"], "size": [0.1, 0.2]})
    untested = dataclasses.replace(exploration, covariates=[Covariate("grade", patients, False)])
    row = json.loads(untested.to_json())["covariates"][0]
    assert row == {"name": "grade", "test": "", "p_value": None, "adjusted": None}


def test_the_real_slices_lack_sequences_and_have_bright_backgrounds(
    real_data: SliceStore,
) -> None:
    """The dataset's own README counts 9 and 6 patients without a sequence, of 110."""
    found = explore(real_data, seed=44)
    missing = {name: count for name, count in found.card["missing"].items() if name}
    known = {40: {"post-contrast": 1, "pre-contrast + post-contrast": 2}}
    if len(real_data.patients) not in known:
        pytest.skip("another number of patients than those counted by hand")
    assert missing == known[len(real_data.patients)]
    assert any("TCGA_FG_A4MU pre-contrast" in finding for finding in found.findings)
