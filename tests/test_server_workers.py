"""A server of several workers: one port, one set of metrics, reloads one by one, and what happens when one is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_server import PATIENCE_S, Reloadable, starting, wait_until


@pytest.fixture
def operate(tmp_path):
    yield from starting(Reloadable, tmp_path)


def pids(server: Reloadable, tries: int = 40) -> set[str]:
    """The workers that answered."""
    return {server.predict("1")[2]["label"] for _ in range(tries)}


def test_workers_share_the_port_and_the_metrics(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    assert len(seen) == 2
    assert f"pid {server.process.pid}" not in seen
    for _ in range(4):  # whichever answers
        metrics = server.metrics()
        assert sum(value for name, value in metrics.items() if name.startswith("predictions_total{")) == 40
        assert metrics["prediction_seconds_count{stage=total}"] == 40
        assert metrics["model_ready{}"] == metrics["model_info{model_id=m1,name=model,version=m1}"] == 2
    assert server.stop() == 0
    assert not any(Path(f"/proc/{pid[4:]}").exists() for pid in seen)


def kill_worker(label: str) -> None:
    """Kill the worker that answers with `label`, "pid-N"; what is asked from here on goes to the others."""
    os.kill(int(label[4:]), signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{label[4:]}").exists(), "it is gone, and its socket with it")


def test_a_dead_worker_is_started_again(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    lost = min(seen)
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "both are ready")
    time.sleep(1.5)  # its numbers are collected every second
    before = server.metrics()["prediction_seconds_count{stage=total}"]
    kill_worker(lost)
    wait_until(lambda: server.metrics().get("worker_restarts_total{}") == 1, "the loss is counted")
    for _ in range(10):
        assert server.predict("1")[0] == 200  # the other one is there all the time
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "the new worker is ready")
    assert lost not in pids(server)
    assert server.metrics()["prediction_seconds_count{stage=total}"] >= before + 50
    assert "ended with -9; it starts again in 0.5 s" in server.stderr()
    assert server.stop() == 0


def test_workers_reload_one_by_one(operate):
    server = operate("--workers", "2")
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    assert server.reload()[2] == {"status": "reloaded", "model_id": "m2", "was": "m1", "workers": 2}
    assert {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m2"}
    other = server.ckpt.with_name("other.json")
    other.write_text('{"id": "m3", "gain": 4}')
    assert server.reload({"ckpt": str(other)})[0] == 200
    kill_worker(next(iter(pids(server))))  # the next one starts with what was reloaded
    wait_until(lambda: server.metrics().get("worker_restarts_total{}") == 1, "the loss is counted")
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "the new worker is ready")
    assert {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m3"}
    other.write_text("{")
    status, _, answer = server.reload()
    assert (status, "the old model goes on" in answer["error"]) == (422, True)
    other.write_text('{"id": "m4", "gain": 4}')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m4"}, "SIGHUP reloads all")
    assert server.stop() == 0


def test_workers_end_with_their_supervisor(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    server.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid[4:]}").exists() for pid in seen), "no worker is left")


def test_a_model_that_cannot_be_served_ends_all_workers(operate):
    server = operate("--workers", "2", "--ckpt", "/nowhere", ready=False)
    assert server.process.wait(PATIENCE_S) == 1
    assert "/nowhere" in server.stderr()


def test_sigterm_to_workers_under_load_loses_no_request(operate):
    server = operate("--workers", "2")
    for _ in range(3):
        assert server.predict("1")[0] == 200
    waiting = [server.in_background("1") for _ in range(32)]
    first = waiting[0].get(timeout=PATIENCE_S)
    assert server.stop() == 0
    answers = [first, *(answers.get(timeout=PATIENCE_S) for answers in waiting[1:])]
    # a connection that came after the ports were closed is refused; one that was accepted is answered
    assert all(isinstance(answer, ConnectionError) or answer[0] in (200, 503) for answer in answers)
    assert sum(not isinstance(answer, Exception) and answer[0] == 200 for answer in answers) > 0


def test_a_port_of_other_workers_is_taken(operate, tmp_path):
    first = operate("--workers", "2")
    again = [sys.executable, str(tmp_path / "tiny_server.py"), "--port", str(first.port), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert first.predict("1")[0] == 200
