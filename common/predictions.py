"""One request for predictions: from its body to rows for the model, and from the results to its answer.

    pool = DecodePool(Route("/predict", key="text"), batcher, done, threads=2)
    pool.start(predictor.decode)
    pool.put(Prediction(connection, body, accepted_at, deadline))   # goes to the batcher, or straight to done([job])
    status, answer = outcome(job)

Parsing and decoding run in the pool's threads, so that a large photo never holds up the event loop.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.batcher import Job, MicroBatcher
from common.http_connection import RETRY, Connection
from common.http_wire import HttpError
from common.strict_json import load_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """Where predictions are asked for, and the body's keys for one item and for a list of items ("items" works too)."""

    path: str
    key: str
    list_key: str = "items"


class Prediction(Job):
    """A job with what its answer needs: who asked, when, and the body, until it is decoded."""

    __slots__ = ("accepted_at", "body", "connection", "error", "is_list", "places")

    def __init__(self, connection: Connection, body: bytes, accepted_at: float, deadline: float):
        super().__init__([], deadline)
        self.connection, self.body, self.accepted_at = connection, body, accepted_at
        self.error: HttpError | None = None
        self.is_list, self.places = False, 1  # places: rows reserved in the queue


class DecodePool:
    """Threads that decode accepted requests. What waits for them is bounded by the places in the batcher's queue."""

    def __init__(self, route: Route, batcher: MicroBatcher, done: Callable[[list[Prediction]], None], threads: int):
        self._route, self._batcher, self._done = route, batcher, done
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name="decode", daemon=True) for _ in range(threads)]

    def start(self, decode: Callable[[object], object]) -> None:
        self.decode = decode
        for thread in self._threads:
            thread.start()

    def put(self, job: Prediction) -> None:
        self._inbox.put(job)

    def stop(self, timeout_s: float) -> bool:
        """End the threads; False if one is still busy after `timeout_s` seconds."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            try:
                if not job.abandoned and job.deadline > time.monotonic():
                    self._set_rows(job)
            except HttpError as error:
                job.error = error
            except Exception:
                log.exception("request %s", job.connection.req_id)
                job.error = HttpError(500, "the server failed on this request")
            self._batcher.release(job.places - job.left)
            if job.left:
                self._batcher.submit(job)
            else:
                self._done([job])

    def _set_rows(self, job: Prediction) -> None:
        items = _items(self._route, job, load_json(job.body))
        job.body = b""
        if len(items) > self._batcher.places:
            raise HttpError(413, f"{len(items)} items in one request, at most {self._batcher.places} are taken")
        if not self._batcher.reserve(len(items) - 1):
            raise HttpError(429, "the queue has no room for so many items", RETRY)
        job.places = len(items)
        job.set_rows([self._row(item) for item in items])

    def _row(self, item: object) -> object:
        try:
            return self.decode(item)
        except ValueError as error:
            return HttpError(422, str(error))
        except Exception:
            log.exception("decode failed")
            return HttpError(500, "the server failed on this input")


def _items(route: Route, job: Prediction, body: object) -> list:
    keys = [
        key for key in dict.fromkeys((route.key, route.list_key, "items")) if isinstance(body, dict) and key in body
    ]
    if len(keys) != 1:
        raise HttpError(400, f'wanted one JSON object with either "{route.key}" or "{route.list_key}"')
    if keys[0] == route.key:
        return [body[route.key]]
    job.is_list, items = True, body[keys[0]]
    if not isinstance(items, list) or not items:
        raise HttpError(400, f'"{keys[0]}": wanted a list of one item or more')
    return items


def outcome(job: Prediction) -> tuple[int, dict]:
    """(status, answer) of a job whose results are complete. One good item makes a list request a 200."""
    answers = [{"error": str(result)} if isinstance(result, Exception) else result for result in job.results]
    faults = [getattr(result, "status", 500) for result in job.results if isinstance(result, Exception)]
    status = 200 if len(faults) < len(answers) else min(faults)
    return status, ({"items": answers} if job.is_list and status == 200 else dict(answers[0]))


def log_entry(job: Prediction, status: int, lat_ms: float, model_id: str) -> dict:
    """What the request log keeps of an answered prediction; times in ms."""
    good = [result for result in job.results if isinstance(result, dict)]
    pred = [result.get("pred") for result in good]
    prob = [result.get("prob", result.get("conf")) for result in good]
    one = not job.is_list and good
    return {
        "ts": time.time(),
        "req_id": job.connection.req_id,
        "model_id": model_id,
        "lat_ms": lat_ms,
        "queue_ms": round((job.started_at - job.accepted_at) * 1000, 3) if job.started_at else None,
        "batch": job.batch,
        "status": status,
        "pred": pred[0] if one else pred or None,
        "prob": prob[0] if one else prob or None,
    }
