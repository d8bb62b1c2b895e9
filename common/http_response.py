"""HTTP/1.1 responses as bytes.

    response(200, b'{"pred": 3}', own=(("X-Request-ID", "7f3a-1"),), keep_alive=request.keep_alive)

Reads nothing but the clock, for the header Date.
"""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REASONS = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(maxsize=512)
def _head(
    second: int, status: int, length: int, content_type: str, keep_alive: bool, minor: int, headers: tuple
) -> str:
    """What answers of one second have in common."""
    connection = "Connection: close\r\n" if not keep_alive else "" if minor else "Connection: keep-alive\r\n"
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nDate: {formatdate(second, usegmt=True)}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n{connection}{_lines(headers)}"
    )


def _lines(headers: tuple) -> str:
    lines = ""
    for name, value in headers:
        if "\r" in value or "\n" in value:
            raise ValueError(f"response header {name}: line break in {value!r}")
        lines += f"{name}: {value}\r\n"
    return lines


def response(
    status: int,
    body: bytes,
    *,
    headers: tuple = (),
    own: tuple = (),
    keep_alive: bool = True,
    minor: int = 1,
    head_only: bool = False,
    content_type: str = "application/json",
) -> bytes:
    """The bytes of one response. `head_only` is for HEAD: the body is left out.

    headers, own: (name, value) pairs that other answers have too, and those that no other has.

    Raises ValueError where a header holds a line break (it would start a second response).
    """
    head = _head(int(time.time()), status, len(body), content_type, keep_alive, minor, headers) + _lines(own)
    return f"{head}\r\n".encode("latin-1") + (b"" if head_only else body)
