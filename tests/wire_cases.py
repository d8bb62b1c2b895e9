"""Requests that an HTTP parser has to take or to refuse, byte by byte, and h11's reading of them."""

import h11

from common.http_wire import Limits

LIMITS = Limits(target_bytes=200, head_bytes=400, headers=8, body_bytes=100)


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
    b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
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
    "host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, False),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, False),
    "host with a user": (b"GET / HTTP/1.0\r\nHost: a@b\r\n\r\n", 400, False),
    "host with letters as its port": (b"GET / HTTP/1.1\r\nHost: a:8o\r\n\r\n", 400, False),
    "host of an open bracket": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, False),
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
