"""The HTTP parser against h11 as the oracle, and against what proxies disagree on."""

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.http_response import response
from common.http_wire import Limits, Request, RequestParser, WireError
from tests.wire_cases import CHUNKED, LIMITS, MUTATIONS, REFUSED, VALID, oracle, post


def ours(data: bytes, split: int | None = None, limits: Limits = LIMITS) -> tuple[list, int]:
    """What the parser makes of a connection's bytes: requests, and the status it refuses with (0: it does not).

    With `split` the bytes come in pieces of that size.
    """
    parser, requests = RequestParser(limits), []
    pieces = [data[at : at + split] for at in range(0, len(data), split)] if split else [data]
    request = None
    try:
        for piece in pieces:
            if request is None and not parser.buffered and (whole := parser.read_whole(piece)):
                requests.append(as_tuple(whole[0], piece[whole[1] :]))
                continue
            parser.feed(piece)
            while (request := request or parser.read_head()) and (body := parser.read_body()) is not None:
                requests.append(as_tuple(request, body))
                request = None
    except WireError as error:
        return requests, error.status
    return requests, 0


def as_tuple(request: Request, body: bytes) -> tuple:
    """In the shape of the oracle; h11 gives codings in lower case."""
    headers = sorted(request.headers.items())
    headers = [(name, value.lower() if name == "transfer-encoding" else value) for name, value in headers]
    return request.method, request.target, request.minor, headers, body, request.keep_alive


@pytest.mark.parametrize("data", VALID)
def test_a_request_that_came_whole_is_read_at_once(data):
    slow = RequestParser(LIMITS)
    slow.feed(data)
    request, body = slow.read_head(), slow.read_body()
    at_once = not request.expects_continue and "transfer-encoding" not in request.headers
    assert RequestParser(LIMITS).read_whole(data) == ((request, len(data) - len(body)) if at_once else None)
    assert RequestParser(LIMITS).read_whole(data + VALID[0]) is None
    for limits in (Limits(target_bytes=len(data) - len(body) - 1), Limits(head_bytes=len(data) - len(body) - 1)):
        assert RequestParser(limits).read_whole(data) is None  # what is near a limit goes the long way


@pytest.mark.parametrize("data", [*VALID, b"".join(VALID[:2] + VALID[9:])])
def test_valid_requests_are_read_as_h11_reads_them_however_they_are_split(data):
    requests, status = ours(data)
    assert requests
    assert (requests, status) == (oracle(data)[0], 0)
    for split in range(1, len(data)):
        assert ours(data, split) == (requests, 0)
    for at in range(len(data)):  # the first piece alone never gives more, and never an error
        assert ours(data[:at])[1] == 0


def test_a_body_in_very_many_chunks_is_refused():
    data = post(CHUNKED, body=b"1\r\na\r\n" * 20_001)
    assert ours(data, limits=Limits(body_bytes=10**6)) == ([], 413)
    few = post(CHUNKED, body=b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
    assert ours(few, limits=Limits(body_bytes=10**6))[1] == 413  # its end is a chunk too
    few = post(CHUNKED, body=b"1\r\na\r\n" * 19_999 + b"0\r\n\r\n")
    (request,), status = ours(few, limits=Limits(body_bytes=10**6))
    assert (request[4], status) == (b"a" * 19_999, 0)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests_and_what_h11_says(name):
    data, status, h11_refuses = REFUSED[name]
    assert ours(data) == ([], status)
    assert oracle(data)[1] == h11_refuses
    for split in range(1, len(data)):
        assert ours(data, split) == ([], status)


mutation = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 3),  # bytes taken out
    st.sampled_from([b"", *MUTATIONS, b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: u\r\n"]),
)


def mutate(data: bytes, mutations: list) -> bytes:
    for place, taken, added in mutations:
        at = int(place * len(data))
        data = data[:at] + added + data[at + taken :]
    return data


@given(st.lists(st.sampled_from(VALID), min_size=1, max_size=2), st.lists(mutation, max_size=4), st.integers(1, 60))
@example([VALID[0]], [], 1)
def test_mutated_requests_are_never_read_differently_from_h11(valid, mutations, split):
    data = mutate(b"".join(valid), mutations)
    requests, status = ours(data)
    in_pieces, status_in_pieces = ours(data, split)
    # of two faults in one request, the pieces may decide which is found first
    assert (in_pieces, status_in_pieces > 0) == (requests, status > 0)
    accepted, _ = oracle(data)
    # a request that we accept, h11 accepts with the same meaning; we may refuse earlier, never later
    sent_close = next((at + 1 for at, request in enumerate(requests) if not request[-1]), len(requests))
    assert requests[:sent_close] == accepted[: len(requests[:sent_close])]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_noise_is_refused_or_waited_for(data, split):
    in_pieces, status_in_pieces = ours(data, split)
    requests, status = ours(data)
    assert (in_pieces, status_in_pieces > 0) == (requests, status > 0)
    assert ours(VALID[9] + data)[0][:1] == ours(VALID[9])[0]


def test_a_discarded_body_is_skipped_and_the_next_request_read():
    for first in (VALID[9], VALID[14]):
        for split in range(1, len(first)):
            parser = RequestParser(LIMITS)
            parser.feed(first[:split])
            if parser.read_head() is None:
                parser.feed(first[split:])
                assert parser.read_head()
            else:
                parser.feed(first[split:])
            parser.discard_body()
            parser.feed(VALID[0])
            assert parser.read_body() == b""
            assert parser.read_head().method == "GET"
            assert parser.buffered == 0


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a?b", "/a"), ("http://t/a?b", "/a"), ("HTTPS://t", "/"), ("http://t?b", "/"), ("/a//b?c?d", "/a//b")],
)
def test_path(target, path):
    parser = RequestParser()
    parser.feed(f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
    assert parser.read_head().path == path


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_h11_reads_our_responses(status, keep_alive, method):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "t")]))
    client.send(h11.EndOfMessage())
    client.receive_data(
        response(
            status,
            b"hello",
            headers=(("Retry-After", "1"),),
            own=(("X-Request-ID", "a-1"),),
            keep_alive=keep_alive,
            head_only=method == "HEAD",
        )
    )
    head = client.next_event()
    assert head.status_code == status
    assert {(b"content-length", b"5"), (b"retry-after", b"1"), (b"x-request-id", b"a-1")} <= set(head.headers)
    assert b"date" in dict(head.headers)
    if method == "GET":
        assert client.next_event().data == b"hello"
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.their_state is (h11.DONE if keep_alive else h11.MUST_CLOSE)
    assert client.trailing_data == (b"", False)


@pytest.mark.parametrize("kind", ["headers", "own"])
def test_a_response_cannot_be_split(kind):
    with pytest.raises(ValueError, match="line break"):
        response(200, b"", **{kind: (("X-Request-ID", "a\r\nSet-Cookie: b"),)})
