"""Alarms against their promises."""

import math

import pytest

from common.burn import BurnRate
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


# -- levels, states, events --


def states(alarms: AlarmManager, values: list) -> list[str]:
    """The state after each check."""
    found = []
    for at, value in enumerate(values):
        alarms.run({"lat_p95": (value, 100)}, now=float(at))
        found.append(alarms.states()[0]["state"])
    return found


def test_the_state_goes_through_pending_firing_and_resolved():
    assert states(watch(), [1, 130, 130, 130, 130, 1, 1]) == [
        "ok", "pending", "pending", "firing", "firing", "resolved", "ok",
    ]  # fmt: skip
    assert states(watch(), [130, 1]) == ["pending", "ok"]
    assert states(watch(consecutive=1, cooldown_sec=0), [130, 1, 130]) == ["firing", "resolved", "firing"]


def test_between_the_levels_it_neither_fires_nor_clears():
    alarms = watch(clear=100.0, consecutive=2)
    assert states(alarms, [110, 130, 130, 110, 119, 100, 99, 110]) == [
        "ok", "pending", "firing", "firing", "firing", "firing", "resolved", "ok",
    ]  # fmt: skip
    low = AlarmManager().add(Alarm("lat_p95", threshold=0.8, direction="<=", clear=0.9, consecutive=1))
    assert states(low, [0.8, 0.85, 0.9, 0.91]) == ["firing", "firing", "firing", "resolved"]


def test_events_are_kept_and_told_once():
    alarms = AlarmManager().add(Alarm("a", 1.0, consecutive=2, severity="critical", runbook="Call Ada."))
    for value in (2.0, 2.0, 0.0):
        alarms.run({"a": (value, 100, {"what": "a thing"})})
    assert [event["state"] for event in alarms.history] == ["pending", "firing", "resolved"]
    fired, resolved = alarms.news()
    assert (fired["severity"], fired["runbook"], fired["what"]) == ("critical", "Call Ada.", "a thing")
    assert (fired["state"], resolved["state"], resolved["value"]) == ("firing", "resolved", 0.0)
    assert fired["since"] == resolved["since"] <= resolved["at"]
    assert alarms.news() == []
    for _ in range(500):
        alarms.run({"a": (2.0, 100)})
        alarms.run({"a": (0.0, 100)})
    assert len(alarms.history) == 100


def test_an_alarm_that_is_removed_while_it_fires_is_resolved():
    alarms = watch(consecutive=1)
    alarms.run({"lat_p95": (130, 100)})
    alarms.remove("lat_p95")
    assert (alarms.firing(), alarms.states()) == ([], [])
    assert [event["state"] for event in alarms.news()] == ["firing", "resolved"]
    alarms.add(Alarm("lat_p95", threshold=1))


def test_levels_and_severities_are_checked():
    with pytest.raises(ValueError, match=r"clear is 130\.0, which is >= 120\.0 itself"):
        watch(clear=130.0)
    with pytest.raises(ValueError, match="severity is 'bad', wanted one of info, warning, critical"):
        watch(severity="bad")


# -- error budgets --


def test_a_burn_rate_wants_both_windows():
    """14.4 times the budget of one in a thousand, for an hour and for the last five minutes."""
    budget = BurnRate(0.999)
    assert math.isnan(budget.value(0.0)[0])
    for second in range(3600):
        budget.add(bad=second % 50 == 0, now=float(second))  # 2 %: twenty times the budget
    value, n = budget.value(3599.0)
    assert (value, n) == (pytest.approx(20 / 6, rel=0.05), 3600)  # the six hours have seen as much
    assert budget._pair(list(map(tuple, budget._buckets)), 359.0, *budget.pairs[0])[0] == pytest.approx(20 / 14.4, 0.05)
    for second in range(3600, 3960):  # it is over: the five minutes are good
        budget.add(bad=False, now=float(second))
    short = budget._pair(list(map(tuple, budget._buckets)), 396.0, *budget.pairs[0])
    assert short[0] == 0.0
    for second in range(3960, 6000):  # and then the half hour
        budget.add(bad=False, now=float(second))
    assert budget.value(6000.0)[0] < 1


def test_a_slow_burn_is_found_by_the_long_pair():
    budget = BurnRate(0.99)
    for second in range(0, 21600, 4):
        budget.add(bad=second % 40 == 0, now=float(second))  # 10 %: ten times the budget, of 14.4 and 6
    assert budget.value(21596.0)[0] == pytest.approx(10 / 6, rel=0.05)
    assert len(budget._buckets) <= 2161
    with pytest.raises(ValueError, match="objective is 1"):
        BurnRate(1)
