"""The model server: HTTP/1.1 on asyncio, decoding on a few threads, one thread for the model.

    parser = argparse.ArgumentParser()
    add_server_flags(parser, port=8080)
    route = Route("/predict", key="image_base64", list_key="images_base64")
    sys.exit(run_server(lambda: Predictor(args.ckpt), route, parser.parse_args()))

What `load()` returns needs: `model_id` (str), `example` (one item, as a request holds it), `decode(item) -> row`
(ValueError in words for the client; called from several threads), `predict_rows(rows) -> list[dict]` (one forward pass,
plain values), `check_golden()` (raises on a mismatch). POST {key: item} gives one answer, {list_key: [item, ...]} or
{"items": [...]} gives {"items": [...]}. GET /health, /live and /ready are answered at any time. Writes the request log.
"""

import argparse
import asyncio
import logging
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count

from common.batcher import MicroBatcher, ModelError, checked
from common.cli import UserError, number
from common.http_connection import LINGER_S, RETRY, Connection
from common.http_wire import HttpError, Limits, Request
from common.monitor_core import Alarm, AlarmManager, SlidingWindow
from common.predictions import DecodePool, Prediction, Route, log_entry, outcome
from common.request_log import RequestLog

log = logging.getLogger(__name__)
TICK_S = 0.05  # how exact deadlines and time-outs are
LATENCY_WINDOW, ALARM_WINDOW = 512, 100  # answers: shown as p95; judged by the alarm, without overlap
JSON_TYPES = ("", "application/json", "text/plain", "application/x-www-form-urlencoded")  # the last is curl's default


class Server:
    """The state all connections share, and the life of the process: load, check, serve, drain."""

    def __init__(self, load: Callable[[], object], route: Route, args: argparse.Namespace):
        self.load, self.route, self.args = load, route, args
        self.limits = Limits(
            head_bytes=args.max_head_kb * 1024, headers=args.max_headers, body_bytes=int(args.max_body_mb * 1e6)
        )
        self.pages = {"/health": self._health, "/live": lambda: {"status": "live"}, "/ready": self._ready}
        self.predictor = None  # set once it has passed its checks
        self.draining, self.drain_start = False, 0.0
        self.connections: set[Connection] = set()
        self.jobs: set[Prediction] = set()  # accepted and not answered
        self.batcher = MicroBatcher(self._done, max_batch=args.max_batch, window_ms=args.window_ms, queue=args.queue)
        self.decoders = DecodePool(route, self.batcher, self._done, args.decode_threads)
        self.latencies, self.judged = SlidingWindow(LATENCY_WINDOW), SlidingWindow(ALARM_WINDOW)
        self.answers = count(1)
        self.alarms = AlarmManager()
        if args.alert_p95_ms:
            self.alarms.add(Alarm("lat_p95", threshold=args.alert_p95_ms, min_samples=ALARM_WINDOW))
        self.request_log = RequestLog(args.request_log) if args.request_log else None
        self.id_start, self.id_count = secrets.token_hex(6), count(1)

    # -- life --

    async def run(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[int] = self.loop.create_future()
        self.listener = await self.loop.create_server(
            lambda: Connection(self), self.args.host, self.args.port, backlog=1024
        )
        for stop in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(stop, self.stop)
        host, port = self.listener.sockets[0].getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        self.batcher.start()
        loaded = self.batcher.call(self._prepare)
        loaded.add_done_callback(lambda future: self._tell_loop(self._prepared, future))
        self._tick()
        code = await self.stopped
        until = time.monotonic() + LINGER_S
        while self.connections and time.monotonic() < until:  # answers on their way out
            await asyncio.sleep(0.01)
        if not self._end_threads():
            # the model is still busy with work that nobody waits for; Python would crash if it ended under that thread
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code

    def stop(self) -> None:
        """Not ready from now on; the rest is done by the next ticks."""
        if not self.draining:
            self.draining, self.drain_start = True, time.monotonic()

    def _end_threads(self) -> bool:
        """False if the model or a decoder is still busy (with work nobody waits for)."""
        ended = [self.batcher.stop(0.5), self.decoders.stop(0.1)]
        if self.request_log:
            self.request_log.close()
        return all(ended)

    def _prepare(self) -> object:
        """In the model's thread: load, warm up, replay the golden answers."""
        predictor = self.load()
        row = predictor.decode(predictor.example)
        for rows in (1, 1, max(1, self.args.max_batch // 2), self.args.max_batch):
            results = predictor.predict_rows([row] * rows)
            if len(results) != rows or any(isinstance(checked(result), ModelError) for result in results):
                raise ModelError(f"warm-up: wanted {rows} answers of finite values for {rows} times the example")
        predictor.check_golden()
        self.batcher.use(predictor.predict_rows)
        return predictor

    def _prepared(self, future: Future) -> None:
        if error := future.exception():
            trace = None if isinstance(error, UserError) else error
            log.error("the model cannot be served: %s", error, exc_info=trace)
            self._end(1)
        else:
            self.predictor = future.result()
            self.decoders.start(self.predictor.decode)
            print(f"ready with model {self.predictor.model_id}", flush=True)

    def _tick(self) -> None:
        self.loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        for job in [job for job in self.jobs if job.deadline <= now]:
            self._answer(job, HttpError(504, "no answer within the time limit"))
        for connection in [connection for connection in self.connections if connection.expires <= now]:
            connection.time_out()
        if self.draining:
            self._drain(now - self.drain_start)

    def _drain(self, waited: float) -> None:
        self.listener.close()
        busy = any(connection.request for connection in self.connections)
        # an idle client may just be sending: for a moment it still gets a 503 instead of a broken connection
        idle = self.connections and waited < LINGER_S
        if not (busy or idle) or waited >= self.args.drain_s:
            for job in list(self.jobs):
                self._answer(job, HttpError(503, "the server stopped before the answer was ready"))
            self._end(0)

    def _end(self, code: int) -> None:
        for connection in list(self.connections):
            connection.transport.close()
        if not self.stopped.done():
            self.stopped.set_result(code)

    # -- the GET pages --

    def _health(self) -> dict:
        lost = {"log_lines_lost": self.request_log.lost} if self.request_log else {}
        model_id = self.predictor.model_id if self.predictor else None
        return {"status": "ok", "ready": self._state() == "", "model_id": model_id, "queue": self.batcher.depth, **lost}

    def _ready(self) -> dict:
        if state := self._state():
            raise HttpError(503, state, RETRY)
        return {"status": "ready", "model_id": self.predictor.model_id}

    def _state(self) -> str:
        """Why there are no predictions now; empty if there are."""
        if self.draining:
            return "the server is stopping"
        return "" if self.predictor else "the model is still loading"

    # -- one prediction, from head to answer --

    def request_id(self, request: Request) -> str:
        sent = re.sub(r"[^A-Za-z0-9._:-]", "", request.headers.get("x-request-id", ""))[:128]
        return sent or f"{self.id_start}-{next(self.id_count):x}"

    def refusal(self, request: Request) -> HttpError | None:
        """What the head alone decides, before the body is read."""
        path, headers = request.path, request.headers
        if path not in self.pages and path != self.route.path:
            return HttpError(404, f"nothing is at this path; try {self.route.path} or {', '.join(self.pages)}")
        allowed = ("GET", "HEAD") if path in self.pages else ("POST",)
        if request.method not in allowed:
            return HttpError(405, f"wanted {' or '.join(allowed)}", (("Allow", ", ".join(allowed)),))
        if path in self.pages:
            return None
        if state := self._state():
            return HttpError(503, state, RETRY)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in JSON_TYPES and not kind.endswith("+json"):
            return HttpError(415, "wanted Content-Type: application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            return HttpError(415, "wanted a body without Content-Encoding")
        return HttpError(429, "the queue is full", RETRY) if self.batcher.full else None

    def accept(self, connection: Connection, body: bytes) -> Prediction:
        """Raises HttpError 400 or 429. From here on the request gets an answer."""
        now = time.monotonic()
        limit_ms = connection.request.headers.get("x-timeout-ms", "")
        if limit_ms and not re.fullmatch("[1-9][0-9]{0,8}", limit_ms):
            raise HttpError(400, "header x-timeout-ms: wanted whole milliseconds, 1 or more")
        seconds = min(int(limit_ms or self.args.timeout_ms), self.args.timeout_ms) / 1000
        if not self.batcher.reserve():
            raise HttpError(429, "the queue is full", RETRY)
        job = Prediction(connection, body, now, now + seconds)
        self.jobs.add(job)
        self.decoders.put(job)
        return job

    def _done(self, jobs: list[Prediction]) -> None:
        """From the other threads; once per batch, not per item."""
        self._tell_loop(self._answer_all, jobs)

    def _tell_loop(self, function: Callable, value: object) -> None:
        if not self.loop.is_closed():  # closed: we are past the drain time, and nobody waits for this
            self.loop.call_soon_threadsafe(function, value)

    def _answer_all(self, jobs: list[Prediction]) -> None:
        for job in jobs:
            if not job.abandoned and job.deadline > time.monotonic():
                self._answer(job, job.error)

    def _answer(self, job: Prediction, error: HttpError | None) -> None:
        connection, now = job.connection, time.monotonic()
        lat_ms = round((now - job.accepted_at) * 1000, 3)
        status, answer = (error.status, {"error": error.message}) if error else outcome(job)
        if status == 200:
            self._observe(lat_ms)
            answer |= {"lat_ms": lat_ms, "p95": round(self.latencies.quantile(0.95), 3), "alert": self.alarms.firing()}
            answer |= {"req_id": connection.req_id, "model_id": self.predictor.model_id}
        if self.request_log:
            self.request_log.put(log_entry(job, status, lat_ms, self.predictor.model_id))
        job.abandoned = True
        self.jobs.discard(job)
        connection.finish(status, answer, error.headers if error else ())

    def _observe(self, lat_ms: float) -> None:
        self.latencies.push(lat_ms)
        self.judged.push(lat_ms)
        if self.args.alert_p95_ms and next(self.answers) % ALARM_WINDOW == 0:
            for event in self.alarms.run({"lat_p95": (self.judged.quantile(0.95), ALARM_WINDOW)}):
                log.warning("alarm %s", event)


def add_server_flags(parser: argparse.ArgumentParser, port: int) -> None:
    """The flags of every server; `port` is the default port."""
    whole, some = number(int, 1), number(float, 0)
    flags = [
        ("host", str, "127.0.0.1", "address to listen on; 0.0.0.0 for all"),
        ("port", number(int, 0, 65535), port, "port to listen on; 0 picks a free one"),
        ("max_batch", whole, 32, "most rows in one forward pass"),
        ("window_ms", some, 5.0, "longest wait of a busy model for rows in decode, in ms; an idle one never waits"),
        ("queue", whole, 256, "most rows accepted and not yet through the model; beyond it the answer is 429"),
        ("timeout_ms", whole, 5000, "time for one answer, queue included, in ms; the header X-Timeout-Ms shortens it"),
        ("drain_s", some, 20.0, "longest time to finish accepted requests on SIGTERM, in seconds"),
        ("decode_threads", whole, min(8, os.cpu_count() or 1), "threads that decode requests"),
        ("max_body_mb", some, 10.0, "largest request body, in MB"),
        ("max_head_kb", whole, 16, "largest request head, in KiB"),
        ("max_headers", whole, 64, "most headers of a request"),
        ("max_connections", whole, 4096, "most open connections; beyond it the answer is 503"),
        ("head_s", some, 10.0, "time for a client to send the head of a request, in seconds"),
        ("body_s", some, 30.0, "time for a client to send a body or to take an answer, in seconds"),
        ("idle_s", some, 75.0, "time an unused connection is kept open, in seconds"),
        ("alert_p95_ms", some, 0.0, "raise the alarm lat_p95 at this latency in ms; 0 is off"),
        ("request_log", str, "", "JSONL file that gets one line per prediction; empty is off"),
    ]
    for name, kind, default, text in flags:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")


def run_server(load: Callable[[], object], route: Route, args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0, or 1 if the port is taken or the model fails its checks."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    try:
        return asyncio.run(Server(load, route, args).run())
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", args.host, args.port, error)
        return 1
