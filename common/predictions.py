"""One request for predictions: from its body to rows for the model, and from the results to its answer.

    route = Route("/predict", key="text", name="intent")
    pool = DecodePool(batcher, done, threads=2)
    pool.put(Prediction(connection, PlainJson(route), predictor, body, deadline))  # to the batcher, or to done([job])
    reply = job.protocol.write(job, extra)

Parsing and decoding run in the pool's threads, so that a large photo never holds up the event loop. A protocol gives
`read(job) -> items` (raising HttpError), `write(job, extra) -> Reply`, and `errors_by_item`: whether its answers have a
place for the errors of single items. Here plain JSON, in oip_v2 the Open Inference Protocol.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from common.batcher import Job, MicroBatcher
from common.endpoints import RETRY, Reply, json_reply
from common.http_connection import Connection
from common.http_wire import HttpError
from common.json_schema import misfit
from common.metrics import Metrics
from common.model_slot import model_version
from common.priority import yield_to_others
from common.strict_json import load_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """Where predictions are asked for, and what one item is.

    key, list_key: the body's keys for one item and for a list of items ("items" works too). name: of the model in
    /v2/models/NAME. form: what the page at / offers: "photo", "text" or "series". schema: JSON schema of one item.
    whole: JSON schema of an item that is the whole body, which it is where it has another key of that schema.
    beside: routes to the same model at other paths.
    """

    path: str
    key: str
    list_key: str = "items"
    name: str = "model"
    form: str = "text"
    schema: dict = field(default_factory=lambda: {"type": "string"})
    whole: dict = field(default_factory=dict)
    beside: tuple[Route, ...] = ()


class Prediction(Job):
    """A job with what its answer needs: who asked, by which protocol, when, which model, and the body until decoded."""

    __slots__ = (
        "accepted_at",
        "arm",
        "body",
        "canary_fault",
        "connection",
        "data_hash",
        "decode_s",
        "error",
        "is_list",
        "places",
        "predictor",
        "protocol",
        "request",
        "share",
        "twin",
        "wanted",
    )

    def __init__(self, connection: Connection, protocol: object, predictor: object, body: bytes, deadline: float):
        super().__init__(deadline)
        self.connection, self.request, self.protocol = connection, connection.request, protocol
        self.predictor, self.body, self.accepted_at = predictor, body, time.monotonic()
        self.error: HttpError | None = None
        self.data_hash, self.decode_s = "", 0.0
        self.is_list, self.places = False, 1  # places: rows reserved in the queue
        self.wanted: object = None  # what the protocol has to remember from the request for the answer
        # in a rollout (see common.canary): stable or canary; why the candidate's answer was not taken; the part of the
        # requests that the candidate got then, 0 for one that is no evidence; the same request in the other arm
        self.arm, self.canary_fault, self.share, self.twin = "", "", 0.0, None


class DecodePool:
    """Threads that decode accepted requests. What waits for them is bounded by the places in the batcher's queue.

    threads: 0 decodes in the model's thread: for short texts, a hand-over between threads costs more than the decoding.
    They step back a little, so that clients who have to be turned away hear of it soon.
    """

    def __init__(self, batcher: MicroBatcher, done: Callable[[list[Prediction]], None], threads: int):
        self._batcher, self._done = batcher, done
        self._fresh: list[Prediction] = []
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name="decode", daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, job: Prediction) -> None:
        """Decode it soon. From the event loop; what one of its turns brings wakes the model's thread once."""
        if self._threads:
            self._inbox.put(job)
            return
        if not self._fresh:
            job.connection.server.loop.call_soon(self._hand_over)
        self._fresh.append(job)

    def _hand_over(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._batcher.submit_undecoded(self._decode, fresh)

    def stop(self, timeout_s: float) -> bool:
        """End the threads; False if one is still busy after `timeout_s` seconds."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        yield_to_others(1)
        while (job := self._inbox.get()) is not None:
            self._decode(job)
            del job  # with it goes a model that was replaced, and does not wait for this thread's next one

    def _decode(self, job: Prediction) -> None:
        """To the batcher with its rows, or to `done` where there is none that the model can take."""
        try:
            if not job.abandoned and job.deadline > time.monotonic():
                self._set_rows(job)
        except HttpError as error:
            job.error = error
        except Exception:
            log.exception("request %s", job.connection.req_id)
            job.error = HttpError(500, "the server failed on this request")
        if job.places != job.left:
            self._batcher.release(job.places - job.left)
        if job.left:
            self._batcher.submit(job)
        else:
            self._done([job])

    def _set_rows(self, job: Prediction) -> None:
        start = time.monotonic()
        if job.connection.server.request_log:
            job.data_hash = hashlib.sha256(job.body).hexdigest()
        items = job.protocol.read(job)
        job.body = b""
        if len(items) > self._batcher.places:
            raise HttpError(413, f"{len(items)} items in one request, at most {self._batcher.places} are taken")
        if len(items) > 1 and not self._batcher.reserve(len(items) - 1):
            raise HttpError(429, "the queue has no room for so many items", RETRY)
        job.places = len(items)
        job.set_rows([_row(job.predictor, item) for item in items], job.predictor.predict_rows)
        job.decode_s = time.monotonic() - start


def _row(predictor: object, item: object) -> object:
    if isinstance(item, HttpError):  # as the protocol read it
        return item
    try:
        return predictor.decode(item)
    except ValueError as error:
        return HttpError(422, str(error))
    except Exception:
        log.exception("decode failed")
        return HttpError(500, "the server failed on this input")


class PlainJson:
    """{key: item} → one answer; {list_key: [...]} or {"items": [...]} → {"items": [answer, ...]}."""

    errors_by_item = True

    def __init__(self, route: Route):
        self.route, self.keys = route, {route.key, route.list_key, "items"}

    def read(self, job: Prediction) -> list:
        """The items of the body, an HttpError in place of one of another type. HttpError 400 for another shape."""
        body, route = load_json(job.body), self.route
        if isinstance(body, dict) and body.keys() & route.whole.get("properties", {}).keys() - {route.key}:
            return [self._typed(body, 400)]
        keys = self.keys & body.keys() if isinstance(body, dict) else ()
        if len(keys) != 1:
            raise HttpError(400, f'wanted one JSON object with either "{route.key}" or "{route.list_key}"')
        (key,) = keys
        if key == route.key:
            return [self._typed(body[key], 400)]
        job.is_list, items = True, body[key]
        if not isinstance(items, list) or not items:
            raise HttpError(400, f'"{key}": wanted a list of one item or more')
        return [self._typed(item, 422) for item in items]  # the body is as it should be

    def _typed(self, item: object, status: int) -> object:
        route = self.route
        schema = route.whole if route.whole and isinstance(item, dict) else route.schema
        words = misfit(item, schema, route.key)
        return HttpError(status, words) if words else item

    def write(self, job: Prediction, extra: dict) -> Reply:
        """One good item makes a list request a 200; `extra` stands beside the answers."""
        answers = [{"error": str(result)} if isinstance(result, Exception) else result for result in job.results]
        if job.is_list:
            return json_reply({"items": answers, **extra})
        return json_reply({**answers[0], **extra})


def fault(job: Prediction) -> HttpError | None:
    """The error that answers the whole job: its own, or the first item's where the answer has no place beside it."""
    bad = [result for result in job.results if isinstance(result, Exception)]
    if job.error or not bad or (job.protocol.errors_by_item and len(bad) < len(job.results)):
        return job.error
    return HttpError(getattr(bad[0], "status", 500), str(bad[0]))


def stages(job: Prediction, now: float) -> dict[str, float]:
    """Seconds of an answered prediction: waiting, decoding, in the model, and all of it."""
    total, model = now - job.accepted_at, job.ended_at - job.started_at
    return {"queue": total - job.decode_s - model, "decode": job.decode_s, "model": model, "total": total}


STAGE_LABELS = {stage: f'stage="{stage}"' for stage in ("queue", "decode", "model", "total")}


def observe(metrics: Metrics, answered: list[tuple[Prediction, dict[str, float]]]) -> None:
    """Put answered predictions into the metrics, each with its seconds as `stages` gives them."""
    for stage, labels in STAGE_LABELS.items():
        metrics.observe_all("prediction_seconds", [seconds[stage] for _, seconds in answered], labels)
    for job, _ in answered:
        for result in job.results:
            if isinstance(result, dict) and "label" in result:
                metrics.count_class(str(result["label"]))


def log_entry(job: Prediction, status: int, seconds: dict[str, float]) -> dict:
    """What the request log keeps of an answered prediction; times in ms, null for a stage it did not reach."""
    good = [result for result in job.results if isinstance(result, dict)]
    pred = [result.get("pred") for result in good]
    prob = [result.get("prob", result.get("conf")) for result in good]
    one = not job.is_list and good
    model, connection = job.predictor, job.connection
    return {
        "ts": time.time(),
        "req_id": connection.req_id,
        **({"traceparent": connection.trace} if connection.trace else {}),
        **({"arm": job.arm} if job.arm else {}),
        **({"canary_fault": job.canary_fault} if job.canary_fault else {}),
        "path": job.request.path,
        "model_id": model.model_id,
        "model_version": model_version(model),
        "data_version": getattr(model, "data_version", None),
        "data_hash": job.data_hash,
        "lat_ms": round(seconds["total"] * 1000, 3),
        "queue_ms": round(seconds["queue"] * 1000, 3) if job.ended_at else None,
        "batch": job.batch,
        "status": status,
        "pred": pred[0] if one else pred or None,
        "prob": prob[0] if one else prob or None,
    }
