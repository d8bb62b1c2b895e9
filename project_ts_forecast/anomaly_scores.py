"""Scores of alarms against labelled windows, by event and by row, and the threshold chosen by them.

windows = read_windows("windows.json")                    # {series: [[first, last], ...]} → the same in seconds
counts = count(found.flag, rows_inside(times, windows["pump"]), unusual=found.raw >= 0.5)
scores([counts])                                          # of one series or of many together

An event is a window: found if it holds at least one alarm, and then once, however many. Alarms outside are false ones,
each. A row counts as what it was said to be, never as found because a neighbour in its window was: adjusting points
that way lets random scores look perfect (Kim et al. 2022, arXiv 2109.05257).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cli import UserError
from project_ts_forecast.anomaly import alarms
from project_ts_forecast.stamps import SECOND, parse_times

GRID = tuple(step / 100 for step in range(30, 101))  # thresholds that are tried


class Counts(NamedTuple):
    """What is added up over series before anything is divided."""

    events: int  # windows
    found: int  # of them with an alarm
    delay: int  # rows from the first row of each found window to its first alarm, summed
    false_alarms: int
    normal_rows: int  # outside the windows
    true_rows: int  # inside and said to be unusual
    false_rows: int  # outside and said to be unusual
    anomalous_rows: int  # inside the windows


def read_windows(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Series → first and last moment of its windows, in seconds; UserError for another form of file."""
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        flat = {series: [stamp for window in windows for stamp in window] for series, windows in held.items()}
        if any(len(window) != 2 for windows in held.values() for window in windows):
            raise ValueError("a window without its two ends")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: found {error}; wanted a JSON object of series, each a list of [first, last] stamps"
        ) from error
    moments = {series: parse_times([str(s) for s in stamps])[0] / SECOND for series, stamps in flat.items() if stamps}
    read = {series: list(zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True)) for series, ends in moments.items()}
    for series, windows in read.items():
        for first, last in windows:
            if first > last:
                raise UserError(f"{path}: {series}: a window ends before it begins; swap its stamps")
    return {series: read.get(series, []) for series in held}


def rows_inside(times: np.ndarray, windows: Sequence[tuple[float, float]]) -> list[np.ndarray]:
    """The rows of each window, both ends included; windows that hold no row are left out. `times`: (N,) seconds."""
    rows = [np.flatnonzero((times >= first) & (times <= last)) for first, last in windows]
    return [held for held in rows if len(held)]


def count(
    flags: np.ndarray, windows: Sequence[np.ndarray], unusual: np.ndarray | None = None, first: int = 0
) -> Counts:
    """Counts of one series. `flags` (N,): the alarms; `unusual` (N,): rows over the threshold, muted or not.

    `unusual` is `flags` if None. `windows`: the rows of each event. Rows before `first`, the probation, are not scored.
    """
    unusual = flags if unusual is None else unusual
    inside, scored = np.zeros(len(flags), bool), np.arange(len(flags)) >= first
    held = [rows[rows >= first] for rows in windows]
    held = [rows for rows in held if len(rows)]
    delays = [int(np.argmax(flags[rows])) for rows in held if flags[rows].any()]
    for rows in held:
        inside[rows] = True
    outside = ~inside & scored
    return Counts(
        events=len(held),
        found=len(delays),
        delay=sum(delays),
        false_alarms=int((flags & outside).sum()),
        normal_rows=int(outside.sum()),
        true_rows=int((unusual & inside).sum()),
        false_rows=int((unusual & outside).sum()),
        anomalous_rows=int(inside.sum()),
    )


def scores(counts: Sequence[Counts]) -> dict:
    """Precision, recall and F1 by event and by row, false alarms per 1,000 normal rows, mean delay in rows.

    None is a score of nothing: a precision without alarms, a recall without windows, a delay without a found window.
    """
    total = Counts(*map(sum, zip(*counts, strict=True)))
    return {
        "event": _f1(total.found, total.false_alarms, total.events - total.found),
        "row": _f1(total.true_rows, total.false_rows, total.anomalous_rows - total.true_rows),
        "false_alarms_per_1000_rows": _share(1000 * total.false_alarms, total.normal_rows),
        "delay_rows": _share(total.delay, total.found),
        "events": total.events,
        "found": total.found,
        "false_alarms": total.false_alarms,
    }


def _f1(true: int, false: int, missed: int) -> dict[str, float | None]:
    return {
        "precision": _share(true, true + false),
        "recall": _share(true, true + missed),
        "f1": _share(2 * true, 2 * true + false + missed),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def choose_threshold(
    raws: Sequence[np.ndarray], windows: Sequence[Sequence[np.ndarray]], probation: int, mute: int
) -> tuple[float, dict]:
    """The threshold of GRID with the best F1 by event over validation series, and its scores there.

    `raws`: per series the raw scores of `detect`; `windows`: per series the rows of each event. Of equals the highest,
    which alarms least. Raises ValueError where no series has a window after the probation: nothing could be chosen.
    """
    tried = {}
    for threshold in GRID:
        parts = [
            count(alarms(raw, threshold, probation, mute), held, raw >= threshold, probation)
            for raw, held in zip(raws, windows, strict=True)
        ]
        tried[threshold] = scores(parts)
    if not tried[GRID[0]]["events"]:
        raise ValueError(
            f"choose_threshold: found no labelled window after the first {probation} rows, wanted one or more"
        )
    best = max(tried, key=lambda threshold: (tried[threshold]["event"]["f1"], threshold))
    return best, tried[best]
