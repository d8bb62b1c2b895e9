"""Traffic compared with a reference, the policies that judge it, and both in each project."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import UserError
from common.policy import LEVELS, checked, make_alarms, read_policy
from common.reference import compare, make_reference, names_of, thresholds
from common.window_checks import describe, expected_accuracy
from project_nlp_intent.data import IntentDataset
from project_nlp_intent.inference import Predictor
from project_vision_cls.photos import Photos
from tests.conftest import ROOT

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


def test_few_values_stay_the_same_ones_in_less_precision():
    levels = np.log10(np.random.default_rng(4).integers(1, 4, 2000)).tolist()
    reference = make_reference({"noise": levels})  # a checkpoint holds float32
    assert compare(reference, {"noise": levels[:500]}, None, POLICY)[0]["effect"] < 0.05


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
