"""The statistics against scipy, against brute force, and against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.drift import category_p, chi2_quantile, chi2_sf, fisher, holm, kolmogorov_sf, ks, psi
from common.mmd import median_distance, mmd

RNG = np.random.default_rng(0)
CLOSE = {"rel": 1e-9, "abs": 1e-12}

# -- chi-square --


@pytest.mark.parametrize("df", [1, 2, 9, 149])
@pytest.mark.parametrize("q", [0.001, 0.5, 0.95, 0.99, 0.9999])
def test_chi_square_is_that_of_scipy(q, df):
    x = chi2_quantile(q, df)
    assert x == pytest.approx(stats.chi2.ppf(q, df), rel=1e-9)
    assert chi2_sf(x, df) == pytest.approx(1 - q, rel=1e-9)


def test_chi_square_refuses_what_has_no_quantile():
    for q, df in ((0, 1), (1, 1), (0.5, 0), (math.nan, 1)):
        with pytest.raises(ValueError, match="wanted 0 < q < 1"):
            chi2_quantile(q, df)


# -- PSI --


def test_psi_of_two_categories_by_hand():
    found = psi({"a": 50, "b": 50}, {"a": 80, "b": 20})
    by_hand = (0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert found.value == pytest.approx(by_hand, **CLOSE)
    assert found.threshold == pytest.approx(stats.chi2.ppf(0.99, 1) * (1 / 100 + 1 / 100), **CLOSE)
    assert found.p == pytest.approx(stats.chi2.sf(by_hand / 0.02, 1), **CLOSE)
    assert (found.bins, found.reference, found.current) == (["a", "b"], [0.5, 0.5], [0.8, 0.2])


def test_psi_of_numbers_by_hand():
    """A reference of 0..99 has edges at its deciles; the upper half of it has five bins of 20 % and five empty ones."""
    found = psi(range(100), range(50, 100))
    by_hand = 5 * (0.2 - 0.1) * math.log(2) + 5 * (1e-4 - 0.1) * math.log(1e-4 / 0.1)
    assert found.value == pytest.approx(by_hand, **CLOSE)
    assert found.bins == pytest.approx([*np.quantile(np.arange(100), np.arange(0.1, 0.95, 0.1)), math.inf])
    assert found.current == [0.0] * 5 + [0.2] * 5
    assert found.threshold == pytest.approx(stats.chi2.ppf(0.99, 9) * (1 / 100 + 1 / 50), **CLOSE)


def test_a_value_on_an_edge_belongs_to_the_lower_bin():
    assert psi(range(101), [10.0]).current[0] == 1.0
    assert psi(range(101), [10.001]).current[1] == 1.0


def test_psi_of_a_category_that_is_new_and_one_that_is_gone():
    found = psi({"a": 5, "b": 5, "c": 0}, {"a": 5, "x": 3, "y": 2, "z": 0})
    assert (found.bins, found.current) == (["a", "b", "(other)"], [0.5, 0.0, 0.5])
    assert found.value == pytest.approx(2 * (0.5 - 1e-4) * math.log(0.5 / 1e-4), **CLOSE)
    assert psi(["a", "b"], ["a", "b"]).value == 0


def test_psi_of_few_distinct_values_has_a_bin_for_each():
    assert psi([0, 1] * 50, [0, 1] * 20).value == 0
    constant = psi([7.0] * 50, [7.0] * 20)
    assert (constant.value, constant.threshold, constant.p) == (0.0, math.inf, 1.0)
    assert psi([7.0] * 50, [6.9] * 20).value > 10  # whichever way it moves
    assert psi([7.0] * 50, [7.1] * 20).value > 10


def test_psi_counts_nan_as_a_value_of_its_own():
    values = np.arange(100.0)
    missing = np.where(values < 30, math.nan, values)
    assert psi(missing, missing).value == 0
    found = psi(values, np.r_[values, [math.nan] * 100])
    assert (math.isnan(found.bins[-1]), found.reference[-1], found.current[-1]) == (True, 0.0, 0.5)
    assert psi(values, [math.inf] * 100).current[-1] == 1.0


def test_psi_has_an_answer_where_there_is_nothing():
    for found in (psi([], [1.0]), psi([1.0], []), psi([], []), psi({}, {"a": 1}), psi({"a": 1}, {})):
        assert (math.isnan(found.value), found.threshold, found.p) == (True, math.inf, 1.0)
    with pytest.raises(ValueError, match="wanted bins >= 2"):
        psi([1.0], [1.0], bins=1)


def test_the_threshold_of_psi_holds_its_promise():
    """Without drift it is passed in a share of alpha; the rule of thumb of 0.1 in a third of the draws."""
    rng = np.random.default_rng(1)
    draws = [psi(rng.normal(size=1000), rng.normal(size=100), alpha=0.05) for _ in range(400)]
    assert 0.02 < np.mean([found.value >= found.threshold for found in draws]) < 0.10
    assert np.mean([found.value >= 0.1 for found in draws]) > 0.3


# -- KS --


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (8, 8), (40, 61), (300, 200)])
@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_exact_ks_is_that_of_scipy(n, m, shift):
    x, y = RNG.normal(size=n), RNG.normal(size=m) + shift
    found, wanted = ks(x, y), stats.ks_2samp(x, y, method="exact")
    assert found.d == pytest.approx(wanted.statistic, **CLOSE)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9, abs=1e-300)
    assert (found.n, found.m) == (n, m)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_exact_ks_with_ties_counts_all_ways_to_deal_the_values(x, y):
    def distance(a, b):
        return max(abs(sum(v <= at for v in a) * len(b) - sum(v <= at for v in b) * len(a)) for at in range(4))

    pooled, own = x + y, distance(x, y)
    ways = [set(chosen) for chosen in itertools.combinations(range(len(pooled)), len(x))]
    dealt = [
        [[pooled[i] for i in range(len(pooled)) if (i in way) is first] for first in (True, False)] for way in ways
    ]
    as_far = sum(distance(*pair) >= own for pair in dealt)
    assert ks(x, y).p == pytest.approx(as_far / len(ways), **CLOSE)
    assert ks(x, y).d == pytest.approx(own / len(x) / len(y), **CLOSE)


@pytest.mark.parametrize("x", [0.0, 0.2, 0.5, 0.99, 1.0, 1.5, 3.0])
def test_kolmogorovs_limit_is_that_of_scipy(x):
    assert kolmogorov_sf(x) == pytest.approx(stats.kstwobign.sf(x), rel=1e-9, abs=1e-14)


def test_large_ks_is_kolmogorovs_limit_and_near_the_exact_one():
    x, y = RNG.normal(size=1000), RNG.normal(size=500) + 0.1
    found = ks(x, y)
    assert found.p == pytest.approx(stats.kstwobign.sf(found.d * math.sqrt(1000 / 3)), **CLOSE)
    assert found.p == pytest.approx(ks(x, y, exact=True).p, rel=0.2)


def test_ks_has_an_answer_for_every_input():
    for x, y in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        assert (math.isnan(ks(x, y).d), ks(x, y).p) == (True, 1.0)
    assert ks([1.0, math.nan, 2.0], [1.0, 2.0]) == (0.0, 1.0, 2, 2)
    assert ks([3.0] * 9, [3.0] * 9).p == 1.0
    assert ks([3.0] * 9, [4.0] * 9).d == 1.0
    assert ks([-math.inf, 0.0], [0.0, math.inf]).d == 0.5


# -- categories --


def test_fishers_exact_test_is_twice_the_smaller_tail_of_scipys():
    n, m, counts = 40, 25, [(3, 9), (10, 0), (0, 4), (27, 12)]
    pooled = [a + b for a, b in counts]
    found = fisher(np.array([b for _, b in counts]), np.array(pooled), n, m)
    for p, (a, b) in zip(found, counts, strict=True):
        table = [[a, n - a], [b, m - b]]
        tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert p == pytest.approx(min(1, 2 * min(tails)), rel=1e-9)


def test_the_category_that_changed_is_named():
    reference = {f"c{n}": 100 for n in range(10)}
    twenty = {f"c{n}": 44 for n in range(10)} | {"c3": 104}
    p, name = category_p(reference, twenty)
    assert (p < 1e-6, name) == (True, "c3")
    assert category_p(reference, {"new": 5} | {f"c{n}": 50 for n in range(10)})[1] == "(other)"


def test_category_p_is_no_smaller_than_chance_allows():
    rng = np.random.default_rng(3)
    mix = rng.dirichlet(np.ones(60))
    draw = lambda n: dict(enumerate(rng.multinomial(n, mix).tolist()))  # noqa: E731
    ps = np.array([category_p(draw(1000), draw(500))[0] for _ in range(300)])
    assert np.mean(ps <= 0.05) <= 0.09
    for reference, current in (({}, {"a": 1}), ({"a": 1}, {}), ({"a": 3}, {"a": 2})):
        assert category_p(reference, current) == (1.0, "")


# -- MMD --


def by_hand(x, y, sigma):
    k = lambda a, b: math.exp(-sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / (2 * sigma**2))  # noqa: E731
    n, m = len(x), len(y)
    within = [sum(k(a[i], a[j]) for i, j in itertools.permutations(range(len(a)), 2)) for a in (x, y)]
    return within[0] / n / (n - 1) + within[1] / m / (m - 1) - 2 / n / m * sum(k(a, b) for a in x for b in y)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 12)])
def test_mmd_is_the_unbiased_estimate(n, m):
    x, y = RNG.normal(size=(n, 3)), RNG.normal(size=(m, 3)) + 1
    assert mmd(x, y, bandwidth=1.3).value == pytest.approx(by_hand(x, y, 1.3), **CLOSE)
    distances = [math.dist(a, b) for a, b in itertools.combinations([*x, *y], 2)]
    assert mmd(x, y).bandwidth == pytest.approx(np.median(distances), **CLOSE)


def test_the_p_of_mmd_counts_all_ways_to_deal_the_points():
    x, y = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 2)) + 1
    own, pooled = by_hand(x, y, 1.0), [*x, *y]
    ways = list(itertools.combinations(range(6), 3))
    values = [by_hand([pooled[i] for i in w], [pooled[i] for i in range(6) if i not in w], 1.0) for w in ways]
    exact = np.mean([value >= own - 1e-12 for value in values])
    assert mmd(x, y, bandwidth=1.0, permutations=20_000).p == pytest.approx(exact, abs=0.02)
    assert mmd(x, y, permutations=0).p == 1.0  # the +1


def test_mmd_sees_what_no_column_shows():
    """Two columns that are equal in one sample and opposite in the other: each by itself is the same."""
    a, b = RNG.normal(size=(2, 200))
    x, y = np.c_[a, a + 0.1 * b], np.c_[a, -a + 0.1 * b]
    assert mmd(x, y).p == 0.001
    assert mmd(x, np.c_[b, b + 0.1 * a]).p > 0.01


def test_a_large_p_is_found_with_few_permutations():
    x, y = RNG.normal(size=(2, 60, 2))
    whole, short = (mmd(x, y, permutations=20_000, enough=enough) for enough in (None, 20))
    assert short.p == pytest.approx(whole.p, abs=0.1)
    assert mmd(x, y + 3, permutations=2000, enough=20).p == pytest.approx(1 / 2001)


def test_linear_mmd_is_the_mean_over_pairs_and_its_p_is_level():
    x, y = RNG.normal(size=(8, 2)), RNG.normal(size=(9, 2))
    k = lambda a, b: math.exp(-((a - b) @ (a - b)) / 2)  # noqa: E731
    h = [
        k(x[i], x[i + 1]) + k(y[i], y[i + 1]) - k(x[i], y[i + 1]) - k(x[i + 1], y[i])
        for i in range(0, 8, 2)
    ]  # fmt: skip
    found = mmd(x, y, bandwidth=1.0, linear=True)
    assert found.value == pytest.approx(np.mean(h), **CLOSE)
    assert found.p == pytest.approx(stats.norm.sf(np.mean(h) / np.std(h, ddof=1) * 2), **CLOSE)
    rng = np.random.default_rng(4)
    ps = [mmd(rng.normal(size=(1200, 4)), rng.normal(size=(1200, 4)), bandwidth=2.0).p for _ in range(200)]
    assert 0.01 < np.mean(np.array(ps) < 0.05) < 0.11
    assert mmd(rng.normal(size=(1200, 4)), rng.normal(size=(1200, 4)) + 0.5, bandwidth=2.0).p < 1e-6


def test_mmd_has_an_answer_for_every_input():
    one = np.zeros((1, 2))
    for x, y in ((one, one), (np.full((5, 2), math.nan), np.zeros((5, 2)))):
        assert (math.isnan(mmd(x, y).value), mmd(x, y).p) == (True, 1.0)
    assert mmd(np.ones((5, 2)), np.ones((5, 2))) == (0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="x has 2 columns, y has 3"):
        mmd(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        mmd(np.zeros((2, 2, 2)), np.zeros((5, 3)))
    assert mmd(RNG.normal(size=50), RNG.normal(size=50) + 3).p == 0.001
    assert median_distance(torch.arange(3000.0)[:, None]) == pytest.approx(3000 * (1 - math.sqrt(0.5)), rel=0.1)


# -- Holm --


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
