"""Alarms that do not cry wolf.

alarms = AlarmManager().add(Alarm("lat_p95", threshold=120.0, direction=">=", min_samples=100, consecutive=3))
fired = alarms.run({"lat_p95": (window.quantile(0.95), len(window))})   # [] or the events that fired
"""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass

VIOLATED = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Alarm:
    """Fires when `value direction threshold` held in `consecutive` checks in a row, then is silent for a while.

    A check of fewer than `min_samples` samples, or of NaN, is no evidence: it neither adds to the row nor breaks it.
    """

    name: str
    threshold: float
    direction: str = ">="
    min_samples: int = 100
    consecutive: int = 3
    cooldown_sec: float = 120

    def __post_init__(self):
        if self.direction not in VIOLATED:
            raise ValueError(f"alarm {self.name}: direction is {self.direction!r}, wanted one of {', '.join(VIOLATED)}")
        if self.consecutive < 1 or self.min_samples < 0 or self.cooldown_sec < 0 or math.isnan(self.threshold):
            raise ValueError(f"alarm {self.name}: consecutive >= 1, the others >= 0 and a threshold are wanted: {self}")


@dataclass
class _State:
    row: int = 0  # violations in a row
    firing: bool = False  # from the event until the first check that is no violation
    silent_until: float = -math.inf


class AlarmManager:
    """Alarms by name, and what each has seen so far. `run` is to be called from one thread at a time."""

    def __init__(self):
        self._alarms: dict[str, tuple[Alarm, _State]] = {}

    def add(self, alarm: Alarm) -> AlarmManager:
        """Returns itself. Raises ValueError for a name that is taken."""
        if alarm.name in self._alarms:
            raise ValueError(f"alarm {alarm.name}: there is one of this name already")
        self._alarms[alarm.name] = (alarm, _State())
        return self

    def run(self, checks: dict[str, tuple[float, int]], now: float | None = None) -> list[dict]:
        """One check of `{name: (value, n_samples)}`; the events that fired, as dicts. `now`: seconds on a steady clock.

        Raises ValueError for a name that no alarm has.
        """
        unknown = sorted(set(checks) - set(self._alarms))
        if unknown:
            raise ValueError(f"no alarm is named {', '.join(unknown)}; there are: {', '.join(self._alarms) or 'none'}")
        now = time.monotonic() if now is None else now
        return [event for name, (value, n) in checks.items() if (event := _check(*self._alarms[name], value, n, now))]

    def firing(self) -> list[str]:
        """Names of the alarms that fired and whose condition still held at the last check."""
        return [name for name, (_, state) in self._alarms.items() if state.firing]


def _check(alarm: Alarm, state: _State, value: float, n_samples: int, now: float) -> dict | None:
    if n_samples < alarm.min_samples or math.isnan(value):
        return None
    if not VIOLATED[alarm.direction](value, alarm.threshold):
        state.row, state.firing = 0, False
        return None
    state.row += 1
    if state.row < alarm.consecutive or now < state.silent_until:
        return None
    state.row, state.firing, state.silent_until = 0, True, now + alarm.cooldown_sec
    what = {"alarm": alarm.name, "value": value, "direction": alarm.direction, "threshold": alarm.threshold}
    return {**what, "n_samples": n_samples}
