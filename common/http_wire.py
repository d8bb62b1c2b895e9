"""HTTP/1.1 requests as bytes: no sockets, no threads.

    parser = RequestParser(Limits(body_bytes=10_000_000))
    parser.feed(data)                       # whatever the socket gave
    request = parser.read_head()            # None: more bytes are needed
    body = parser.read_body()               # None: more bytes are needed

Strict on purpose: whatever two HTTP programs could read in two ways (which is how requests are smuggled past a proxy)
is a `WireError`; the server answers it and closes. Grammar: RFC 9110 and RFC 9112.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
FIELD = re.compile(rb"(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?[ \t]*")
# line ends other than CRLF, and NUL; a CR that ends the buffer may still get its LF
BROKEN_LINE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
HOST = re.compile(r"(\[[\w.~!$&'()*+,;=%:-]+]|[\w.~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII)  # RFC 3986, 3.2.2
ABSOLUTE_TARGET = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
MOST_CHUNKS = 20_000  # of one body: reading a chunk of one byte takes as long as one of a thousand
ONCE_ONLY = ("content-length", "transfer-encoding", "host")
CHUNK_LINE_BYTES = 256
CACHED_HEAD_BYTES = 1024


class HttpError(Exception):
    """An answer that is not a success: `status`, a `message` for the client, extra `headers` as (name, value) pairs."""

    def __init__(self, status: int, message: str, headers: tuple = ()):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class WireError(HttpError):
    """The bytes are not one clear request. Nothing after them can be trusted: answer, then close."""


@dataclass(frozen=True, eq=False)  # a key of a cache, which by its values would take long to find
class Limits:
    """What one request may cost. All in bytes, but `headers`, a count."""

    target_bytes: int = 8192
    head_bytes: int = 16384
    headers: int = 64
    body_bytes: int = 10_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request. Header names are lower case; a name sent twice has its values joined by a comma."""

    method: str
    target: str
    path: str  # target without scheme, host and query
    minor: int  # 0 for HTTP/1.0, 1 for HTTP/1.1
    headers: dict[str, str]
    media: str  # the content type without its parameters, in lower case
    keep_alive: bool
    expects_continue: bool


class RequestParser:
    """Bytes in, requests out, one after the other: read_head, read_body, read_head, ...

    Both raise WireError (400, 413, 414, 417, 431, 501, 505); after one the parser must not be used again.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self._short = min(CACHED_HEAD_BYTES, self.limits.target_bytes - 4, self.limits.head_bytes - 4)
        self._buffer = bytearray()
        self._scanned = 0  # bytes of an unfinished head that were already searched for its end
        self._start_body(0, False)

    def feed(self, data: bytes | memoryview) -> None:
        if self._left and not self._keep and not self._chunked:  # the answer is known: spare the copy
            dropped = min(self._left, len(data))
            self._left -= dropped
            data = data[dropped:]
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes received and not yet handed out."""
        return len(self._buffer)

    def read_whole(self, data: bytes) -> tuple[Request, int] | None:
        """(head, where the body begins) of the one request that `data` is, as most are; None: `feed` it.

        Only between two requests, with nothing buffered.
        """
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= self._short:
            return None
        request, length, chunked = _read_head(data[:end], self.limits)
        if chunked or request.expects_continue or end + 4 + length != len(data):
            return None
        return request, end + 4

    def read_head(self) -> Request | None:
        buffer, limits = self._buffer, self.limits
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        head_bytes = end + 4 if end >= 0 else len(buffer)
        if head_bytes > limits.target_bytes and buffer.find(b"\r\n", 0, limits.target_bytes) < 0:
            raise WireError(414, f"the request line is longer than {limits.target_bytes} bytes")
        if head_bytes > limits.head_bytes:
            raise WireError(431, f"the headers are longer than {limits.head_bytes} bytes")
        if end < 0:
            if BROKEN_LINE.search(buffer, max(0, self._scanned - 1)):
                raise WireError(400, "a line of the request does not end with CR LF, or holds a NUL")
            self._scanned = len(buffer)
            return None
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        self._scanned = 0
        read = _read_head if end <= CACHED_HEAD_BYTES else _read_head.__wrapped__
        request, length, chunked = read(head, limits)
        self._start_body(length, chunked)
        return request

    def read_body(self) -> bytes | None:
        """The whole body (chunks joined; b"" after discard_body), or None while bytes are missing."""
        return self._read_chunks() if self._chunked else self._read_sized()

    def discard_body(self) -> None:
        """Do not keep the body of this request in memory: its answer is already known."""
        self._keep = False
        if not self._chunked:
            self._read_sized()

    def _start_body(self, length: int, chunked: bool) -> None:
        self._left, self._chunked = length, chunked
        self._body, self._total, self._last, self._keep = bytearray(), 0, False, True
        self._chunks = 0

    def _read_sized(self) -> bytes | None:
        if not self._keep:
            dropped = min(self._left, len(self._buffer))
            del self._buffer[:dropped]
            self._left -= dropped
            return None if self._left else b""
        if len(self._buffer) < self._left:
            return None
        body = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left = 0
        return body

    def _read_chunks(self) -> bytes | None:
        while not self._left or self._read_chunk():
            if self._last and (line := self._read_line()) is not None:
                if line:  # nothing here uses trailers, and proxies disagree on them
                    raise WireError(400, "trailers after a chunked body are not accepted")
                return bytes(self._body)
            if self._last or (line := self._read_line()) is None:
                return None
            size = CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise WireError(400, "a chunk does not start with its size in hexadecimal")
            self._left = int(size[1], 16)
            self._last = self._left == 0
            self._total += self._left
            self._chunks += 1
            if self._chunks > MOST_CHUNKS:
                raise WireError(413, f"the body comes in more than {MOST_CHUNKS} chunks")
            _check_body_size(self._total, self.limits.body_bytes)
        return None

    def _read_chunk(self) -> bool:
        buffer, left = self._buffer, self._left
        if len(buffer) < left + 2:
            return False
        if buffer[left : left + 2] != b"\r\n":
            raise WireError(400, "a chunk is not followed by CR LF")
        if self._keep:
            self._body += buffer[:left]
        del buffer[: left + 2]
        self._left = 0
        return True

    def _read_line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end > CHUNK_LINE_BYTES or (end < 0 and len(self._buffer) > CHUNK_LINE_BYTES):
            raise WireError(400, f"a line of the chunked body is longer than {CHUNK_LINE_BYTES} bytes")
        if end < 0:
            return None
        if end == 0 or self._buffer[end - 1] != 13:
            raise WireError(400, "a line of the chunked body does not end with CR LF")
        line = bytes(self._buffer[: end - 1])
        del self._buffer[: end + 1]
        return line


@lru_cache(maxsize=512)  # a client says the same again and again: reading it anew is a tenth of a short request's cost
def _read_head(head: bytes, limits: Limits) -> tuple[Request, int, bool]:
    """(request, body length in bytes, chunked or not)."""
    first, *lines = head.split(b"\r\n")
    if len(lines) > limits.headers:
        raise WireError(431, f"more than {limits.headers} headers")
    method, target, minor = _request_line(first)
    headers = _fields(lines)
    return _request(method, target, minor, headers), *_framing(headers, minor, limits.body_bytes)


def _request_line(line: bytes) -> tuple[str, str, int]:
    found = REQUEST_LINE.fullmatch(line)
    if found is None:
        raise WireError(400, "the request line is not METHOD TARGET HTTP/1.1")
    if found[3] != b"1" or found[4] not in (b"0", b"1"):
        raise WireError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return found[1].decode(), found[2].decode(), int(found[4])


def _fields(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        found = FIELD.fullmatch(line)
        if found is None:
            raise WireError(400, "a header is not NAME: VALUE on one line")
        name, value = found[1].decode().lower(), found[2].strip(b" \t").decode("latin-1")
        if "_" in name and name.replace("_", "-") in ONCE_ONLY:
            raise WireError(400, f"header {name}: written with an underscore")
        if name in headers:
            if name in ONCE_ONLY:
                raise WireError(400, f"header {name}: sent twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _framing(headers: dict[str, str], minor: int, body_bytes: int) -> tuple[int, bool]:
    """(body length in bytes, chunked or not); a request that states neither has no body."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or minor == 0:
            raise WireError(400, "transfer-encoding: neither in HTTP/1.0 nor beside content-length")
        if coding.lower() != "chunked":
            raise WireError(501, "transfer-encoding: only chunked is understood")
        return 0, True
    if length is None:
        return 0, False
    if not (length.isascii() and length.isdigit()):
        raise WireError(400, "content-length: wanted digits only")
    digits = length.lstrip("0") or "0"
    size = int(digits) if len(digits) <= 18 else 10**18
    _check_body_size(size, body_bytes)
    return size, False


def _check_body_size(size: int, most: int) -> None:
    if size > most:
        raise WireError(413, f"the body is longer than {most} bytes")


def _request(method: str, target: str, minor: int, headers: dict[str, str]) -> Request:
    if minor == 1 and "host" not in headers:
        raise WireError(400, "header host: missing")
    if not HOST.fullmatch(headers.get("host", "")):
        raise WireError(400, "header host: wanted NAME or NAME:PORT")
    path = ABSOLUTE_TARGET.sub("", target, count=1) or "/" if target[0] != "/" else target
    if method == "CONNECT" or (path[0] not in "/?" and (method, path) != ("OPTIONS", "*")):
        raise WireError(400, "the target is not a path such as /health")
    expect = headers.get("expect", "").lower() if minor == 1 else ""
    if expect not in ("", "100-continue"):
        raise WireError(417, "expect: only 100-continue is understood")
    options = {option.strip(" \t") for option in headers.get("connection", "").lower().split(",")}
    keep_alive = "close" not in options and (minor == 1 or "keep-alive" in options)
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    return Request(method, target, path.partition("?")[0] or "/", minor, headers, media, keep_alive, expect != "")
