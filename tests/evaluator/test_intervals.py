"""Bootstrap intervals: what they must hold for any data, and that they cover the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_evaluator.statistics import paired_difference, ratio, ratio_interval

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
