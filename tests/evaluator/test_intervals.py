"""Bootstrap intervals: what they must hold for any data, and that they cover the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_evaluator.statistics import (
    cluster_sums,
    holm,
    mcnemar,
    minimum_detectable,
    paired_difference,
    paired_standard_error,
    randomization_test,
    ratio,
    ratio_interval,
)

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=40)
sizes = st.floats(1, 1e4, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), sizes), min_size=1, max_size=40))
def test_an_interval_contains_its_estimate(pairs):
    numerator, denominator = np.array(pairs).T
    low, high = ratio_interval(numerator, denominator, resamples=200)
    assert low <= ratio(numerator, denominator) <= high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), sizes), min_size=1, max_size=40))
def test_identical_sides_differ_by_exactly_nothing(pairs):
    numerator, denominator = np.array(pairs).T
    assert paired_difference(numerator, denominator, numerator, denominator, resamples=200) == (0.0, (0.0, 0.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3), sizes), min_size=1, max_size=40))
def test_swapping_the_sides_mirrors_the_difference(triples):
    ours, theirs, size = np.array(triples).T
    difference, (low, high) = paired_difference(ours, size, theirs, size, resamples=200)
    mirrored, (mirrored_low, mirrored_high) = paired_difference(theirs, size, ours, size, resamples=200)
    assert mirrored == pytest.approx(-difference, abs=1e-9)
    assert (mirrored_low, mirrored_high) == pytest.approx((-high, -low), abs=1e-6)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    data = np.random.default_rng(0).normal(size=50)
    ones = np.ones(50)
    assert ratio_interval(data, ones, seed=1) == ratio_interval(data, ones, seed=1)
    assert ratio_interval(data, ones, seed=1) != ratio_interval(data, ones, seed=2)


def test_chunks_of_resamples_do_not_change_the_number_of_draws(monkeypatch):
    data = np.random.default_rng(0).normal(size=50)
    whole = ratio_interval(data, np.ones(50))
    monkeypatch.setattr("transfer_evaluator.statistics.CHUNK_DRAWS", 777)
    assert ratio_interval(data, np.ones(50)) == pytest.approx(whole, abs=1e-12)


def test_a_long_document_weighs_by_its_length():
    assert ratio(np.array([100.0, 1.0]), np.array([1000.0, 1.0])) == pytest.approx(101 / 1001)


def test_95_percent_of_the_intervals_cover_the_true_mean():
    generator = np.random.default_rng(42)
    covered = 0
    for run in range(400):
        low, high = ratio_interval(generator.binomial(1, 0.3, 100).astype(float), np.ones(100), seed=run, resamples=400)
        covered += low <= 0.3 <= high
    # 400 runs: the standard error of the coverage is 1.1 points.
    assert 0.91 <= covered / 400 <= 0.985


def test_95_percent_of_the_paired_intervals_cover_the_true_difference():
    generator = np.random.default_rng(7)
    covered = 0
    for run in range(400):
        size = generator.integers(50, 500, 80).astype(float)
        hardness = generator.normal(1.0, 0.3, 80)
        theirs = size * hardness
        ours = size * (hardness - 0.1 + generator.normal(0, 0.2, 80))
        low, high = paired_difference(ours, size, theirs, size, seed=run, resamples=400)[1]
        covered += low <= -0.1 <= high
    assert 0.90 <= covered / 400 <= 0.985


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    generator = np.random.default_rng(3)
    size, hardness = np.full(60, 100.0), generator.normal(2.0, 0.5, 60)
    theirs, ours = size * hardness, size * (hardness - 0.05)
    low, high = paired_difference(ours, size, theirs, size)[1]
    alone_low, alone_high = ratio_interval(ours, size)
    assert high - low < 0.01 * (alone_high - alone_low)
    assert high < 0


def test_items_of_a_cluster_are_drawn_together():
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    clusters = ["a", "b", "a", "b", "c", "c"]
    by_cluster = ratio_interval(values, np.ones(6), clusters=clusters)
    assert by_cluster == ratio_interval(np.array([2.0, 1.0, 0.0]), np.array([2.0, 2.0, 2.0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), sizes, st.integers(0, 5)), min_size=1, max_size=30))
def test_clusters_of_one_change_nothing_and_sums_are_kept(rows):
    numerator, denominator, labels = np.array(rows).T
    columns = np.stack([numerator, denominator], axis=1)
    assert cluster_sums(columns, labels.tolist()).sum(axis=0) == pytest.approx(columns.sum(axis=0))
    alone = ratio_interval(numerator, denominator, resamples=100, clusters=list(range(len(rows))))
    assert alone == ratio_interval(numerator, denominator, resamples=100)


def test_intervals_over_clusters_cover_the_truth_where_intervals_over_items_do_not():
    generator = np.random.default_rng(11)
    covered = {"clusters": 0, "items": 0}
    for run in range(400):
        subjects = np.repeat(np.arange(40), 8)
        values = np.repeat(generator.normal(0, 1, 40), 8) + generator.normal(0, 1, 320)
        for name, clusters in (("clusters", subjects.tolist()), ("items", None)):
            low, high = ratio_interval(values, np.ones(320), seed=run, resamples=400, clusters=clusters)
            covered[name] += low <= 0 <= high
    assert 0.90 <= covered["clusters"] / 400 <= 0.985
    assert covered["items"] / 400 < 0.75


def columns(ours, theirs):
    ones = np.ones(len(ours))
    return np.array(ours, float), ones, np.array(theirs, float), ones


def test_the_standard_error_of_a_paired_mean_is_the_textbook_one():
    ours, theirs = [3.0, 5.0, 4.0, 8.0], [1.0, 4.0, 4.0, 5.0]
    differences = np.array(ours) - np.array(theirs)
    assert paired_standard_error(*columns(ours, theirs)) == pytest.approx(differences.std(ddof=1) / 2)
    assert paired_standard_error(*columns([1.0], [0.0])) is None


def test_the_minimum_detectable_difference_is_found_with_a_probability_of_80_percent():
    # 1.95996 + 0.84162, the quantiles in every table.
    assert minimum_detectable(1.0) == pytest.approx(2.80158, abs=1e-4)
    generator = np.random.default_rng(5)
    effect = minimum_detectable(1 / np.sqrt(100))
    found = 0
    for run in range(300):
        ours = generator.normal(effect, 1, 100)
        found += paired_difference(*columns(ours, np.zeros(100)), seed=run, resamples=400)[1][0] > 0
    assert 0.73 <= found / 300 <= 0.88


@pytest.mark.parametrize(
    ("won", "lost", "p_value"),
    [
        pytest.param(0, 0, 1.0, id="nothing changed"),
        pytest.param(1, 0, 1.0, id="one item says nothing"),
        pytest.param(0, 5, 0.0625, id="2 / 32"),
        pytest.param(6, 6, 1.0, id="as many each way"),
        pytest.param(9, 1, 22 / 1024, id="2 (1 + 10) / 1024"),
        # Agresti, Categorical Data Analysis, section 10.1: 86 and 150 discordant; chi-squared 17.36 gives 3.1e-5.
        pytest.param(86, 150, 3.7e-5, id="approval of the prime minister"),
    ],
)
def test_mcnemar_is_exact(won, lost, p_value):
    assert mcnemar(won, lost) == pytest.approx(p_value, rel=0.02)
    assert mcnemar(lost, won) == mcnemar(won, lost)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_p_value_is_a_probability_and_falls_with_the_imbalance(won, lost):
    assert 0 < mcnemar(won, lost) <= 1
    assert mcnemar(max(won, lost) + 1, min(won, lost)) <= mcnemar(max(won, lost), min(won, lost)) + 1e-12


def test_thousands_of_questions_are_no_trouble():
    assert mcnemar(7000, 7000) == 1.0
    assert 0 < mcnemar(6900, 7100) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_swapping_all_sides_of_few_answers_is_mcnemars_test(answers):
    ours, theirs = np.array(answers, float).T
    won, lost = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    assert randomization_test(*columns(ours, theirs)) == pytest.approx(mcnemar(won, lost))


def test_drawn_swaps_come_near_all_swaps(monkeypatch):
    generator = np.random.default_rng(2)
    sides = columns(generator.normal(0.5, 1, 12), np.zeros(12))
    exact = randomization_test(*sides)
    monkeypatch.setattr("transfer_evaluator.statistics.EXACT_CLUSTERS", 0)
    assert randomization_test(*sides) == pytest.approx(exact, abs=0.015)
    monkeypatch.setattr("transfer_evaluator.statistics.CHUNK_DRAWS", 500)
    assert randomization_test(*sides) == pytest.approx(exact, abs=0.015)


def test_a_test_at_5_percent_errs_in_5_percent_of_comparisons_that_differ_by_nothing():
    generator = np.random.default_rng(8)
    clusters = np.repeat(np.arange(25), 4).tolist()
    false_alarms = 0
    for run in range(300):
        shift = np.repeat(generator.normal(0, 1, 25), 4)
        sides = columns(shift + generator.normal(0, 1, 100), generator.normal(0, 1, 100))
        false_alarms += randomization_test(*sides, seed=run, resamples=199, clusters=clusters) <= 0.05
    assert false_alarms / 300 <= 0.085


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        pytest.param([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02], id="as R's p.adjust gives it"),
        pytest.param([0.2], [0.2], id="one"),
        pytest.param([], [], id="none"),
        pytest.param([0.5, 0.9], [1.0, 1.0], id="at most 1"),
    ],
)
def test_holm(values, adjusted):
    assert holm(values) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_never_lowers_and_is_no_harsher_than_bonferroni(values):
    adjusted = holm(values)
    for value, after in zip(values, adjusted, strict=True):
        assert value <= after <= min(1.0, value * len(values)) + 1e-12
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [adjusted[place] for place in order] == sorted(adjusted)
