from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from matrices import draw_dice, matrix_of

from study.analysis.comparison import compare
from study.analysis.conclusion import Conclusion, conclude, is_shown
from study.analysis.scores import Floats, ScoreMatrix
from study.analysis.selection import find_choices

NAN = np.nan


def _draw(*shape: int, num_folds: int = 1) -> Floats:
    return 0.8 * draw_dice(*shape, num_folds=num_folds)


def _conclude(dice: Floats, num_folds: int = 1, synthetic: bool = False) -> Conclusion:
    matrix = matrix_of(dice, num_folds)
    conclusion = conclude(matrix, compare(matrix), synthetic)
    for sentence in (conclusion.sentence, *conclusion.caveats, *dict(conclusion.answers).values()):
        assert sentence.endswith(".")
        assert "nan" not in sentence
    for sentence in re.split(r"(?<=\.) ", " ".join([conclusion.sentence, *conclusion.caveats])):
        assert len(sentence.split()) <= 25, sentence
    return conclusion


def _after_choice(
    matrix: ScoreMatrix,
    searched: Sequence[Mapping[str, Sequence[str]]] = (),
    chosen_on: Mapping[str, Sequence[str]] | None = None,
) -> Conclusion:
    comparison = compare(matrix)
    choices = find_choices(matrix, comparison, searched, chosen_on)
    return conclude(matrix, comparison, choices=choices)


def test_a_clear_winner() -> None:
    dice = _draw(2, 3, 40, num_folds=10) + np.array([0, 0.1])[:, None, None]
    conclusion = _conclude(dice, 10)
    assert conclusion.sentence.startswith("On 40 test patients with 3 seeds, b ranks first by ")
    assert " It scored better than a (by 0." in conclusion.sentence
    assert "No difference" not in conclusion.sentence
    assert len(conclusion.caveats) == 1
    assert "overlap" in conclusion.caveats[0]


def test_a_winner_over_some() -> None:
    dice = _draw(3, 3, 40, num_folds=10) + np.array([0.1, 0.1, 0])[:, None, None]
    sentence = _conclude(dice, 10).sentence
    first, second = ("a", "b") if " a ranks first" in sentence else ("b", "a")
    assert f"{first} ranks first" in sentence
    assert "scored better than c (by" in sentence
    assert f"No difference from {second} is shown (" in sentence
    assert "patients would be needed to find a difference of this size" in sentence


def test_no_winner() -> None:
    conclusion = _conclude(_draw(4, 3, 20))
    assert "scored better" not in conclusion.sentence
    assert "No difference from any other variant is shown" in conclusion.sentence
    assert any("Fewer than 40 patients" in caveat for caveat in conclusion.caveats)
    assert any("One fold" in caveat for caveat in conclusion.caveats)


def test_few_patients_cannot_show_anything() -> None:
    dice = 0.5 + np.array([0.0, 0.1, 0.2, 0.3])[:, None, None] + 0.01 * _draw(4, 3, 7)
    conclusion = _conclude(dice)
    assert "scored better" not in conclusion.sentence
    assert any("7 patients and 6 pairs" in caveat for caveat in conclusion.caveats)
    one_more = 0.5 + np.array([0.0, 0.1, 0.2, 0.3])[:, None, None] + 0.01 * _draw(4, 3, 8)
    conclusion = _conclude(one_more)
    assert "scored better than c, b and a (c: by" in conclusion.sentence
    assert not any("pairs" in caveat for caveat in conclusion.caveats)


def test_one_seed_says_so_in_the_sentence() -> None:
    conclusion = _conclude(_draw(2, 1, 12))
    assert conclusion.sentence.endswith("Another training run may give another order.")
    assert any(caveat.startswith("One seed") for caveat in conclusion.caveats)
    assert "Another training run" not in _conclude(_draw(2, 3, 12)).sentence
    assert any(caveat.startswith("Two seeds") for caveat in _conclude(_draw(2, 2, 12)).caveats)


def test_synthetic_data_say_so_first() -> None:
    conclusion = _conclude(_draw(2, 2, 12), synthetic=True)
    assert conclusion.sentence.startswith("SYNTHETIC DATA: ")
    assert "phantoms" in conclusion.caveats[0]


def test_identical_variants_tie() -> None:
    sentence = _conclude(np.repeat(_draw(1, 2, 12), 3, axis=0)).sentence
    assert "a, b and c rank first together" in sentence
    assert "b and c scored the same on every patient" in sentence
    assert "No difference" not in sentence


def test_a_tie_of_means_is_not_equality() -> None:
    dice = np.array([[[0.1, 0.9, 0.5, 0.3]], [[0.9, 0.1, 0.3, 0.5]]])
    sentence = _conclude(dice).sentence
    assert "a and b rank first together" in sentence
    assert "same on every patient" not in sentence
    assert "No difference from b is shown" in sentence
    assert "needed" not in sentence


def test_one_variant_has_no_comparison() -> None:
    sentence = _conclude(_draw(1, 1, 12)).sentence
    assert sentence.startswith("Only a has test scores")
    assert "ranks" not in sentence


def test_one_patient_has_no_test() -> None:
    sentence = _conclude(_draw(2, 1, 1)).sentence
    assert "On 1 test patient with 1 seed" in sentence
    assert "one patient has no interval and no test" in sentence


def test_no_score_has_no_conclusion() -> None:
    for dice in (np.empty((0, 0, 0)), np.empty((2, 1, 0))):
        assert "nothing can be concluded" in _conclude(dice).sentence


def test_failed_trials_are_counted() -> None:
    dice = _draw(3, 1, 20, num_folds=10)
    dice[0, :, ::10], dice[2] = NAN, NAN
    conclusion = _conclude(dice, 10)
    assert conclusion.caveats[0].startswith("11 of 30 trials have no scores")
    assert "ranked on the 18 patients tested with all" in conclusion.caveats[0]
    assert "Variants without scores: c." in conclusion.caveats


def test_a_variant_with_few_scores_is_named() -> None:
    dice = _draw(3, 1, 20, num_folds=10)
    dice[1, :, 3:] = NAN
    caveats = _conclude(dice, 10).caveats
    assert "Not ranked, because more than half of the scores are missing: b." in caveats


def test_variants_without_a_shared_patient_cannot_be_ranked() -> None:
    dice = _draw(2, 1, 6)
    dice[0, :, :3], dice[1, :, 3:] = NAN, NAN
    assert "cannot be ranked" in _conclude(dice).sentence


def test_a_variant_that_beats_the_first_on_other_patients_is_named() -> None:
    # a leads on the patients that all have, c on those that it shares with a alone.
    dice = _draw(3, 3, 40) + np.array([0.05, 0, 0])[:, None, None]
    dice[1, :, 20:] = NAN
    dice[2, :, 20:] = dice[0, :, 20:] + 0.15
    matrix = matrix_of(dice)
    comparison = compare(matrix)
    assert comparison.variants[0].variant == "a"
    assert "But c scored better on the patients tested with both" in _conclude(dice).sentence


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_a_difference_is_shown_by_test_and_interval_together(gain: float) -> None:
    dice = _draw(2, 2, 30) + np.array([gain, 0])[:, None, None]
    (pair,) = compare(matrix_of(dice)).pairs
    assert is_shown(pair) == (gain > 0)
    assert is_shown(pair) == (pair.p_holm < 0.05 and pair.difference.low > 0)


def test_test_patients_that_the_search_used_are_counted() -> None:
    matrix = replace(matrix_of(_draw(2, 3, 12), 4), variants=("raw", "winner-c0003"))
    patients = matrix.patients
    searched = [{"val": [*patients[:3], "of none"], "train": patients[2:10]}]
    found = _after_choice(matrix, searched).sentence
    assert "winner-c0003 judged candidates on 3 of these patients and trained them on 7" in found
    assert "only 2 are new to it" in found
    elsewhere = [{"val": ["of none"], "train": []}]
    assert "search" not in _after_choice(matrix, elsewhere).sentence
    grid = replace(matrix, variants=("raw", "preprocessed"))
    assert "search" not in _after_choice(grid, searched).sentence


def test_test_patients_that_chose_settings_before_the_study_are_counted() -> None:
    matrix = replace(matrix_of(_draw(2, 3, 12), 4), variants=("protocol", "winner"))
    names = list(matrix.patients)
    chosen = {"variants": ["winner"], "judged": [*names[:3], "of none"], "trained": names[2:10]}
    found = _after_choice(matrix, chosen_on=chosen).sentence
    words = "chosen on 3 of these patients; candidates were trained on 7 of them. 2 are new to"
    assert words in found
    others = _after_choice(matrix, chosen_on=chosen | {"judged": ["of none"]}).sentence
    assert "chosen on other patients; candidates were trained on 8 of them. 4 are new" in others
    elsewhere = chosen | {"judged": ["of none"], "trained": []}
    assert "chosen" not in _after_choice(matrix, chosen_on=elsewhere).sentence


def test_a_readers_first_questions_are_answered() -> None:
    dice = _draw(3, 3, 40, num_folds=10) + np.array([0.1, 0.1, 0])[:, None, None]
    answers = dict(_conclude(dice, 10).answers)
    assert list(answers) == [
        "Which is best?",
        "By how much?",
        "How sure is that?",
        "On whom?",
        "What can it not say?",
    ]
    second = "b" if answers["Which is best?"].startswith("a,") else "a"
    assert f"; {second} may be as good." in answers["Which is best?"]
    assert f"over {second}, the next" in answers["By how much?"]
    assert answers["On whom?"].startswith("40 test patients, ")
    assert "3 trainings" in answers["On whom?"]
    assert "other hospitals" in answers["What can it not say?"]
    assert "phantoms" in dict(_conclude(dice, 10, synthetic=True).answers)["On whom?"]
    assert _conclude(_draw(1, 1, 12)).answers == ()


def test_of_a_tool_that_trained_elsewhere_nothing_is_claimed() -> None:
    matrix = matrix_of(_draw(3, 1, 40))
    found = compare(matrix, external=["b"])
    answer = dict(conclude(matrix, found, external=["b"]).answers)["On whom?"]
    assert "the models trained here that they test" in answer
    assert answer.endswith("of each variant trained here.")


def test_two_patients_say_nothing_in_plain_words() -> None:
    conclusion = _conclude(np.array([[[0.3, 0.9]], [[0.7, 0.2]]]))
    assert "Dice/patient (0.600, interval wide)" in conclusion.sentence
    answers = dict(conclusion.answers)
    assert answers["By how much?"].endswith("too few to say whether that is chance.")
    assert answers["How sure is that?"].startswith("Not sure: ")
    assert any(caveat.startswith("Wide intervals hold") for caveat in conclusion.caveats)
    assert not any("Wide" in caveat for caveat in _conclude(_draw(2, 2, 30)).caveats)


def test_the_answers_say_whether_the_difference_may_be_chance() -> None:
    gain = np.array([0.1, 0])[:, None, None]
    clear = dict(_conclude(_draw(2, 3, 40, num_folds=10) + gain, 10).answers)
    assert "Chance alone hardly explains it: the 95 % interval is 0." in clear["By how much?"]
    assert clear["How sure is that?"].startswith("Sure: ")
    close = dict(_conclude(_draw(2, 3, 20)).answers)
    assert "It may be chance: the 95 % interval, -0." in close["By how much?"]
    assert close["By how much?"].endswith(", includes 0.")
    assert close["How sure is that?"].startswith("Not sure: ")


def test_of_many_variants_a_sentence_names_three() -> None:
    conclusion = _conclude(np.repeat(_draw(1, 2, 12), 8, axis=0))
    assert "a, b, c and 5 others rank first together" in conclusion.sentence


def _with_failed_folds(dice: Floats, failed: dict[str, dict[str, int]]) -> ScoreMatrix:
    """Return the matrix of ten rotations, with the ends of each variant's ten trainings."""
    matrix = matrix_of(dice, 10)
    ends = {name: {"finished": 10} for name in matrix.variants} | {
        name: {"finished": 10 - sum(own.values()), **own} for name, own in failed.items()
    }
    return replace(matrix, ends=ends)


def test_a_variant_that_diverges_on_hard_patients_is_not_surely_the_best() -> None:
    dice = _draw(2, 1, 40, num_folds=10) + np.array([0, 0.1])[:, None, None]
    sure = _with_failed_folds(dice, {})
    assert dict(conclude(sure, compare(sure)).answers)["How sure is that?"].startswith("Sure: ")
    dice[1, :, np.arange(40) % 10 < 4] = NAN
    matrix = _with_failed_folds(dice, {"b": {"diverged": 3, "failed": 1}})
    found = conclude(matrix, compare(matrix))
    assert "On 24 shared test patients with 1 seed, b ranks first" in found.sentence
    words = "1 of b's 10 trainings failed, 3 diverged. These count nowhere, which may favour b."
    assert words in found.sentence
    answers = dict(found.answers)
    assert "on the 24 patients that all ranked variants share" in answers["Which is best?"]
    assert answers["How sure is that?"].startswith("Not sure: ")
    assert answers["How sure is that?"].endswith("Trainings of b failed or diverged.")


def test_failures_of_another_variant_leave_it_fairly_sure() -> None:
    dice = _draw(2, 1, 40, num_folds=10) + np.array([0.1, 0])[:, None, None]
    dice[1, :, ::10] = NAN
    matrix = _with_failed_folds(dice, {"b": {"diverged": 1}})
    answer = dict(conclude(matrix, compare(matrix)).answers)["How sure is that?"]
    assert answer.startswith("Fairly sure: ")


def test_a_variant_chosen_on_the_test_patients_is_not_surely_the_best() -> None:
    dice = _draw(2, 3, 40) + np.array([0, 0.1])[:, None, None]
    matrix = replace(matrix_of(dice, 10), variants=("raw", "winner-c0003"))
    names = matrix.patients
    for num_new, sureness in ((2, "Not sure: "), (0, "Not sure: "), (20, "Sure: ")):
        searched = [{"val": names[num_new : num_new + 9], "train": names[num_new + 9 :]}]
        answers = dict(_after_choice(matrix, searched).answers)
        assert answers["How sure is that?"].startswith(sureness), num_new
        are = f"{num_new} of 40 are new to the settings of winner-c0003."
        assert answers["On whom?"].endswith(are)
    chosen = {"variants": ["winner-c0003"], "judged": names[1:9], "trained": names[9:]}
    found = _after_choice(matrix, chosen_on=chosen)
    assert "1 is new to these settings." in found.sentence
    assert (
        "On the 1 new to them no difference is shown" in dict(found.answers)["How sure is that?"]
    )
    dice[1, :, :30] += 0.2
    dice[1, :, 30:] -= 0.3
    matrix = replace(matrix, measures=matrix_of(dice.clip(0, 1), 10).measures)
    worse = _after_choice(matrix, chosen_on=chosen | {"judged": names[:30], "trained": []})
    answer = dict(worse.answers)["How sure is that?"]
    assert "On the 10 new to them raw scored better (winner-c0003 - raw: -0." in answer
    other = chosen | {"variants": ["raw"]}  # what scores too high is not the best
    answer = dict(_after_choice(matrix, chosen_on=other).answers)["How sure is that?"]
    assert answer.startswith("Sure: ")


def test_an_unranked_variant_that_scored_better_is_on_the_first_screen() -> None:
    dice = _draw(3, 1, 20) + np.array([0.05, 0, 0])[:, None, None]
    dice[2] = dice[0] + 0.15
    dice[2, :, :12] = NAN
    answers = dict(_conclude(dice, 2).answers)
    assert "But c (not ranked) scored better" in answers["Which is best?"]
    assert answers["How sure is that?"].startswith("Not sure: ")
    dice[2] = dice[0] + 0.001 * _draw(1, 1, 20)[0]
    dice[2, :, 3:] = NAN
    assert "; c (not ranked) may be as good" in dict(_conclude(dice, 2).answers)["Which is best?"]


def test_seeds_without_scores_do_not_count() -> None:
    dice = _draw(3, 3, 20)
    dice[:2, 1:] = NAN  # c is external: its scores stand for all seeds
    matrix = matrix_of(dice)
    found = conclude(matrix, compare(matrix, external=["c"]), external=["c"])
    assert "On 20 test patients with 1 seed," in found.sentence
    assert any(caveat.startswith("One seed") for caveat in found.caveats)
    assert "each tested by 1 training of" in dict(found.answers)["On whom?"]
    dice[:2, 1, :9] = 0.5
    matrix = matrix_of(dice)
    answers = dict(conclude(matrix, compare(matrix, external=["c"]), external=["c"]).answers)
    assert "each tested by 1 to 2 trainings of" in answers["On whom?"]


def test_patients_needed_are_corrected_and_more_than_were_tested() -> None:
    # Shown without a correction, not with one.
    gain = np.array([0.012, *[0.0] * 7])[:, None, None]
    rng = np.random.default_rng(3)
    base = rng.uniform(0.4, 0.85, (1, 1, 20))
    matrix = matrix_of(base + gain + rng.normal(0, 0.018, (8, 1, 20)))
    comparison = compare(matrix)
    sentence = conclude(matrix, comparison).sentence
    found = re.search(r"About (\d+) patients would be needed to .* among 28 pairs", sentence)
    assert found and int(found[1]) > 20
    assert comparison.pairs[0].patients_needed == pytest.approx(int(found[1]), rel=0.05)
    few = tuple(replace(pair, patients_needed=20.0) for pair in comparison.pairs)
    assert "needed" not in conclude(matrix, replace(comparison, pairs=few)).sentence


def test_equal_means_and_tiny_differences_have_words() -> None:
    dice = np.array([[[0.1, 0.2, 0.3, 0.7, 0.6, 0.45]], [[0.2, 0.3, 0.7, 0.6, 0.45, 0.1]]])
    assert (
        dict(_conclude(dice).answers)["By how much?"]
        == "By nothing: b, the next, has the same mean."
    )
    close = _draw(1, 1, 40) + np.array([0.0002, 0])[:, None, None]
    close[1] += np.random.default_rng(0).normal(0, 0.0004, 40)
    conclusion = _conclude(close)
    assert "By less than 0.001 in Dice/patient" in dict(conclusion.answers)["By how much?"]
    assert "-0.000" not in conclusion.sentence + str(conclusion.answers)


def test_ranking_first_in_nearly_all_resamples_is_not_certain() -> None:
    gain = np.array([0.1, 0])[:, None, None]
    answer = dict(_conclude(_draw(2, 3, 40, num_folds=10) + gain, 10).answers)["How sure is that?"]
    assert "first in > 99 % of" in answer


def test_one_missing_trial_has_no_scores() -> None:
    dice = _draw(2, 1, 20)
    dice[0, :, ::10] = NAN
    assert _conclude(dice, 10).caveats[0].startswith("1 of 20 trials has no scores.")
