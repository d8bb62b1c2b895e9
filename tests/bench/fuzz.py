"""python -m tests.bench.fuzz --seconds 60 --seed 0

Feeds requests that are mutated, spliced and cut at random places to our HTTP parser and to h11, and compares what they
make of them. We may refuse what h11 takes only by a rule in STRICTER, and only where the bytes really break that rule;
what we take, h11 has to take with the same meaning. Some of the bytes go to a live server too, which has to refuse or
answer them, never fail, and answer a good request afterwards. Prints each disagreement with the bytes that show it, and
ends with one JSON line. Exit status 1 if there was a disagreement.
"""

from __future__ import annotations

import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from common.cli import command_parser, number, run
from common.http_wire import CHUNK_LINE_BYTES, Request, RequestParser, WireError
from tests.bench.launch import Server, answers, environment, python, running
from tests.bench.loads import as_request
from tests.wire_cases import CHUNKED, LIMITS, MUTATIONS, REFUSED, VALID, oracle, post

GOOD = as_request(b'{"text": "book a table"}')
TAKEN = [*VALID, GOOD, GOOD.replace(b"bench", b"bench\r\nConnection: close")]
SEEDS = [*TAKEN, *(data for data, _, _ in REFUSED.values())]
PIECES = [
    *MUTATIONS,
    b"\x0b",
    b"\x7f",
    b"\r\n\r\n",
    b"\r\n ",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\n",
    b"Content-Length: 3\r\n",
    b"content-length:5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, x\r\n",
    b"Expect: 100-continue\r\n",
    b"Host: u\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
]
CODING = "transfer-encoding"
CONTROL = rb"[\x00-\x08\x0a-\x1f\x7f]"


def _head(rest: bytes) -> list[bytes]:
    """The lines of the first head in `rest`."""
    return rest.partition(b"\r\n\r\n")[0].split(b"\r\n")


def _names(rest: bytes) -> list[bytes]:
    return [line.partition(b":")[0].strip().lower() for line in _head(rest)[1:]]


def _header(rest: bytes, pattern: bytes) -> object:
    return any(re.match(pattern, line, re.IGNORECASE) for line in _head(rest)[1:])


def _no_host(value: str) -> bool:
    """A port that is no number, brackets that hold nothing, or a character that names and addresses do not have."""
    name, _, port = value.rpartition(":") if re.search(r":[^\]]*$", value) else (value, "", "")
    inside = name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name.replace(":", "/")
    wrong = re.search(r"[^\w.~!$&'()*+,;=%:-]", inside, re.ASCII)
    return bool(wrong) or name == "[]" or not re.fullmatch("[0-9]*", port)


# (a part of our message; whether a request breaks that rule: its bytes and all after them, and h11's reading of it).
# h11 takes such requests; but programs read them in different ways, or they cost more than our limits allow.
STRICTER: list[tuple[str, Callable[[bytes, tuple], object]]] = [
    ("is not METHOD TARGET", lambda rest, _: b"\n" in _head(rest)[0]),
    ("does not end with CR LF", lambda rest, _: re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", rest)),
    ("is not NAME: VALUE", lambda rest, _: any(re.search(rb"^[ \t]|" + CONTROL, line) for line in _head(rest)[1:])),
    ("sent twice", lambda rest, _: max(Counter(_names(rest)).values()) > 1),
    ("with an underscore", lambda rest, _: any(b"_" in name for name in _names(rest))),
    ("only HTTP/1.0 and HTTP/1.1", lambda rest, _: not _head(rest)[0].endswith((b" HTTP/1.0", b" HTTP/1.1"))),
    ("beside content-length", lambda rest, theirs: theirs[2] == 0 or _header(rest, rb"content-length:")),
    ("wanted digits only", lambda rest, _: _header(rest, rb"content-length:\s*\d+\s*,")),
    (
        "the target is not a path",
        lambda _, theirs: theirs[0] == "CONNECT" or not re.match(r"[/?]|https?://[^/?#]", theirs[1], re.IGNORECASE),
    ),
    ("header host: wanted", lambda _, theirs: _no_host(dict(theirs[3]).get("host", ""))),
    ("only 100-continue", lambda rest, _: _header(rest, rb"expect:")),
    ("trailers after a chunked", lambda rest, _: re.search(rb"\n0+[^\n]*\n[^\r\n]", rest)),
    ("start with its size", lambda rest, _: re.search(rb"\n[0-9a-fA-F]{13,}|\n[0-9a-fA-F]+\s*;.*" + CONTROL, rest)),
    ("a line of the chunked body is longer", lambda rest, _: max(map(len, rest.split(b"\n"))) > CHUNK_LINE_BYTES - 2),
    ("the request line is longer", lambda rest, _: len(_head(rest)[0]) > LIMITS.target_bytes - 2),
    ("the headers are longer", lambda rest, _: len(b"  ".join(_head(rest))) > LIMITS.head_bytes - 4),
    ("more than 8 headers", lambda rest, _: len(_head(rest)) > 1 + LIMITS.headers),
    ("the body is longer", lambda _, theirs: len(theirs[4]) > LIMITS.body_bytes),
]


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--seconds", type=number(float, 0), default=60.0, help="time to spend, once the live server is up")
    add("--seed", type=int, default=0, help="of the random requests")
    add("--live_every", type=number(int, 0), default=50, help="every so manieth case goes to the server; 0: none")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(_server(Path(folder))) if args.live_every else None
        figures = fuzz(random.Random(args.seed), args.seconds, args.live_every, server)
    print(json.dumps(figures | {"seed": args.seed}))
    sys.exit(1 if figures["disagreements"] else 0)


def _server(folder: Path):
    return running("intent", python("tests.bench.intent_app", "--port", 0), folder, environment(1), b"")


def fuzz(rng: random.Random, seconds: float, live_every: int, server: Server | None) -> dict:
    """Compare until the time is up; what was found, as figures."""
    cases = refused = live = disagreements = 0
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        data = make_case(rng)
        pieces = cut(rng, data)
        faults = compare(data, pieces)
        cases += 1
        refused += bool(read([data])[1])
        if server and cases % live_every == 0:
            live += 1
            faults += probe(server, pieces)
        for fault in faults:
            disagreements += 1
            print(f"{fault}\n  pieces: {pieces!r}", flush=True)
    if server and server.process.poll() is not None:
        disagreements += 1
        print(f"the server ended with status {server.process.poll()}")
    rate = round(cases / (time.monotonic() - start))
    return {"cases": cases, "disagreements": disagreements, "cases_per_s": rate, "refused": refused, "live": live}


def make_case(rng: random.Random) -> bytes:
    """One to three requests, some of them spliced or generated, then mutated; half of the cases lightly."""
    parts = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.65:
            parts.append(rng.choice(TAKEN))
        elif kind < 0.8:
            first, second = rng.choice(SEEDS), rng.choice(SEEDS)
            parts.append(first[: rng.randint(0, len(first))] + second[rng.randint(0, len(second)) :])
        else:
            parts.append(generated(rng))
    data = b"".join(parts)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        at, taken = rng.randint(0, len(data)), rng.choice((0, 0, 1, 2, 5))
        kind = rng.random()
        if kind < 0.7:
            added = rng.choice(PIECES)
        elif kind < 0.85:
            added = bytes([rng.randrange(256)])
        else:
            start = rng.randint(0, len(data))
            added = data[start : start + rng.randint(1, 30)]  # a piece of itself
        data = data[:at] + added + data[at + taken :]
    return data


def generated(rng: random.Random) -> bytes:
    """A request with a body in chunks or of a stated length, which may be stated wrongly."""
    body = bytes(rng.choices(b'ab01 {}":\r\n;', k=rng.randint(0, 40)))
    extra = [rng.choice(PIECES).strip() + b": " + rng.choice(PIECES).strip() for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.5:
        length = len(body) + rng.choice((0, 0, 0, 1, -1))
        return post(b"Content-Length: %d" % max(0, length), *extra, body=body)
    chunks, at = b"", 0
    while at < len(body):
        size = rng.randint(1, 20)
        chunk = body[at : at + size]
        chunks += b"%x%s\r\n%s\r\n" % (len(chunk), rng.choice((b"", b"", b";a=b", b" ")), chunk)
        at += size
    return post(CHUNKED, *extra, body=chunks + b"0\r\n\r\n")


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in up to eight pieces."""
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 7)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


def read(pieces: list[bytes]) -> tuple[list, str, int]:
    """What our parser makes of the pieces: requests as `oracle` gives them, why it refuses ("": it does not), and the
    number of bytes that the requests take."""
    parser, requests, request, fed, taken = RequestParser(LIMITS), [], None, 0, 0
    try:
        for piece in pieces:
            fed += len(piece)
            if request is None and not parser.buffered and (whole := parser.read_whole(piece)):
                requests.append(as_tuple(whole[0], piece[whole[1] :]))
                taken = fed
                continue
            parser.feed(piece)
            while (request := request or parser.read_head()) and (body := parser.read_body()) is not None:
                requests.append(as_tuple(request, body))
                request, taken = None, fed - parser.buffered
    except WireError as error:
        return requests, error.message, taken
    return requests, "", taken


def as_tuple(request: Request, body: bytes) -> tuple:
    """In the shape of `oracle`; h11 gives codings in lower case."""
    headers = request.headers | {name: value.lower() for name, value in request.headers.items() if name == CODING}
    return request.method, request.target, request.minor, sorted(headers.items()), body, request.keep_alive


def _is_last(request: tuple) -> bool:
    """Whether h11 reads no further: after "Connection: close", and after HTTP/1.0 whatever the client asks for."""
    return not request[-1] or request[2] == 0


def _meaning(request: tuple) -> tuple:
    """Without whether the connection stays open, in HTTP/1.0, where we do what the client asks for."""
    return request if request[2] else request[:-1]


def compare(data: bytes, pieces: list[bytes]) -> list[str]:
    """Where we and h11, or we and ourselves in pieces, disagree; in words."""
    requests, refusal, taken = read([data])
    in_pieces, refusal_in_pieces, _ = read(pieces)
    faults = []
    if (requests, bool(refusal)) != (in_pieces, bool(refusal_in_pieces)):
        faults.append(f"whole: {requests} {refusal!r}; in pieces: {in_pieces} {refusal_in_pieces!r}")
    accepted, _ = oracle(data)
    ours = next((requests[: at + 1] for at, request in enumerate(requests) if _is_last(request)), requests)
    closed = bool(ours) and _is_last(ours[-1])  # nobody reads on
    if [_meaning(request) for request in ours] != [_meaning(request) for request in accepted[: len(ours)]]:
        faults.append(f"we read {ours}, h11 reads {accepted[: len(ours)]}")
    elif len(accepted) > len(ours) and not closed:
        theirs = accepted[len(ours)]
        if not refusal:
            faults.append(f"we wait for more bytes, h11 reads {theirs}")
        elif not any(words in refusal and broken(data[taken:], theirs) for words, broken in STRICTER):
            faults.append(f"we refuse request {len(ours) + 1} ({refusal}), h11 reads {theirs}")
    return faults


def probe(server: Server, pieces: list[bytes]) -> list[str]:
    """Send the pieces to a live server, hang up, and send a good request; what was wrong, in words."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionError):  # it may refuse and close before all is sent
                for piece in pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            reply = _read_all(client)
    except TimeoutError:
        return ["the server neither answered nor closed within 10 s"]
    statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", reply, re.MULTILINE)]
    faults = []
    if reply and (not statuses or any(status >= 500 and status not in (501, 505) for status in statuses)):
        faults.append(f"the server answered {reply[:300]!r}, wanted a 2xx, a 4xx, 501 or 505")
    if not answers(server.port, b'{"text": "book a table"}'):
        faults.append("after these bytes the server did not answer a good request")
    return faults


def _read_all(client: socket.socket) -> bytes:
    reply = b""
    with suppress(ConnectionError):  # closed with bytes of ours unread
        while data := client.recv(65536):
            reply += data
    return reply


if __name__ == "__main__":
    run(main)
