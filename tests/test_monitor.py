"""Monitoring in a running server: injected drift, labels that come late, errors, several workers, an Alertmanager."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from common.feedback import RESULTS
from tests.alertmanager import ALERTMANAGER, Alertmanager
from tests.monitored import FAST, ask, watched, window
from tests.tiny_models import served
from tests.tiny_server import Tiny, wait_until


@pytest.fixture
def watching(tmp_path):
    with watched(tmp_path) as found:
        yield found


def state_of(worker: dict, name: str) -> str:
    return next(alarm["state"] for alarm in worker["alarms"] if alarm["alarm"] == name)


def test_drift_injected_into_a_running_server_is_found_and_named(watching):
    url, log = watching
    for seed in (1, 2):
        worker = window(url, seed)
    assert ask(url, "/predict", {"text": "a"})["alert"] == []
    assert worker["drift"]["watched"] == ["label", "conf", "length", "embedding"]
    assert [result["drifted"] for result in worker["drift"]["results"]] == [False] * 4
    windows = 0
    while not ask(url, "/alerts")["firing"]:
        windows += 1
        worker = window(url, 10 + windows, length=60)
    assert windows <= 3
    answer = ask(url, "/predict", {"text": "a"})
    assert "drift_length" in answer["alert"]
    event = next(event for event in worker["history"] if event["state"] == "firing" and "length" in event["alarm"])
    assert event["runbook"] == "Who writes such long texts?"
    assert re.match(r"ks 0\.\d+ \(from 0\.2 on\), p \S+: mean [34]\d\.\d+ → [56]\d", event["what"])
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        metrics = reply.read().decode()
    assert 'alarm_firing{alarm="drift_length"} 1' in metrics
    assert 'alarm_state{alarm="drift_length",severity="warning",state="firing"} 1' in metrics
    assert re.search(r'drift_effect\{feature="length"\} 0\.[3-9]', metrics)
    for seed in range(20, 30):
        if state_of(window(url, seed), "drift_length") in ("resolved", "ok"):
            break
    assert ask(url, "/alerts")["firing"] in ([], ["drift_embedding"])
    wait_until(lambda: '"state": "resolved"' in log.read_text(), "the log has the end of the alarm")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    alarms = [line for line in lines if line.get("event") == "alarm" and line["alarm"] == "drift_length"]
    assert [line["state"] for line in alarms][:2] == ["firing", "resolved"]
    assert sum(len(line["features"]["length"]) for line in lines if line.get("event") == "features") >= 250
    assert any(line.get("event") == "drift" and len(line["results"]) == 4 for line in lines)


def test_labels_that_come_back_are_joined_and_may_alarm(watching):
    url, _ = watching
    answers = [ask(url, "/predict", {"texts": ["calm text"] * 25}) for _ in range(5)]
    items = [
        {"req_id": a["req_id"], "item": n, "label": "shouting" if n % 2 else "calm"} for a in answers for n in range(25)
    ]
    assert ask(url, "/feedback", items[0]) == {**dict.fromkeys(RESULTS, 0), "joined": 1}
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:  # and the good ones are joined later
        ask(url, "/feedback", {"items": [*items, {**items[1], "item": 99}]})
    refused.value.close()
    others = [{"req_id": "x", "label": "calm"}, {**items[1], "label": "Calm"}]
    assert ask(url, "/feedback", {"items": [*others, *items]}) == {
        "joined": 124, "duplicate": 1, "unknown_label": 1, "late": 0, "unknown": 1,
    }  # fmt: skip
    wait_until(lambda: "accuracy_drop_labels" in ask(url, "/alerts")["firing"], "the alarm of the labels")
    state = ask(url, "/alerts")["workers"][0]["feedback"]
    assert (state["joined"], state["unknown"], state["accuracy"]["n"]) == (125, 1, 125)
    assert state["accuracy"]["value"] == pytest.approx(13 / 25)
    for body, status in (({"req_id": answers[0]["req_id"], "item": 99, "label": "a"}, 422), ({"req_id": "1"}, 400)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, "/feedback", body)
        with refused.value:
            assert refused.value.code == status


def test_errors_burn_the_budget_and_fill_the_share(tmp_path):
    policy = {"slo": {"errors": {"objective": 0.99}}, "levels": {"error_share": {"threshold": 0.5, "consecutive": 1}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    server = Tiny(tmp_path, "--policy", str(tmp_path / "policy.json"))
    try:
        for _ in range(99):
            server.predict("raise")
        server.predict("1")
        firing = lambda: ask(f"http://127.0.0.1:{server.port}", "/alerts")["firing"]  # noqa: E731
        wait_until(lambda: firing() == ["error_share", "slo_errors"], "both alarms")
    finally:
        server.close()


@pytest.mark.slow
def test_several_workers_are_shown_together_and_asked_for_labels(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps(FAST))
    flags = ["--form", "watched", "--policy", tmp_path / "policy.json", "--workers", 2]
    wrong = [{"item": n, "label": "shouting"} for n in range(25)]
    with served("tests.tiny_models", *flags) as url:
        ids = [ask(url, "/predict", {"text": "hello"})["req_id"] for _ in range(20)]  # each on a connection of its own
        for req_id in ids:  # whichever worker is asked
            assert ask(url, "/feedback", {"req_id": req_id, "label": "calm"})["joined"] == 1
        assert ask(url, "/feedback", {"req_id": "x", "label": "calm"})["unknown"] == 1
        workers = ask(url, "/alerts")["workers"]
        assert len({worker["pid"] for worker in workers}) == 2
        assert sum(worker["feedback"]["joined"] for worker in workers) == 20
        assert len(ask(url, "/dashboard/data")["workers"]) == 2
        ids = [ask(url, "/predict", {"texts": ["calm"] * 25})["req_id"] for _ in range(16)]
        items = [{"req_id": req_id, **one} for req_id in ids for one in wrong]
        bad = [{"req_id": req_id, "item": 25, "label": "calm"} for req_id in ids[:1]]
        with pytest.raises(urllib.error.HTTPError, match="422") as refused:  # of one worker, and none has joined
            ask(url, "/feedback", {"items": items + bad})
        refused.value.close()
        assert ask(url, "/feedback", {"items": items})["joined"] == 400
        wait_until(lambda: "accuracy_drop_labels" in ask(url, "/alerts")["firing"], "the alarm of the labels")


@pytest.mark.prometheus
@pytest.mark.skipif(not ALERTMANAGER, reason="Alertmanager is not installed (Debian: prometheus-alertmanager)")
def test_an_alarm_of_a_server_arrives_in_the_real_alertmanager(tmp_path):
    manager = Alertmanager(tmp_path)
    try:
        flags = ["--form", "watched", "--webhook", f"{manager.url}/api/v2/alerts", "--alert_p95_ms", 0.0001]
        with served("tests.tiny_models", *flags) as url:
            for _ in range(301):
                ask(url, "/predict", {"text": "hello"})
            wait_until(manager.alerts, "the alarm arrives")
            (found,) = manager.alerts()
            assert (found["labels"]["alertname"], found["labels"]["job"]) == ("lat_p95", "watched")
            sinks = lambda: ask(url, "/alerts")["workers"][0]["sinks"]  # noqa: E731
            wait_until(lambda: sinks()["webhook"]["delivered"] == 1, "the delivery is counted")
    finally:
        manager.close()
