"""Windows against numpy."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import common.window
from common.monitor_core import SlidingWindow

numbers = st.floats(-1e6, 1e6) | st.integers(-3, 3)


@given(st.integers(1, 12), st.lists(numbers, min_size=1, max_size=40), st.floats(0, 1))
def test_a_window_agrees_with_numpy_on_the_last_n_values(n, values, q):
    window = SlidingWindow(n)
    for value in values:
        window.push(value)
    last = values[-n:]
    assert len(window) == len(last)
    assert window.quantile(q) == pytest.approx(np.quantile(last, q), abs=1e-6)
    assert window.mean() == pytest.approx(np.mean(last), abs=1e-6)
    assert window.rate() == pytest.approx(np.count_nonzero(last) / len(last))


def test_an_empty_window_is_nan():
    window = SlidingWindow(3)
    assert all(math.isnan(value) for value in (window.quantile(0.5), window.mean(), window.rate()))


def test_a_window_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="n is 0"):
        SlidingWindow(0)
    with pytest.raises(ValueError, match="NaN"):
        SlidingWindow(3).push(math.nan)
    with pytest.raises(ValueError, match="0 to 1"):
        SlidingWindow(3).quantile(95)


def test_a_window_is_thread_safe():
    window = SlidingWindow(50)

    def push(start):
        for value in range(start, start + 2000):
            window.push(value)
            assert window.quantile(0.5) >= 0

    threads = [threading.Thread(target=push, args=(start,)) for start in (0, 5000, 9000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(window) == 50
    assert window.quantile(1.0) == max(window.quantile(q / 49) for q in range(50))


@pytest.mark.parametrize("n", [3, 40, 500])
def test_many_blocks_agree_with_numpy(monkeypatch, n):
    """With blocks so small that they split, empty and vanish all the time."""
    monkeypatch.setattr(common.window, "SMALLEST_BLOCK", 4)
    monkeypatch.setattr("math.isqrt", lambda n: 2)
    rng, window, values = np.random.default_rng(n), SlidingWindow(n), []
    for step in range(4 * n):
        value = float(rng.integers(0, 20) if step % 2 else rng.normal() + step / n)
        window.push(value)
        values = [*values, value][-n:]
        assert sum(map(len, window._blocks)) == len(values)
        if step % 7 == 0:
            for q in (0.0, 0.5, 0.95, 0.99, 1.0):
                assert window.quantile(q) == pytest.approx(np.quantile(values, q), abs=1e-9)


def test_a_window_does_not_grow():
    window = SlidingWindow(5000)
    for n in range(30_000):
        window.push(float(n))  # rising: every block empties from below
    assert (len(window), sum(map(len, window._blocks)), len(window._blocks)) == (5000, 5000, len(window._tops))
    assert len(window._blocks) < 12


def test_a_window_of_seconds_forgets():
    window = SlidingWindow(100, seconds=10)
    for at in range(30):
        window.push(at, now=float(at))
    assert [window.quantile(q, now=29.0) for q in (0, 1)] == [20.0, 29.0]
    assert window.mean(now=34.5) == 27.0  # 25 to 29
    assert window.per_second(now=34.5) == 0.5
    assert window.rate(now=34.5) == 1.0
    assert math.isnan(window.quantile(0.5, now=39.0))
    assert len(window) == 0
    with pytest.raises(ValueError, match="seconds is 0"):
        SlidingWindow(5, seconds=0)
    with pytest.raises(ValueError, match="window with seconds"):
        SlidingWindow(5).per_second()


def test_a_window_of_seconds_is_bounded_by_n_too():
    window = SlidingWindow(100, seconds=10)
    for n in range(1000):
        window.push(n, now=n / 100)
    assert window.quantile(0, now=10.0) == 900
    assert window.per_second(now=10.0) == pytest.approx(100)
