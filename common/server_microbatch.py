"""The model server: HTTP/1.1 on asyncio, decoding on a few threads, one thread for the model.

    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt")
    add_server_flags(parser, port=8080)
    args = parser.parse_args()
    route = Route("/predict", key="image_base64", list_key="images_base64", name="vision", form="photo")
    sys.exit(run_server(lambda: Predictor.load(args.ckpt), route, args))

What `load()` returns needs: `model_id` (str), `example` (one item, as a request holds it), `decode(item) -> row`
(ValueError in words for the client; called from several threads), `predict_rows(rows) -> list[dict]` (one forward pass,
plain values), `check_golden()` (raises on a mismatch); `version` and `data_version` (str) where there are any. POST
{key: item} gives one answer, {list_key: [item, ...]} or {"items": [...]} gives {"items": [...]}. GET / shows what else
there is. Writes the request log.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable

from common.batcher import MicroBatcher
from common.canary import Canary
from common.cli import UserError
from common.endpoints import RETRY, Endpoint, error_reply, read_tokens, refusal
from common.http_connection import LINGER_S, Connection, Outbox, phase_seconds
from common.http_wire import HttpError, Request
from common.metrics import Metrics
from common.model_process import load_apart, model_settings, serve_model
from common.model_slot import ModelSlot
from common.monitor_core import SlidingWindow
from common.monitor_pages import answer_worker, make_monitor
from common.predictions import DecodePool, Prediction, Route, fault, log_entry, stages
from common.request_ids import RequestIds
from common.request_log import RequestLog
from common.server_flags import add_server_flags as add_server_flags
from common.server_flags import limits
from common.server_pages import endpoints, snapshot
from common.sockets import Sockets
from common.supervisor import Supervisor
from common.tally import Tally
from common.workers import WorkerLink, worker_settings

log = logging.getLogger(__name__)
TICK_S = 0.05  # how exact deadlines and time-outs are
SWITCH_S = 0.0005  # the event loop waits so long for Python in other threads; Python's own 0.005 is long under a flood
LATENCY_WINDOW = 512  # answers whose p95 is shown
QUEUE_FULL = HttpError(429, "the queue is full", RETRY)


class Server:
    """The state all connections share, and the life of the process: load, check, serve, drain."""

    def __init__(self, load: Callable[[], object], route: Route, args: argparse.Namespace, link: WorkerLink | None):
        self.route, self.args, self.link = route, args, link
        self.tokens = read_tokens(args)
        self.limits = limits(args)
        self.phase_s = phase_seconds(args)
        self.draining, self.drain_start, self.reloading = False, 0.0, False
        self.connections: set[Connection] = set()
        self.outbox = Outbox()
        self.jobs: set[Prediction] = set()  # accepted and not answered
        self.batcher = MicroBatcher(self._done, max_batch=args.max_batch, window_ms=args.window_ms, queue=args.queue)
        self.decoders = DecodePool(self.batcher, self._done, args.decode_threads)
        self.slot = ModelSlot(load_apart(load, args) if args.model_process else load, args, self.batcher)
        self.latencies = SlidingWindow(LATENCY_WINDOW)
        self.watched: dict = {}  # what the answers of one batch say of all answers
        self.metrics = Metrics()
        self.request_log = RequestLog(args.request_log, args.request_log_mb) if args.request_log else None
        self.ids = RequestIds()
        self.monitor = make_monitor(self)
        self.tally = Tally(self.metrics, self.monitor)
        self.canary = Canary(self)
        self.endpoints = endpoints(self)

    # -- life --

    async def run(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[int] = self.loop.create_future()
        for stop in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(stop, self.stop)
        self.loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self.sockets = Sockets(self.loop, lambda: Connection(self))
        await self.sockets.listen(self.args.host, self.args.port, reuse_port=bool(self.link))
        if self.link:
            await self.link.open(self._asked_by_supervisor, self.stop)
        host, port = self.sockets.listening[0].getsockname()[:2]
        self._say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", "listening")
        self.batcher.start()
        self.monitor.start()
        filled = self.batcher.call(self.slot.fill)
        filled.add_done_callback(lambda future: self.tell_loop(self._filled, future.exception()))
        self._tick()
        code = await self.stopped
        until = time.monotonic() + LINGER_S
        while self.connections and time.monotonic() < until:  # answers on their way out
            await asyncio.sleep(0.01)
        self.sockets.stop_listening()  # the port is open still where the model was refused
        for connection in list(self.connections):
            connection.transport.abort()
        self.sockets.close()
        if not self._end_threads():
            # the model is still busy with work that nobody waits for; Python would crash if it ended under that thread
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code

    def _say(self, words: str, event: str) -> None:
        """To the terminal; a worker leaves that to its supervisor."""
        if self.link:
            self.link.tell(event, words)
        else:
            print(words, flush=True)

    def stop(self) -> None:
        """Not ready from now on; the rest is done by the next ticks."""
        if not self.draining:
            self.draining, self.drain_start = True, time.monotonic()

    def _end_threads(self) -> bool:
        """False if the model or a decoder is still busy (with work nobody waits for)."""
        ended = [self.batcher.stop(0.5), self.decoders.stop(0.1), self.canary.stop(0.2)]
        self.monitor.close()
        if self.request_log:
            self.request_log.close()
        return all(ended)

    def _filled(self, error: BaseException | None) -> None:
        if error:
            log.error("the model cannot be served: %s", error, exc_info=None if isinstance(error, UserError) else error)
            self._end(1)
            return
        self.endpoints = endpoints(self)
        gc.collect()
        gc.freeze()  # what lives as long as the process is not searched for garbage again and again
        self.decoders.start()
        self.monitor.wake()
        self.canary.start()
        self._say(f"ready with model {self.slot.predictor.model_id}", "ready")

    def _tick(self) -> None:
        self.loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        for job in [job for job in self.jobs if job.deadline <= now]:
            self.answer(job, HttpError(504, "no answer within the time limit"))
        for connection in [connection for connection in self.connections if connection.expires <= now]:
            connection.time_out()
        if self.draining:
            self._drain(now - self.drain_start)
        self.canary.tick(now)

    def _drain(self, waited: float) -> None:
        if self.sockets.listening:
            self.sockets.stop_listening()
            return
        busy = any(connection.request for connection in self.connections)
        # an idle client may just be sending: for a moment it still gets a 503 instead of a broken connection
        idle = self.connections and waited < LINGER_S
        if not (busy or idle) or waited >= self.args.drain_s:
            for job in list(self.jobs):
                self.answer(job, HttpError(503, "the server stopped before the answer was ready"))
            self._end(0)

    def _end(self, code: int) -> None:
        for connection in list(self.connections):
            connection.transport.close()
        if not self.stopped.done():
            self.stopped.set_result(code)

    # -- what the pages ask for --

    def unavailable(self) -> str:
        """Why there are no predictions now; empty if there are."""
        if self.draining:
            return "the server is stopping"
        return "" if self.slot.predictor else "the model is still loading"

    async def reload(self, wanted: dict) -> dict:
        """Load, check and swap beside the traffic. Raises HttpError 409 or 422; the model served until then goes on."""
        if self.reloading or (why := self.unavailable() or self.canary.busy()):
            raise HttpError(409, "a reload is under way" if self.reloading else why, RETRY)
        self.reloading = True
        try:
            done = await asyncio.to_thread(self.slot.replace, wanted)
        except Exception as error:
            self.metrics.count("model_reloads_total", 'result="refused"')
            trace = None if isinstance(error, UserError) else error
            log.error("reload refused, the old model goes on: %s", error, exc_info=trace)
            raise HttpError(422, f"refused, the old model goes on: {error}") from error
        finally:
            self.reloading = False
        self.endpoints = endpoints(self)
        self.canary.reloaded(done)
        self.metrics.count("model_reloads_total", 'result="done"')
        return done

    def _reload_by_signal(self) -> None:
        task = self.loop.create_task(self.reload({}))
        task.add_done_callback(self._reloaded_by_signal)

    def _reloaded_by_signal(self, task: asyncio.Task) -> None:
        if (error := task.exception()) and getattr(error, "status", 0) == 409:  # else the log has it already
            log.error("SIGHUP: no reload now, the old model goes on: %s", error)

    async def _asked_by_supervisor(self, what: str, value: object) -> object:
        if what in ("snapshot", "apply"):
            return snapshot(self) if what == "snapshot" else self.canary.apply(value)
        return await self.reload(value) if what == "reload" else answer_worker(self, what, value)

    # -- one prediction, from head to answer --

    def begin(self, connection: Connection, request: Request) -> tuple[Endpoint | None, HttpError | None]:
        """What the head alone decides: where the request goes, or why it is refused before its body is read."""
        connection.req_id, connection.trace = self.ids.of(request)
        endpoint = self.endpoints.get(request.path)
        if endpoint is None:
            return None, HttpError(404, f"nothing is at this path; try {', '.join(self.endpoints)}")
        error = refusal(endpoint, request, self.tokens)
        if endpoint.predicts and error is None:
            if why := self.unavailable():
                error = HttpError(503, why, RETRY)
            elif self.batcher.full:
                error = QUEUE_FULL
        return endpoint, error

    def accept(self, protocol: object, connection: Connection, body: bytes) -> Prediction:
        """Raises HttpError 400 or 429. From here on the request gets an answer."""
        limit_ms = connection.request.headers.get("x-timeout-ms")
        if limit_ms is not None and not re.fullmatch("[1-9][0-9]{0,8}", limit_ms):
            raise HttpError(400, "header x-timeout-ms: wanted whole milliseconds, 1 or more")
        seconds = min(int(limit_ms or self.args.timeout_ms), self.args.timeout_ms) / 1000
        if not self.batcher.reserve():
            raise HttpError(429, "the queue is full", RETRY)
        job = Prediction(connection, protocol, self.slot.predictor, body, time.monotonic() + seconds)
        self.jobs.add(job)
        if not self.canary.deal(job):
            self.decoders.put(job)
        return job

    def _done(self, jobs: list[Prediction]) -> None:
        """From the other threads; once per batch, not per item."""
        self.tell_loop(self._answer_all, jobs)

    def tell_loop(self, function: Callable, value: object) -> None:
        if not self.loop.is_closed():  # closed: we are past the drain time, and nobody waits for this
            self.loop.call_soon_threadsafe(function, value)

    def _answer_all(self, jobs: list[Prediction]) -> None:
        if jobs[0].batch:
            self.metrics.observe("batch_rows", jobs[0].batch)
        self.watched = {}
        for job in jobs:
            if not job.abandoned and job.deadline > time.monotonic():
                self.answer(job, fault(job))

    def answer(self, job: Prediction, error: HttpError | None) -> None:
        connection, seconds = job.connection, stages(job, time.monotonic())
        arm = self.canary.answered(job, error)
        if error is None:
            self.latencies.push(seconds["total"] * 1000)
            self.tally.good(job, seconds)
            if not self.watched:
                self.watched = {"p95": round(self.latencies.quantile(0.95), 3), "alert": self.monitor.alarms.firing()}
            extra = {"lat_ms": round(seconds["total"] * 1000, 3), **self.watched, **arm}
            extra |= {"req_id": connection.req_id, "model_id": job.predictor.model_id}
            reply = job.protocol.write(job, extra)
        else:
            reply = error_reply(error)
        if self.request_log:
            self.request_log.put(log_entry(job, reply.status, seconds))
        job.abandoned = True
        self.jobs.discard(job)
        connection.finish(reply)


def run_server(load: Callable[[], object], route: Route, args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0, or 1 if the port is taken or the model fails its checks."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    if told := model_settings():
        return serve_model(load, args, told)
    sys.setswitchinterval(SWITCH_S)
    settings = worker_settings()
    try:
        if args.workers > 1 and not settings:
            return asyncio.run(Supervisor(args).run())
        link = WorkerLink(settings, args) if settings else None
        return asyncio.run(Server(load, route, args, link).run())
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", args.host, args.port, error)
        return 1
