"""The stages of a rollout, its state and its decisions, and what simulations show."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from common.cli import UserError
from common.rollout import Plan, Rollout
from common.rollout_control import Control, stage_list
from common.server_flags import add_server_flags
from tests.bench import rollout as bench
from tests.conftest import python
from tests.traffic import traffic

MODELS = {"stable": "a" * 64, "candidate": "b" * 64}


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


@pytest.mark.slow
def test_the_bench_runs():
    done = python("tests.bench.rollout", "--rollouts", 1, "--faulty", 1, "--stage_requests", 20, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    wanted = {"false_rollback_rate", "median_requests_2pct", "median_requests_5pct", "median_requests_20pct"}
    assert wanted <= figures.keys()
