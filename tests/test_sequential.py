"""The sequential tests: what the mathematics promises, by arithmetic."""

import itertools
import json

import numpy as np
import pytest

from common.judge import ALPHA
from common.sequential import COMMON, RARE, STAKES, RateTests, Row, log_factors


@pytest.mark.parametrize("odds", [RARE, COMMON])
@pytest.mark.parametrize(("rate", "share"), [(0.005, 0.01), (0.3, 0.25), (0.9, 0.5)])
def test_the_expected_factor_is_one_for_equal_arms_and_less_for_a_better_canary(odds, rate, share):
    """Also where the rate that the bet takes for stable's is far off."""
    for believed, better in itertools.product((rate, 0.02, 0.6), (1.0, 0.7)):
        stable, canary = log_factors(np.array([believed]), np.zeros(1), np.array([share]), np.array([odds]))
        p_s, p_c = np.array([1 - rate, rate]), np.array([1 - rate * better, rate * better])
        expected = ((1 - share) * p_s * np.exp(stable[0]) + share * p_c * np.exp(canary[0])).sum(1)
        if better == 1.0:
            assert expected == pytest.approx(np.ones(len(odds)), abs=1e-12)
        else:
            assert (expected < 1).all()


def test_the_expected_factor_at_the_margin_is_one_where_stable_is_known():
    rate, margin, share = 0.2, 0.05, 0.1
    stable, canary = log_factors(np.array([rate]), np.array([margin]), np.array([share]), np.array([COMMON]))
    p_s, p_c = np.array([1 - rate, rate]), np.array([1 - rate - margin, rate + margin])
    expected = ((1 - share) * p_s * np.exp(stable[0]) + share * p_c * np.exp(canary[0])).sum(1)
    assert expected == pytest.approx(np.ones(len(COMMON)), abs=1e-12)


def test_a_fixed_rate_is_the_likelihood_ratio():
    stable, canary = log_factors(np.array([0.2]), np.zeros(1), np.zeros(1), np.array([[2.0]]))
    p = 0.25 * 2 / (1 + 0.25 * 2)
    assert np.exp(canary[0, 0]) == pytest.approx([(1 - p) / 0.8, p / 0.2])
    assert (stable == 0).all()


def test_wealth_starts_at_one_and_all_stakes_add_up_to_it():
    assert STAKES.sum() == pytest.approx(1)
    tests = RateTests([Row()])
    nothing = np.zeros((1, 2))
    for n in range(1000):  # requests that say nothing: every bet is worth its stake
        tests.update(nothing, np.array([[n % 20 == 0, 0]]) * 0, 0.1)
    assert np.exp(tests.log_evidence()) == pytest.approx([1.0])
    assert sum(ALPHA.values()) == pytest.approx(0.01)


def test_state_goes_on_where_it_was():
    rng, one = np.random.default_rng(0), RateTests([Row(), Row(margin=0.05)])
    batches = rng.integers(0, 40, (30, 2, 2, 2))
    for stable, canary in batches:
        one.update(stable, canary, 0.2)
    two = RateTests([Row(), Row(margin=0.05)])
    two.restore(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert (two.log_evidence() == one.log_evidence()).all()
    with pytest.raises(ValueError, match="wanted"):
        RateTests([Row()]).restore(one.state())


def test_a_candidate_that_breaks_late_is_found_soon():
    tests = RateTests([Row(rare=True)])
    for _ in range(2000):
        tests.update(np.array([[3, 0]]), np.array([[1, 0]]), 0.25)
    broken = 0
    while tests.log_evidence()[0] < -np.log(ALPHA["errors"]):
        tests.update(np.array([[3, 0]]), np.array([[0, 1]]), 0.25)
        broken += 1
    assert broken <= 40
