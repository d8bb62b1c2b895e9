"""What watches a running server: fed by its answers, at work in a thread of its own.

    monitor = Monitor(read_policy(args.policy), slot, put_log, sinks)
    monitor.start()
    monitor.answered(job, seconds)      # of each good answer, in the event loop: a few microseconds
    monitor.counted(200)                # the status of each answer of a route that predicts
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
from common.expected import expect
from common.feedback import Feedback
from common.policy import make_alarms
from common.predictions import Prediction
from common.reference import compare, thresholds
from common.sinks import Sink

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
        self._told_again, self._labels_seen = 0.0, 0

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

    def answered(self, job: Prediction, seconds: dict[str, float]) -> None:
        """A good answer; `seconds` by stage, as common.predictions.stages gives them."""
        if self.off:
            return
        total = seconds["total"] * 1000
        if "latency" in self.budgets:
            self.budgets["latency"].add(total > self._slow_ms)
        self._level("lat_p95", total)
        self._level("queue_p95", seconds["queue"] * 1000)
        self.feedback.remember(job.connection.req_id, job.results)
        if self._room > 0 and len(self._inbox) < 2 * CHUNK and job.predictor is self._model:
            rows = job.rows[:CHUNK]  # a window is of many requests, and rows may be large
            self._room -= len(rows)
            self._inbox.append((rows, job.results[:CHUNK]))
            if len(self._inbox) >= CHUNK or self._room <= 0:
                self._wake.set()

    def _level(self, name: str, value: float) -> None:
        if name in self.alarms:
            values = self._waits[name]
            values.append(value)
            if len(values) == SHORT:
                values.sort()
                self.alarms.run({name: (values[round(0.95 * (SHORT - 1))], SHORT)})
                values.clear()
                self._wake.set()

    def counted(self, status: int) -> None:
        """Every answer of a route that predicts, whatever it is. The server's fault: 429 and 5xx."""
        bad = status >= 500 or status == 429
        kind = "refused" if status == 429 else "failed" if bad else "invalid" if status >= 400 else "answered"
        self.totals[kind] += 1
        if "errors" in self.budgets:
            self.budgets["errors"].add(bad)
        if "error_share" in self.alarms:
            self._statuses.append(bad)
            if len(self._statuses) == SHORT:
                self.alarms.run({"error_share": (sum(self._statuses) / SHORT, SHORT)})
                self._statuses.clear()

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
        joined = self.feedback.counts["joined"]
        if joined - self._labels_seen >= SHORT:
            self._labels_seen = joined
            checks = label_checks(self.feedback.state(), getattr(self._model, "reference", None) or {})
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


def judge(
    reference: dict, values: dict[str, list], points: torch.Tensor | None, policy: dict, alarms: AlarmManager, now=None
) -> dict:
    """A window against the reference: {"drift", "expected", "mix"}, and a check of each alarm that it concerns.

    values: {feature: [...]}; points: its embedding. now: seconds on a steady clock.
    """
    drift, checks, mix = compare(reference, values, points, policy), {}, {}
    for result in drift:
        value = (result["effect"] if result["drifted"] else 0.0) if result["n"] else math.nan
        checks[f"drift_{result['feature']}"] = (value, result["n"], {"what": describe(result)})
    expected = expected_accuracy(reference, values)
    if expected and "accuracy_drop" in alarms:
        words = f"{reference['accuracy']:.1%} on validation → {expected['value']:.1%} expected"
        checks["accuracy_drop"] = (expected["drop"], expected["n"], {"what": words})
    if counts := reference["features"].get("label", {}).get("counts"):
        mix = {"reference": counts, "now": dict(Counter(values.get("label", [])))}
    alarms.run(checks, now)
    return {"drift": drift, "expected": expected, "mix": mix}


def _short(value: object) -> object:
    """A number with four digits, for the log; null for NaN."""
    if isinstance(value, str):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def describe(result: dict) -> str:
    """A comparison in words."""
    if not result["n"]:
        return "not measured"
    about = f"{result['test']} {result['effect']:.3g} (from {result['threshold']:.3g} on), p {result['adjusted']:.2g}"
    if result["what"]:
        return f"{about}: {result['what']} {result['was']:.1%} → {result['now']:.1%}"
    return f"{about}: mean {result['was']:.4g} → {result['now']:.4g}" if result["was"] is not None else about


def expected_accuracy(reference: dict, values: dict[str, list]) -> dict | None:
    """{"value", "drop", "n"}: the accuracy to expect without labels, and how far below the reference's it is.

    As training learned it (common/expected.py); from an older checkpoint the mean confidence, which is the chance to be
    right as long as traffic looks as validation did (J. Kuberski, CBPE, NannyML 2022). None for a model without
    confidences or without a known accuracy.
    """
    name = next((name for name in ("prob", "conf") if name in values), None)
    known, learned = reference.get("accuracy"), reference.get("expected")
    if name is None or known is None:
        return None
    able = learned and all(feature in values for feature in learned["features"])
    value = expect(learned, values) if able else math.fsum(values[name]) / len(values[name])
    return {"value": value, "drop": known - value, "n": len(values[name])}


def label_checks(state: dict, reference: dict) -> dict[str, tuple[float, int]]:
    """Checks of the alarms that want labels, as far as there are labels and the reference knows what to expect."""
    accuracy, error, coverage = (state.get(name) for name in ("accuracy", "error", "coverage"))
    known, checks = reference, {}
    if accuracy and known.get("accuracy") is not None:
        checks["accuracy_drop_labels"] = (known["accuracy"] - accuracy["value"], accuracy["n"])
    if error and known.get("error"):
        checks["error_ratio_labels"] = (error["value"] / known["error"], error["n"])
    if coverage and known.get("coverage") is not None:
        checks["coverage_drop_labels"] = (known["coverage"] - coverage["value"], coverage["n"])
    return checks
