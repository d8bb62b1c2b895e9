"""Anomalies in a stream of rows: a causal score in [0, 1] per row, the alarms, and the channel and reason of each.

detector = AnomalyDetector(["load", "temperature"], probation=300)
reading = detector.update(1730419200.0, [13.2, 21.5])     # score, flag, channel, cause; NaN: not measured
found = detect(times, values, probation=300)              # the same, row by row, over a whole (N, C) series

Reads seconds and numbers, writes nothing. Several simple predictions are kept per channel: the recent level, what this
time of day and this time of the week usually bring, and a forecast if its residual is given. Each residual, as it is
(a spike) and smoothed (a shift), the value, its recent mean and activity, and how long it has not changed, are compared
with the tail of their own history; what is rarer than one row in fifty adds its -log10 of the tail probability to the
sum of the channel. The sum becomes a probability by a line fitted on simulated series without anomalies, and
`score = -log10(probability) / 6`: 0.5 is one row in a thousand, 1 is one in a million or rarer, whatever the series.

Nothing is fitted in advance and no later row is read. Every estimate moves by a bounded step, so an anomaly of any
size cannot blind it, and a change that stays is learnt within some fifty rows. What climbs without end is always new:
give its differences instead. The state is a few numbers per channel and one level per five minutes of the week,
however long the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from project_ts_forecast.tails import CLIP, MEMORY, RECENT, SETTLE, WARM, Flat, Residual, Tail

PERIOD = 0.2  # weight of the newest day or week in a profile: some five of them
SLOT, DAY, WEEK = 300, 86400, 604800  # seconds; a profile holds one level per slot
DECADES = 6.0  # -log10(probability) at which the score is 1
LARGEST = 1e150  # what is larger, like an infinity, counts as missing: its residual could overflow
NULL = (1.0, 0.5)  # -log10(probability) = NULL[0] + NULL[1] * sum, from simulated series without anomalies


class Reading(NamedTuple):
    """What one row was found to be."""

    score: float  # in [0, 1]; 0 while the detector learns and while it is muted
    flag: bool  # an alarm
    channel: str | None  # the channel that is most unusual in this row, None if none is
    cause: str | None  # value, mean, activity, flat, or spike or shift against level, day, week or forecast
    raw: float  # the score without probation and mute


class Channel:
    """What is known of one channel: its predictions, and the tails of what they miss."""

    __slots__ = (
        "activity",
        "by_day",
        "by_forecast",
        "by_level",
        "by_week",
        "day",
        "flat",
        "last",
        "level",
        "mean",
        "n",
        "now",
        "usual",
        "value",
        "week",
    )

    def __init__(self, warm: int = WARM):
        self.n, self.level, self.last, self.now, self.usual = 0, 0.0, None, 0.0, 0.0
        self.day, self.week = {}, {}  # slot: level
        self.by_level, self.by_day, self.by_week, self.by_forecast = (Residual(warm) for _ in range(4))
        self.value, self.mean, self.activity, self.flat = Tail(warm), Tail(warm), Tail(warm), Flat(warm)

    def excess(self, time: float | None, x: float, adjacent: bool, forecast: float) -> tuple[float, str | None]:
        """The sum over what is looked at, and the name of the largest part; then the row is learnt."""
        found = [(self.value.excess(x), "value")]
        if self.n:
            spike, shift, clipped = self.by_level.excess(x - self.level)
            found += (spike, "spike against level"), (shift, "shift against level")
        else:
            self.level, clipped = x, 0.0
        self.n += 1
        plausible = self.level + clipped
        self.level += max(RECENT, 1 / self.n) * clipped
        found.append((self.mean.excess(self.level), "mean"))
        if time is not None:
            for name, levels, length, residual in (
                ("day", self.day, DAY, self.by_day),
                ("week", self.week, WEEK, self.by_week),
            ):
                found += _against_profile(name, levels, int(time % length // SLOT), residual, x, plausible)
        if abs(forecast) < LARGEST:
            spike, shift, _ = self.by_forecast.excess(forecast)
            found += (spike, "spike against forecast"), (shift, "shift against forecast")
        if adjacent and self.last is not None:
            found.append((self._activity(abs(x - self.last)), "activity"))
        found.append((self.flat.excess(x == self.last), "flat"))
        self.last = x
        largest, cause = max(found)
        return sum(part for part, _ in found), cause if largest > 0 else None

    def _activity(self, moved: float) -> float:
        """How unusual the mean step of late is beside the mean step of long ago: noisier, or flat."""
        self.now += max(RECENT, 1 / self.n) * (moved - self.now)
        self.usual += max(1 / MEMORY, 1 / self.n) * (min(moved, CLIP * self.usual or moved) - self.usual)
        if self.usual == 0:
            return 0.0
        return self.activity.excess(math.log(1e-3 + min(self.now / self.usual, 1e9)))


def _against_profile(
    name: str, levels: dict[int, float], slot: int, residual: Residual, x: float, plausible: float
) -> tuple:
    """The parts that a daily or weekly profile adds; nothing where this slot is new, which starts at `plausible`."""
    if slot not in levels:
        levels[slot] = plausible
        return ()
    spike, shift, clipped = residual.excess(x - levels[slot])
    levels[slot] += PERIOD * clipped
    return (spike, f"spike against {name}"), (shift, f"shift against {name}")


class AnomalyDetector:
    """Scores rows as they come; see the module's docstring.

    `channels`: their names. `probation`: rows of the stream that only teach; from 300 on the scale of the score holds,
    with fewer it is rough. `mute`: rows without score after an alarm, a fifth of the probation if None. `threshold`:
    the score from which a row is an alarm.
    """

    def __init__(
        self,
        channels: Sequence[str] = ("value",),
        probation: int = 300,
        mute: int | None = None,
        threshold: float = 0.5,
    ):
        if isinstance(channels, str) or not channels or len(set(channels)) != len(channels):
            raise ValueError(f"AnomalyDetector: channels are {channels!r}, wanted one or more different names")
        mute = probation // 5 if mute is None else mute
        if probation < 0 or mute < 0 or not 0 < threshold <= 1:
            raise ValueError(
                f"AnomalyDetector: probation is {probation}, mute {mute}, threshold {threshold}; "
                "wanted probation and mute from 0 on, threshold above 0 and at most 1"
            )
        self.channels, self.probation, self.mute, self.threshold = list(channels), probation, mute, threshold
        self.rows, self.muted, self.time, self.step = 0, 0, None, None
        self.last = Reading(0.0, False, None, None, 0.0)
        warm = min(WARM, max(20, probation - SETTLE - 2))  # so that all tails are set when the probation ends
        self._known = [Channel(warm) for _ in channels]

    def update(self, time: float | None, values: Sequence[float], residuals: Sequence[float] | None = None) -> Reading:
        """Score one row of one value per channel, then learn it.

        `time`: seconds since 1970 of a clock that follows days and weeks as the data do, or None where there are no
        stamps. `values`, and `residuals` (measured - forecast, optional): one number per channel; NaN or an infinity
        is a value that is missing, and neither scored nor learnt. The stamp of the row before gives that row's reading
        again, so a repeated delivery counts once; an earlier stamp is taken as a clock put back. Raises ValueError for
        a wrong number of values, or a stamp that is no number.
        """
        residuals = [math.nan] * len(self.channels) if residuals is None else residuals
        if len(values) != len(self.channels) or len(residuals) != len(self.channels):
            raise ValueError(
                f"update: found {len(values)} values and {len(residuals)} residuals, wanted {len(self.channels)}"
            )
        if time is not None and time == self.time:
            return self.last
        adjacent = self._adjacent(time)
        most, channel, cause = 0.0, None, None
        for name, known, value, residual in zip(self.channels, self._known, values, residuals, strict=True):
            if abs(value) < LARGEST:
                total, why = known.excess(time, float(value), adjacent, residual)
                if total > most:
                    most, channel, cause = total, name, why
        self.rows += 1
        self.last = self._reading(self._score(most), channel, cause)
        return self.last

    def _score(self, total: float) -> float:
        """The sum of the most unusual channel as a score; of many channels, one is always the most unusual."""
        if total == 0:
            return 0.0
        return max(0.0, min(1.0, (NULL[0] + NULL[1] * total - math.log10(len(self.channels))) / DECADES))

    def _reading(self, raw: float, channel: str | None, cause: str | None) -> Reading:
        if self.rows <= self.probation:
            return Reading(0.0, False, channel, cause, raw)
        if self.muted:
            self.muted -= 1
            return Reading(0.0, False, channel, cause, raw)
        flag = raw >= self.threshold
        self.muted = self.mute if flag else 0
        return Reading(raw, flag, channel, cause, raw)

    def _adjacent(self, time: float | None) -> bool:
        """Whether this row follows the one before at about the usual step; keeps time and step."""
        if time is None:
            return True
        if not math.isfinite(time):
            raise ValueError(f"update: the time is {time}, wanted seconds since 1970")
        passed, self.time = math.nan if self.time is None else time - self.time, float(time)
        if not passed > 0:
            return False
        self.step = passed if self.step is None else self.step + RECENT * (min(passed, 2 * self.step) - self.step)
        return passed <= 2 * self.step

    def state_dict(self) -> dict:
        """All that was learnt, as a dict of plain values (numbers, strings, None, lists) that JSON keeps exactly."""
        own = {name: getattr(self, name) for name in ("channels", "rows", "muted", "time", "step")}
        return own | {"last": list(self.last), "known": [_plain(channel) for channel in self._known]}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken; probation, mute and threshold stay this detector's own.

        Raises ValueError for a state of other channels, or one that is no such state.
        """
        if not isinstance(state, dict) or state.get("channels") != self.channels:
            found = state.get("channels") if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"load_state_dict: found channels {found}, wanted {self.channels}")
        try:
            known = [_restored(Channel(), part) for part in state["known"]]
            last = Reading(*state["last"])
            own = [state[name] for name in ("rows", "muted", "time", "step")]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"load_state_dict: not a state of this version: {error!r}") from error
        if len(known) != len(self.channels):
            raise ValueError(f"load_state_dict: found {len(known)} channels' states, wanted {len(self.channels)}")
        self._known, self.last, (self.rows, self.muted, self.time, self.step) = known, last, own


def _plain(part: object) -> object:
    """A Channel and what it holds, as plain values; a profile as pairs, since JSON has no numbers for keys."""
    if isinstance(part, (Channel, Flat, Residual, Tail)):
        return {name: _plain(getattr(part, name)) for name in part.__slots__}
    if isinstance(part, dict):
        return [[slot, level] for slot, level in part.items()]
    return list(part) if isinstance(part, list) else part


def _restored(part: object, state: dict) -> object:
    """The inverse of `_plain`, into a new part."""
    for name in part.__slots__:
        held, value = getattr(part, name), state[name]
        if isinstance(held, (Flat, Residual, Tail)):
            _restored(held, value)
        elif isinstance(held, dict):
            setattr(part, name, {int(slot): float(level) for slot, level in value})
        else:
            setattr(part, name, list(value) if isinstance(value, list) else value)
    return part


class Detection(NamedTuple):
    """Readings of a whole series, one entry per row."""

    score: np.ndarray  # (N,) float64
    flag: np.ndarray  # (N,) bool
    channel: list[str | None]
    cause: list[str | None]
    raw: np.ndarray  # (N,) float64


def detect(times, values, residuals=None, **settings) -> Detection:
    """Readings of every row of a series, what `AnomalyDetector(**settings).update` gives row by row.

    `times`: (N,) seconds, or None; `values` and `residuals`: (N, C), or (N,) for one channel. Raises ValueError as
    `update` does, and for lengths that differ.
    """
    values = np.asarray(values, dtype=np.float64)
    rows = values.reshape(len(values), -1).tolist()
    missed = (
        [None] * len(rows) if residuals is None else np.asarray(residuals, np.float64).reshape(len(rows), -1).tolist()
    )
    stamps = [None] * len(rows) if times is None else np.asarray(times, dtype=np.float64).tolist()
    detector = AnomalyDetector(**settings)
    readings = [detector.update(*row) for row in zip(stamps, rows, missed, strict=True)]
    score, flag, channel, cause, raw = zip(*readings, strict=True) if readings else ((),) * 5
    return Detection(np.array(score, float), np.array(flag, bool), list(channel), list(cause), np.array(raw, float))


def alarms(raw: np.ndarray, threshold: float, probation: int, mute: int) -> np.ndarray:
    """(N,) bool: the alarms that a detector of this threshold would raise, from the raw scores of `detect`."""
    flags, row = np.zeros(len(raw), bool), probation
    for candidate in np.flatnonzero(np.asarray(raw) >= threshold):
        if candidate >= row:
            flags[candidate], row = True, candidate + mute + 1
    return flags
