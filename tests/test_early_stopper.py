"""Early stopping counts the checks that bring nothing better."""

import math

import pytest

from common.amp_ckpt import EarlyStopper


def test_stopper_counts_checks_without_improvement():
    stopper = EarlyStopper(patience=2, mode="max")
    assert [stopper.update(value) for value in (0.5, 0.6, 0.6, 0.7)] == [True, True, False, True]
    assert not stopper.should_stop
    assert [stopper.update(value) for value in (0.7, 0.1)] == [False, False]
    assert (stopper.should_stop, stopper.best) == (True, 0.7)


def test_stopper_min_and_min_delta():
    stopper = EarlyStopper(patience=3, mode="min", min_delta=0.125)
    assert [stopper.update(value) for value in (1.0, 0.875, 0.75, 0.5)] == [True, False, True, True]
    assert stopper.best == 0.5


def test_nan_is_never_better():
    stopper = EarlyStopper(patience=3, mode="min")
    assert not stopper.update(math.nan)
    assert stopper.best is None
    assert stopper.update(5.0)
    assert not stopper.update(math.nan)
    assert (stopper.best, stopper.bad) == (5.0, 1)


def test_patience_0_never_stops():
    stopper = EarlyStopper(patience=0)
    for _ in range(100):
        stopper.update(0.0)
    assert not stopper.should_stop


def test_stopper_state_and_mode():
    one, two = EarlyStopper(2), EarlyStopper(2)
    for value in (1.0, 0.5):
        one.update(value)
    two.load_state_dict(one.state_dict())
    assert not two.update(0.9)
    assert two.should_stop
    with pytest.raises(ValueError, match="mode is 'best', wanted 'min' or 'max'"):
        EarlyStopper(mode="best")
