"""Alarms that do not cry wolf: a threshold, some violations in a row, a level that clears, and a pause between events.

alarms = AlarmManager().add(Alarm("lat_p95", threshold=120.0, direction=">=", min_samples=100, consecutive=3))
fired = alarms.run({"lat_p95": (window.quantile(0.95), len(window))})   # [] or the events that fired
alarms.states()                                                         # ok, pending, firing or resolved
"""

from __future__ import annotations

import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

VIOLATED = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
SEVERITIES = ("info", "warning", "critical")
HISTORY = 100  # events that are kept to be shown


@dataclass(frozen=True)
class Alarm:
    """Fires when `value direction threshold` held in `consecutive` checks in a row, then is silent for a while.

    A check of fewer than `min_samples` samples, or of NaN, is no evidence: it neither adds to the row nor breaks it.
    clear: while it fires, only a value that would not violate this level ends it (by default the threshold), so that
    values around the threshold do not make it flap. runbook: what to do, or where that is written.
    """

    name: str
    threshold: float
    direction: str = ">="
    min_samples: int = 100
    consecutive: int = 3
    cooldown_sec: float = 120
    clear: float | None = None
    severity: str = "warning"
    runbook: str = ""
    about: str = ""  # what the value is, for whoever reads the alarm at night

    def __post_init__(self):
        if self.direction not in VIOLATED:
            raise ValueError(f"alarm {self.name}: direction is {self.direction!r}, wanted one of {', '.join(VIOLATED)}")
        if self.severity not in SEVERITIES:
            wanted = ", ".join(SEVERITIES)
            raise ValueError(f"alarm {self.name}: severity is {self.severity!r}, wanted one of {wanted}")
        if self.consecutive < 1 or self.min_samples < 0 or self.cooldown_sec < 0 or math.isnan(self.threshold):
            raise ValueError(f"alarm {self.name}: consecutive >= 1, the others >= 0 and a threshold are wanted: {self}")
        if self.clear is not None and self.clear != self.threshold and self.violated_by(self.clear):
            raise ValueError(
                f"alarm {self.name}: clear is {self.clear}, which is {self.direction} {self.threshold} itself; "
                "wanted a calmer level"
            )

    def violated_by(self, value: float) -> bool:
        """Whether `value direction threshold` holds."""
        return VIOLATED[self.direction](value, self.threshold)

    def cleared_by(self, value: float) -> bool:
        """Whether the value ends an alarm that is firing."""
        return not VIOLATED[self.direction](value, self.threshold if self.clear is None else self.clear)


@dataclass
class _State:
    phase: str = "ok"  # then pending, firing, resolved
    row: int = 0  # violations in a row
    silent_until: float = -math.inf
    since: float = 0.0  # Unix time of the phase
    value: float = math.nan
    n_samples: int = 0
    details: dict = field(default_factory=dict)  # of the last check


class AlarmManager:
    """Alarms by name, and what each has seen so far. Thread-safe. clock: the Unix time of events and states."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._alarms: dict[str, tuple[Alarm, _State]] = {}
        self._firing: list[str] = []
        self._news: deque[dict] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self.history: deque[dict] = deque(maxlen=HISTORY)

    def add(self, alarm: Alarm) -> AlarmManager:
        """Returns itself. Raises ValueError for a name that is taken."""
        if alarm.name in self._alarms:
            raise ValueError(f"alarm {alarm.name}: there is one of this name already")
        self._alarms[alarm.name] = (alarm, _State(since=self._clock()))
        return self

    def remove(self, name: str) -> None:
        """Forget an alarm whose cause is gone, such as the model it was about; one that is firing is resolved."""
        with self._lock:
            alarm, state = self._alarms.pop(name)
            self._firing = [other for other in self._firing if other != name]
            if state.phase == "firing":
                event = {**_told(alarm, state), "state": "resolved", "at": self._clock(), "since": state.since}
                self.history.append(event)
                self._news.append(event)

    def __contains__(self, name: str) -> bool:
        return name in self._alarms

    def run(self, checks: dict[str, tuple], now: float | None = None) -> list[dict]:
        """One check of `{name: (value, n_samples)}`; the events that fired, as dicts. `now`: seconds on a steady clock.

        A third part of a check, a dict, becomes part of its events and states. Raises ValueError for a name that
        no alarm has.
        """
        unknown = sorted(set(checks) - set(self._alarms))
        if unknown:
            raise ValueError(f"no alarm is named {', '.join(unknown)}; there are: {', '.join(self._alarms) or 'none'}")
        now = time.monotonic() if now is None else now
        with self._lock:
            events = [event for name, check in checks.items() if (event := self._check(name, *check, now=now))]
            self._firing = [name for name, (_, state) in self._alarms.items() if state.phase == "firing"]
            self.history.extend(events)
            self._news.extend(event for event in events if event["state"] != "pending")
        return [event for event in events if event["state"] == "firing"]

    def firing(self) -> list[str]:
        """Names of the alarms that fired and have not cleared."""
        return self._firing

    def news(self) -> list[dict]:
        """The events, firing and resolved, since the last call."""
        with self._lock:
            events = list(self._news)
            self._news.clear()
        return events

    def states(self) -> list[dict]:
        """Every alarm with its state, the Unix time `since` then, and the last value checked (None: none yet)."""
        with self._lock:
            return [
                _told(alarm, state) | {"state": state.phase, "since": state.since}
                for alarm, state in self._alarms.values()
            ]

    def _check(self, name: str, value: float, n_samples: int, details: dict | None = None, *, now: float):
        """The event of a change of state, or None."""
        alarm, state = self._alarms[name]
        state.value, state.n_samples, state.details = value, n_samples, details or {}
        if n_samples < alarm.min_samples or math.isnan(value):
            return None
        phase = _next_phase(alarm, state, value, now)
        again = phase == state.phase == "firing" and state.row == alarm.consecutive and now >= state.silent_until
        if phase == "firing" and (again or state.phase != "firing"):
            state.row, state.silent_until = 0, now + alarm.cooldown_sec
        elif phase == state.phase:
            return None
        began = state.since
        if phase != state.phase:
            state.phase, state.since = phase, self._clock()
        if phase == "ok":
            return None
        since = began if phase == "resolved" else state.since  # of the firing
        return {**_told(alarm, state), "state": phase, "at": self._clock(), "since": since}


def _next_phase(alarm: Alarm, state: _State, value: float, now: float) -> str:
    """After this check, which also adds to or breaks the row."""
    state.row = min(state.row + 1, alarm.consecutive) if alarm.violated_by(value) else 0
    if state.phase == "firing":
        return "resolved" if not state.row and alarm.cleared_by(value) else "firing"
    if state.row == alarm.consecutive and now >= state.silent_until:
        return "firing"
    return "pending" if state.row else "ok"


def _told(alarm: Alarm, state: _State) -> dict:
    return {
        "alarm": alarm.name,
        "value": None if math.isnan(state.value) else state.value,
        "direction": alarm.direction,
        "threshold": alarm.threshold,
        "n_samples": state.n_samples,
        "severity": alarm.severity,
        "runbook": alarm.runbook,
        "about": alarm.about,
        **state.details,
    }
