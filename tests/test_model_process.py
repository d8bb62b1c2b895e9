"""--model_process: the model answers from a process of its own, whatever becomes of that or of the server."""

import os
import queue
import signal
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest

from common.cli import UserError
from common.metrics import usage_of
from common.model_process import load_apart
from project_ts_forecast.serve import main as serve_series
from tests.tiny_server import PATIENCE_S, Reloadable, blocked, starting, wait_until


@pytest.fixture
def operate(tmp_path):
    for start in starting(Reloadable, tmp_path):
        yield partial(start, "--model_process")


def model_pid(server: Reloadable) -> int:
    """Of the process that answered."""
    return int(server.predict("1")[2]["label"][4:])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_model_answers_from_a_process_of_its_own(operate):
    server = operate()
    status, _, answer = server.predict("21")
    assert (status, answer["pred"], answer["model_id"]) == (200, 42.0, "m1")
    pid = model_pid(server)
    assert pid != server.process.pid
    resident = server.metrics()["process_resident_memory_bytes{}"]
    assert resident == pytest.approx(usage_of(server.process.pid)[1] + usage_of(pid)[1], rel=0.1)
    assert usage_of(pid)[0] > 0
    assert server.stop() == 0
    assert gone(pid)
    assert usage_of(pid) == (0.0, 0)


def test_a_row_that_fails_harms_no_other(operate):
    server = operate()
    status, _, answer = server.ask("POST", "/predict", {"xs": ["1", "raise", "nan", "refuse", "2"]})
    assert status == 200
    assert [item.get("pred", "error") for item in answer["items"]] == [2.0, "error", "error", "error", 4.0]
    assert "secret detail" in server.stderr()
    assert "secret" not in str(answer)


def test_a_process_that_dies_idle_is_replaced_before_anyone_notices(operate):
    server = operate()
    lost = model_pid(server)
    os.kill(lost, signal.SIGKILL)
    assert server.ask("GET", "/ready")[0] == 200
    assert model_pid(server) != lost
    assert gone(lost)
    assert "the model's process ended with -9; it starts again" in server.stderr()


def test_a_request_outlives_the_process_that_worked_on_it(operate, tmp_path):
    server = operate("--timeout_ms", "60000")
    lost = model_pid(server)
    gate, answers = blocked(server, tmp_path)
    os.kill(lost, signal.SIGKILL)
    gate.touch()
    assert answers.get(timeout=PATIENCE_S)[0] == 200
    assert model_pid(server) != lost


def test_a_process_that_cannot_start_again_fails_requests_until_it_can(operate):
    server = operate("--timeout_ms", "60000")
    lost = model_pid(server)
    server.ckpt.write_text('{"id": "m2", "gain": 3}')  # half a deployment: the server still holds m1
    os.kill(lost, signal.SIGKILL)
    assert server.predict("1")[0] == 500
    assert f"{server.ckpt}: now holds model m2, wanted m1; reload, once it is written" in server.stderr()
    assert server.predict("1")[0] == 500
    server.ckpt.write_text("no model")
    assert server.predict("1")[0] == 500
    server.ckpt.write_text('{"id": "m1", "gain": 2}')
    assert server.predict("1")[2]["pred"] == 2.0


def test_reload_starts_a_process_for_the_new_model(operate):
    server = operate()
    first = model_pid(server)
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    assert server.reload()[2] == {"status": "reloaded", "model_id": "m2", "was": "m1"}
    assert server.predict("1")[2]["pred"] == 3.0
    second = model_pid(server)
    assert second != first
    wait_until(lambda: gone(first), "the old model's process has ended")
    server.ckpt.write_text('{"id": "m3", "gain": 3, "bad": true}')
    status, _, answer = server.reload()
    assert (status, "golden answer 0: found 4.0, wanted 5.0" in answer["error"]) == (422, True)
    assert model_pid(server) == second
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) <= 1, "the refused model's process has ended")


def test_workers_have_a_model_process_each(operate):
    server = operate("--workers", "2")
    pids = {model_pid(server) for _ in range(40)}
    assert len(pids) == 2
    assert server.stop() == 0
    assert all(map(gone, pids))


def test_sigterm_to_all_finishes_what_was_accepted(operate, tmp_path):
    server = operate()
    pid = model_pid(server)
    gate, answers = blocked(server, tmp_path)
    os.kill(pid, signal.SIGTERM)  # as a service manager does, which knows all processes
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.2)
    gate.touch()
    assert answers.get(timeout=PATIENCE_S)[0] == 200
    assert server.process.wait(PATIENCE_S) == 0
    assert gone(pid)


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_a_server_that_is_killed(operate, tmp_path, busy):
    server = operate()
    pid = model_pid(server)
    if busy:
        blocked(server, tmp_path)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: gone(pid), "nobody asks the model any more")


def test_a_model_that_cannot_be_loaded_ends_the_start(operate):
    server = operate("--model", "vision@nowhere", ready=False)
    assert server.process.wait(PATIENCE_S) == 1
    assert "the model cannot be served" in server.stderr()


def test_what_does_not_go_with_it_is_said():
    with pytest.raises(UserError, match="serves one model; leave it out, or serve the candidate without --canary"):
        load_apart(lambda: None, Namespace(canary="other.pt"))
    with pytest.raises(UserError, match="a model apart does not know what /observe has seen; pass --sessions 0"):
        serve_series(["--model_process"])
