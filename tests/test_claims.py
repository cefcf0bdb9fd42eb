"""Verdicts follow from criterion, interval and control, and from nothing else."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from innerloop.claims import Claim, Criterion, Measurement, exact, statistical

FAILING = {"control": "far away", "control_values": [9.0, 9.1, 9.2]}


def judged(values, **control) -> Claim:
    return statistical("id", "statement", "source", values, Criterion(-1.0, 1.0), **(control or FAILING))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1, 0.2, 0.3], "reproduced"),
        ([5.0, 5.1, 5.2], "not reproduced"),
        ([-5.0, -5.1, -5.2], "not reproduced"),
        ([0.8, 0.9, 1.1], "inconclusive"),
        ([0.1], "inconclusive"),
        ([0.1, math.nan, 0.2], "not reproduced"),
        ([0.1, math.inf, 0.2], "not reproduced"),
    ],
)
def test_verdict_of_a_statistical_claim(values, verdict):
    assert judged(values).verdict == verdict


def test_control_that_passes_leaves_a_claim_inconclusive():
    claim = judged([0.1, 0.2, 0.3], control="too near", control_values=[0.5, 0.5, 0.5])
    assert claim.control_verdict == "reproduced"
    assert claim.verdict == "inconclusive"


def test_control_never_improves_a_failed_claim():
    claim = judged([5.0, 5.1, 5.2], control="too near", control_values=[0.5, 0.5, 0.5])
    assert claim.verdict == "not reproduced"


def test_control_whose_interval_touches_the_criterion_has_no_power():
    claim = judged([0.1, 0.2, 0.3], control="scattered", control_values=[0.9, 1.5, 2.5])
    assert claim.control_verdict == "inconclusive"
    assert claim.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("measured", "verdict"), [(1e-13, "reproduced"), (1e-11, "not reproduced"), (math.nan, "not reproduced")]
)
def test_verdict_of_an_exact_claim(measured, verdict):
    claim = exact("id", "s", "s", measured, Criterion(high=1e-12), control="c", control_measured=0.1)
    assert claim.verdict == verdict
    assert claim.low is None
    assert claim.high is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-6))
def test_interval_is_students(values):
    measurement = Measurement.over_seeds(values)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert measurement.measured == pytest.approx(np.mean(values), abs=1e-9)
    assert measurement.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert measurement.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 5))
    intervals = [Measurement.over_seeds(row) for row in draws]
    covered = np.mean([one.low <= 3.0 <= one.high for one in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_smoke_runs_never_reproduce():
    assert judged([0.1, 0.2, 0.3]).for_smoke().verdict == "consistent"
    assert judged([5.0, 5.1, 5.2]).for_smoke().verdict == "inconclusive"


def test_json_has_no_numbers_that_are_not_finite():
    text = json.dumps(judged([0.1, math.nan]).as_json(), allow_nan=False)
    assert json.loads(text)["measured"] is None


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (Criterion(high=0.5), "at most 0.5"),
        (Criterion(low=0.5), "at least 0.5"),
        (Criterion(-0.5, 0.5), "within ±0.5"),
        (Criterion(0.1, 0.5), "0.1 to 0.5"),
    ],
)
def test_criterion_in_words(criterion, words):
    assert str(criterion) == words


def test_interval_of_a_median_covers_it_whatever_the_distribution():
    """Order statistics: 6 to 8 seeds give the extremes, 9 the second ones; covered on a heavy tail too."""
    ranks = {5: None, 6: 1, 8: 1, 9: 2, 12: 3}
    for count, rank in ranks.items():
        measured = Measurement.median_over_seeds(np.arange(count)[::-1])
        if rank is None:
            assert (measured.low, measured.high) == (None, None)
        else:
            assert (measured.low, measured.high) == (rank - 1, count - rank)
    samples = np.random.default_rng(0).standard_cauchy(size=(4000, 10))
    intervals = [Measurement.median_over_seeds(sample) for sample in samples]
    covered = np.mean([one.low <= 0 <= one.high for one in intervals])
    assert 0.95 < covered < 0.99  # exactly .9785


def test_a_median_is_not_carried_away_by_one_seed():
    values = [0.07, 0.06, 0.065, 0.07, 0.068, 0.071, 0.066, 0.069, 0.067, 1.0]
    options = {"control": "far", "control_values": [0.2]}
    median = statistical("a", "a", "a", values, Criterion(high=0.09), centre="median", **options)
    mean = statistical("a", "a", "a", values, Criterion(high=0.09), **options)
    assert (median.verdict, mean.verdict) == ("reproduced", "inconclusive")
    assert median.measured == pytest.approx(0.0685)
