"""Time stamps: from the text of a CSV to microseconds and back, the step between rows, and what a calendar says.

    times, style = parse_times(["2016-07-01 00:00:00", "2016-07-01 01:00:00"])     # int64, µs since 1970 (UTC or local)
    step = infer_step([times])                                                     # Step("time", 3_600_000_000)
    write_times(step.at(times[0], np.arange(3)), style)                            # as they were written

A file without stamps counts rows: Step("rows"). No time zone is guessed: stamps with an offset become UTC, local stamps
become UTC with the name of their zone, and the others stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from common.cli import UserError

NO_STAMP = np.iinfo(np.int64).min  # what numpy calls NaT
SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
UNITS = {"s": SECOND, "min": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
OFFSET = re.compile(r"(?<=[0-9])\s?(Z|[+-]\d\d:?\d\d|[+-]\d\d)$")
PRECISION = {4: "Y", 7: "M", 8: "D", 10: "D", 16: "m", 19: "s", 23: "ms"}  # by the length of an ISO stamp
EPOCH = datetime(1970, 1, 1)
LATE = 0.1  # steps that a stamp may lie from where the one before it puts it


@dataclass(frozen=True)
class Step:
    """The distance between rows: kind "time" (size in µs), "months" (calendar months) or "rows" (no stamps)."""

    kind: str = "rows"
    size: int = 1

    def __str__(self) -> str:
        if self.kind != "time":
            return f"{self.size} {self.kind[:-1] if self.size == 1 else self.kind}"
        unit, size = next(((name, size) for name, size in reversed(UNITS.items()) if not self.size % size), ("µs", 1))
        return f"{self.size // size} {unit}"

    def index(self, times: np.ndarray, start: int) -> np.ndarray:
        """Rows after `start`, as floats: whole numbers for stamps on the grid."""
        if self.kind == "months":
            months = times.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
            first = np.int64(start).view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
            return (months - first) / self.size
        return (times - start) / self.size

    def at(self, start: int, index: np.ndarray) -> np.ndarray:
        """Stamps (µs) of the rows `index` after `start`; a month without the day of `start` ends a day early."""
        if self.kind != "months":
            return start + np.asarray(index, np.int64) * self.size
        first = np.int64(start).view("datetime64[us]")
        month = first.astype("datetime64[M]")
        into = first - month.astype("datetime64[us]")
        day, rest = into // np.timedelta64(DAY, "us"), into % np.timedelta64(DAY, "us")
        is_end = (first + np.timedelta64(DAY, "us")).astype("datetime64[M]") != month
        months = month + (np.asarray(index, np.int64) * self.size).astype("timedelta64[M]")
        starts = months.astype("datetime64[D]"), (months + np.timedelta64(1, "M")).astype("datetime64[D]")
        lengths = (starts[1] - starts[0]).astype(np.int64)
        day = lengths - 1 if is_end and day >= 27 else np.minimum(day, lengths - 1)
        return (starts[0].astype("datetime64[us]") + day * np.timedelta64(DAY, "us") + rest).view(np.int64)

    def season(self) -> int:
        """Rows of the season that such data usually have: a day, a week of days, a year of months; 1 where unknown."""
        if self.kind == "months":
            return max(1, 12 // self.size)
        if self.kind == "time" and self.size < DAY:
            return round(DAY / self.size)
        return 7 if self == Step("time", DAY) else 1


def read_step(text: str) -> Step:
    """`--step`: "rows", or a number with s, min, h, d, w or mo, such as 15min. Raises UserError."""
    if text == "rows":
        return Step()
    found = re.fullmatch(r"(\d*)\s*(s|min|h|d|w|mo)", text)
    if not found or found[1] == "0":
        raise UserError(f"--step {text}: wanted rows, or a number with s, min, h, d, w or mo, such as 15min")
    size = int(found[1] or 1)
    return Step("months", size) if found[2] == "mo" else Step("time", size * UNITS[found[2]])


def infer_step(stamps: list[np.ndarray]) -> Step:
    """The usual distance between the sorted, distinct stamps of each series. Raises UserError where there is none."""
    apart = np.concatenate([np.diff(times) for times in stamps]) if stamps else np.empty(0, np.int64)
    if not len(apart):
        raise UserError("no two stamps of one series: the step between rows cannot be told; pass --step, such as 1h")
    moments = np.concatenate(stamps).view("datetime64[us]")
    if apart.min() >= 28 * DAY and _monthly(moments):
        months = [np.diff(times.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)) for times in stamps]
        return Step("months", _usual(np.concatenate(months))[0])
    size, share = _usual(apart)
    if share < 0.5:  # stamps that jitter: the middle distance, if most are close to it
        size = int(np.median(apart))
        unit = next((unit for unit in (DAY, HOUR, MINUTE, SECOND) if size >= unit), 1)
        size = round(size / unit) * unit
        if (np.abs(apart - size) <= size / 4).mean() < 0.8:
            raise UserError(
                f"the stamps are irregular: no distance between rows is usual (median {size / SECOND:g} s); "
                "pass --step, such as 1h, with --on_irregular snap"
            )
    return Step("time", size)


def _usual(values: np.ndarray) -> tuple[int, float]:
    """The most frequent value, and its share."""
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[counts.argmax()]), counts.max() / counts.sum()


def _monthly(moments: np.ndarray) -> bool:
    """All on one day of the month, or all on the last."""
    days = moments.astype("datetime64[D]")
    in_month = (days - days.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
    last = (days + np.timedelta64(1, "D")).astype("datetime64[M]") != days.astype("datetime64[M]")
    return bool((in_month == in_month[0]).all() or last.all())


def parse_times(texts: list[str], time_format: str | None = None, first_row: int = 1) -> tuple[np.ndarray, dict]:
    """Texts → (n,) int64 µs, NO_STAMP for an empty one, and the style to write such stamps in.

    Read are ISO 8601 with or without offset, unix seconds, ms, µs or ns, and whatever `time_format` (of strptime) says.
    first_row: number of the first text in the file, for messages. Raises UserError.
    """
    texts = [text.strip() for text in texts]
    held = [text for text in texts if text]
    if not held:
        return np.full(len(texts), NO_STAMP), {"kind": "iso", "sep": " ", "unit": "s"}
    if time_format:
        return _by_format(texts, time_format, first_row), {"kind": "format", "format": time_format}
    if all(re.fullmatch(r"-?\d+(\.\d*)?", text) for text in held[:100]) and not _is_date(held):
        return _unix(texts, held, first_row)
    offset = OFFSET.search(held[0]) if len(held[0]) > 10 else None
    style = {"kind": "offset" if offset else "iso", "sep": "T" if "T" in held[0] else " "}
    style["unit"] = PRECISION.get(len(held[0][: offset.start()] if offset else held[0]), "s" if offset else "us")
    if offset is None and ("-" in held[0] or len(held[0]) == 4):
        try:
            return np.array([text or "NaT" for text in texts], "datetime64[us]").view(np.int64), style
        except (ValueError, DeprecationWarning, UserWarning):
            style["unit"] = style["unit"] if style["unit"] in "DmsM" else "s"
    times = np.array([_iso(text, first_row + i) for i, text in enumerate(texts)], np.int64)
    return times, style


def _is_date(held: list[str]) -> bool:
    """Years and dates such as 20160701, which are numbers too."""
    years = all(len(text) == 4 and "1000" <= text <= "2999" for text in held[:100])
    return years or all(re.fullmatch(r"[12]\d{3}(0[1-9]|1[0-2])([0-2]\d|3[01])", text) for text in held[:100])


def _iso(text: str, row: int) -> int:
    if not text:
        return NO_STAMP
    plain = text.replace("/", "-")
    plain = f"{plain[:4]}-{plain[4:6]}-{plain[6:]}" if re.fullmatch(r"\d{8}", plain) else plain
    if found := (OFFSET.search(plain) if len(plain) > 10 else None):
        sign = found[1].replace("Z", "+00:00").replace(":", "")
        plain = f"{plain[: found.start()]}{sign[:3]}:{sign[3:] or '00'}"
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError as error:
        raise UserError(
            f"row {row}: the stamp {text[:40]!r} is neither ISO 8601 (2016-07-01 13:00) nor unix time; "
            "pass --time_format, such as %d.%m.%Y %H:%M"
        ) from error
    moment = moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment
    return (moment - EPOCH) // timedelta(microseconds=1)


def _by_format(texts: list[str], time_format: str, first_row: int) -> np.ndarray:
    times = np.full(len(texts), NO_STAMP)
    for i, text in enumerate(texts):
        try:
            if text:
                moment = datetime.strptime(text, time_format)
                moment = moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment
                times[i] = (moment - EPOCH) // timedelta(microseconds=1)
        except ValueError as error:
            raise UserError(
                f"row {first_row + i}: the stamp {text[:40]!r} is not of --time_format {time_format}"
            ) from error
    return times


def _unix(texts: list[str], held: list[str], first_row: int) -> tuple[np.ndarray, dict]:
    try:
        seconds = float(held[0])
        digits = len(str(abs(int(seconds))))
        unit = "s" if digits <= 11 else "ms" if digits <= 14 else "us" if digits <= 17 else "ns"
        factor = {"s": (SECOND, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[unit]
        whole = all(text.lstrip("-").isdigit() for text in held)
        number = (
            (lambda text: int(text) * factor[0] // factor[1])
            if whole
            else (lambda text: round(float(text) * factor[0]))
        )
        return np.array([number(text) if text else NO_STAMP for text in texts], np.int64), {
            "kind": "unix",
            "unit": unit,
        }
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"from row {first_row} on: a stamp is no unix time, as the first is ({held[0]!r}): {error}"
        ) from error


def write_times(times: np.ndarray, style: dict, zone: str = "") -> list[str]:
    """(n,) µs → the texts, as the file they came from wrote them; with a zone, local time with its offset."""
    if style["kind"] == "unix":
        factor = {"s": SECOND, "ms": 1000, "us": 1, "ns": 1}[style["unit"]]
        scale = 1000 if style["unit"] == "ns" else 1
        return [
            str(int(t) * scale if factor == 1 else int(t) // factor if not t % factor else t / factor) for t in times
        ]
    if style["kind"] == "format":
        return [(EPOCH + timedelta(microseconds=int(t))).strftime(style["format"]) for t in times]
    if zone:
        local = [(EPOCH + timedelta(microseconds=int(t))).replace(tzinfo=timezone.utc) for t in times]
        return [t.astimezone(time_zone(zone)).isoformat(sep=style["sep"]) for t in local]
    moments = np.asarray(times, np.int64).view("datetime64[us]")
    unit = style["unit"]
    if unit != "us" and (moments.astype(f"datetime64[{unit}]").astype("datetime64[us]") != moments).any():
        unit = "s" if (np.asarray(times) % SECOND == 0).all() else "us"
    texts = np.datetime_as_string(moments, unit=unit).tolist()
    end = "+00:00" if style["kind"] == "offset" else ""
    return [text.replace("T", style["sep"]) + end for text in texts]


def time_zone(name: str) -> ZoneInfo:
    """Raises UserError for a name that this machine does not know."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(f"--tz {name}: no such time zone here; wanted a name such as Europe/Berlin") from error


def to_utc(times: np.ndarray, zone: str) -> np.ndarray:
    """Local stamps (µs), in the order of the file → UTC. Of an hour that comes twice, the second is the later one."""
    tz, seen, utc = time_zone(zone), set(), np.empty_like(times)
    for i, t in enumerate(times.tolist()):
        moment = (EPOCH + timedelta(microseconds=t)).replace(tzinfo=tz, fold=int(t in seen))
        seen.add(t)
        utc[i] = t - moment.utcoffset() // timedelta(microseconds=1)
    return utc


def calendar(times: np.ndarray, step: Step) -> np.ndarray:
    """(n,) µs → (n, F) float32: sine and cosine of the hour in the day, the day in the week and the day in the year.

    A cycle is left out where the step is no shorter than half of it. Stamps in UTC give hours in UTC.
    """
    size = step.size * 30 * DAY if step.kind == "months" else step.size
    days = times.view("datetime64[us]").astype("datetime64[D]")
    of_year = (times - days.astype("datetime64[Y]").astype("datetime64[us]").view(np.int64)) / (365.25 * DAY)
    # 1970 began on a Thursday; whole weeks do not matter
    cycles = [(DAY, times / DAY), (7 * DAY, times / (7 * DAY)), (365 * DAY, of_year)]
    waves = [wave(2 * np.pi * (turn % 1)) for length, turn in cycles if 2 * size < length for wave in (np.sin, np.cos)]
    return np.stack(waves, 1).astype(np.float32) if waves else np.empty((len(times), 0), np.float32)


def uneven(step: Step, times: np.ndarray) -> bool:
    """Whether any of the stamps (n,) in µs came more than LATE steps too late or too early after the one before it.

    Steps that were left out are no fault of the stamp that follows.
    """
    passed = np.diff(step.index(times, int(times[0])))
    return bool((np.abs(passed - np.rint(passed)) > LATE).any())
