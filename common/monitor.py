"""What watches a running server: fed by its answers, at work in a thread of its own.

    monitor = Monitor(read_policy(args.policy), slot, put_log, sinks)
    monitor.start()
    monitor.answered([(job, seconds)])  # the good answers of a turn of the event loop: some microseconds each
    monitor.counted([200])              # the statuses of all its answers, of routes that predict
    monitor.alarms.firing()

A window is `policy["window"]` answers in a row. While it fills, their rows and answers go to the model's
`features(rows, answers)` and a fifth of the rows to its `embed(rows)`, where it has these; when it is full, it is
compared with the model's `reference`. The next one starts at the earliest `pause_s` after it, so a busy server is
sampled, and the cost does not grow with the traffic. Only numbers are kept of what was seen.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import torch

from common.alarms import AlarmManager
from common.burn import BurnRate
from common.feedback import Feedback
from common.policy import make_alarms
from common.predictions import Prediction
from common.reference import thresholds
from common.sinks import Sink
from common.window_checks import judge, label_checks

log = logging.getLogger(__name__)
SHORT = 100  # answers of one check of a latency or of the share of errors
CHUNK = 32  # rows that wake the thread
EMBED_EVERY = 5  # a row in so many is embedded: the model's work once more
AGAIN_S = 60.0  # what is firing is told to the sinks again: Alertmanager forgets after five minutes


class Monitor:
    """Windows, alarms and late labels of one server process."""

    def __init__(
        self, policy: dict, slot: object, put_log: Callable[[dict], None], sinks: list[Sink], prefix: str = ""
    ):
        self.policy, self.slot, self.sinks, self._put_log = policy, slot, sinks, put_log
        self.off = policy["off"]
        self.alarms, self.feedback = AlarmManager(), Feedback(prefix=prefix)
        for alarm in make_alarms(policy, {}):
            self.alarms.add(alarm)
        self.budgets = {name: BurnRate(about["objective"]) for name, about in policy["slo"].items()}
        self._slow_ms = policy["slo"].get("latency", {}).get("ms", math.inf)
        self.drift: list[dict] = []  # of the latest window
        self.expected: dict | None = None  # the accuracy that it promises
        self.mix: dict = {}  # of its labels: {"reference": {label: n}, "now": {label: n}}
        self.windows = 0
        self.totals = dict.fromkeys(("answered", "invalid", "refused", "failed"), 0)
        self._waits: dict[str, list[float]] = {"lat_p95": [], "queue_p95": []}
        self._statuses: list[bool] = []
        self._model, self._room = None, 0  # room: rows that the window still takes
        self._inbox: deque[tuple] = deque()
        self._start_window(None, 0.0)
        self._wake, self._stopped = threading.Event(), False
        self.each_second: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._told_again = 0.0

    def start(self) -> None:
        if not self.off:
            self._thread.start()

    def wake(self) -> None:
        """Look now, for another model has begun to serve, not within a second."""
        self._wake.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """End the thread, and give the sinks what they have not got yet."""
        self._stopped = True
        self._wake.set()
        if self._thread.ident:
            self._thread.join(timeout_s)
        for sink in self.sinks:
            sink.close(timeout_s)

    @property
    def seen(self) -> int:
        """Answers of the window that is filling."""
        return self._taken

    @property
    def watched(self) -> list[str]:
        """The features that are compared; empty where the model brings no reference."""
        return list(thresholds(self._reference, self.policy))

    # -- in the event loop --

    def answered(self, answers: list[tuple[Prediction, dict[str, float]]]) -> None:
        """Good answers, each with its seconds by stage, as common.predictions.stages gives them."""
        if self.off:
            return
        totals = [seconds["total"] * 1000 for _, seconds in answers]
        if "latency" in self.budgets:
            self.budgets["latency"].add(sum(total > self._slow_ms for total in totals), len(totals))
        self._level("lat_p95", totals)
        self._level("queue_p95", [seconds["queue"] * 1000 for _, seconds in answers])
        self.feedback.remember([(job.connection.req_id, job.results) for job, _ in answers])
        for job, _ in answers if self._room > 0 else ():
            self._sample(job)

    def _sample(self, job: Prediction) -> None:
        if self._room > 0 and len(self._inbox) < 2 * CHUNK and job.predictor is self._model:
            rows = job.rows[:CHUNK]  # a window is of many requests, and rows may be large
            self._room -= len(rows)
            self._inbox.append((rows, job.results[:CHUNK]))
            if len(self._inbox) >= CHUNK or self._room <= 0:
                self._wake.set()

    def _level(self, name: str, values: list[float]) -> None:
        if name in self.alarms:
            waits = self._waits[name]
            waits += values
            while len(waits) >= SHORT:
                short = sorted(waits[:SHORT])
                del waits[:SHORT]
                if self.alarms.run({name: (short[round(0.95 * (SHORT - 1))], SHORT)}):
                    self._wake.set()

    def counted(self, statuses: list[int]) -> None:
        """Answers of routes that predict, whatever they are."""
        for status, n in Counter(statuses).items():
            bad = at_fault(status)
            kind = "refused" if status == 429 else "failed" if bad else "invalid" if status >= 400 else "answered"
            self.totals[kind] += n
            if "errors" in self.budgets:
                self.budgets["errors"].add(n * bad, n)
        if "error_share" in self.alarms:
            self._statuses += map(at_fault, statuses)
            while len(self._statuses) >= SHORT:
                self.alarms.run({"error_share": (sum(self._statuses[:SHORT]) / SHORT, SHORT)})
                del self._statuses[:SHORT]

    # -- in its own thread --

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(1.0)
            self._wake.clear()
            try:
                self._take()
                self._check_time()
                self.each_second()
                self._tell()
            except Exception:  # of a model's `features`, for one; what is served must not suffer from it
                log.exception("monitoring failed on this window; it starts anew")
                self._start_window(self._model, time.monotonic())

    def _take(self) -> None:
        """Measure what is in the inbox; compare the window if that fills it."""
        model, now = self.slot.predictor, time.monotonic()
        if model is not self._model:
            self._watch(model, now)
        while self._inbox:
            pairs = zip(*self._inbox.popleft(), strict=True)
            self._chunk += [pair for pair in pairs if not isinstance(pair[1], Exception)]
        if len(self._chunk) >= CHUNK or (self._chunk and self._taken + len(self._chunk) >= self.policy["window"]):
            self._measure()
        if self._taken >= self.policy["window"]:
            self._judge()
            self._start_window(self._model, now)
        if self._room <= 0 and self._reference and now >= self._next_start:
            self._room = self.policy["window"] - self._taken - len(self._chunk)

    def _watch(self, model: object, now: float) -> None:
        """A model took over: its own reference, and alarms of its features from the start."""
        for state in self.alarms.states():
            if state["alarm"].startswith("drift_"):
                self.alarms.remove(state["alarm"])
        self.drift, self.expected, self.mix = [], None, {}
        self._start_window(model, now)
        self._next_start = now
        for alarm in make_alarms({**self.policy, "levels": {}, "slo": {}}, thresholds(self._reference, self.policy)):
            self.alarms.add(alarm)

    def _start_window(self, model: object, now: float) -> None:
        reference = getattr(model, "reference", None) or {}
        usable = hasattr(model, "features") and reference.get("features")  # an older checkpoint may have none
        self._model, self._reference = model, reference if usable else {}
        self._chunk, self._taken, self._values, self._points, self._room = [], 0, {}, [], 0
        self._inbox.clear()
        self._next_start = now + self.policy["pause_s"]

    def _measure(self) -> None:
        rows, answers = map(list, zip(*self._chunk, strict=True))
        self._chunk = []
        features = self._model.features(rows, answers)
        for name, values in features.items():
            self._values.setdefault(name, []).extend(values)
        chosen = rows[-self._taken % EMBED_EVERY :: EMBED_EVERY]
        if chosen and self._reference.get("embedding") is not None:
            self._points.append(torch.as_tensor(self._model.embed(chosen)))
        self._taken += len(rows)
        short = {name: [_short(value) for value in values] for name, values in features.items()}
        self._put_log({"ts": time.time(), "event": "features", "model_id": self._model.model_id, "features": short})

    def _judge(self) -> None:
        """The window against the reference, and the alarms with it."""
        points = torch.cat(self._points) if self._points else None
        found = judge(self._reference, self._values, points, self.policy, self.alarms)
        self.drift, self.expected, self.mix = found["drift"], found["expected"], found["mix"]
        self.windows += 1
        self._put_log({"ts": time.time(), "event": "drift", "model_id": self._model.model_id, "results": self.drift})

    def _check_time(self) -> None:
        """What depends on the time and on labels, not on the traffic."""
        if self.budgets:
            self.alarms.run({f"slo_{name}": budget.value() for name, budget in self.budgets.items()})
        while self.feedback.checks:
            checks = label_checks(self.feedback.checks.popleft(), getattr(self._model, "reference", None) or {})
            self.alarms.run({name: check for name, check in checks.items() if name in self.alarms})

    def _tell(self) -> None:
        """New events to the log and to the sinks, and now and then what is still firing."""
        events, now = self.alarms.news(), time.monotonic()
        for event in events:
            log.warning("alarm %s", event)
            self._put_log({"ts": event["at"], "event": "alarm", **event})
        if now >= self._told_again + AGAIN_S:
            self._told_again, told = now, {event["alarm"] for event in events}
            states = [state for state in self.alarms.states() if state["state"] == "firing"]
            events += [{**state, "at": time.time()} for state in states if state["alarm"] not in told]
        for sink in self.sinks if events else []:
            sink.put(events)


def at_fault(status: int) -> bool:
    """Whether an answer without a prediction is the server's fault."""
    return status == 429 or status >= 500


def _short(value: object) -> object:
    """A number with four digits, for the log; null for NaN."""
    if isinstance(value, str):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
