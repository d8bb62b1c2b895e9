"""The HTTP parser against h11 as the oracle, and against what proxies disagree on; strict JSON."""

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.http_wire import HttpError, Limits, RequestParser, WireError, response
from common.strict_json import load_json

LIMITS = Limits(target_bytes=200, head_bytes=400, headers=8, body_bytes=100)


def ours(data: bytes, split: int | None = None, limits: Limits = LIMITS) -> tuple[list, int]:
    """What the parser makes of a connection's bytes: requests, and the status it refuses with (0: it does not).

    With `split` the bytes come in pieces of that size.
    """
    parser, requests = RequestParser(limits), []
    pieces = [data[at : at + split] for at in range(0, len(data), split)] if split else [data]
    request = None
    try:
        for piece in pieces:
            parser.feed(piece)
            while True:
                request = request or parser.read_head()
                body = parser.read_body() if request else None
                if body is None:
                    break
                headers = sorted(request.headers.items())
                headers = [(name, value.lower() if name == "transfer-encoding" else value) for name, value in headers]
                requests.append((request.method, request.target, request.minor, headers, body, request.keep_alive))
                request = None
    except WireError as error:
        return requests, error.status
    return requests, 0


def oracle(data: bytes) -> tuple[list, bool]:
    """The same by h11: requests, and whether it refuses."""
    connection, requests, body, head = h11.Connection(h11.SERVER, max_incomplete_event_size=400), [], b"", None
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                keep_alive = connection.their_state is not h11.MUST_CLOSE
                requests.append(as_ours(head, body, keep_alive))
                if not keep_alive:
                    return requests, False
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                if connection.our_state is h11.SWITCHED_PROTOCOL:
                    return requests, False
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return requests, False
                connection.start_next_cycle()
            else:
                return requests, False
    except h11.RemoteProtocolError:
        return requests, True


def as_ours(head: h11.Request, body: bytes, keep_alive: bool) -> tuple:
    merged: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode(), value.decode("latin-1")
        merged[key] = f"{merged[key]}, {text}" if key in merged else text
    minor = int(head.http_version[-1:])
    return head.method.decode(), head.target.decode(), minor, sorted(merged.items()), body, keep_alive


def post(*headers: bytes, body: bytes = b"", target: bytes = b"/p", version: bytes = b"1.1") -> bytes:
    lines = [b"POST " + target + b" HTTP/" + version, b"Host: t", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
VALID = [
    b"GET / HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET /a?b=c&d HTTP/1.1\r\nHost: t:80\r\nAccept: */*\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\t t \t\r\nX: \xff\xe9\r\nY:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\nConnection: Keep-Alive, CLOSE\r\n\r\n",
    b"GET http://t/a?b HTTP/1.1\r\nHost: t\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",
    b"!#$%&'*+-.^_`|~9 / HTTP/1.1\r\nHost: t\r\n\r\n",
    post(b"Content-Length: 5", body=b"hello"),
    post(b"Content-Length: 0005", body=b"hello"),
    post(b"Content-Length: 0"),
    post(b"Content-Length: 5", b"X-A: 1", b"x-a: 2", body=b"he\r\n\0"),
    post(b"Content-Length: 5", b"Expect: 100-Continue", body=b"hello"),
    post(CHUNKED, body=b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n"),
    post(b"transfer-encoding: CHUNKED", body=b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    post(b"Connection: close\xa0"),  # no blank in HTTP, so not the option close
]


@pytest.mark.parametrize("data", [*VALID, b"".join(VALID[:2] + VALID[9:])])
def test_valid_requests_are_read_as_h11_reads_them_however_they_are_split(data):
    requests, status = ours(data)
    assert requests
    assert (requests, status) == (oracle(data)[0], 0)
    for split in range(1, len(data)):
        assert ours(data, split) == (requests, 0)
    for at in range(len(data)):  # the first piece alone never gives more, and never an error
        assert ours(data[:at])[1] == 0


# (bytes, status, whether h11 refuses too). False: we are stricter than h11, and on purpose.
REFUSED = {
    "second content-length": (post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"), 400, True),
    "same content-length again": (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400, False),
    "content-length list": (post(b"Content-Length: 5, 5", body=b"hello"), 400, False),
    "signed content-length": (post(b"Content-Length: +5", body=b"hello"), 400, True),
    "negative content-length": (post(b"Content-Length: -5", body=b"hello"), 400, True),
    "underscored content-length": (post(b"Content-Length: 1_0", body=b"0123456789"), 400, True),
    "underscore in the name": (post(b"Content_Length: 5", body=b"hello"), 400, False),
    "empty content-length": (post(b"Content-Length:"), 400, True),
    "hexadecimal content-length": (post(b"Content-Length: 0x5", body=b"hello"), 400, True),
    "digits that are not ASCII": (post(b"Content-Length: \xb2"), 400, True),
    "length and chunks": (post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400, False),
    "chunks in HTTP/1.0": (post(CHUNKED, body=b"0\r\n\r\n", version=b"1.0"), 400, False),
    "two codings": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400, True),
    "coding list": (post(b"Transfer-Encoding: gzip, chunked"), 501, True),
    "identity": (post(b"Transfer-Encoding: identity"), 501, True),
    "hidden coding": (post(b"Transfer-Encoding: \x0bchunked"), 400, True),
    "folded header": (post(b"X: a", b" b"), 400, False),
    "folded first header": (b"GET / HTTP/1.1\r\n Host: t\r\n\r\n", 400, True),
    "space before colon": (post(b"Content-Length : 5", body=b"hello"), 400, True),
    "no colon": (post(b"Content-Length"), 400, True),
    "empty name": (post(b": a"), 400, True),
    "bare LF": (b"GET / HTTP/1.1\nHost: t\n\n", 400, False),
    "one bare LF": (b"GET / HTTP/1.1\r\nHost: t\nX: a\r\n\r\n", 400, False),
    "bare CR": (post(b"X: a\rY: b"), 400, True),
    "NUL": (post(b"X: a\0b"), 400, True),
    "control character": (post(b"X: a\x01b"), 400, False),
    "DEL": (post(b"X: a\x7fb"), 400, False),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, True),
    "two hosts": (post(b"Host: u"), 400, True),
    "empty line first": (b"\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", 400, True),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: t\r\n\r\n", 400, True),
    "tab for space": (b"GET\t/ HTTP/1.1\r\nHost: t\r\n\r\n", 400, True),
    "space in target": (b"GET /a b HTTP/1.1\r\nHost: t\r\n\r\n", 400, True),
    "no version": (b"GET /\r\nHost: t\r\n\r\n", 400, True),
    "lower case version": (b"GET / http/1.1\r\nHost: t\r\n\r\n", 400, True),
    "version 1.2": (b"GET / HTTP/1.2\r\nHost: t\r\n\r\n", 505, False),
    "version 2.0": (b"GET / HTTP/2.0\r\nHost: t\r\n\r\n", 505, False),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, True),
    "target that is no path": (b"GET a HTTP/1.1\r\nHost: t\r\n\r\n", 400, False),
    "tunnel": (b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n", 400, False),
    "tunnel to a path": (b"CONNECT / HTTP/1.1\r\nHost: t\r\n\r\n", 400, False),
    "unknown expectation": (post(b"Expect: cake", b"Content-Length: 0"), 417, False),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, True),
    "chunk size missing": (post(CHUNKED, body=b"\r\nhello\r\n"), 400, True),
    "blank before a chunk extension": (post(CHUNKED, body=b"5 ;a=b\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size signed": (post(CHUNKED, body=b"+5\r\nhello\r\n"), 400, True),
    "chunk size with 0x": (post(CHUNKED, body=b"0x5\r\nhello\r\n"), 400, True),
    "chunk size after space": (post(CHUNKED, body=b" 5\r\nhello\r\n"), 400, True),
    "chunk too short": (post(CHUNKED, body=b"4\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk too long": (post(CHUNKED, body=b"6\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk line ends with LF": (post(CHUNKED, body=b"5\nhello\r\n0\r\n\r\n"), 400, True),
    "NUL in chunk extension": (post(CHUNKED, body=b"5;\0\r\nhello\r\n0\r\n\r\n"), 400, False),
    "LF in chunk extension": (post(CHUNKED, body=b"5;a\nb\r\nhello\r\n0\r\n\r\n"), 400, True),
    "trailer": (post(CHUNKED, body=b"0\r\nX: a\r\n\r\n"), 400, False),
    "endless chunk line": (post(CHUNKED, body=b"5;" + b"a" * 300), 400, False),
    "long target": (b"GET /" + b"a" * 300, 414, False),
    "long header": (post(b"X: " + b"a" * 500), 431, False),
    "long header, unfinished": (b"GET / HTTP/1.1\r\nX: " + b"a" * 500, 431, True),
    "many headers": (post(*[b"X: a"] * 8), 431, False),
    "long body": (post(b"Content-Length: 101"), 413, False),
    "endless body": (post(b"Content-Length: " + b"9" * 300), 413, True),
    "long chunk": (post(CHUNKED, body=b"65\r\n"), 413, False),
    "chunks that add up": (post(CHUNKED, body=b"32\r\n" + b"a" * 50 + b"\r\n33\r\n"), 413, False),
}


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


MUTATIONS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"_",
    b"+",
    b"-",
    b"0",
    b"5",
    b"a",
    b"\xff",
    b";",
    b"/",
]
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
        response(status, b"hello", headers=(("Retry-After", "1"),), keep_alive=keep_alive, head_only=method == "HEAD")
    )
    head = client.next_event()
    assert head.status_code == status
    assert {(b"content-length", b"5"), (b"retry-after", b"1")} <= set(head.headers)
    assert b"date" in dict(head.headers)
    if method == "GET":
        assert client.next_event().data == b"hello"
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.their_state is (h11.DONE if keep_alive else h11.MUST_CLOSE)
    assert client.trailing_data == (b"", False)


def test_a_response_cannot_be_split():
    with pytest.raises(ValueError, match="line break"):
        response(200, b"", headers=(("X-Request-ID", "a\r\nSet-Cookie: b"),))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'"a\x01b"', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b"[-1e999]", "too large"),
        (b"[0." + b"1" * 500 + b"]", "too long"),
        (b"9223372036854775808", "64 bits"),
        (b"9" * 5000, "64 bits"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udc00\\ud800": 1}', "surrogate"),
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 32"),
        (b'{"a":' * 100_000, "deeper than 32"),
    ],
)
def test_json_that_is_refused(data, words):
    check_refused(data, words)


def test_a_key_that_comes_again_among_very_many():
    many = ",".join(f'"{n}":0' for n in range(300_000))  # to look at all pairs of them would take an hour
    check_refused(f'{{{many},"7":1}}'.encode(), "'7' appears twice")


def check_refused(data, words):
    with pytest.raises(HttpError, match=words) as refused:
        load_json(data)
    assert refused.value.status == 400
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b' {"a": [1, -2.5e3, true, null, ""]} ', {"a": [1, -2500.0, True, None, ""]}),
        ('"ü\\ud83d\\ude00😀"'.encode(), "ü😀😀"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"-9223372036854775808", -(2**63)),
        (b"[" * 32 + b"]" * 32, None),
        (b"[" + b"[1]," * 1000 + b"[2]]", [[1]] * 1000 + [[2]]),
        (b'"' + b"[" * 100 + b'"', "[" * 100),
    ],
)
def test_json_that_is_taken(data, value):
    assert load_json(data) == value or value is None
