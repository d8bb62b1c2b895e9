"""The judge: each guardrail finds its fault and no other."""

import json

import numpy as np
import pytest

from common.judge import FIRST, Columns, Judge, Outcome
from tests.traffic import traffic

FAULTY = {
    "errors": {"fault": "hung"},
    "refusals": {"fault": "refused"},
    "latency": {"latency_ms": 60.0},
    "mix": {"label": "a"},
    "confidence": {"confidence": 0.05},
}


@pytest.mark.parametrize("name", FAULTY)
def test_each_guardrail_finds_its_fault_and_no_other(name):
    judge, rng = Judge(), np.random.default_rng(1)
    judge.take(judge.columns(traffic(600, rng)), 0.2)
    for _ in range(40):
        judge.take(judge.columns(traffic(20, rng, **FAULTY[name])), 0.2)
        if judge.violated():
            break
    assert list(judge.violated()) == [name]
    words = judge.violated()[name]
    assert "canary" in words
    assert "stable" in words
    numbers = judge.numbers()
    assert numbers[name]["e"] > numbers[name]["needs"]
    json.dumps(numbers, allow_nan=False)


def test_a_guardrail_that_is_off_finds_nothing():
    judge, rng = Judge(("latency",)), np.random.default_rng(1)
    judge.take(judge.columns(traffic(600, rng, fault="failed")), 0.2)
    assert judge.violated() == {}


@pytest.mark.parametrize(
    "better",
    [
        {"latency_ms": 1.0},
        {"latency_ms": None},
    ],
)
def test_a_faster_candidate_is_no_fault(better):
    judge, rng = Judge(), np.random.default_rng(2)
    better = {key: value for key, value in better.items() if value is not None}
    for _ in range(60):
        judge.take(judge.columns(traffic(40, rng, **better)), 0.2)
    assert judge.violated() == {}


@pytest.mark.parametrize("lone", ["", "refused", "failed"])
def test_a_lone_fault_or_early_luck_holds_nobody(lone):
    """Where faults stay away, nothing that comes later could outweigh what the first requests hinted at."""
    judge, rng = Judge(), np.random.default_rng(3)
    judge.take(judge.columns([*traffic(500, rng, 0.01), Outcome(True, lone, 20.0, "a", 0.9)]), 0.01)
    if not lone:
        judge.faults.log_wealth[:2] += 4
    judge.take(judge.columns(traffic(5_000, rng, 0.01)), 0.01)
    hinted = judge.evidence()
    assert max(hinted["errors"], hinted["refusals"]) > (1 if lone else 3)
    assert not [words for words in judge.ready() if "errors" in words or "refusals" in words]


def test_labels_residuals_and_pairs():
    rng = np.random.default_rng(3)
    for name in ("wrong", "residual", "pairs"):
        judge = Judge()
        for _ in range(60):
            canary = rng.random(20) < 0.3
            if name == "wrong":
                judge.take_labels(canary, rng.random(20) < np.where(canary, 0.4, 0.1), 0.3)
            elif name == "residual":
                judge.take_residuals(canary, rng.exponential(1.0, 20) * np.where(canary, 2.0, 1.0), 0.3)
            else:
                judge.take_pair(rng.random() < 0.6)
        assert list(judge.violated()) == ["disagreement" if name == "pairs" else "feedback"]
    judge = Judge(max_disagreement=0.7)
    for _ in range(300):
        judge.take_pair(rng.random() < 0.6)
    assert judge.violated() == {}


def test_a_class_that_only_the_candidate_knows_is_found():
    judge, rng = Judge(), np.random.default_rng(4)
    judge.take(judge.columns(traffic(FIRST * 2, rng)), 0.2)
    for _ in range(40):
        judge.take(judge.columns(traffic(20, rng, label="new")), 0.2)
    assert "another class" in judge.violated()["mix"]


def test_columns_say_what_is_unknown():
    columns = Judge().columns([Outcome(True, "refused", 1.0), Outcome(False, "", 2.0, "a", 0.5)])
    assert isinstance(columns, Columns)
    assert columns.fault.tolist() == [2, 0]
    assert columns.label.tolist() == [-1, 0]
    assert np.isnan(columns.confidence).tolist() == [True, False]
