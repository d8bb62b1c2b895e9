"""python -m tests.bench.nab --nab DIR --json

DIR holds the Numenta Anomaly Benchmark's files as <folder>/<name>.csv and their labelled windows in windows.json. Runs
the detector of project_ts_forecast with one setting over all of them, and scores what it finds by NAB's rules (Lavin
and Ahmad 2015, arXiv 1510.03336): {"standard", "low_fp", "low_fn"}, each 100 for a perfect detector and 0 for one that
says nothing. With --out, one CSV per file with the columns timestamp, value, anomaly_score, label is left there.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cli import UserError, command_parser, run
from project_ts_forecast.anomaly import detect

# profile: weight of a window that is found, of a false alarm, of a window that is missed
PROFILES = {"standard": (1.0, 0.11, 1.0), "low_fp": (1.0, 0.22, 1.0), "low_fn": (1.0, 0.11, 2.0)}
PROBATION, LONGEST = 0.15, 5000  # a file's first 15 %, at most of 5000 rows, are never scored


class Labelled(NamedTuple):
    """One file of the benchmark."""

    name: str
    stamps: list[str]  # as written
    times: np.ndarray  # (N,) seconds, the clock of the file read as UTC
    values: np.ndarray  # (N,)
    windows: list[tuple[int, int]]  # first and last row of each, inclusive

    @property
    def probation(self) -> int:
        """Rows at the start that are never scored."""
        return math.floor(PROBATION * min(len(self.times), LONGEST))


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--nab", required=True, help="folder with <folder>/<name>.csv and windows.json")
    add("--out", help="leave the scores of every row here, one CSV per file")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    figures = nab(Path(args.nab), Path(args.nab, "windows.json"), args.out and Path(args.out))
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value:.1f}" for name, value in figures.items()))


def nab(folder: Path, windows: Path, out: Path | None = None) -> dict[str, float]:
    """Detect in every file named in `windows`, and score; one threshold per profile for all files, as NAB has it."""
    if not windows.is_file():
        raise UserError(f"{windows}: no such file; wanted NAB's labelled windows, see --help")
    files = [read(folder, name, held) for name, held in json.loads(windows.read_text()).items()]
    scores = [detect(file.times, file.values, probation=file.probation).score for file in files]
    for file, score in zip(files, scores, strict=True):
        if out:
            write(out / file.name, file, score)
    return {name: benchmark_score(files, scores, *weights) for name, weights in PROFILES.items()}


def seconds(stamp: str) -> float:
    """Seconds since 1970 of a stamp without offset, read as UTC so that a day of the file is a day."""
    return datetime.fromisoformat(stamp).replace(tzinfo=timezone.utc).timestamp()


def read(folder: Path, name: str, windows: list[list[str]]) -> Labelled:
    """One file and its windows as rows."""
    with open(folder / name, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stamps = [row["timestamp"] for row in rows]
    times = np.array([seconds(stamp) for stamp in stamps])
    inside = [np.flatnonzero((times >= seconds(first)) & (times <= seconds(last))) for first, last in windows]
    values = np.array([float(row["value"]) for row in rows])
    return Labelled(name, stamps, times, values, [(int(rows[0]), int(rows[-1])) for rows in inside if len(rows)])


def write(path: Path, file: Labelled, score: np.ndarray) -> None:
    """The benchmark's form of a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = [int(any(first <= row <= last for first, last in file.windows)) for row in range(len(score))]
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["timestamp", "value", "anomaly_score", "label"])
        writer.writerows(zip(file.stamps, file.values.tolist(), score.tolist(), label, strict=True))


def worth(position: np.ndarray) -> np.ndarray:
    """NAB's scoring sigmoid: about 1 at the start of a window (-1), 0 at its end, down to -1 far behind it."""
    return np.where(position > 3, -1.0, 2 / (1 + np.exp(5 * np.minimum(position, 3.0))) - 1)


def row_worth(file: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Per row the number of its window, -1 outside, and what an alarm there is worth before weighting."""
    rows = np.arange(len(file.times))
    window, value = np.full(len(rows), -1), np.full(len(rows), -1.0)
    for first, last in file.windows:
        behind = rows > last  # counted from the nearest window before the row
        value[behind] = worth((rows[behind] - last) / max(last - first, 1))
    for number, (first, last) in enumerate(file.windows):
        inside = slice(first, last + 1)
        window[inside] = number
        value[inside] = worth((rows[inside] - last - 1) / (last - first + 1)) / worth(np.array(-1.0))
    return window, value


def benchmark_score(
    files: list[Labelled], scores: list[np.ndarray], found: float, false: float, missed: float
) -> float:
    """The scaled score of the best single threshold: 0 for no alarms at all, 100 for every window at its first row.

    A window is worth what its first alarm is, and -missed without one; of the rows outside every one counts.
    """
    score, window, value, windows = [], [], [], 0
    for file, given in zip(files, scores, strict=True):
        numbers, worths = row_worth(file)
        score.append(given[file.probation :])
        window.append(np.where(numbers < 0, -1, numbers + windows)[file.probation :])
        value.append(worths[file.probation :])
        windows += len(file.windows)
    score, window, value = np.concatenate(score), np.concatenate(window), np.concatenate(value)
    order = np.argsort(-score, kind="stable")  # the threshold falls, and rows become alarms in this order
    gain = np.where(window < 0, false * value, 0.0)[order]
    held = {}
    for place, row in enumerate(order):
        number, worths = window[row], found * value[row]
        if number >= 0 and worths > held.get(number, -missed):
            gain[place] = worths - held.get(number, -missed)
            held[number] = worths
    ends = np.append(np.diff(score[order]) < 0, True) & (score[order] > 0)  # equal scores become alarms together
    best = max(0.0, np.cumsum(gain)[ends].max(initial=0.0))
    return float(100 * best / ((found + missed) * windows))


if __name__ == "__main__":
    run(main)
