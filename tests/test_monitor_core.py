"""Alarms against their promises."""

import math

import pytest

from common.monitor_core import Alarm, AlarmManager


def watch(**options) -> AlarmManager:
    return AlarmManager().add(Alarm("lat_p95", threshold=120.0, **options))


def fired(alarms: AlarmManager, values: list, start: float = 0.0, n: int = 100) -> list[int]:
    """Which of the checks, one a second, fired."""
    return [at for at, value in enumerate(values) if alarms.run({"lat_p95": (value, n)}, now=start + at)]


def test_an_event_says_what_happened():
    alarms = watch(consecutive=1)
    (event,) = alarms.run({"lat_p95": (130.0, 100)})
    assert (event["alarm"], event["value"], event["threshold"], event["n_samples"]) == ("lat_p95", 130.0, 120.0, 100)


def test_it_takes_violations_in_a_row():
    assert fired(watch(), [130, 130, 119, 130, 120, 130, 130]) == [5]


def test_it_is_silent_during_cooldown_and_speaks_again_after_it():
    assert fired(watch(cooldown_sec=10), [130] * 25) == [2, 12, 22]
    assert fired(watch(cooldown_sec=0), [130] * 9) == [2, 5, 8]


@pytest.mark.parametrize("no_evidence", [(130.0, 99), (0.0, 99), (math.nan, 1000)])
def test_too_few_samples_or_nan_are_no_evidence(no_evidence):
    alarms = watch()
    for at, check in enumerate([(130, 100), (130, 100), no_evidence]):
        assert alarms.run({"lat_p95": check}, now=at) == []
    assert len(alarms.run({"lat_p95": (130, 100)}, now=4)) == 1  # neither counted nor broke the row


def test_firing_lasts_until_a_check_without_violation():
    alarms = watch()
    fired(alarms, [130] * 4)
    assert alarms.firing() == ["lat_p95"]
    fired(alarms, [130], n=5)
    assert alarms.firing() == ["lat_p95"]
    fired(alarms, [100])
    assert alarms.firing() == []


@pytest.mark.parametrize(("direction", "violations"), [(">=", [1, 2]), (">", [2]), ("<=", [0, 1]), ("<", [0])])
def test_directions(direction, violations):
    alarm = {"threshold": 1.0, "direction": direction, "consecutive": 1, "cooldown_sec": 0, "min_samples": 1}
    alarms = AlarmManager().add(Alarm("a", **alarm))
    assert [value for value in (0, 1, 2) if alarms.run({"a": (value, 1)})] == violations


def test_alarms_do_not_mix():
    alarms = watch(consecutive=2).add(Alarm("errors", threshold=0.5, consecutive=1))
    assert [event["alarm"] for event in alarms.run({"lat_p95": (130, 100), "errors": (1, 100)})] == ["errors"]
    assert [event["alarm"] for event in alarms.run({"lat_p95": (130, 100)})] == ["lat_p95"]


def test_slips_are_errors_in_words():
    with pytest.raises(ValueError, match=r"no alarm is named lat_p59; there are: lat_p95"):
        watch().run({"lat_p59": (1, 100)})
    with pytest.raises(ValueError, match="lat_p95: there is one"):
        watch().add(Alarm("lat_p95", threshold=1))
    with pytest.raises(ValueError, match="direction is '=='"):
        Alarm("a", threshold=1, direction="==")
    with pytest.raises(ValueError, match="consecutive"):
        Alarm("a", threshold=1, consecutive=0)
