"""One thread that owns the model, and the queue in front of it.

    batcher = MicroBatcher(done, max_batch=32, window_ms=5.0, queue=256)    # done(jobs) is called in its thread
    batcher.start()
    if batcher.reserve():                       # False: the queue is full
        job = Job(deadline)
        job.set_rows([row], predictor.predict_rows)
        batcher.submit(job)                     # job.results is filled when done(jobs) gets the job

An idle thread takes what is there at once; batches form while it works. Only after a batch, and only while further
accepted rows are still being decoded, it waits for them, `window_ms` at most. A batch holds rows of one model: while
a model is being replaced, the rows that were decoded for the old one still go to it.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

log = logging.getLogger(__name__)
REST, MOST_REST = 1.5, 0.17  # of the model for each second of `late_s`; the most, as a part of its work


class ModelError(Exception):
    """The model failed on this row. The cause is in the log, not in the message: the message goes to the client."""


class NotFinite(ModelError):
    """The model's answer is not a dict of plain values and finite numbers."""


class Job:
    """The rows of one request and, in the same order, their results: a dict each, or the exception that a row met.

    A row that is an exception already (it could not be decoded) is its own result. `deadline` is in seconds of
    time.monotonic(). Whoever waits for the job sets `abandoned` when the answer is no longer wanted.
    """

    __slots__ = ("abandoned", "batch", "deadline", "ended_at", "left", "predict_rows", "results", "rows", "started_at")

    def __init__(self, deadline: float = math.inf):
        self.deadline, self.abandoned = deadline, False
        self.started_at, self.ended_at, self.batch = 0.0, 0.0, 0  # its first batch, its last, and the rows in that
        self.rows, self.results, self.left = [], [], 0

    def set_rows(self, rows: list, predict_rows: Callable[[list], list[dict]]) -> None:
        """The decoded rows, and the model they were decoded for."""
        self.rows, self.predict_rows = rows, predict_rows
        self.results = [row if isinstance(row, Exception) else None for row in rows]
        self.left = self.results.count(None)  # rows that wait for the model


class MicroBatcher:
    """Feeds models, `predict_rows(rows) -> list[dict]`, from a bounded queue in one thread, `max_batch` rows at a time.

    Rows of abandoned jobs and of jobs whose deadline has passed are dropped before the forward pass and never reach
    `done`; answering those clients in time is the business of whoever holds the clock. A batch that raises is tried
    again row by row, once, so that only the bad row fails.
    """

    def __init__(
        self, done: Callable[[list[Job]], None], *, max_batch: int = 32, window_ms: float = 5.0, queue: int = 256
    ):
        self._done, self._max_batch, self._window_s, self.places = done, max_batch, window_ms / 1000, queue
        self._changed = threading.Condition()
        self._rows: deque[tuple[Job, int]] = deque()
        self._calls: deque[tuple[Callable, Future]] = deque()
        self._undecoded: deque[tuple[Callable, Job]] = deque()
        self._reserved = 0  # rows accepted and not yet through the model: being decoded, queued or in the forward pass
        self.late_s, self._rested = 0.0, 0.0  # by which the event loop was late with its answers, in all
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end, wait for it; False if it is still busy after `timeout_s` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> Future:
        """Run `function` in the model's thread, between two batches; its value or exception is in the future."""
        future: Future = Future()
        with self._changed:
            self._calls.append((function, future))
            self._changed.notify()
        return future

    @property
    def full(self) -> bool:
        return self._reserved >= self.places

    @property
    def depth(self) -> int:
        """Rows accepted and not yet through the model."""
        return self._reserved

    def reserve(self, rows: int = 1) -> bool:
        """Take places in the queue, before any work is spent on the rows; False if there are not so many left."""
        with self._changed:
            if self._reserved + rows > self.places:
                return False
            self._reserved += rows
            return True

    def release(self, rows: int) -> None:
        """Give back places: of rows that are through the model, or will not be submitted after all."""
        with self._changed:
            self._reserved -= rows
            self._changed.notify()

    def submit(self, job: Job) -> None:
        """Queue the rows of a job; a place for each must be reserved."""
        with self._changed:
            self._rows.extend((job, index) for index, result in enumerate(job.results) if result is None)
            self._changed.notify()

    def submit_undecoded(self, decode: Callable[[Job], None], jobs: list[Job]) -> None:
        """`decode(job)` of each in the model's thread, just before a batch is formed; it submits the job's rows."""
        with self._changed:
            self._undecoded.extend((decode, job) for job in jobs)
            self._changed.notify()

    def _run(self) -> None:
        busy = False
        while True:
            with self._changed:
                while not (self._rows or self._undecoded or self._calls or self._stopped):
                    busy = False
                    self._changed.wait()
                if self._stopped:
                    return
                fresh = min(len(self._undecoded), max(0, self._max_batch - len(self._rows)))
                jobs = [self._undecoded.popleft() for _ in range(fresh)]
            for decode, job in jobs:
                decode(job)
            with self._changed:
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._take_batch(busy)
            if call:
                _answer_call(*call)
            else:
                start = time.monotonic()
                self._work(batch)
                self._rest(time.monotonic() - start)
            busy = True

    def _rest(self, worked_s: float) -> None:
        """Leave the interpreter and a core to the event loop, so that who is turned away hears of it soon."""
        new, self._rested = self.late_s - self._rested, self.late_s
        if new:
            time.sleep(min(REST * new, MOST_REST * worked_s))

    def _take_batch(self, busy: bool) -> list[tuple[Job, int]]:
        until = time.monotonic() + self._window_s
        # reserved but not queued: still being decoded, for no row is in the model now
        while busy and len(self._rows) < min(self._max_batch, self._reserved):
            if self._undecoded or self._stopped:
                break
            if not self._changed.wait(until - time.monotonic()) or time.monotonic() >= until:
                break
        batch, now = [], time.monotonic()
        while self._rows and len(batch) < self._max_batch:
            job, index = self._rows[0]
            if batch and job.predict_rows != batch[0][0].predict_rows:
                break
            self._rows.popleft()
            if job.abandoned or job.deadline <= now:
                self._reserved -= 1
            else:
                batch.append((job, index))
        return batch

    def _work(self, batch: list[tuple[Job, int]]) -> None:
        now = time.monotonic()
        for job, _ in batch:
            job.started_at = job.started_at or now
            job.batch = len(batch)
        results = _predict(batch)
        if results is None:
            results = [_predict_alone(job, index, len(batch)) for job, index in batch]
        finished, now = [], time.monotonic()
        for (job, index), result in zip(batch, results, strict=True):
            job.results[index] = result
            job.left -= 1
            if job.left == 0:
                job.ended_at = now
                finished.append(job)
        self.release(len(batch))
        if finished:
            self._done(finished)


def _predict(batch: list[tuple[Job, int]]) -> list[dict | ModelError] | None:
    """One result per row, or None if the model raised or miscounted (which goes to the log)."""
    if not batch:
        return []
    try:
        results = [checked(result) for result in batch[0][0].predict_rows([job.rows[index] for job, index in batch])]
        if len(results) != len(batch):
            raise ModelError(f"the model gave {len(results)} results for {len(batch)} rows")
        return results
    except Exception:
        log.exception("the model failed on a batch of %d", len(batch))
        return None


def _predict_alone(job: Job, index: int, batch_size: int) -> dict | ModelError:
    wanted = batch_size > 1 and not job.abandoned and job.deadline > time.monotonic()
    results = _predict([(job, index)]) if wanted else None
    return ModelError("the model failed on this input") if results is None else results[0]


def checked(result: object) -> dict | ModelError:
    """The result, if it is a dict of plain values and finite numbers, else the ModelError that takes its place."""
    if isinstance(result, dict) and _plain_and_finite(result):
        return result
    log.error("the model's answer is not a dict of plain, finite values: %.500r", result)
    return NotFinite("the model has no finite answer to this input")


def _plain_and_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(map(_plain_and_finite, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain_and_finite(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int))


def _answer_call(function: Callable[[], object], future: Future) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
