"""Anomalies in the series of a CSV: scores and alarms by series, and what they are worth against labelled windows.

    watched = watch(data, rows["test"], settings, ["load"])    # {series: Watched}
    scores = against_labels(watched, read_windows("windows.json"), settings)

The detector of `anomaly.py` runs over each series from its first row on, so that it has learnt when the part to be
scored begins, and stops at the end of that part. settings: threshold, probation and mute, as a checkpoint's assets hold
them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from common.cli import UserError
from project_ts_forecast.anomaly import Detection, detect
from project_ts_forecast.anomaly_scores import choose_threshold, count, rows_inside, scores
from project_ts_forecast.data import Data
from project_ts_forecast.repair import Piece
from project_ts_forecast.stamps import SECOND, time_zone

PROBATION, SHARE = 300, 0.15  # rows that only teach, and at most this share of a series (as NAB has it)


@dataclass
class Watched:
    """One series: seconds (N,) of its rows or None, what was found in each, and the first row to be scored."""

    seconds: np.ndarray | None
    found: Detection
    first: int


def usual_settings(rows: int) -> dict:
    """For series of so many rows: the threshold 0.5, one row in a thousand without any anomaly."""
    probation = min(PROBATION, int(SHARE * rows))
    return {"threshold": 0.5, "probation": probation, "mute": probation // 5}


def clock(times: np.ndarray, zone: str) -> np.ndarray:
    """(n,) µs → seconds of a clock that follows the days as people live them: local time where the zone is known."""
    if not zone:
        return times / SECOND
    tz, epoch = time_zone(zone), datetime(1970, 1, 1, tzinfo=timezone.utc)
    moments = [(epoch + timedelta(microseconds=int(t))).astimezone(tz) for t in times]
    return np.array([t / SECOND + m.utcoffset().total_seconds() for t, m in zip(times.tolist(), moments, strict=True)])


def watch(
    data: Data, rows: list[tuple[int, int]], settings: dict, columns: list[str], zone: str = ""
) -> dict[str, Watched]:
    """The first channels, named `columns`, of each series up to the end of its part; rows: (first, end) a piece."""
    pieces: dict[str, list[tuple[Piece, tuple[int, int]]]] = defaultdict(list)
    for piece, part in zip(data.pieces, rows, strict=True):
        pieces[piece.name].append((piece, part))
    watched = {}
    for name, held in pieces.items():
        values, times, before, first = [], [], 0, None
        for piece, (a, b) in held:
            if b <= a and first is not None:
                break  # beyond the part
            end = b if b > a else len(piece)
            values.append(np.where(piece.filled[:end, None], np.nan, piece.values[:end, : len(columns)]))
            times.append(piece.times(0, end))
            first = before + a if b > a and first is None else first
            before += end
        if first is not None:
            stamps = np.concatenate(times)
            seconds = None if data.step.kind == "rows" else clock(stamps, zone)
            found = detect(seconds, np.concatenate(values), channels=columns, **settings)
            watched[name] = Watched(None if seconds is None else stamps / SECOND, found, first)
    return watched


def windows_for(name: str, windows: dict, watched: dict, csv: str | Path) -> list[tuple[float, float]]:
    """The labelled windows of a series; a file of one series may go by the file's name. UserError where none fits."""
    path = Path(csv)
    names = [name, *([path.name, path.stem, f"{path.parent.name}/{path.name}"] if len(watched) == 1 else [])]
    found = next((key for key in names if key in windows), None)
    if found is None:
        raise UserError(f"--labels: no series {names[-1]!r}; there are {', '.join(map(str, windows))[:200]}")
    return windows[found]


def against_labels(watched: dict[str, Watched], windows: dict, settings: dict, csv: str | Path) -> dict:
    """Precision, recall and F1 by event and by row, false alarms per 1,000 rows and delay, of all series together."""
    parts = []
    for name, one in watched.items():
        inside = _rows(name, one, windows, watched, csv)
        unusual = one.found.raw >= settings["threshold"]
        parts.append(count(one.found.flag, inside, unusual, max(one.first, settings["probation"])))
    return {**scores(parts), "threshold": settings["threshold"], "alarms": alarms_of(watched)}


def alarms_of(watched: dict[str, Watched], most: int = 100) -> list[dict]:
    """Series, row, channel and cause of each alarm in the scored part."""
    return [
        {"series": name, "row": int(row), "channel": one.found.channel[row], "cause": one.found.cause[row]}
        for name, one in watched.items()
        for row in np.flatnonzero(one.found.flag)
        if row >= one.first
    ][:most]


def chosen_settings(watched: dict[str, Watched], windows: dict, settings: dict, csv: str | Path) -> tuple[dict, dict]:
    """Settings with the threshold that the labels of these rows like best, and its scores there. UserError if none."""
    raws = [one.found.raw for one in watched.values()]
    inside = [_rows(name, one, windows, watched, csv) for name, one in watched.items()]
    try:
        threshold, found = choose_threshold(raws, inside, settings["probation"], settings["mute"])
    except ValueError as error:
        raise UserError(f"--labels: {error}") from error
    return {**settings, "threshold": threshold}, found


def _rows(name: str, one: Watched, windows: dict, watched: dict, csv: str | Path) -> list[np.ndarray]:
    seconds = np.arange(len(one.found.score), dtype=float) if one.seconds is None else one.seconds
    return rows_inside(seconds, windows_for(name, windows, watched, csv))
