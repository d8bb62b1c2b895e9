"""What watches a server: comparisons with a reference, policies, labels that come late, and all of it in a server."""

from __future__ import annotations

import base64
import importlib
import json
import math
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.feedback import RESULTS, Feedback
from common.monitor_pages import best, truths
from common.offline import page_data, replay
from common.policy import LEVELS, checked, make_alarms, read_policy
from common.reference import compare, make_reference, names_of, thresholds
from common.window_checks import describe, expected_accuracy
from project_nlp_intent.data import IntentDataset
from project_nlp_intent.inference import Predictor
from project_vision_cls.photos import Photos
from tests.conftest import ROOT, python
from tests.test_server_microbatch import Tiny, wait_until
from tests.test_sinks import ALERTMANAGER, Alertmanager
from tests.tiny_models import Watched, served, watched_texts

RNG = np.random.default_rng(0)
POLICIES = sorted(ROOT.glob("project_*/monitoring.json"))

# -- comparison --


def traffic(n: int, shift: float = 0.0, mug: float = 0.1, seed: int = 0) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    label = rng.choice(["mug", "cup", "pen"], n, p=[mug, 0.5, 0.5 - mug]).tolist()
    return {"size": (rng.normal(size=n) + shift).tolist(), "prob": rng.random(n).tolist(), "label": label}


REFERENCE = make_reference(traffic(1000), RNG.normal(size=(400, 8)))
POLICY = checked({}, "test")


def drifted(features: dict, embedding: np.ndarray | None = None, policy: dict = POLICY) -> list[str]:
    points = None if embedding is None else torch.as_tensor(embedding)
    return [result["feature"] for result in compare(REFERENCE, features, points, policy) if result["drifted"]]


def test_a_reference_is_bounded_and_holds_what_a_checkpoint_may():
    reference = make_reference({"x": np.arange(5000.0), "y": ["a"] * 5000}, np.zeros((5000, 4)))
    assert len(reference["features"]["x"]["values"]) == 2000
    assert reference["features"]["x"]["values"][[0, -1]].tolist() == [0.0, 4999.0]
    assert reference["features"]["y"] == {"counts": {"a": 5000}}
    assert reference["embedding"].shape == (250, 4)
    assert names_of(reference) == ["x", "y", "embedding"]


@pytest.mark.parametrize(
    ("changed", "points", "found"),
    [
        ({}, 0.0, []),
        ({"shift": 0.5}, 0.0, ["size"]),
        ({"mug": 0.2}, 0.0, ["label"]),
        ({"shift": 0.5, "mug": 0.2}, 0.0, ["size", "label"]),
        ({}, 0.7, ["embedding"]),
    ],
)
def test_what_drifted_is_named_and_nothing_else(changed, points, found):
    assert drifted(traffic(500, **changed, seed=2), RNG.normal(size=(100, 8)) + points) == found


def test_a_difference_that_is_sure_but_small_is_no_drift():
    many = traffic(100_000, shift=0.1, seed=3)
    result = compare(REFERENCE, many, None, POLICY)[0]
    assert (result["feature"], result["drifted"]) == ("size", False)
    assert result["effect"] < result["threshold"] == 0.1
    strict = checked({"drift": {"size": {"effect": 0.01}}, "alpha": 0.01}, "test")
    assert drifted(traffic(2000, shift=0.2, seed=3), policy=strict) == ["size"]


def test_a_result_says_what_changed():
    results = {r["feature"]: r for r in compare(REFERENCE, traffic(500, 0.5, 0.2, seed=2), None, POLICY)}
    assert re.fullmatch(r"ks 0\.\d+ \(from 0\.1 on\), p \S+: mean -?0\.0\d+ → 0\.4\d+", describe(results["size"]))
    assert re.search(r": mug \d+\.\d% → \d+\.\d%$", describe(results["label"]))
    assert (results["embedding"]["n"], describe(results["embedding"])) == (0, "not measured")


def test_a_policy_chooses_tests_and_features():
    policy = checked({"drift": {"size": {"test": "psi", "effect": 0.25}, "prob": {"watch": False}}}, "test")
    assert thresholds(REFERENCE, policy) == {"size": 0.25, "label": 0.05, "embedding": 0.01}
    results = compare(REFERENCE, traffic(500, 1.0, seed=2), None, policy)
    assert [(r["feature"], r["test"], r["drifted"]) for r in results[:2]] == [
        ("size", "psi", True),
        ("label", "mix", False),
    ]
    assert results[0]["effect"] > 0.5


def test_missing_features_and_nan_are_no_drift():
    features = {"prob": [math.nan] * 500, "other": [1.0] * 500}
    results = compare(REFERENCE, features, None, POLICY)
    assert [(r["n"], r["effect"], r["drifted"]) for r in results] == [(0, None, False)] * 4


def test_accuracy_is_expected_from_confidences():
    found = expected_accuracy({"accuracy": 0.9}, {"conf": [0.7, 0.9]})
    assert found == {"value": pytest.approx(0.8), "drop": pytest.approx(0.1), "n": 2}
    scope = {"conf": [0.7, 0.9, 0.1], "in_scope": ["yes", "yes", "no"]}
    assert expected_accuracy({"accuracy": 0.9}, scope) == found
    assert expected_accuracy({"accuracy": 0.9, "accuracy_accepted": 0.95}, scope)["drop"] == pytest.approx(0.15)
    assert expected_accuracy({"accuracy": 0.9}, {"conf": [0.1], "in_scope": ["no"]}) is None
    assert expected_accuracy({}, {"conf": [0.7]}) is None
    assert expected_accuracy({"accuracy": 0.9}, {"length": [0.7]}) is None


def test_texts_out_of_scope_do_not_lower_the_accuracy_that_is_expected(intent_run, intent_texts):
    """Validation itself, a fifth of it out of scope, is no alarm."""
    predictor = Predictor.load(intent_run / "best.pt")
    texts = IntentDataset(intent_texts / "val.jsonl", predictor.classes).texts
    found = expected_accuracy(predictor.reference, predictor.features(texts, predictor.predict_rows(texts)))
    levels = read_policy(ROOT / "project_nlp_intent" / "monitoring.json")["levels"]
    assert found["drop"] < levels["accuracy_drop"]["threshold"] / 2
    assert found["n"] < len(texts)


# -- policies --


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.parent.name)
def test_the_policy_of_each_project_is_good_and_says_what_to_do(path):
    policy = read_policy(path)
    watched = [name for name, about in policy["drift"].items() if about.get("watch", True)]
    for alarm in make_alarms(policy, dict.fromkeys(watched, 0.1)):
        assert len(alarm.runbook) > 20, alarm.name


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([], "found list, wanted an object"),
        ({"windw": 1}, "unknown key 'windw'; wanted some of alpha, drift"),
        ({"window": 5}, "window is 5, wanted a number from 50 to"),
        ({"window": "500"}, "window is '500'"),
        ({"alpha": True}, "alpha is True"),
        ({"drift": {"a": {"efect": 1}}}, "drift: a: unknown key 'efect'"),
        ({"drift": {"a": {"test": "ttest"}}}, "drift: a: test is 'ttest', wanted one of ks, mix"),
        ({"drift": {"a": {"consecutive": 0}}}, "drift: a: alarm drift_a: consecutive"),
        ({"drift": {"a": {"severity": "bad"}}}, "severity is 'bad'"),
        ({"levels": {"lat_p96": {"threshold": 1}}}, "levels: unknown key 'lat_p96'"),
        ({"levels": {"lat_p95": {}}}, "levels: lat_p95: there is no threshold"),
        ({"levels": {"lat_p95": {"threshold": "1"}}}, "levels: lat_p95: threshold is '1'"),
        ({"levels": {"lat_p95": {"threshold": 1, "clear": 2}}}, "clear is 2"),
        ({"levels": {"lat_p95": {"threshold": 1, "runbook": 2}}}, "runbook is 2, wanted text"),
        ({"slo": {"errors": {"objective": 1}}}, "slo: errors: objective is 1"),
        ({"slo": {"latency": {"objective": 0.9}}}, "slo: latency: ms is None"),
        ({"slo": {"errors": {"objective": 0.9, "ms": 1}}}, "slo: errors: unknown key 'ms'"),
    ],
)
def test_a_wrong_policy_is_refused_in_words(tmp_path, held, words):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match=re.escape(words)):
        read_policy(path)


def test_a_policy_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bad").write_text("{")
    for name in ("bad", "nothing"):
        with pytest.raises(UserError, match="no policy can be read from it"):
            read_policy(tmp_path / name)
    assert read_policy("")["window"] == 500


def test_the_alarms_of_a_policy():
    policy = checked(
        {"levels": {name: {"threshold": 1} for name in LEVELS}, "slo": {"errors": {"objective": 0.9}}}, "t"
    )
    alarms = {alarm.name: alarm for alarm in make_alarms(policy, {"size": 0.1})}
    assert set(alarms) == {"drift_size", "slo_errors", *LEVELS}
    assert (alarms["drift_size"].threshold, alarms["drift_size"].consecutive) == (0.1, 2)


# -- the projects --


def served_model(project: str, run_dir: Path) -> object:
    inference = importlib.import_module(f"{project}.inference")
    predictor = inference.Predictor.load(run_dir / "best.pt")
    return Photos(predictor) if project == "project_vision_cls" else predictor


@pytest.mark.parametrize(
    ("project", "run"),
    [("project_vision_cls", "colour_run"), ("project_nlp_intent", "intent_run"), ("project_ts_forecast", "wave_run")],
)
def test_each_project_measures_what_its_checkpoint_and_its_policy_name(project, run, request):
    model = served_model(project, request.getfixturevalue(run))
    rows = [model.decode(model.example)] * 3
    features = model.features(rows, model.predict_rows(rows))
    reference, policy = model.reference, read_policy(ROOT / project / "monitoring.json")
    assert set(features) == set(reference["features"])
    assert set(names_of(reference)) == set(policy["drift"])
    assert {len(values) for values in features.values()} == {3}
    for name, held in reference["features"].items():
        kind = float if "values" in held else str
        assert {type(value) for value in features[name]} == {kind}, name
    if reference["embedding"] is not None:
        assert model.embed(rows).shape == (3, reference["embedding"].shape[1])
    assert 0 < reference.get("accuracy", 0.5) <= 1
    json.dumps(compare(reference, features, None, policy))


# -- labels that come late --


def test_feedback_finds_its_answer_once():
    feedback = Feedback(prefix="me-")
    feedback.remember([("me-1", [{"pred": 4, "label": "mug"}, ValueError("bad"), {"pred": 1, "label": "cup"}])])
    assert feedback.join({"req_id": "me-1", "label": "mug"}) == "joined"
    assert feedback.join({"req_id": "me-1", "label": "mug"}) == "duplicate"
    assert feedback.join({"req_id": "me-1", "label": "mug", "item": 1}) == "duplicate"
    assert feedback.join({"req_id": "me-1", "label": 2, "item": 2}) == "joined"
    assert feedback.join({"req_id": "me-9", "label": "mug"}) == "late"
    assert feedback.join({"req_id": "you-9", "label": "mug"}) == "unknown"
    assert feedback.state()["accuracy"] == {"value": 0.5, "n": 2}
    for truth, words in (({"item": 7, "label": "mug"}, "item is 7"), ({"item": 2, "value": 1.0}, None)):
        if words:
            with pytest.raises(ValueError, match=words):
                feedback.join({"req_id": "me-1", **truth})
    feedback.remember([("me-2", [{"pred": 4, "label": "mug"}])])
    with pytest.raises(ValueError, match="these answers are classes; wanted label"):
        feedback.join({"req_id": "me-2", "value": 1.0})


def test_a_label_that_is_no_class_is_not_scored():
    feedback, model = Feedback(), SimpleNamespace(classes=["mug", "cup"], oos_label="oos")
    feedback.remember([("1", [{"pred": 0, "label": "mug"}] * 3)])
    for label in ("Mug", "999", 2, 999):
        assert feedback.join({"req_id": "1", "label": label}, model) == "unknown_label"
    assert feedback.join({"req_id": "1", "label": "oos"}, model) == "joined"
    assert feedback.means() == {}  # as out of scope as nothing is on validation
    assert feedback.join({"req_id": "1", "label": "cup", "item": 1}, model) == "joined"
    assert feedback.join({"req_id": "1", "label": 0, "item": 2}, model) == "joined"
    assert feedback.means() == {"accuracy": {"value": 0.5, "n": 2}}


def test_labels_are_checked_by_the_hundred_however_they_come():
    feedback = Feedback()
    feedback.remember([("1", [{"pred": 0, "label": "mug"}] * 450)])
    for item in range(450):
        feedback.join({"req_id": "1", "label": "cup" if item < 100 else "mug", "item": item})
    assert [(check["accuracy"]["n"], check["accuracy"]["value"]) for check in feedback.checks] == [
        (100, 0), (200, 0.5), (300, pytest.approx(2 / 3)), (400, 0.75),
    ]  # fmt: skip


def test_feedback_scores_forecasts():
    feedback = Feedback()
    one, two = {"pred": 2.0, "lower": 1.0, "upper": 3.0}, {"pred": [1, 2], "lower": [0, 0], "upper": [3, 3]}
    feedback.remember([("1", [one, two])])
    assert feedback.join({"req_id": "1", "value": 2.5}) == "joined"
    with pytest.raises(ValueError, match="found 1 numbers, wanted the 2 of the forecast"):
        feedback.join({"req_id": "1", "value": 2.5, "item": 1})
    with pytest.raises(ValueError, match="these answers have none; wanted value"):
        feedback.join({"req_id": "1", "label": "mug", "item": 1})
    assert feedback.join({"req_id": "1", "value": [4, 2], "item": 1}) == "joined"
    state = feedback.state()
    assert state["error"] == {"value": pytest.approx((0.5 + 1.5) / 2), "n": 2}
    assert state["coverage"] == {"value": pytest.approx((1 + 0.5) / 2), "n": 2}


def test_feedback_forgets_the_oldest():
    feedback = Feedback(most=100, prefix="a-")
    for n in range(1000):
        feedback.remember([(f"a-{n}", [{"pred": n, "label": str(n)}])])
    assert feedback.state()["remembered"] == 100
    assert feedback.join({"req_id": "a-899", "label": "899"}) == "late"
    assert feedback.join({"req_id": "a-900", "label": "900"}) == "joined"


def test_feedback_finds_the_newest_of_an_id_however_seldom_it_is_asked():
    feedback = Feedback(most=10, prefix="a-")
    for n in range(100):
        feedback.remember([(f"a-{n}", [{"pred": 0, "label": "old"}]), ("again", [{"pred": n, "label": str(n)}])])
        if n % 7 == 0:  # the index is behind, or has been thrown away since
            assert feedback.join({"req_id": "again", "label": str(n)}) == "joined"
            assert feedback.join({"req_id": f"a-{n}", "label": "old"}) == "joined"
            assert feedback.join({"req_id": f"a-{n - 5}", "label": "old"}) == "late"
            assert feedback.join({"req_id": f"a-{n}", "label": "old"}) == "duplicate"
    assert feedback.state()["accuracy"]["value"] == 1.0
    assert len(feedback._index) <= 30


def test_of_several_workers_one_knows():
    found = [
        {"joined": 1, "duplicate": 0, "unknown_label": 0, "late": 1, "unknown": 2},
        {"joined": 0, "duplicate": 1, "unknown_label": 1, "late": 0, "unknown": 2},
    ]
    assert best(found) == {"joined": 1, "duplicate": 1, "unknown_label": 1, "late": 1, "unknown": 0}
    assert best(found[:1]) == found[0]


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", '{"req_id": "1"}', '{"req_id": 1, "label": "a"}', '{"req_id": "1", "label": "a", "value": 1}',
     '{"req_id": "1", "label": "a", "item": -1}', '{"req_id": "1", "label": 1.5}', '{"req_id": "1", "value": "1"}',
     '{"req_id": "1", "value": 1e301}', '{"req_id": "1", "label": 1000001}',
     '{"req_id": "1", "value": []}', '{"items": []}', '{"items": [1]}', '{"req_id": "1", "label": true}'],
)  # fmt: skip
def test_wrong_feedback_is_refused(body):
    with pytest.raises(Exception, match="wanted") as refused:
        truths(body.encode())
    assert refused.value.status == 400


def test_json_has_one_kind_of_number():
    assert truths(b'{"req_id": "1", "label": 3.0, "item": 2.0}') == [{"req_id": "1", "label": 3, "item": 2}]


# -- in a server --

FAST = {
    "window": 50,
    "pause_s": 0,
    "drift": {"length": {"runbook": "Who writes such long texts?", "effect": 0.2, "cooldown_sec": 0}},
    "levels": {"accuracy_drop_labels": {"threshold": 0.3, "consecutive": 1}},
    "slo": {"errors": {"objective": 0.99}},
}


def ask(url: str, path: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def window(url: str, seed: int, **changed) -> dict:
    """Send texts until one window of them was compared; the worker's part of /alerts."""
    worker = lambda: ask(url, "/alerts")["workers"][0]  # noqa: E731
    texts, before, until = (
        watched_texts(1000, seed=seed, **changed),
        worker()["drift"]["windows"],
        time.monotonic() + 60,
    )
    while worker()["drift"]["windows"] == before:
        assert time.monotonic() < until, "no window was compared"
        ask(url, "/predict", {"texts": texts[:10]})
        texts = texts[10:] + texts[:10]
    return worker()


def state_of(worker: dict, name: str) -> str:
    return next(alarm["state"] for alarm in worker["alarms"] if alarm["alarm"] == name)


@pytest.fixture
def watching(tmp_path):
    """(url of a watched server, its request log), with the policy above and a webhook that nobody listens at."""
    (tmp_path / "policy.json").write_text(json.dumps(FAST))
    log = tmp_path / "requests.jsonl"
    flags = ["--form", "watched", "--policy", tmp_path / "policy.json", "--request_log", log]
    with served("tests.tiny_models", *flags, "--webhook", "http://127.0.0.1:9/") as url:
        yield url, log


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
