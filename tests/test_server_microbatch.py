"""The model server as a subprocess on a free port."""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.server_microbatch import add_server_flags

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60  # how long a test waits for what must happen; far beyond what a busy machine needs

TINY_SERVER = """
import argparse, os, sys, time
import numpy as np
from common.server_microbatch import Route, add_server_flags, run_server

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)

class Predictor:
    model_id, example = "tiny-1", "2"
    def __init__(self, args):
        self.args = args
        if args.load_gate:
            wait_for(args.load_gate)
    def decode(self, item):
        if item == "refuse":
            raise ValueError("this text is not wanted")
        return item
    def predict_rows(self, rows):
        for row in rows:
            if row.startswith("wait:"):
                open(row[5:] + ".started", "w").close()
                wait_for(row[5:])
            if row == "raise":
                raise RuntimeError("secret detail")
        values = np.array([float(row) if row.isdigit() else np.nan if row == "nan" else 0.0 for row in rows]) * 2
        return [{"pred": value, "prob": 0.5, "rows": len(rows)} for value in values.tolist()]
    def check_golden(self):
        if self.args.bad_golden:
            raise ValueError("golden answer 0: found 4.0, wanted 5.0")

parser = argparse.ArgumentParser()
add_server_flags(parser, 8080)
parser.add_argument("--load_gate", default="")
parser.add_argument("--bad_golden", action="store_true")
args = parser.parse_args()
sys.exit(run_server(lambda: Predictor(args), Route("/predict", "x", "xs"), args))
"""


class Tiny:
    """A running server; stopped and its exit code checked by the fixture."""

    script_text, model_id = TINY_SERVER, "tiny-1"

    def __init__(self, folder: Path, *flags: str, ready: bool = True):
        script = folder / "tiny_server.py"
        script.write_text(self.script_text)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.errors = open(folder / "stderr.txt", "w+")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), (line, self.stderr())
        self.port = int(line.rsplit(":", 1)[1])
        if ready:
            assert self.process.stdout.readline() == f"ready with model {self.model_id}\n", self.stderr()

    def stderr(self) -> str:
        return Path(self.errors.name).read_text()

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: object = None, headers: dict | None = None):
        """(status, headers, parsed body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, dict(answer.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()

    def predict(self, item: object, **headers: str):
        return self.ask("POST", "/predict", {"x": item}, {key.replace("_", "-"): v for key, v in headers.items()})

    def in_background(self, item: object) -> queue.Queue:
        """Ask in a thread; the answer, or the exception, comes in the queue."""
        answers: queue.Queue = queue.Queue()

        def run():
            try:
                answers.put(self.predict(item))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=run, daemon=True).start()
        return answers

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def wait_until(condition, what: str):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        time.sleep(0.005)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(*flags, ready=True) -> Tiny:
        servers.append(Tiny(tmp_path, *flags, ready=ready))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    server = Tiny(tmp_path_factory.mktemp("tiny"))
    yield server
    assert server.stop() == 0
    server.close()


def request_bytes(item: object, extra: str = "") -> bytes:
    body = json.dumps({"x": item}).encode()
    return f"POST /predict HTTP/1.1\r\nHost: t\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(stream) -> tuple[int, dict, bytes]:
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().decode().strip()) != "":
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers.get("content-length", 0)))


def blocked(server: Tiny, tmp_path: Path, name: str = "gate") -> tuple[Path, queue.Queue]:
    """Let the model hang on one request; touching the returned path frees it."""
    gate = tmp_path / name
    answers = server.in_background(f"wait:{gate}")
    wait_until((tmp_path / f"{name}.started").exists, "the model got the blocking row")
    return gate, answers


# -- answers --


def test_an_answer_has_the_promised_fields(tiny):
    status, headers, answer = tiny.predict("21", X_Request_ID="abc-1")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-ID"] == answer["req_id"] == "abc-1"
    assert (answer["pred"], answer["model_id"], answer["alert"]) == (42.0, "tiny-1", [])
    assert answer["lat_ms"] >= 0
    assert answer["p95"] > 0


def test_request_ids_are_cleaned_or_made(tiny):
    assert tiny.predict("1", X_Request_ID='a b"<c>')[2]["req_id"] == "abc"
    first, second = (tiny.predict("1")[2]["req_id"] for _ in range(2))
    assert first
    assert first != second


def test_p95_is_the_quantile_of_the_answers_so_far(serve):
    server = serve()
    latencies = []
    for number in range(20):
        answer = server.predict(str(number))[2]
        latencies.append(answer["lat_ms"])
    low, high = sorted(latencies)[18:]  # position 0.95 * 19 = 18.05
    assert answer["p95"] == pytest.approx(low + 0.05 * (high - low), abs=0.002)


def test_keep_alive_and_pipelining_answer_in_order(tiny):
    with tiny.socket() as client, client.makefile("rb") as stream:
        for _ in range(2):
            client.sendall(b"".join(request_bytes(str(number)) for number in range(30)))
            answers = [read_answer(stream) for _ in range(30)]
            assert [json.loads(body)["pred"] for _, _, body in answers] == [2.0 * number for number in range(30)]
        client.sendall(request_bytes("1", "Connection: close\r\n"))
        status, headers, _ = read_answer(stream)
        assert (status, headers["connection"]) == (200, "close")
        assert stream.read() == b""


def test_pages_pipelined_with_predictions_keep_their_order(tiny):
    with tiny.socket() as client, client.makefile("rb") as stream:
        client.sendall(request_bytes("1") + b"GET /live HTTP/1.1\r\nHost: t\r\n\r\n" + request_bytes("2"))
        bodies = [json.loads(read_answer(stream)[2]) for _ in range(3)]
    assert [body.get("pred", body.get("status")) for body in bodies] == [2.0, "live", 4.0]


def test_refusals_pipelined_with_pages_and_predictions_keep_their_order(tiny):
    page, nowhere, wrong = (
        f"{line} HTTP/1.1\r\nHost: t\r\n\r\n".encode() for line in ("GET /live", "GET /nowhere", "PUT /predict")
    )
    last = b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    with tiny.socket() as client, client.makefile("rb") as stream:
        client.sendall(nowhere + page + wrong + nowhere + request_bytes("1") + nowhere + wrong + last)
        assert [read_answer(stream)[0] for _ in range(8)] == [404, 200, 405, 404, 200, 404, 405, 404]
        assert stream.read() == b""
    with tiny.socket() as client, client.makefile("rb") as stream:  # a broken request behind a refused one
        client.sendall(nowhere + b"no request\r\n\r\n")
        assert [read_answer(stream)[0] for _ in range(2)] == [404, 400]
        assert stream.read() == b""


def test_a_client_that_leaves_keeps_no_refusal_from_the_others(tiny):
    nowhere = b"GET /nowhere HTTP/1.1\r\nHost: t\r\n"
    with ExitStack() as stack:
        leaving, *others = clients = [stack.enter_context(tiny.socket()) for _ in range(6)]
        for client in clients:  # connected, not only in the kernel's queue
            client.sendall(b"GET /live HTTP/1.1\r\nHost: t\r\n\r\n")
            assert read_answer(client.makefile("rb"))[0] == 200
        os.kill(tiny.process.pid, signal.SIGSTOP)  # so that all that follows arrives in one turn of the loop
        try:
            leaving.sendall(nowhere + b"\r\n" + nowhere + b"Connection: close\r\n\r\n")
            for client in others:
                client.sendall(nowhere + b"\r\n")
        finally:
            os.kill(tiny.process.pid, signal.SIGCONT)
        assert [read_answer(client.makefile("rb"))[0] for client in clients] == [404] * 6


def test_http_1_0_head_and_expect(tiny):
    with tiny.socket() as client, client.makefile("rb") as stream:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_answer(stream)[1]["connection"] == "close"
        assert stream.read() == b""
    with tiny.socket() as client, client.makefile("rb") as stream:
        client.sendall(b"HEAD /health HTTP/1.1\r\nHost: t\r\n\r\n")
        assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
        while stream.readline() != b"\r\n":
            pass
        head, body = request_bytes("4", "Expect: 100-continue\r\n").split(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n")
        assert stream.readline() + stream.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert json.loads(read_answer(stream)[2])["pred"] == 8.0


def test_chunked_body(tiny):
    with tiny.socket() as client, client.makefile("rb") as stream:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b'{"x"', b': "5"}'):
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.sendall(b"0\r\n\r\n")
        assert json.loads(read_answer(stream)[2])["pred"] == 10.0


@pytest.mark.parametrize("key", ["xs", "items"])
def test_a_list_gets_one_answer_per_item_and_bad_ones_fail_alone(tiny, key):
    status, _, answer = tiny.ask("POST", "/predict", {key: ["1", 7, "raise", "nan", "2"]})
    assert status == 200
    good_and_bad = [item.get("pred", item.get("error")) for item in answer["items"]]
    assert good_and_bad[::4] == [2.0, 4.0]
    assert good_and_bad[1] == '"x": found a whole number, wanted a string'
    assert good_and_bad[2] == "the model failed on this input"
    assert "no finite answer" in good_and_bad[3]
    assert {"lat_ms", "p95", "alert", "req_id", "model_id"} <= set(answer)


def test_a_list_longer_than_a_batch(tiny):
    answer = tiny.ask("POST", "/predict", {"xs": [str(number) for number in range(100)]})[2]
    assert [item["pred"] for item in answer["items"]] == [2.0 * number for number in range(100)]
    assert all(item["rows"] <= 32 for item in answer["items"])


# -- errors --


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "/predict"),
        ("GET", "/predict", None, 405, "POST"),
        ("POST", "/health", b"{}", 405, "GET"),
        ("POST", "/predict", b"{", 400, "not JSON"),
        ("POST", "/predict", b'{"x": NaN}', 400, "NaN"),
        ("POST", "/predict", b'["x"]', 400, "JSON object"),
        ("POST", "/predict", {"y": 1}, 400, '"x"'),
        ("POST", "/predict", {"x": "1", "xs": ["1"]}, 400, "either"),
        ("POST", "/predict", {"xs": []}, 400, "one item or more"),
        ("POST", "/predict", {"xs": ["1"] * 300}, 413, "at most 256"),
        ("POST", "/predict", {"x": 7}, 400, '"x": found a whole number, wanted a string'),
        ("POST", "/predict", {"x": None}, 400, '"x": found null, wanted a string'),
        ("POST", "/predict", {"xs": [7.5, {}]}, 422, '"x": found a number, wanted a string'),
        ("POST", "/predict", {"x": "refuse"}, 422, "not wanted"),
        ("POST", "/predict", {"x": "raise"}, 500, "the model failed"),
        ("POST", "/predict", {"x": "nan"}, 500, "no finite answer"),
    ],
)
def test_errors_have_one_shape(tiny, method, path, body, status, words):
    found, headers, answer = tiny.ask(method, path, body)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert "secret detail" not in answer["error"]
    assert ("Allow" in headers) == (status == 405)
    if body == {"x": "raise"}:
        assert "secret detail" in tiny.stderr()


def test_content_type_and_encoding(tiny):
    assert tiny.predict("1", Content_Type="application/problem+json; charset=utf-8")[0] == 200
    assert tiny.predict("1", Content_Type="multipart/form-data")[0] == 415
    assert tiny.predict("1", Content_Encoding="gzip")[0] == 415


def test_broken_requests_are_answered_and_closed(tiny):
    for data, status in [
        (b"GET /health HTTP/1.1\nHost: t\n\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: t\r\n" + b"a: b\r\n" * 70 + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n", 414),
    ]:
        with tiny.socket() as client, client.makefile("rb") as stream:
            client.sendall(data)
            found, headers, body = read_answer(stream)
            assert (found, headers["connection"]) == (status, "close")
            assert "error" in json.loads(body)
            assert stream.read() == b""


def test_a_client_that_sends_a_refused_body_anyway_still_reads_the_413(serve):
    server = serve("--max_body_mb", "0.1")
    with server.socket() as client, client.makefile("rb") as stream:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 3000000\r\n\r\n" + b"a" * 500_000)
        assert read_answer(stream)[0] == 413


# -- a busy model --


def test_a_full_queue_answers_429_and_recovers(serve, tmp_path):
    server = serve("--queue", "2", "--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    second = server.in_background("5")
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 2, "two rows in the queue")
    status, headers, answer = server.ask("POST", "/predict", b"this is not even JSON")
    assert (status, headers["Retry-After"], list(answer)) == (429, "1", ["error"])
    with server.socket() as client, client.makefile("rb") as stream:  # refused before the body is sent
        client.sendall(request_bytes("1", "Expect: 100-continue\r\n").split(b"{")[0])
        assert read_answer(stream)[0] == 429
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[0] == second.get(timeout=PATIENCE_S)[0] == 200
    assert server.predict("3")[0] == 200


def test_a_late_answer_is_504_and_its_row_never_reaches_the_model(serve, tmp_path):
    server = serve("--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    late = tmp_path / "late"
    assert server.predict(f"wait:{late}", X_Timeout_Ms="50")[0] == 504
    assert server.predict("1", X_Timeout_Ms="soon")[0] == 400
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[0] == 200
    assert server.predict("3")[2]["pred"] == 6.0  # it would hang behind the late row
    assert not Path(f"{late}.started").exists()


def test_the_rows_of_a_client_that_hung_up_are_dropped(serve, tmp_path):
    server = serve("--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    gone = tmp_path / "gone"
    with server.socket() as client:
        client.sendall(request_bytes(f"wait:{gone}"))
        wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 2, "the second row is queued")
    server.ask("GET", "/live")  # accepted after the hang-up, so the hang-up was seen
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[0] == 200
    assert server.predict("3")[2]["pred"] == 6.0
    assert not Path(f"{gone}.started").exists()


def test_neighbours_of_bad_rows_are_answered(serve, tmp_path):
    server = serve("--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    items = [str(number) for number in range(8)] + ["raise", "nan"]
    waiting = [server.in_background(item) for item in items]
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 11, "all rows are queued")
    gate.touch()
    first.get(timeout=PATIENCE_S)
    answers = [answer.get(timeout=PATIENCE_S) for answer in waiting]
    assert [status for status, _, _ in answers] == [200] * 8 + [500, 500]
    assert [answer["pred"] for _, _, answer in answers[:8]] == [2.0 * number for number in range(8)]


def test_batches_form_while_the_model_works(serve, tmp_path):
    server = serve("--timeout_ms", "60000", "--max_batch", "4")
    gate, first = blocked(server, tmp_path)
    waiting = [server.in_background("1") for _ in range(8)]
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 9, "all rows are queued")
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[2]["rows"] == 1  # it was not held back to wait for others
    assert [answer.get(timeout=PATIENCE_S)[2]["rows"] for answer in waiting] == [4] * 8


def test_pages_answer_while_the_model_works(serve, tmp_path):
    server = serve("--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    for page in ("/health", "/live", "/ready"):
        assert server.ask("GET", page)[0] == 200
    assert first.empty()
    gate.touch()
    assert first.get(timeout=PATIENCE_S)[0] == 200


# -- life --


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


# -- connections --


def test_slow_and_idle_clients_are_cut(serve):
    server = serve("--head_s", "0.2", "--body_s", "0.2", "--idle_s", "0.2")
    for sent, start in [(b"GET /heal", b"HTTP/1.1 408 "), (request_bytes("1")[:-3], b"HTTP/1.1 408 "), (b"", b"")]:
        with server.socket() as client, client.makefile("rb") as stream:
            client.sendall(sent)
            assert stream.read().startswith(start)


def test_too_many_connections_are_refused(serve):
    server = serve("--max_connections", "1")
    with server.socket() as first, first.makefile("rb") as stream:
        first.sendall(b"GET /live HTTP/1.1\r\nHost: t\r\n\r\n")
        assert read_answer(stream)[0] == 200
        with server.socket() as second, second.makefile("rb") as refused:
            assert read_answer(refused)[0] == 503


def test_a_client_that_reads_nothing_does_not_fill_the_memory(serve):
    server = serve("--body_s", "0.5")
    with server.socket() as client, pytest.raises(ConnectionError):  # noqa: PT012
        while True:
            client.sendall(b"GET /nothing HTTP/1.1\r\nHost: t\r\n\r\n" * 1000)
    assert server.ask("GET", "/live")[0] == 200


# -- log and alarm --


def test_the_request_log_has_a_line_per_prediction(serve, tmp_path):
    path = tmp_path / "requests.jsonl"
    server = serve("--request_log", str(path))
    server.predict("4", X_Request_ID="one")
    server.ask("POST", "/predict", {"xs": ["1", "nan"]})
    server.predict("nan")
    assert server.stop() == 0
    one, many, failed = [json.loads(line) for line in path.read_text().splitlines()]
    assert " ".join(one) == (
        "ts req_id path model_id model_version data_version data_hash lat_ms queue_ms batch status pred prob"
    )
    assert one["data_hash"] == hashlib.sha256(b'{"x": "4"}').hexdigest()
    assert (one["req_id"], one["model_id"], one["status"], one["pred"], one["prob"]) == ("one", "tiny-1", 200, 8.0, 0.5)
    assert (many["pred"], many["batch"]) == ([2.0], 2)
    assert (failed["status"], failed["pred"]) == (500, None)
    assert 0 <= one["queue_ms"] <= one["lat_ms"]


def test_a_full_disk_is_counted_and_serving_goes_on(serve):
    server = serve("--request_log", "/dev/full")
    for _ in range(3):
        assert server.predict("4")[0] == 200
    wait_until(lambda: server.ask("GET", "/health")[2]["log_lines_lost"] == 3, "the lost lines are counted")
    assert server.stop() == 0
    assert server.stderr().count("serving goes on") == 1


def test_the_latency_alarm_shows_in_the_answers(serve):
    server = serve("--alert_p95_ms", "0.0001")
    with server.socket() as client, client.makefile("rb") as stream:
        alerts = []
        for _ in range(302):
            client.sendall(request_bytes("1"))
            alerts.append(json.loads(read_answer(stream)[2])["alert"])
    assert alerts[299] == []
    assert alerts[300:] == [["lat_p95"]] * 2  # three checks in a row, of 100 answers each
    assert server.stderr().count("alarm {") == 1
