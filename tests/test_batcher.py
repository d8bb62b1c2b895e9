"""The batcher with a model that the test holds and frees."""

import queue
import threading
import time
from types import SimpleNamespace

import pytest

from common.batcher import MOST_REST, REST, Job, MicroBatcher, ModelError

PATIENCE_S = 60  # how long a test waits for what must happen; far beyond what a busy machine needs


class Bench:
    """A batcher whose model is this test: it records batches and can be held."""

    def __init__(self, **options):
        self.done: queue.Queue = queue.Queue()
        self.batches: list[list] = []
        self.entered, self.free = threading.Semaphore(0), threading.Semaphore(0)
        self.batcher = MicroBatcher(lambda jobs: [self.done.put(job) for job in jobs], **options)
        self.batcher.start()

    def predict(self, rows):
        self.batches.append(rows)
        self.entered.release()
        assert self.free.acquire(timeout=PATIENCE_S)
        if "raise" in rows:
            raise RuntimeError("bad row")
        return [{"y": row} for row in rows][: 1 if "short" in rows else None]

    def submit(self, *rows, reserved: bool = False, **options) -> Job:
        assert reserved or self.batcher.reserve(len(rows))
        job = Job(**options)
        job.set_rows(list(rows), self.predict)
        self.batcher.submit(job)
        return job

    def finished(self) -> Job:
        return self.done.get(timeout=PATIENCE_S)


@pytest.fixture
def bench():
    benches = []

    def start(**options) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield start
    for one in benches:
        one.free.release(1000)
        assert one.batcher.stop(PATIENCE_S)


def test_an_idle_batcher_ignores_the_window(bench):
    one = bench(window_ms=10_000_000)
    one.batcher.reserve(5)  # others are being decoded
    one.free.release()
    job = one.submit(1)
    assert one.finished() is job
    assert job.results == [{"y": 1}]


def test_after_a_batch_the_window_waits_for_rows_in_decode_and_no_longer(bench):
    one = bench(window_ms=10_000_000)
    one.submit(1)
    assert one.entered.acquire(timeout=PATIENCE_S)
    one.submit(2)
    one.batcher.reserve(2)  # two are being decoded: one comes, one turns out to be bad
    one.free.release(2)
    one.finished()
    one.submit(3, reserved=True)
    one.batcher.release(1)
    assert {tuple(one.finished().rows), tuple(one.finished().rows)} == {(2,), (3,)}
    assert one.batches == [[1], [2, 3]]


def test_places_are_reserved_and_given_back(bench):
    one = bench(queue=3)
    assert one.batcher.reserve(2)
    assert not one.batcher.reserve(2)
    one.batcher.release(2)
    job = one.submit("a", "b", "c")
    assert one.batcher.full
    one.free.release(9)
    assert one.finished() is job
    assert one.batcher.depth == 0


def test_abandoned_and_late_rows_are_dropped(bench):
    one = bench(window_ms=0)
    one.submit("first")
    assert one.entered.acquire(timeout=PATIENCE_S)
    one.submit("gone").abandoned = True
    one.submit("late", deadline=time.monotonic())
    last = one.submit("last")
    one.free.release(9)
    one.finished()
    assert one.finished() is last
    assert one.batches == [["first"], ["last"]]
    assert one.batcher.depth == 0


@pytest.mark.parametrize("bad", ["raise", "short"])
def test_a_failed_batch_is_tried_row_by_row_once(bench, bad):
    one = bench()
    one.free.release(9)
    job = one.submit("a", bad, "b")
    assert one.finished() is job
    assert one.batches == [["a", bad, "b"], ["a"], [bad], ["b"]]
    assert job.results[::2] == [{"y": "a"}, {"y": "b"}]
    assert isinstance(job.results[1], ModelError) == (bad == "raise")


def test_a_failed_batch_of_one_is_not_tried_again(bench):
    one = bench()
    one.free.release(9)
    one.submit("raise")
    assert isinstance(one.finished().results[0], ModelError)
    assert one.batches == [["raise"]]


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "answer", [{"p": float("inf")}, {"p": CIRCLE}, {"p": [0.5, float("nan")]}, {"p": object()}, ["p"], None]
)
def test_answers_that_are_not_plain_and_finite_fail_alone(bench, answer):
    one = bench()
    one.predict = lambda rows: [answer if row == "a" else {"p": [0.5]} for row in rows]
    job = one.submit("a", "b")
    one.finished()
    assert isinstance(job.results[0], ModelError)
    assert job.results[1] == {"p": [0.5]}


def test_calls_run_in_the_thread_of_the_model(bench):
    one = bench()
    assert one.batcher.call(lambda: threading.current_thread().name).result(PATIENCE_S) == "model"
    with pytest.raises(ZeroDivisionError):
        one.batcher.call(lambda: 1 / 0).result(PATIENCE_S)


def test_the_model_rests_while_the_event_loop_is_late(bench, monkeypatch):
    rests, one = [], bench()
    monkeypatch.setattr("common.batcher.time", SimpleNamespace(monotonic=time.monotonic, sleep=rests.append))
    for late_s in (0.0, 0.0005, 1e9, 0.0, 0.0):
        one.submit(late_s)
        assert one.entered.acquire(timeout=PATIENCE_S)
        one.batcher.late_s += late_s
        time.sleep(0.01)  # the model's work
        one.free.release()
        one.finished()
    short, longest = rests
    assert short == 0.0005 * REST
    assert 0.01 * MOST_REST <= longest < 10**9


def test_rows_decoded_for_another_model_wait_for_their_own_batch(bench):
    one, other = bench(max_batch=8), []
    one.submit(1)
    assert one.entered.acquire(timeout=PATIENCE_S)
    one.submit(2)
    job = Job()
    job.set_rows([3, 4], lambda rows: [other.append(row) or {"new": row} for row in rows])
    assert one.batcher.reserve(2)
    one.batcher.submit(job)
    one.submit(5)
    one.free.release(3)
    assert [tuple(one.finished().rows) for _ in range(4)] == [(1,), (2,), (3, 4), (5,)]
    assert job.results == [{"new": 3}, {"new": 4}]
    assert (one.batches, other) == ([[1], [2], [5]], [3, 4])
