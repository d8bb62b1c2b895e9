"""Who a request is: the id in its answer and in the log, and its place in the caller's trace.

    ids = RequestIds()
    req_id, traceparent = ids.of(request)   # those of X-Request-ID and traceparent, or a new id and ""

https://www.w3.org/TR/trace-context/, level 1.
"""

from __future__ import annotations

import re
import secrets
from itertools import count

from common.http_wire import Request

# what follows the flags, in a version to come, is passed over
TRACE = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
NOT_IN_ID = re.compile(r"[^A-Za-z0-9._:-]")


class RequestIds:
    """Ids that no other process and no other request of this one has."""

    def __init__(self):
        self.start, self.count = secrets.token_hex(6), count(1)

    def of(self, request: Request) -> tuple[str, str]:
        """(id, traceparent of a span that is a child of the caller's; "" without a valid one)."""
        sent, trace = request.headers.get("x-request-id"), request.headers.get("traceparent")
        req_id = (sent and NOT_IN_ID.sub("", sent)[:128]) or f"{self.start}-{next(self.count):x}"
        valid = trace and TRACE.fullmatch(trace)
        return req_id, f"00{trace[2:36]}{secrets.token_hex(8)}{trace[52:55]}" if valid else ""
