"""What the model server answers: predictions and pages in the order they were asked for, and errors of one shape."""

import json
import os
import signal
from contextlib import ExitStack

import pytest

from tests.tiny_server import Tiny, read_answer, request_bytes, starting


@pytest.fixture
def serve(tmp_path):
    yield from starting(Tiny, tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    server = Tiny(tmp_path_factory.mktemp("tiny"))
    yield server
    assert server.stop() == 0
    server.close()


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
