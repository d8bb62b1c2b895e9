"""The monitoring benchmark at a toy size: that it runs, and that its figures mean what they say."""

from __future__ import annotations

import json

import pytest

from tests.bench import monitor, monitor_accuracy, monitor_cost, monitor_drift


@pytest.mark.slow
def test_false_alarms_and_drift_in_a_toy(capsys):
    monitor.main(["--toy", "--only", "false_alarms", "detection", "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["false_alarm_rate"] == 0.0
    assert figures["false_alarm_runs"] == 2
    assert set(figures["detection"]) == {"0.5 sd in one feature", "class mix 10 to 20 points"}
    assert 1 <= figures["max_windows_to_detect"] <= 9  # with 50 answers a window, not 500


@pytest.mark.slow
def test_the_cost_of_monitoring_in_a_toy(intent_run, tmp_path, capsys):
    monitor.main(["--toy", "--only", "cost", "webhook", "--intent", str(intent_run), "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for what, cost in (("rps", "serving_cost"), ("cpu_us_for_a_request", "serving_cost_cpu")):
        on, off = figures[what]["on"], figures[what]["off"]
        assert min(on, off) > 0
        assert figures[cost] == pytest.approx((off / on if what == "rps" else on / off) - 1)  # of one round
    for name in ("dead", "hung"):  # of one round
        assert figures[f"webhook_p99_ratio_{name}"] == pytest.approx(figures[f"p99_ms_{name}"] / figures["p99_ms_none"])
    assert {"memory_mb", "memory_growth_mb"} <= figures.keys()


@pytest.mark.slow
def test_expected_accuracy_in_a_toy(colour_run, colour_photos, intent_run, intent_texts, capsys):
    words = ["--vision", colour_run, "--photos", colour_photos / "test", "--intent", intent_run]
    monitor.main([*map(str, words), "--texts", str(intent_texts / "test.jsonl"), "--only", "accuracy", "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for part in figures["accuracy"].values():
        for one in part.values():
            assert one["gap"] == pytest.approx(one["expected"] - one["true"], abs=0.02)
    assert set(figures["accuracy"]["texts"]) == {"clean", "typos"}
    assert len(figures["accuracy"]["photos"]) == 1 + 3 * 9
    assert figures["accuracy_gap_damaged"] >= abs(figures["accuracy"]["photos"]["contrast"]["gap"])


def test_a_run_with_drift_all_the_time_is_an_alarm(monkeypatch):
    """What is counted as false alarms sees alarms where there is something."""
    policy = monitor_drift.checked({"window": 100}, "test")
    assert not monitor_drift.run_without_drift(policy, 100, 0, 5)
    real, calls = monitor_drift.judge, []

    def shifted(reference, values, *rest, **more):
        calls.append(values)
        return real(reference, {**values, "normal 0": [x + 1 for x in values["normal 0"]]}, *rest, **more)

    monkeypatch.setattr(monitor_drift, "judge", shifted)
    assert monitor_drift.run_without_drift(policy, 100, 0, 5)
    assert len(calls) == 5


def test_typos_change_a_share_of_the_letters():
    text = "the quick brown fox jumps over the lazy dog " * 20
    hurt = monitor_accuracy.misspelt(text, monitor_accuracy.random.Random(0))
    assert hurt != text
    assert abs(len(hurt) - len(text)) < 40
    with monitor_cost.silent_port() as port:
        assert port > 0
