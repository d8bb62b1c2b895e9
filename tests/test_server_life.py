"""How the model server starts, and how it ends without losing what it accepted."""

import argparse
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from common.server_microbatch import add_server_flags
from tests.conftest import ROOT
from tests.tiny_server import (
    PATIENCE_S,
    TINY_SERVER,
    Tiny,
    blocked,
    read_answer,
    request_bytes,
    starting,
    wait_until,
)


@pytest.fixture
def serve(tmp_path):
    yield from starting(Tiny, tmp_path)


def test_while_loading_pages_answer_and_predictions_wait(serve, tmp_path):
    server = serve("--load_gate", str(tmp_path / "load"), ready=False)
    assert server.ask("GET", "/health")[2]["ready"] is False
    assert server.ask("GET", "/live")[0] == 200
    for status, headers, answer in (server.ask("GET", "/ready"), server.predict("1")):
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "loading" in answer["error"]
    (tmp_path / "load").touch()
    assert server.process.stdout.readline() == "ready with model tiny-1\n"
    assert server.ask("GET", "/ready")[0] == server.predict("1")[0] == 200


def test_sigterm_while_loading_exits_0(serve, tmp_path):
    server = serve("--load_gate", str(tmp_path / "never"), ready=False)
    assert server.stop() == 0


def test_a_golden_mismatch_refuses_to_start(serve):
    server = serve("--bad_golden", ready=False)
    assert server.process.wait(PATIENCE_S) == 1
    assert "found 4.0, wanted 5.0" in server.stderr()
    assert server.process.stdout.read() == ""


def test_a_taken_port_exits_1(serve):
    port = serve().port
    parser = argparse.ArgumentParser()
    add_server_flags(parser, port)
    command = [sys.executable, "-c", TINY_SERVER, "--port", str(port)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 1
    assert "cannot listen" in result.stderr


def test_sigterm_finishes_what_was_accepted(serve, tmp_path):
    server = serve("--timeout_ms", "60000", "--drain_s", "60")
    gate, first = blocked(server, tmp_path)
    second = server.in_background("5")
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 2, "two rows in the queue")
    with server.socket() as client, client.makefile("rb") as stream:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: t\r\n\r\n")
        assert read_answer(stream)[0] == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not can_connect(server.port), "the port is closed")
        if server.process.poll() is None:  # a connection that is still open is told; an idle one is closed
            client.sendall(request_bytes("1"))
            answer = stream.readline()
            assert answer == b"" or b" 503 " in answer
    assert first.empty()
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[0] == second.get(timeout=PATIENCE_S)[0] == 200
    assert server.process.wait(PATIENCE_S) == 0


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sigterm_under_load_loses_no_request(serve):
    server = serve("--drain_s", "60")
    last: queue.Queue = queue.Queue()  # one per client
    underway = threading.Semaphore(0)

    def client():
        status, headers = 200, {}
        try:
            with server.socket() as connection, connection.makefile("rb") as stream:
                while "connection" not in headers:
                    connection.sendall(request_bytes("1"))
                    status, headers, _ = read_answer(stream)
                    underway.release()
            last.put((status, headers["connection"]))
        except Exception as error:
            last.put(error)

    for _ in range(16):
        threading.Thread(target=client, daemon=True).start()
    for _ in range(200):
        assert underway.acquire(timeout=PATIENCE_S)
    assert server.stop() == 0
    # every client got an answer to its last request, and was told that it is the last: 200 if accepted before, else 503
    assert {last.get(timeout=PATIENCE_S) for _ in range(16)} <= {(200, "close"), (503, "close")}


def test_connections_that_come_with_sigterm_are_answered(serve):
    server = serve()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.005)  # it has the signal, and most often has not had its next tick, which closes the port
    server.process.send_signal(signal.SIGSTOP)  # so that it finds connections and tick in one turn of its loop
    sockets = []
    for _ in range(20):
        with contextlib.suppress(ConnectionError):  # it was faster: the port is closed
            sockets.append(server.socket())
            sockets[-1].sendall(request_bytes("1"))
    time.sleep(0.1)  # the tick is due
    server.process.send_signal(signal.SIGCONT)
    answers = []
    for client in sockets:
        with client, client.makefile("rb") as stream:
            answers.append(read_answer(stream)[0])
    assert set(answers) <= {200, 503}
    assert server.process.wait(PATIENCE_S) == 0


def test_the_drain_time_bounds_a_stuck_model(serve, tmp_path):
    server = serve("--timeout_ms", "60000", "--drain_s", "0.2")
    _, first = blocked(server, tmp_path)
    assert server.stop() == 0
    assert first.get(timeout=PATIENCE_S)[0] == 503
