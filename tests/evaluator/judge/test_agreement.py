"""Against published worked examples."""

import numpy as np
import pytest

from transfer_evaluator.judge.agreement import Level, agreement, krippendorff_alpha

NONE = float("nan")
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units, values missing.
FOUR_OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
        [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
    ]
)
# The worked example of the article "Krippendorff's alpha" in Wikipedia: three coders, fifteen units.
THREE_CODERS = np.array(
    [
        [NONE, NONE, NONE, NONE, NONE, 3, 4, 1, 2, 1, 1, 3, 3, NONE, 3],
        [1, NONE, 2, 1, 3, 3, 4, 3, NONE, NONE, NONE, NONE, NONE, NONE, NONE],
        [NONE, NONE, 2, 1, 3, 4, 4, NONE, 2, 1, 1, 3, 3, NONE, 4],
    ]
)


@pytest.mark.parametrize(
    ("ratings", "level", "published"),
    [
        pytest.param(FOUR_OBSERVERS, Level.NOMINAL, 0.743, id="four observers, nominal"),
        pytest.param(FOUR_OBSERVERS, Level.ORDINAL, 0.815, id="four observers, ordinal"),
        pytest.param(FOUR_OBSERVERS, Level.INTERVAL, 0.849, id="four observers, interval"),
        pytest.param(THREE_CODERS, Level.NOMINAL, 0.691, id="three coders, nominal"),
        pytest.param(THREE_CODERS, Level.INTERVAL, 0.811, id="three coders, interval"),
    ],
)
def test_alpha_is_that_of_published_examples(ratings, level, published):
    assert krippendorff_alpha(ratings, level) == pytest.approx(published, abs=5e-4)


def test_alpha_of_judges_that_always_agree_is_one_and_of_chance_is_near_zero():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, size=2000).astype(float)
    assert krippendorff_alpha(np.stack([scores, scores]), Level.ORDINAL) == 1.0
    assert krippendorff_alpha(np.stack([scores, generator.permutation(scores)]), Level.ORDINAL) == pytest.approx(0, abs=0.06)


def test_alpha_is_not_made_up_where_all_scores_are_the_same():
    found = agreement([[3, 3, 3], [3, 3, 3]])
    assert (found.ordinal_alpha, found.interval_alpha, found.exact, found.within_one) == (None, None, 1.0, 1.0)


def test_shares_count_pairs_that_have_both_scores():
    found = agreement([[0, 1, 2, None, 3], [0, 2, 0, 1, None]])
    assert found.units == 3
    assert found.exact == pytest.approx(1 / 3)
    assert found.within_one == pytest.approx(2 / 3)


@pytest.mark.parametrize("ratings", [[], [[]], [[None], [None]], [[1.0, 2.0]]], ids=["no judge", "no answer", "no score", "one judge"])
def test_nothing_is_said_where_nothing_can_be_compared(ratings):
    found = agreement(ratings)
    assert (found.units, found.ordinal_alpha, found.exact) == (0, None, None)
