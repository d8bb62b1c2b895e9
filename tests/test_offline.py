"""The request log read offline: the same windows and alarms as in the server, however damaged the log is."""

from __future__ import annotations

import base64
import json

import pytest
import torch

from common.cli import UserError
from common.offline import page_data, replay
from common.policy import checked
from tests.conftest import python
from tests.monitored import FAST, ask, watched, window
from tests.tiny_models import Watched, served
from tests.tiny_server import wait_until


@pytest.fixture
def watching(tmp_path):
    with watched(tmp_path) as found:
        yield found


def test_the_log_tells_the_same_offline(watching):
    url, log = watching
    for seed in (1, 2):
        window(url, seed)
    for seed in (11, 12):
        worker = window(url, seed, length=60)
    ask(url, "/predict", {"text": "a"})
    wait_until(lambda: '"state": "firing"' in log.read_text(), "the log has the alarm")
    seen = worker["drift"]["windows"]
    with log.open("a") as file:
        file.write('{"ts": "2026-01-01T00:00:00+00:00", "model_id": "other", "status": 200}\n{"torn')
    ckpt = {"reference": Watched().reference, "assets": {}, "project": "vision", "provenance": {}}
    policy = checked(FAST, "test")
    found = replay([str(log)], ckpt, "tiny-1", policy)
    assert (len(found["windows"]), found["lines_of_other_models"]) == (seen, {"other": 1})
    assert found["lines_unreadable"] == 1
    assert found["features_from"] == "the monitor's lines"
    last = {result["feature"]: result for result in found["windows"][-1]["drift"]}
    live = {result["feature"]: result for result in worker["drift"]["results"]}
    assert last["length"]["effect"] == pytest.approx(live["length"]["effect"], abs=0.02)
    assert last["length"]["drifted"]
    assert last["embedding"]["n"] == 0  # it is not in the log
    assert found["not_checked"] == ["embedding", "accuracy_drop_labels"]
    assert [e["state"] for e in found["events"] if e["alarm"] == "drift_length"][-1] == "firing"
    page = page_data(found, ckpt, policy)["workers"][0]
    assert page.keys() >= worker.keys() - {"drift"}


@pytest.mark.slow
def test_the_command_reads_the_log_of_a_server(colour_run, colour_photos, tmp_path):
    (tmp_path / "policy.json").write_text('{"window": 50, "pause_s": 0}')
    log, ckpt = tmp_path / "requests.jsonl", colour_run / "best.pt"
    photos = [base64.b64encode(path.read_bytes()).decode() for path in sorted(colour_photos.glob("train/*/*.png"))]
    flags = ["--policy", tmp_path / "policy.json", "--request_log", log]
    with served("project_vision_cls.serve", "--ckpt", ckpt, *flags) as url:
        for photo in photos + photos[:20]:
            ask(url, "/predict", {"image_base64": photo})
    command = ["common.monitor_core", "--log", log, "--ckpt", ckpt, "--policy", tmp_path / "policy.json", "--out"]
    done = python(*command, tmp_path / "drift.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "drift.json").read_text())
    assert (found["requests"], len(found["windows"])) == (80, 1)
    assert {r["feature"] for r in found["windows"][0]["drift"]} >= {"label", "prob", "brightness", "side"}
    done = python(*command, tmp_path / "drift.html")
    assert "80 requests of model" in done.stdout
    assert "lines of other models: 0, unreadable: 0\nnot checked: " in done.stdout
    assert '"workers":[' in (tmp_path / "drift.html").read_text()
    assert python(*command, tmp_path / "drift.txt").returncode == 2


def test_without_the_lines_of_a_monitor_the_answers_are_compared(tmp_path):
    held = {"label": {"counts": {"a": 50, "b": 50}}, "prob": {"values": torch.linspace(0.5, 1, 100)}}
    ckpt = {"reference": {"features": held}, "assets": {"classes": ["a", "b"]}}
    line = {"ts": "2026-01-01T00:00:00+00:00", "model_id": "m", "lat_ms": 5.0, "queue_ms": 1.0}
    lines = [{**line, "status": 200, "pred": 0, "prob": 0.5 + n % 50 / 100} for n in range(100)]
    lines += [{**line, "status": 500, "pred": None, "prob": None}] * 100
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = checked({"window": 100, "levels": {"error_share": {"threshold": 0.9, "consecutive": 1}}}, "test")
    found = replay([str(tmp_path / "log")], ckpt, "m", policy)
    assert [(r["feature"], r["drifted"]) for r in found["windows"][0]["drift"]] == [("label", True), ("prob", False)]
    assert (found["features_from"], found["statuses"]) == ("the answers", {"200": 100, "500": 100})
    assert found["events"][-1]["alarm"] == "error_share"
    with pytest.raises(UserError, match="cannot be read"):
        replay([str(tmp_path / "nothing")], ckpt, "m", policy)
    with pytest.raises(UserError, match="no reference"):
        replay([str(tmp_path / "log")], {"reference": {}}, "m", policy)


def test_a_damaged_log_is_read_as_far_as_it_goes_and_has_its_own_time(tmp_path):
    held = {"label": {"counts": {"a": 50, "b": 50}}, "prob": {"values": torch.linspace(0.5, 1, 100)}}
    ckpt = {"reference": {"features": held}, "assets": {}, "project": "vision", "provenance": {}}
    good = {"ts": "2026-01-02T00:00:00+00:00", "model_id": "m", "status": 200, "lat_ms": 5.0, "queue_ms": 1.0}
    seen = {**good, "event": "features", "features": {"label": ["a"] * 50, "prob": [None] * 50}}
    bad = [{"status": "200"}, {"status": None}, {"ts": "yesterday"}, {"ts": 5}, {"lat_ms": "5"}, {"model_id": None},
           {"event": "features"}, {"event": "features", "features": {"label": ["a"], "prob": ["b"]}},
           {"event": "features", "features": {"label": ["a"], "prob": []}},
           {"event": "features", "features": {"label": [["a"]], "prob": [1.0]}}]  # fmt: skip
    lines = [*({**good, **one} for one in bad), seen, {**good, "model_id": "other"}]
    lines += [{**good, "status": 200 + 300 * (n % 2)} for n in range(200)]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    levels = {"accuracy_drop_labels": {"threshold": 0.1}}
    policy = checked({"window": 50, "levels": levels, "slo": {"errors": {"objective": 0.999}}}, "test")
    found = replay([str(tmp_path / "log")], ckpt, "m", policy)
    assert (found["lines_unreadable"], found["lines_of_other_models"]) == (len(bad) + 1, {"other": 1})
    assert (found["requests"], len(found["windows"])) == (200, 1)
    assert found["not_checked"] == ["accuracy_drop_labels"]
    (event,) = [event for event in found["events"] if event["state"] == "firing"]
    assert (event["alarm"], event["at"]) == ("slo_errors", 1767312000)
    assert {alarm["since"] for alarm in found["alarms"]} == {1767312000}
