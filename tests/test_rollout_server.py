"""A candidate beside the stable model in a running server: healthy ones, broken ones, and what an operator does."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from common.cli import UserError
from common.rollout import VERBS, ask
from tests.rollout_server import SCRIPT, Two, load, load_until_ended
from tests.tiny_server import TOKEN, wait_until


@pytest.fixture
def two(tmp_path):
    servers = []

    def start(*flags: str, candidate: dict | str, **options) -> Two:
        servers.append(Two(tmp_path, *flags, candidate=candidate, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_healthy_candidate_takes_over(two):
    server = two("--stages", "20,50,100", "--stage_requests", "50", candidate={}).loaded()
    answers = load_until_ended(server, 100)
    assert {status for _, status, _ in answers} == {200}
    assert all(answer["pred"] == 2 * number for number, _, answer in answers)
    assert {(answer["arm"], answer["model_id"]) for _, _, answer in answers if "arm" in answer} == {
        ("stable", "old"),
        ("canary", "new"),
    }
    wait_until(lambda: server.predict("1")[2]["model_id"] == "new", "the candidate is the stable model")
    assert "arm" not in server.predict("1")[2]
    assert [line["decision"] for line in server.decisions()] == ["start", "advance", "promote"]
    text = server.metrics()
    assert 'arm_requests_total{arm="canary",result="ok"}' in text
    assert 'arm_seconds_count{arm="stable"}' in text
    assert 'rollout_status{status="promoted"} 1' in text
    assert "\nrollout_share 1\n" in text
    assert server.ask("GET", "/dashboard/data")[2]["canary"]["share"] == 1
    assert server.stop() == 0
    assert {line["model_id"] for line in server.log() if line.get("arm") == "canary"} == {"new"}
    # the same command again: it goes on with what was promoted
    again = two("--stages", "20,50,100", candidate={}, model_id="new")
    assert (again.predict("1")[2]["model_id"], again.rollout()["status"]) == ("new", "promoted")


@pytest.mark.parametrize("fault", ["raise", "hang", "nan", "leak", "refuse"])
def test_a_broken_candidate_is_rolled_back_and_nobody_notices(two, fault):
    flags = ["--stages", "25,100", "--stage_requests", "1000"]
    server = two(*flags, candidate={"fault": fault, "after": 120}).loaded()
    answers = load_until_ended(server, 40, threads=8)
    about = server.rollout()
    assert (about["status"], about["percent"]) == ("rolled_back", 0)
    guardrail = {"refuse": "refusals", "leak": "latency"}.get(fault, "errors")
    assert guardrail in about["why"]
    answers += load(server, 20)
    assert {status for _, status, _ in answers} == {200}
    assert all(answer["pred"] == 2 * number for number, _, answer in answers)
    after = server.predict("1")[2]
    assert (after["model_id"], "canary_rollback" in after["alert"]) == ("old", True)
    assert "arm" not in after
    (server.folder / "mended.json").write_text('{"id": "mended"}')
    wanted = {"ckpt": str(server.folder / "mended.json")}
    assert server.ask("POST", "/admin/reload", wanted, {"Authorization": f"Bearer {TOKEN}"})[0] == 200
    assert "canary_rollback" not in server.predict("1")[2]["alert"]
    last = server.decisions()[-1]
    assert (last["decision"], last["why"]) == ("rollback", about["why"])
    assert last["guardrails"][guardrail]["e"] >= last["guardrails"][guardrail]["needs"]
    if fault != "leak":
        wanted = {"raise": "failed", "hang": "hung", "nan": "non-finite", "refuse": "refused"}[fault]
        assert f'arm_requests_total{{arm="canary",result="{wanted}"}}' in server.metrics()
    assert server.stop() == 0
    if fault != "leak":
        assert {line.get("canary_fault") for line in server.log()} >= {wanted}


@pytest.mark.parametrize(("candidate", "why"), [("{", "Expecting"), ({"replaced": True}, "new.json: sha256")])
def test_a_candidate_that_cannot_be_loaded_is_rolled_back(two, candidate, why):
    server = two(candidate=candidate)
    wait_until(lambda: server.rollout()["status"] == "rolled_back", "the rollout has ended")
    assert f"cannot be served: {why}" in server.rollout()["why"].replace(f"{server.folder}/", "")
    assert server.predict("4")[2]["model_id"] == "old"


def test_a_missing_candidate_stops_the_start(tmp_path):
    (tmp_path / "old.json").write_text('{"id": "old"}')
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), "--port", "0", "--ckpt", str(tmp_path / "old.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([*command, "--canary", "nowhere"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "nowhere: cannot be read" in done.stderr


def saved(server: Two) -> dict:
    return json.loads((server.folder / "rollout.json").read_text())


def arms(server: Two, keys: int = 60) -> list[str]:
    return [server.predict("1", X_Canary_Key=f"user {key}")[2]["arm"] for key in range(keys)]


def test_users_stick_to_their_arm_and_a_killed_server_resumes_stage_and_split(two):
    # so many that 100 requests do not lead through all of them before the order to hold
    flags = ["--stages", "10,50,60,70,80,90,100", "--stage_requests", "30"]
    server = two(*flags, candidate={}).loaded()
    wait_until(lambda: load(server, 100) and server.rollout()["stage"] >= 1, "a second stage is reached")
    server.order("hold")
    first = arms(server)
    assert arms(server) == first
    assert 10 <= first.count("canary") < 60
    retried = {server.predict("1", X_Request_ID="abc")[2]["arm"] for _ in range(5)}
    assert len(retried) == 1
    wait_until(lambda: saved(server)["in_stage"] == server.rollout()["requests_in_stage"], "the evidence is on disk")
    before = server.rollout()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    again = two(*flags, candidate={}).loaded()
    after = again.rollout()
    assert after["status"] == "held"
    assert (after["stage"], after["percent"]) == (before["stage"], before["percent"])
    assert after["stage"] >= 1
    assert after["requests_in_stage"] >= before["requests_in_stage"]
    for name, numbers in before["guardrails"].items():
        assert after["guardrails"][name]["canary"]["n"] >= numbers["canary"]["n"]
    assert arms(again) == first
    assert again.decisions()[-1]["decision"] == "resume"


def test_shadow_answers_nobody_and_is_compared(two):
    server = two("--shadow", candidate={"wrong": 1})
    answers = load_until_ended(server)
    assert {(status, answer["model_id"]) for _, status, answer in answers} == {(200, "old")}
    assert "disagreement" in server.rollout()["why"]


def test_a_shadow_that_does_not_keep_up_misses_requests_and_is_not_blamed(two):
    server = two("--shadow", "--canary_patience_ms", "20000", candidate={"slow": 0.1})
    wait_until(lambda: load(server, 100, threads=24) and shadowed(server) > 20, "the shadow is at work")
    answers = load(server, 600, threads=24)
    assert {(status, answer["model_id"]) for _, status, answer in answers} == {(200, "old")}
    # of each pair one counts, by a coin: so many pairs may be too few
    wait_until(lambda: load(server, 50) and server.rollout()["requests_in_stage"] > 20, "its outcomes count")
    arms = server.rollout()["guardrails"]["errors"]
    assert server.rollout()["status"] == "running", server.rollout()["why"]
    assert shadowed(server) < 500  # of 700 and more
    assert arms["canary"]["n"] + arms["stable"]["n"] <= shadowed(server)


def shadowed(server: Two) -> int:
    """Requests that the shadow answered in time."""
    found = re.search(r'^arm_requests_total\{arm="shadow",result="ok"\} (\d+)', server.metrics(), re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_shadow_that_hangs_holds_nobody_up(two):
    server = two("--shadow", "--queue", "16", candidate={"fault": "hang"})
    assert {(status, answer["model_id"]) for _, status, answer in load_until_ended(server)} == {(200, "old")}
    assert "errors" in server.rollout()["why"]
    assert server.stop() == 0


def test_labels_that_come_later_count(two):
    server = two("--stages", "50,100", "--stage_requests", "100000", "--guardrails", "feedback", candidate={"wrong": 1})
    server.loaded()

    def ended() -> bool:
        truth = [{"req_id": a["req_id"], "label": "ab"[n % 2]} for n, _, a in load(server, 50)]
        assert server.ask("POST", "/feedback", {"items": truth})[0] == 200
        return server.rollout()["status"] != "running"

    wait_until(ended, "the labels tell")
    assert server.rollout()["why"].startswith("feedback: wrong: canary 100.00 %")


def test_orders_of_an_operator(two, tmp_path):
    server = two(candidate={}).loaded()
    described = server.ask("GET", "/openapi.json")[2]
    validate(described)
    assert {"/rollout", *(f"/rollout/{verb}" for verb in VERBS)} <= described["paths"].keys()
    assert server.order("promote", "wrong-token-wrong-token")[0] == 401
    assert server.ask("POST", "/admin/reload", b"", {"Authorization": f"Bearer {TOKEN}"})[0] == 409
    assert ask(server.url, "hold", TOKEN)["status"] == server.rollout()["status"] == "held"
    assert ask(server.url, "resume", TOKEN)["status"] == "running"
    command = [sys.executable, "-m", "common.rollout", "promote", "--url", server.url]
    done = subprocess.run([*command, "--token_file", str(tmp_path / "token")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "promoted"
    wait_until(lambda: server.predict("1")[2]["model_id"] == "new", "the candidate is the stable model")
    with pytest.raises(UserError, match=r"409.*has ended: promoted"):
        ask(server.url, "rollback", TOKEN)
    with pytest.raises(UserError, match="no answer"):
        ask("http://127.0.0.1:9", "status")
    # what was promoted can be reloaded, as it is what is served
    assert server.ask("POST", "/admin/reload", b"", {"Authorization": f"Bearer {TOKEN}"})[2]["model_id"] == "new"


def test_workers_agree(two):
    server = two("--workers", "2", "--stages", "50,100", candidate={"fault": "raise", "after": 10_000}).loaded()
    wait_until(lambda: 'rollout_status{status="running"} 2' in server.metrics(), "both workers deal")
    split = {key: {server.predict("1", X_Canary_Key=key)[2].get("arm") for _ in range(6)} for key in "abcdefgh"}
    wait_until(lambda: "model_ready 2" in server.metrics(), "both are ready")
    assert all(len(arms - {None}) == 1 for arms in split.values())
    assert server.order("rollback")[2]["status"] == "rolled_back"
    wait_until(lambda: 'rollout_status{status="rolled_back"} 2' in server.metrics(), "both know")
    assert {(answer["model_id"], *answer["alert"]) for _, _, answer in load(server, 40)} == {("old",)}
    assert server.stop() == 0


def test_workers_promote_and_restart_with_what_was_promoted(two):
    server = two("--workers", "2", candidate={}).loaded()
    assert server.order("promote")[0] == 200
    wait_until(lambda: {a["model_id"] for _, _, a in load(server, 20)} == {"new"}, "both serve the candidate")
    assert server.stop() == 0
    again = two("--workers", "2", candidate={}, model_id="new")
    assert {answer["model_id"] for _, _, answer in load(again, 20)} == {"new"}
    assert again.stop() == 0
