"""Anomaly scores: causal, calibrated, hard to blind, the same streamed, restored and in bulk."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from project_ts_forecast.anomaly import AnomalyDetector, alarms, detect
from tests.anomaly_series import series, stamps

QUIET = ["normal", "uniform", "autoregressive", "daily", "counts"]


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("cut", [1, 137, 900, 1999])
def test_a_later_row_changes_no_score(cut):
    values = series("daily", 2000)
    values[[850, 1200]] += 40
    whole, part = detect(stamps(2000), values), detect(stamps(2000)[:cut], values[:cut])
    assert same([column[:cut] for column in whole], part)
    assert whole.flag.sum() >= 2


def test_a_stream_saved_and_restored_as_json_goes_on_as_if_uncut():
    values = np.stack([series("daily", 1500), series("counts", 1500)], 1)
    values[1000:1010, 1] += 60
    values[::97, 0] = math.nan
    whole = detect(stamps(1500), values, channels=["a", "b"], probation=200)
    detector, readings = AnomalyDetector(["a", "b"], probation=200), []
    for row, (time, pair) in enumerate(zip(stamps(1500).tolist(), values.tolist(), strict=True)):
        if row in (0, 50, 150, 1005):  # the last one while it is muted
            held = json.loads(json.dumps(detector.state_dict(), allow_nan=False))
            detector = AnomalyDetector(["a", "b"], probation=200)
            detector.load_state_dict(held)
        readings.append(detector.update(time, pair))
    assert same(zip(*readings, strict=True), list(whole))
    assert whole.flag[1000]


def test_the_state_does_not_grow():
    sizes, detector = [], AnomalyDetector()
    for row, (time, value) in enumerate(zip(stamps(7000).tolist(), series("daily", 7000).tolist(), strict=True)):
        detector.update(time, [value])
        if row in (2500, 6999):
            sizes.append(len(json.dumps(detector.state_dict())))
    assert sizes[1] < 1.02 * sizes[0] < 100_000


@pytest.mark.parametrize("kind", QUIET)
def test_a_quiet_series_has_few_alarms(kind):
    found = [detect(stamps(4000), series(kind, seed=seed)) for seed in (1, 2)]
    rows = 2 * 3700
    assert 1000 * sum(one.flag.sum() for one in found) / rows <= 2
    assert 1000 * sum((one.raw[300:] >= 0.5).sum() for one in found) / rows <= 6  # 1 in 1,000 by the scale
    assert all((one.score >= 0).all() and (one.score <= 1).all() for one in found)


@pytest.mark.parametrize("kind", ["student t, 3 degrees of freedom", "lognormal", "rare spikes", "random walk"])
def test_a_heavy_tail_is_no_alarm_storm(kind):
    found = [detect(stamps(4000), series(kind, seed=seed)) for seed in (1, 2)]
    assert 1000 * sum(one.flag.sum() for one in found) / (2 * 3700) <= 5


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_and_offset_do_not_matter(scale):
    values = series("daily", 1500)
    values[1000] += 30
    found, scaled = detect(stamps(1500), values), detect(stamps(1500), scale * values + 7 * scale)
    assert np.allclose(found.raw, scaled.raw, atol=1e-3)


def test_anomalies_do_not_hide_the_next_one():
    """A threshold of mean + 3 sd of these rows is beyond 100,000; the spike is ten sd of the noise."""
    values = series("normal", 2000)
    values[[60, 200, 250, 600]] = [1e9, -1e9, 1e6, 1e9]
    values[1500] += 10
    assert values[:1500].mean() + 3 * values[:1500].std() > 1e5
    found = detect(stamps(2000), values)
    assert found.flag[1500]
    assert found.flag[300:1500].sum() <= 4


def test_a_shift_is_found_and_then_learnt():
    values = series("normal", 3000)
    values[1500:] += 5
    found = detect(stamps(3000), values)
    assert found.flag[1500:1503].any()
    assert (found.raw[2300:] >= 0.5).mean() < 0.01


def test_a_change_of_spread_is_found():
    values = series("normal", 2000)
    values[1500:] *= 4
    assert detect(stamps(2000), values).flag[1500:1530].any()


def test_a_value_that_sticks_is_told_once():
    values = series("normal", 8000)
    values[1500:] = 0.1
    found = detect(stamps(8000), values)
    first = 1500 + int(np.argmax(found.flag[1500:]))
    assert first < 1540
    assert found.cause[first] == "flat"
    assert found.flag[first:].sum() <= 2
    values[1500:] = np.repeat(series("normal", 65), 100)  # a sensor that reports every hundred rows
    assert detect(stamps(8000), values).flag[1700:].sum() <= 4


@pytest.mark.parametrize("rows", [32, 64])
def test_a_short_past_tells_what_is_far_out_and_not_much_else(rows):
    """A request's own past, of a forecast's window, has no more rows."""
    false = 0
    for seed in range(20):
        values = series("normal", rows + 11, seed)
        found = detect(stamps(len(values)), values, probation=rows)
        false += found.flag.sum()
        values[-1] += 30
        assert detect(stamps(len(values)), values, probation=rows, mute=0).flag[-1]
    assert false <= 5


def test_what_is_usual_at_another_hour_is_an_anomaly():
    """Nothing in the night is beyond the range of the day, or moves faster."""
    rng = np.random.default_rng(0)
    hours = stamps(24 * 40, 3600) % 86400 // 3600
    values = np.where((hours >= 8) & (hours < 18), 50.0, 10.0) + rng.normal(size=len(hours))
    found = detect(stamps(len(hours), 3600), values)
    values[30 * 24 + 3] = 50.0
    spoilt = detect(stamps(len(hours), 3600), values)
    assert not found.flag[30 * 24 - 48 :].any()
    assert spoilt.flag[30 * 24 + 3]
    assert spoilt.cause[30 * 24 + 3] in ("spike against day", "spike against week")


def test_an_alarm_mutes_the_rows_after_it():
    values = series("normal", 1000)
    values[500:600:3] = 30.0
    found = detect(stamps(1000), values, mute=25)
    first = int(np.argmax(found.flag))
    assert first == 500
    assert (found.score[501:526] == 0).all()
    assert found.raw[503] > 0.5
    assert (found.score[:300] == 0).all()
    assert np.array_equal(found.flag, alarms(found.raw, 0.5, probation=300, mute=25))
    assert np.diff(np.flatnonzero(found.flag)).min() > 25


def test_the_channel_and_the_row_are_named():
    values = np.stack([series("normal", 800, seed) for seed in range(3)], 1)
    values[600, 1] -= 25
    found = detect(stamps(800), values, channels=["flow", "pressure", "level"])
    assert np.flatnonzero(found.flag[580:]).tolist() == [20]
    assert found.channel[600] == "pressure"
    assert found.cause[600] in ("value", "spike against level")


def test_a_forecast_residual_is_judged_beside_the_values():
    residuals = series("normal", 800)
    residuals[600] = 20.0
    values = series("uniform", 800)
    found = detect(None, values, residuals)
    assert found.flag[600]
    assert found.cause[600] == "spike against forecast"
    assert not detect(None, values).flag[600]
    residuals[:] = math.nan
    assert same(detect(None, values, residuals), detect(None, values))


def test_missing_values_are_neither_scored_nor_learnt():
    values = series("daily", 1500)
    found = detect(stamps(1500), values)
    times, holes = np.insert(stamps(1500), 700, stamps(1500)[700] - 1), np.insert(values, 700, math.nan)
    detector = AnomalyDetector()
    for hole in (math.nan, math.inf, -math.inf, 1e300):
        assert detector.update(None, [hole])[:4] == (0.0, False, None, None)
    assert detector.state_dict()["known"] == AnomalyDetector().state_dict()["known"]
    with_hole = detect(times, holes)
    assert with_hole.raw[700] == 0
    assert np.abs(np.delete(with_hole.raw, 700) - found.raw).max() < 0.1


def test_the_largest_and_smallest_numbers_leave_no_nan_behind():
    values = series("normal", 1500)
    values[:400] *= 1e-300
    values[[600, 700, 800]] = [9e149, -9e149, 1e-300]
    detector = AnomalyDetector()
    for time, value in zip(stamps(1500).tolist(), values.tolist(), strict=True):
        assert 0 <= detector.update(time, [value]).raw <= 1
    json.dumps(detector.state_dict(), allow_nan=False)


def test_a_gap_of_weeks_is_no_anomaly():
    values, times = series("daily", 4000), stamps(4000)
    times[2000:] += 3 * 7 * 86400
    assert detect(times, values).flag[2000:2300].sum() <= 1


@pytest.mark.parametrize("value", [0.0, 45.0, -1e12])
def test_a_constant_is_quiet_and_its_first_change_one_alarm(value):
    values = np.full(2000, value)
    assert not detect(stamps(2000), values).raw.any()
    values[1500:] += 1.0
    found = detect(stamps(2000), values)
    assert found.flag[1500]
    assert found.flag.sum() <= 3


def test_a_repeated_stamp_gives_the_same_reading_and_teaches_nothing():
    values, detector = series("normal", 500), AnomalyDetector()
    for time, value in zip(stamps(500).tolist(), values.tolist(), strict=True):
        reading = detector.update(time, [value])
        before = json.dumps(detector.state_dict())
        assert detector.update(time, [value + 100]) == reading
        assert json.dumps(detector.state_dict()) == before


def test_a_clock_put_back_is_survived():
    times = stamps(2000)
    times[1000:] -= 3600
    assert detect(times, series("normal", 2000)).flag.sum() <= 3


def test_wrong_input_is_refused_in_words():
    detector = AnomalyDetector(["a", "b"])
    with pytest.raises(ValueError, match="found 1 values"):
        detector.update(None, [1.0])
    with pytest.raises(ValueError, match="time is nan"):
        detector.update(math.nan, [1.0, 2.0])
    with pytest.raises(ValueError, match="channels"):
        AnomalyDetector(["a", "a"])
    with pytest.raises(ValueError, match="threshold"):
        AnomalyDetector(threshold=0)
    with pytest.raises(ValueError, match="wanted \\['a', 'b'\\]"):
        detector.load_state_dict(AnomalyDetector(["a"]).state_dict())
    with pytest.raises(ValueError, match="not a state"):
        detector.load_state_dict({"channels": ["a", "b"]})
    with pytest.raises(ValueError, match="zip"):
        detect(stamps(3), np.zeros(4))
