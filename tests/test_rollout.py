"""The judge and the stages: what the mathematics promises, by arithmetic, and what simulations show."""

import argparse
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from common.cli import UserError
from common.judge import ALPHA, FIRST, Columns, Judge, Outcome
from common.rollout import Plan, Rollout
from common.rollout_control import Control, stage_list
from common.sequential import COMMON, RARE, STAKES, RateTests, Row, log_factors
from common.server_flags import add_server_flags
from tests.bench import rollout as bench
from tests.conftest import python

MODELS = {"stable": "a" * 64, "candidate": "b" * 64}


# -- the mathematics --


@pytest.mark.parametrize("odds", [RARE, COMMON])
@pytest.mark.parametrize(("rate", "share"), [(0.005, 0.01), (0.3, 0.25), (0.9, 0.5)])
def test_the_expected_factor_is_one_for_equal_arms_and_less_for_a_better_canary(odds, rate, share):
    """Also where the rate that the bet takes for stable's is far off."""
    for believed, better in itertools.product((rate, 0.02, 0.6), (1.0, 0.7)):
        stable, canary = log_factors(np.array([believed]), np.zeros(1), np.array([share]), np.array([odds]))
        p_s, p_c = np.array([1 - rate, rate]), np.array([1 - rate * better, rate * better])
        expected = ((1 - share) * p_s * np.exp(stable[0]) + share * p_c * np.exp(canary[0])).sum(1)
        if better == 1.0:
            assert expected == pytest.approx(np.ones(len(odds)), abs=1e-12)
        else:
            assert (expected < 1).all()


def test_the_expected_factor_at_the_margin_is_one_where_stable_is_known():
    rate, margin, share = 0.2, 0.05, 0.1
    stable, canary = log_factors(np.array([rate]), np.array([margin]), np.array([share]), np.array([COMMON]))
    p_s, p_c = np.array([1 - rate, rate]), np.array([1 - rate - margin, rate + margin])
    expected = ((1 - share) * p_s * np.exp(stable[0]) + share * p_c * np.exp(canary[0])).sum(1)
    assert expected == pytest.approx(np.ones(len(COMMON)), abs=1e-12)


def test_a_fixed_rate_is_the_likelihood_ratio():
    stable, canary = log_factors(np.array([0.2]), np.zeros(1), np.zeros(1), np.array([[2.0]]))
    p = 0.25 * 2 / (1 + 0.25 * 2)
    assert np.exp(canary[0, 0]) == pytest.approx([(1 - p) / 0.8, p / 0.2])
    assert (stable == 0).all()


def test_wealth_starts_at_one_and_all_stakes_add_up_to_it():
    assert STAKES.sum() == pytest.approx(1)
    tests = RateTests([Row()])
    nothing = np.zeros((1, 2))
    for n in range(1000):  # requests that say nothing: every bet is worth its stake
        tests.update(nothing, np.array([[n % 20 == 0, 0]]) * 0, 0.1)
    assert np.exp(tests.log_evidence()) == pytest.approx([1.0])
    assert sum(ALPHA.values()) == pytest.approx(0.01)


def test_state_goes_on_where_it_was():
    rng, one = np.random.default_rng(0), RateTests([Row(), Row(margin=0.05)])
    batches = rng.integers(0, 40, (30, 2, 2, 2))
    for stable, canary in batches:
        one.update(stable, canary, 0.2)
    two = RateTests([Row(), Row(margin=0.05)])
    two.restore(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert (two.log_evidence() == one.log_evidence()).all()
    with pytest.raises(ValueError, match="wanted"):
        RateTests([Row()]).restore(one.state())


def test_a_candidate_that_breaks_late_is_found_soon():
    tests = RateTests([Row(rare=True)])
    for _ in range(2000):
        tests.update(np.array([[3, 0]]), np.array([[1, 0]]), 0.25)
    broken = 0
    while tests.log_evidence()[0] < -np.log(ALPHA["errors"]):
        tests.update(np.array([[3, 0]]), np.array([[0, 1]]), 0.25)
        broken += 1
    assert broken <= 40


# -- the guardrails --


def traffic(n: int, rng: np.random.Generator, share: float = 0.2, **canary: object) -> list[Outcome]:
    """n requests, alike on both arms but for what `canary` says."""
    usual = {"fault": "", "latency_ms": None, "label": None, "confidence": None}
    outcomes = []
    for is_canary in rng.random(n) < share:
        of = {**usual, "latency_ms": float(rng.lognormal(3, 0.3)), "label": "abc"[rng.integers(3)]}
        of["confidence"] = float(rng.random())
        outcomes.append(Outcome(bool(is_canary), **{**of, **(canary if is_canary else {})}))
    return outcomes


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


# -- stages, state and decisions --


def play(rollout: Rollout, requests: int, seed: int = 0, **canary: object) -> list[dict]:
    """Traffic until that many requests of the candidate, or the end; the decisions on the way."""
    rng, made, left = np.random.default_rng(seed), [], requests
    while left > 0 and not rollout.ended:
        outcomes = traffic(50, rng, rollout.share, **canary)
        left -= sum(outcome.canary for outcome in outcomes)
        rollout.take([(rollout.share, outcomes)])
        made += rollout.decide()
    return made


SHOWN = [("fail", 3), ("exceed stable's p99", 1)]
PLAN = Plan((10, 50, 100), stage_requests=100)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def test_a_healthy_candidate_goes_through_the_stages(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    assert rollout.share == 0.1
    made = play(rollout, 2000)
    assert [(decision["decision"], decision["why"]) for decision in made] == [
        ("advance", "to 50 %"),
        ("promote", "every stage was passed"),
    ]
    assert (rollout.status, rollout.share, rollout.about()["percent"]) == ("promoted", 0.0, 100)
    logged = lines(rollout.path)
    assert [line["decision"] for line in logged] == ["start", "advance", "promote"]
    assert {"ts", "why", "percent", "guardrails", "requests_in_stage"} <= logged[1].keys()
    assert logged[1]["guardrails"]["errors"]["canary"]["n"] >= 100


def test_a_faulty_candidate_is_rolled_back_and_stays_so(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    made = play(rollout, 500, fault="non-finite")
    assert [decision["decision"] for decision in made] == ["rollback"]
    assert made[0]["why"].startswith("errors: failed: canary 100.00 % of")
    again = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    assert (again.status, again.share, again.why) == ("rolled_back", 0.0, rollout.why)
    with pytest.raises(ValueError, match="has ended"):
        again.order("promote")
    other = Rollout(tmp_path / "rollout.json", {**MODELS, "candidate": "c" * 64}, PLAN)
    assert (other.status, other.share) == ("running", 0.1)


def test_too_little_traffic_holds(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    assert play(rollout, 40) == []
    waits = [f"not yet shown to {what} at most {n}% more often than stable" for what, n in SHOWN]
    assert rollout.about()["waits_for"] == waits
    assert rollout.share == 0.1


def test_a_restart_resumes_stage_split_and_evidence(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    made = play(rollout, 480)
    assert [decision["decision"] for decision in made] == ["advance"]
    rollout.save()
    again = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    assert again.split() == rollout.split()
    assert (again.stage, again.in_stage) == (1, rollout.in_stage)
    assert again.judge.evidence() == pytest.approx(rollout.judge.evidence())
    assert lines(rollout.path)[-1]["decision"] == "resume"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["{", '{"format": 2, "models": %s, "shadow": false}'])
def test_a_broken_state_is_told(tmp_path, text):
    (tmp_path / "rollout.json").write_text(text.replace("%s", json.dumps(MODELS)))
    with pytest.raises(UserError, match="move it away"):
        Rollout(tmp_path / "rollout.json", MODELS, PLAN)


def test_hold_stops_the_stages_and_not_the_guardrails(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, PLAN)
    assert rollout.order("hold")["decision"] == "hold"
    assert play(rollout, 600) == []
    assert (rollout.status, rollout.share) == ("held", 0.1)
    rollout.order("resume")
    assert rollout.decide()[0]["decision"] == "advance"
    rollout.order("hold", "lunch")
    assert [decision["decision"] for decision in play(rollout, 300, fault="failed")] == ["rollback"]


def test_shadow_answers_nobody_and_is_judged(tmp_path):
    rollout = Rollout(tmp_path / "rollout.json", MODELS, Plan(shadow=True))
    rng = np.random.default_rng(0)
    rollout.take([(0.5, traffic(3000, rng, 0.5))])
    assert (rollout.share, rollout.decide(), rollout.status) == (0.0, [], "running")
    rollout.take([(0.5, traffic(100, rng, 0.5, fault="failed"))])
    assert rollout.decide()[0]["decision"] == "rollback"


@pytest.mark.parametrize("text", ["", "x", "0,5", "5,1", "5,5", "1,200", "100", "nan", "-1,5"])
def test_stages_have_to_rise(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        stage_list(text)
    assert stage_list("1,5,25,100") == (1, 5, 25, 100)


def test_a_candidate_that_is_served_already_is_no_rollout(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt")
    add_server_flags(parser, 8080)
    (tmp_path / "a.pt").write_bytes(b"a")
    (tmp_path / "b.pt").write_bytes(b"b")
    for candidate, status in (("a", "promoted"), ("b", "running")):
        files = ["--ckpt", str(tmp_path / "a.pt"), "--canary", str(tmp_path / f"{candidate}.pt")]
        control = Control(parser.parse_args(files), lambda split: None)
        assert control.asked("split", None)["status"] == status


# -- simulations --


def test_no_healthy_rollout_of_a_few_is_stuck_and_faults_are_found(tmp_path):
    args = SimpleNamespace(seed=3, rollouts=3, faulty=5, keep=tmp_path / "kept", part=(1, 1))
    plan = Plan((5, 25, 100), stage_requests=150)
    found = bench.healthy(args, str(tmp_path), plan)
    assert (found["false_rollback_rate"], found["reached_100_rate"], found["stuck"]) == (0, 1, 0)
    assert bench.faulty("20pct", args, str(tmp_path), plan)["median_requests_20pct"] <= 40


def test_columns_say_what_is_unknown():
    columns = Judge().columns([Outcome(True, "refused", 1.0), Outcome(False, "", 2.0, "a", 0.5)])
    assert isinstance(columns, Columns)
    assert columns.fault.tolist() == [2, 0]
    assert columns.label.tolist() == [-1, 0]
    assert np.isnan(columns.confidence).tolist() == [True, False]


@pytest.mark.slow
def test_the_bench_runs():
    done = python("tests.bench.rollout", "--rollouts", 1, "--faulty", 1, "--stage_requests", 20, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    wanted = {"false_rollback_rate", "median_requests_2pct", "median_requests_5pct", "median_requests_20pct"}
    assert wanted <= figures.keys()
