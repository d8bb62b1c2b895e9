"""python -m project_ts_forecast.synthetic --out data/ts --seed 0

Draws hourly readings of a few made-up meters, so that the time-series project has data from the first minute. Reads
nothing; writes OUT/demo.csv (long: time, meter, load, temperature), with some of what real files hold: missing and
repeated rows, empty cells, a longer outage; and OUT/windows.json, the moments in which a meter went wrong.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from common.cli import UserError, command_parser, number, run

START = np.datetime64("2023-07-01T00:00", "m")
WEEK, DAY = 168, 24  # hours


def smooth(rng: np.random.Generator, n: int, memory: float) -> np.ndarray:
    """(n,) a noise of deviation 1 that forgets by the factor `memory` an hour."""
    steps = rng.standard_normal(n) * np.sqrt(1 - memory**2)
    for i in range(1, n):
        steps[i] += memory * steps[i - 1]
    return steps


def temperature(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) degrees Celsius: year, day, weather."""
    hours = np.arange(n)
    year, day = 10 * np.cos(2 * np.pi * hours / (365.25 * DAY)), -4 * np.cos(2 * np.pi * (hours - 3) / DAY)
    return 9 + year + day + 4 * smooth(rng, n, 0.985)


def load(rng: np.random.Generator, degrees: np.ndarray) -> np.ndarray:
    """(n,) kilowatts: a daily shape, quieter weekends, heating below 15 degrees, slow drift, proportional noise."""
    hours = np.arange(len(degrees))
    level, swing, heating = rng.uniform(20, 200), rng.uniform(0.2, 0.5), rng.uniform(0.01, 0.04)
    clock = 2 * np.pi * (hours - rng.uniform(12, 16)) / DAY
    shape = 1 + swing * (np.cos(clock) + 0.4 * np.cos(2 * clock + rng.uniform(-1, 1)))
    weekend = np.where(hours % WEEK >= 5 * DAY, rng.uniform(0.7, 0.9), 1.0)
    cold = 1 + heating * np.maximum(15 - degrees, 0)
    drift = 1 + 0.05 * smooth(rng, len(hours), 0.998)
    return level * shape * weekend * cold * drift * (1 + 0.03 * smooth(rng, len(hours), 0.5))


def break_it(rng: np.random.Generator, values: np.ndarray, kind: int) -> tuple[int, int]:
    """One fault in the last 12 % of `values`, in place: spikes, a stuck sensor or a dip; its first and last row."""
    first = int(rng.uniform(0.88, 0.97) * len(values))
    last = first + int(rng.integers(4, 12))
    if kind == 0:
        values[first : last + 1] *= rng.uniform(1.8, 2.5)
    elif kind == 1:
        last = first + 36
        values[first : last + 1] = values[first]
    else:
        values[first : last + 1] *= rng.uniform(0.1, 0.4)
    return first, last


def spoil(rng: np.random.Generator, rows: list[list[str]]) -> list[list[str]]:
    """Lose one row in 500, repeat one in 500, empty one cell in 300, lose one stretch of 30 rows."""
    outage = int(rng.uniform(0.2, 0.5) * len(rows))
    kept = []
    for i, row in enumerate(rows):
        chance = rng.random(3)
        if outage <= i < outage + 30 or chance[0] < 1 / 500:
            continue
        kept.append([*row[:2], "" if chance[1] < 1 / 300 else row[2], row[3]])
        if chance[2] < 1 / 500:
            kept.append(kept[-1])
    return kept


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--out", default="data/ts", help="folder to write to")
    add("--meters", type=number(int, 1, 10_000), default=4, help="number of series")
    add("--rows", type=number(int, 500), default=8000, help="hours of each")
    add("--seed", type=number(int, 0), default=0, help="same seed, same file")
    add("--force", action="store_true", help="write over an earlier file")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if (out / "demo.csv").exists() and not args.force:
        raise UserError(f"{out}/demo.csv: is there already; pass --force to write over it, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    stamps = [str(START + np.timedelta64(60 * i, "m")).replace("T", " ") for i in range(args.rows)]
    degrees = temperature(rng, args.rows)
    faults = {}
    with open(out / "demo.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["time", "meter", "load", "temperature"])
        for i in range(args.meters):
            meter, values = f"meter{i + 1}", load(rng, degrees)
            faults[meter] = [[stamps[row] for row in break_it(rng, values, i % 3)]]
            rows = [[s, meter, f"{v:.3f}", f"{d:.2f}"] for s, v, d in zip(stamps, values, degrees, strict=True)]
            table.writerows(spoil(rng, rows))
    (out / "windows.json").write_text(json.dumps(faults, indent=1) + "\n")
    print(
        f"{args.meters} meters, {args.rows} hours each → {out}/demo.csv; what went wrong with them → {out}/windows.json"
    )


if __name__ == "__main__":
    run(main)
