"""A busy model: its queue, its batches, rows that come to nothing, and clients that are too slow or too many."""

from pathlib import Path

import pytest

from tests.tiny_server import PATIENCE_S, Tiny, blocked, read_answer, request_bytes, starting, wait_until


@pytest.fixture
def serve(tmp_path):
    yield from starting(Tiny, tmp_path)


# -- a busy model --


def test_a_full_queue_answers_429_and_recovers(serve, tmp_path):
    server = serve("--queue", "2", "--timeout_ms", "60000")
    gate, first = blocked(server, tmp_path)
    second = server.in_background("5")
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 2, "two rows in the queue")
    status, headers, answer = server.ask("POST", "/predict", b"this is not even JSON")
    assert (status, headers["Retry-After"], list(answer)) == (429, "1", ["error"])
    head, _ = request_bytes("1", "Expect: 100-continue\r\n").split(b"{")
    for begun in (head, head + b"{"):  # refused before the body is sent
        with server.socket() as client, client.makefile("rb") as stream:
            client.sendall(begun)
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
