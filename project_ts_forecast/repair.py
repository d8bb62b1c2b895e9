"""Rows as they came → pieces of series on a regular grid without a missing value, and a count of all that was wrong.

    counts = Counter()
    pieces = repair(Raw("OT", times, values, rows), Step("time", HOUR), Rules(fill="last", max_gap=3), counts)

What is counted: empty stamps, stamps out of order, off the grid, twice (equal or not), rows that are missing, values
that are missing or infinite, what was filled, and where a gap was too long to fill, so that a series was cut in two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from common.cli import UserError
from project_ts_forecast.stamps import NO_STAMP, Step, to_utc

FILLS = ("none", "last", "linear", "seasonal")
DUPLICATES = ("last", "first", "mean", "refuse")
IRREGULAR = ("jitter", "snap", "refuse")
ORDERS = ("sort", "refuse")


@dataclass
class Raw:
    """Rows of one series: times (n,) int64 µs or None, values (n, C) with NaN, rows (n,) numbers in the file."""

    name: str
    times: np.ndarray | None
    values: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Rules:
    """What to do with what is wrong; the flags of training. season: rows, for the seasonal fill."""

    fill: str = "last"
    max_gap: int = 3  # longest run of missing rows or values that is filled
    on_duplicate: str = "last"
    on_unsorted: str = "sort"
    on_irregular: str = "jitter"
    tz: str = ""
    season: int = 1


@dataclass
class Piece:
    """Part of a series without a gap: values (n, C) float64, all finite; filled (n,): rows with made-up values."""

    name: str
    start: int  # µs, or rows from the start of the series
    step: Step
    values: np.ndarray
    filled: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def times(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Stamps (µs) of the rows from `first` up to `last`, which may lie beyond the end."""
        return self.step.at(self.start, np.arange(first, len(self) if last is None else last))


def repair(raw: Raw, step: Step, rules: Rules, counts: Counter) -> list[Piece]:
    """Sort, put on the grid, fill, cut. Adds to `counts`. Raises UserError where a rule says refuse."""
    counts["rows"] += len(raw.rows)
    values = np.where(np.isinf(raw.values), np.nan, raw.values)
    counts["infinite_values"] += int(np.isinf(raw.values).sum())
    counts["missing_values"] += int(np.isnan(values).sum())
    if raw.times is None:
        index, start = np.arange(len(values)), 0
    else:
        raw = Raw(raw.name, raw.times, values, raw.rows)
        times, values, rows = _in_order(raw, rules, counts)
        if not len(times):
            return []
        start = int(times[0])
        index = _on_grid(times, start, rows, step, rules, counts)
        index, values = _without_duplicates(raw.name, index, values, rows, rules, counts)
    counts["missing_stamps"] += int(index[-1] - index[0] + 1 - len(index)) if len(index) else 0
    return _pieces(raw.name, start, step, index, values, rules, counts)


def _in_order(raw: Raw, rules: Rules, counts: Counter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, values and row numbers, sorted by time; rows without a stamp are dropped."""
    here = raw.times != NO_STAMP
    counts["empty_stamps"] += int((~here).sum())
    times, values, rows = raw.times[here], raw.values[here], raw.rows[here]
    times = to_utc(times, rules.tz) if rules.tz else times
    backward = np.flatnonzero(np.diff(times) < 0)
    if len(backward):
        counts["backward_stamps"] += len(backward)
        if rules.on_unsorted == "refuse":
            raise UserError(
                f"series {raw.name!r}, row {rows[backward[0] + 1]}: its stamp is earlier than the one before; sort the "
                "file, or pass --on_unsorted sort (where clocks change, --tz with the zone)"
            )
        order = np.argsort(times, kind="stable")
        times, values, rows = times[order], values[order], rows[order]
    return times, values, rows


def _on_grid(times: np.ndarray, start: int, rows: np.ndarray, step: Step, rules: Rules, counts: Counter) -> np.ndarray:
    """(n,) whole row numbers on the grid that begins at `start`."""
    exact = step.index(times, start)
    index = np.rint(exact).astype(np.int64)
    off = np.abs(exact - index)
    if not off.any():
        return index
    counts["off_grid_stamps"] += int((off > 0).sum())
    allowed = {"jitter": 0.25, "snap": 1.0, "refuse": 0.0}[rules.on_irregular]
    if (off > allowed).any():
        worst = int(off.argmax())
        raise UserError(
            f"row {rows[worst]}: its stamp is {off[worst]:.2f} steps of {step} off the grid; pass another --step, "
            "--on_irregular snap to take the nearest place, or --step rows to go by rows alone"
        )
    return index


def _without_duplicates(
    name: str, index: np.ndarray, values: np.ndarray, rows: np.ndarray, rules: Rules, counts: Counter
) -> tuple[np.ndarray, np.ndarray]:
    """One row for each place on the grid."""
    again = np.flatnonzero(np.diff(index) == 0) + 1
    if not len(again):
        return index, values
    equal = ((values[again] == values[again - 1]) | (np.isnan(values[again]) & np.isnan(values[again - 1]))).all(1)
    counts["duplicates_equal"] += int(equal.sum())
    counts["duplicates_conflicting"] += int((~equal).sum())
    if rules.on_duplicate == "refuse" and not equal.all():
        raise UserError(
            f"series {name!r}, row {rows[again[~equal][0]]}: a second row for one stamp, not equal to the first; mend "
            "the file, pass --series_col if it holds several series, or --on_duplicate last, first or mean"
        )
    first = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    if rules.on_duplicate == "mean":
        held = ~np.isnan(values)
        sums = np.add.reduceat(np.where(held, values, 0), first, axis=0)
        n = np.add.reduceat(held, first, axis=0, dtype=np.int64)
        return index[first], np.where(n > 0, sums / np.maximum(n, 1), np.nan)
    keep = first if rules.on_duplicate == "first" else np.append(first[1:], len(index)) - 1
    return index[keep], values[keep]


def _pieces(
    name: str, start: int, step: Step, index: np.ndarray, values: np.ndarray, rules: Rules, counts: Counter
) -> list[Piece]:
    """Fill the short gaps, cut at the long ones."""
    longest = 0 if rules.fill == "none" else rules.max_gap
    found = []
    for part in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) > longest + 1) + 1):
        if not len(part):
            continue
        first = index[part[0]]
        grid = np.full((index[part[-1]] - first + 1, values.shape[1]), np.nan)
        grid[index[part] - first] = values[part]
        missing = np.isnan(grid)
        if missing.any():
            fill(grid, rules.fill, longest, rules.season)
        usable = ~np.isnan(grid).any(1)
        filled = missing.any(1) & usable
        counts["filled_rows"] += int(filled.sum())
        edges = np.flatnonzero(np.diff(usable, prepend=False, append=False)).reshape(-1, 2)
        for a, b in edges.tolist():
            at = int(step.at(start, first + a)) if step.kind != "rows" else int(first + a)
            found.append(Piece(name, at, step, grid[a:b], filled[a:b]))
    counts["cuts"] += max(0, len(found) - 1)
    return found


def fill(grid: np.ndarray, how: str, longest: int, season: int = 1) -> None:
    """Fill runs of NaN of at most `longest` rows in each column of `grid` (n, C), in place; none before the first
    value.

    last: the value before; linear: a line to the value after; seasonal: the value one season before, else the last.
    """
    for column in grid.T:
        edges = np.flatnonzero(np.diff(np.isnan(column), prepend=False, append=False)).reshape(-1, 2)
        for a, b in edges.tolist():
            if how == "none" or b - a > longest or a == 0:
                continue
            if how == "linear" and b < len(column):
                column[a:b] = np.linspace(column[a - 1], column[b], b - a + 2)[1:-1]
                continue
            for i in range(a, b):
                before = column[i - season] if how == "seasonal" and i >= season else column[a - 1]
                column[i] = column[a - 1] if np.isnan(before) else before


WORDS = {
    "empty_stamps": "rows without a stamp, dropped",
    "backward_stamps": "stamps out of order, sorted",
    "off_grid_stamps": "stamps off the grid, moved to its nearest place",
    "duplicates_equal": "rows that repeat another, dropped",
    "duplicates_conflicting": "rows that contradict another of the same stamp "
    "(--on_duplicate {on_duplicate}; local clocks that change want --tz)",
    "missing_stamps": "rows missing on the grid",
    "missing_values": "missing values",
    "infinite_values": "infinite values, taken as missing",
    "filled_rows": "rows filled (--fill {fill}, runs of at most {max_gap}); never scored",
    "cuts": "gaps too long to fill, where the series was cut: no window crosses one",
    "constant_series": "series that never change",
    "short_series": "pieces too short for one window, left out",
}


def tell(counts: Counter, step: Step, rules: Rules) -> list[str]:
    """What was found, in words, a line each; nothing for what did not occur."""
    lines = [f"{counts['rows']} rows, {counts['series']} series, step {step}"]
    held = vars(rules)
    return lines + [f"  {counts[key]} {words.format(**held)}" for key, words in WORDS.items() if counts[key]]
