"""One client's connection: bytes to requests, answers to bytes, and what a slow or rude client may cost.

    sockets = Sockets(loop, lambda: Connection(server))

`server` gives `args`, `limits`, `phase_s`, `loop`, `connections`, `outbox`, `jobs`, `tally`, `batcher`, `draining`; its
`begin(connection, request)` says from the head alone where a request goes, or why it is refused. A page's reply is sent
at once; a job's comes later, to `finish`. Everything here runs on the event loop. A client that closes its sending side
counts as gone.
"""

import argparse
import asyncio
import math
import time

from common.batcher import Job
from common.endpoints import RETRY, Endpoint, Reply, error_reply
from common.http_response import CONTINUE, response
from common.http_wire import HttpError, Request, RequestParser, WireError
from common.sockets import Transport

LINGER_S = 1.0  # a client that gets its last answer may read it this long
PROMPT_S = 0.004  # from the first of a turn's answers until all are sent; what is more makes the model rest
PAUSE_BYTES = 65536  # pipelined bytes kept while an earlier answer is on its way


class Connection(asyncio.Protocol):
    """One client: its requests are answered one at a time, in order."""

    def __init__(self, server):
        self.server, self.parser = server, RequestParser(server.limits)
        self.request: Request | None = None  # the head that is being answered
        self.endpoint: Endpoint | None = None  # where it goes
        self.refusal: HttpError | None = None  # its answer, when that is known before the body
        self.job: Job | None = None
        self.req_id = self.trace = ""
        self.unsent = b""  # see Outbox
        self.closing, self.writable, self.phase, self.expires = False, True, "", math.inf

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport
        self.server.connections.add(self)
        if len(self.server.connections) > self.server.args.max_connections:
            self.refuse(HttpError(503, "too many connections", RETRY))
        self._watch_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.server.connections.discard(self)
        if self.job:  # nobody waits for it any more: its queued rows are dropped
            self.job.abandoned = True
            self.server.jobs.discard(self.job)
            self.server.canary.left(self.job)

    def data_received(self, data: bytes) -> None:
        if self.closing:  # refused: what still arrives is dropped
            return
        try:
            whole = self.parser.read_whole(data) if self.phase == "idle" and self.writable else None
        except WireError as error:
            self.refuse(error)
            return
        if whole:
            self._begin(whole[0])
            self._handle(b"" if self.refusal else data[whole[1] :])
            self._watch_time()
            return
        self.parser.feed(data)
        if (self.job or not self.writable) and self.parser.buffered > PAUSE_BYTES:
            self.transport.pause_reading()
        self.advance()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.transport.resume_reading()
        self.advance()

    def advance(self) -> None:
        """Handle what has arrived, up to the next prediction: its answer comes later."""
        try:
            while (self.request or self.parser.buffered) and self.writable and not (self.job or self.closing):
                if not self._step():
                    break
        except WireError as error:
            self.refuse(error)
        self._watch_time()

    def _step(self) -> bool:
        """One head or one body; False when bytes are missing."""
        if self.request is None:
            request = self.parser.read_head()
            if request is not None:
                self._begin(request)
                self._prepare_body(request)
            return request is not None
        body = self.parser.read_body()
        if body is not None:
            self._handle(body)
        return body is not None

    def _begin(self, request: Request) -> None:
        self.request = request
        self.endpoint, self.refusal = self.server.begin(self, request)

    def _prepare_body(self, request: Request) -> None:
        if self.refusal:
            self.parser.discard_body()
        if request.expects_continue and not self.parser.buffered:
            if self.refusal:
                self.refuse(self.refusal)
            else:
                self.write(CONTINUE)

    def _handle(self, body: bytes) -> None:
        try:
            if self.refusal:
                self.send(error_reply(self.refusal))
            elif self.endpoint.page:
                self.send(self.endpoint.page(self.request, body))
            else:
                self.job = self.endpoint.accept(self, body)
        except HttpError as error:
            self.send(error_reply(error))

    def send(self, reply: Reply) -> None:
        request, keep_alive = self.request, self.request.keep_alive and not self.server.draining
        traced = (("traceparent", self.trace),) if self.trace else ()
        data = response(
            reply.status,
            reply.body,
            headers=reply.headers,
            own=(("X-Request-ID", self.req_id), *traced),
            keep_alive=keep_alive,
            minor=request.minor,
            head_only=request.method == "HEAD",
            content_type=reply.content_type,
        )
        # where decoding has threads, it is their clients' waking early that keeps them busy
        batched = self.job and self.job.batch > 1 and not self.server.args.decode_threads
        if keep_alive and (self.refusal or batched):
            self.server.outbox.add(self, data)
        else:
            self.write(data)
        self.server.tally.count(self.endpoint, reply.status, self.server.loop)
        self.request = self.refusal = self.job = None
        self.phase = ""
        if not keep_alive:
            self._hang_up()

    def write(self, data: bytes = b"") -> None:
        """Send `data`, after what is still unsent."""
        self.transport.write(self.unsent + data)
        self.unsent = b""

    def finish(self, reply: Reply) -> None:
        """Send the answer of the job, then go on with what was pipelined behind it."""
        self.send(reply)
        self.transport.resume_reading()
        if self.parser.buffered:
            self.advance()
        else:
            self._watch_time()

    def refuse(self, error: HttpError) -> None:
        """Answer a request that was not read to its end, and close."""
        reply = error_reply(error)
        self.write(response(reply.status, reply.body, headers=reply.headers, keep_alive=False))
        self.server.tally.count(self.endpoint if self.request else None, reply.status, self.server.loop)
        self.request = None
        self._hang_up()

    def _hang_up(self) -> None:
        """Closing at once would destroy the answer if more bytes arrive, so: half-close, and wait for the client's."""
        self.closing, self.expires = True, time.monotonic() + LINGER_S
        self.transport.write_eof()

    def _watch_time(self) -> None:
        """A phase has so many seconds as a whole: bytes that trickle in do not prolong it."""
        if self.closing:
            return
        phase = "idle"
        if self.job:
            phase = "work"
        elif not self.writable:
            phase = "write"
        elif self.request or self.parser.buffered:
            phase = "body" if self.request else "head"
        if phase != self.phase:
            self.phase, self.expires = phase, time.monotonic() + self.server.phase_s[phase]

    def time_out(self) -> None:
        if self.phase in ("head", "body") and not self.closing:
            self.refuse(HttpError(408, f"the {self.phase} of the request did not arrive in time"))
        else:
            self.transport.abort()


class Outbox:
    """Answers that leave together, once all that has arrived is read: refusals, and those of one batch.

    Each one sent at once would wake its client, who then takes turns with this thread where cores are few.
    """

    def __init__(self):
        self.connections: list[Connection] = []
        self.began = 0.0

    def add(self, connection: Connection, data: bytes) -> None:
        """Send `data` with the others."""
        if not self.connections:
            self.began = time.monotonic()
            connection.server.loop.call_soon(self._send)
        if not connection.unsent:
            self.connections.append(connection)
        connection.unsent += data

    def _send(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            if connection.unsent:  # else it was sent with what came behind, and the connection may be closing
                connection.write()
        connections[0].server.batcher.late_s += max(0.0, time.monotonic() - self.began - PROMPT_S)


def phase_seconds(args: argparse.Namespace) -> dict[str, float]:
    """What each phase of a connection may take, by the flags; work has the deadline of its job."""
    return {"idle": args.idle_s, "head": args.head_s, "body": args.body_s, "write": args.body_s, "work": math.inf}
