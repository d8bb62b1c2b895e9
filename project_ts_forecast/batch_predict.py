"""python -m project_ts_forecast.batch_predict --ckpt runs/ts/best.pt --csv data/ts/demo.csv --out runs/ts/preds.csv

Forecasts from the end of each series of a CSV, or with --rolling from every row that has a past long enough. Writes
--out, a row for each step (`series, origin, step, time, pred, lower, upper`; a `channel` after the series where there
are several), or with --form wide a row for each forecast (`series, t, t+1 … t+h`). The rows grow in `<out>.partial`,
which becomes --out at the end. Series too short for a forecast go to `<out>.skipped.csv`, with the reason. A large file
is dealt out to temporary files of 256 series each, so memory does not grow with the number of series.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from common.amp_ckpt import load_ckpt
from common.cli import UserError, command_parser, number, run
from common.log import Progress
from common.partial import partial_of
from project_ts_forecast.cells import joined, numbers, quoted, texts
from project_ts_forecast.data import read_raws
from project_ts_forecast.flags import layout_of, rules_of
from project_ts_forecast.inference import Predictor
from project_ts_forecast.read import Layout, read_blocks
from project_ts_forecast.repair import Piece, Raw, Rules, repair, tell

IN_MEMORY = 64_000_000  # bytes of a file that are read at once
TOGETHER = 256  # series in one temporary file
MOST_THREADS = 8


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/ts/best.pt", help="checkpoint of a finished training")
    add("--csv", help="table with the columns of the training (default: the one it was trained on)")
    add("--out", default="runs/ts/preds.csv", help="where the forecasts go")
    add("--rolling", action=argparse.BooleanOptionalAction, default=False, help="forecast from every row, not the last")
    add("--form", choices=["tidy", "wide"], default="tidy", help="a row for each step, or for each forecast")
    add("--bs", type=number(int, 1), default=256, help="forecasts per forward pass")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    config = load_ckpt(args.ckpt)["config"]
    flags = argparse.Namespace(**{**config, "csv": args.csv or config["csv"]})
    layout, counts, skipped = layout_of(flags), Counter(), {}
    rules = rules_of(flags)
    pieces = last_or_all(series_of(flags.csv, layout), predictor, rules, args.rolling, counts, skipped)
    n = write_csv(predictor, pieces, Path(args.out), args.bs, args.rolling, args.form)
    for line in tell(counts, predictor.step, rules):
        print(line)
    print(f"{n} forecasts of {predictor.h} steps → {args.out}")
    told = write_skipped(Path(args.out), skipped)
    if told:
        print(told)


def series_of(path: str | Path, layout: Layout) -> Iterator[Raw]:
    """The rows of each series of a file, one series at a time, in the order in which they first appear."""
    if not layout.series_col or Path(path).stat().st_size <= IN_MEMORY:
        yield from read_raws(path, layout)[0]
        return
    record = [("series", "i4"), ("time", "i8"), ("row", "i8"), ("values", "f8", (len(layout.columns),))]
    numbers: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="series-") as folder:
        for block in read_blocks(path, layout):
            found, first, which = np.unique(block.series, return_index=True, return_inverse=True)
            lines = np.empty(len(found), np.int32)
            for i in np.argsort(first):  # in the order in which they appear
                lines[i] = numbers.setdefault(str(found[i]), len(numbers))
            part = np.empty(len(block.rows), record)
            part["series"], part["row"], part["values"] = lines[which], block.rows, block.values
            part["time"] = 0 if block.times is None else block.times
            part = part[np.argsort(part["series"] // TOGETHER, kind="stable")]
            for piece in np.split(part, np.flatnonzero(np.diff(part["series"] // TOGETHER)) + 1):
                with open(Path(folder, str(piece["series"][0] // TOGETHER)), "ab") as file:
                    piece.tofile(file)
        names = list(numbers)
        for bucket in range(-(-len(names) // TOGETHER)):
            held = np.fromfile(Path(folder, str(bucket)), record)
            held = held[np.argsort(held["series"], kind="stable")]
            for part in np.split(held, np.flatnonzero(np.diff(held["series"])) + 1):
                times = part["time"].copy() if layout.time_col else None
                yield Raw(names[part["series"][0]], times, part["values"].copy(), part["row"].copy())


def last_or_all(
    raws: Iterator[Raw], predictor: Predictor, rules: Rules, rolling: bool, counts: Counter, skipped: dict[str, str]
) -> Iterator[Piece]:
    """The pieces to forecast from: the last of each series, or all. Fills `counts`, and `skipped` with the reasons."""
    for raw in raws:
        counts["series"] += 1
        raw = Raw(raw.name, None, raw.values, raw.rows) if predictor.step.kind == "rows" else raw
        if raw.times is None and predictor.step.kind != "rows":
            raise UserError(
                f"no column of stamps, and the model was trained on rows {predictor.step} apart; pass a file with it"
            )
        pieces = repair(raw, predictor.step, rules, counts)
        least = 1 if predictor.assets["pad"] else predictor.win
        long = [piece for piece in (pieces if rolling else pieces[-1:]) if len(piece) >= least]
        if not long:
            after = f" after the last gap of more than {rules.max_gap}" if len(pieces) > 1 else ""
            rows = len(pieces[-1]) if pieces else 0
            skipped[raw.name] = f"{rows} rows{after}, the model looks back on {predictor.win}"
        yield from long


def write_csv(predictor: Predictor, pieces: Iterator[Piece], out: Path, bs: int, rolling: bool, form: str) -> int:
    """All forecasts to `out`; returns their number. UserError where there is none; an earlier `out` then stays.

    A thread a core, each with batches of its own: that keeps the cores busier than one forward pass on all of them.
    """
    partial = partial_of(out)
    progress, n, threads = Progress(0, "forecasting"), 0, min(torch.get_num_threads(), MOST_THREADS)
    parts, pending = batches(forecast_rows(predictor, pieces, rolling), bs), deque()
    with (
        open(partial, "wb") as file,
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        file.write((",".join(map(quoted, header(predictor, form))) + "\n").encode())
        while True:
            while len(pending) <= threads and (batch := next(parts, None)):
                pending.append((len(batch), pool.submit(lines_of, predictor, batch, form)))
            if not pending:
                break
            count, lines = pending.popleft()
            file.write(lines.result())
            n += count
            progress.update(count)
    progress.close()
    if not n:
        partial.unlink()
        raise UserError(f"no series has the {predictor.win} rows that the model looks back on; nothing was written")
    os.replace(partial, out)
    return n


def header(predictor: Predictor, form: str) -> list[str]:
    """The columns of the table."""
    names = ["series", *(["channel"] if predictor.outputs > 1 else [])]
    if form == "wide":
        return [*names, "t", *(f"t+{step}" for step in range(1, predictor.h + 1))]
    return [*names, "origin", "step", "time", "pred", "lower", "upper"]


def forecast_rows(predictor: Predictor, pieces: Iterator[Piece], rolling: bool) -> Iterator[tuple]:
    """(name, stamps (h + 1, width), x (win, C + F), mean (K,), std (K,)) of each forecast; its origin's stamp first."""
    win, h = predictor.win, predictor.h
    for piece in pieces:
        times = piece.times(0 if rolling else len(piece) - 1, len(piece) + h)
        stamps = texts([*map(quoted, predictor.stamps(times))])
        if not rolling:
            first = max(0, len(piece) - win)
            row = predictor.row(piece.values[first:], piece.times(first), piece.name)
            yield piece.name, stamps, row.x, row.mean, row.std
            continue
        fixed = predictor.scaled(piece)
        pasts = None if fixed is None else sliding_window_view(fixed[0], win, axis=0)
        for end in range(1 if predictor.assets["pad"] else win, len(piece) + 1):
            if fixed is None or end < win:
                row = predictor.row(
                    piece.values[max(0, end - win) : end], piece.times(max(0, end - win), end), piece.name
                )
                yield piece.name, stamps[end - 1 : end + h], row.x, row.mean, row.std
            else:
                yield piece.name, stamps[end - 1 : end + h], pasts[end - win].T, *fixed[1:]


def batches(rows: Iterator[tuple], bs: int) -> Iterator[list[tuple]]:
    """Lists of at most `bs`."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == bs:
            yield batch
            batch = []
    if batch:
        yield batch


def computed(predictor: Predictor, batch: list[tuple]) -> np.ndarray:
    """(B, h, K, 3): forecast, lower and upper end, in the units of the data; one forward pass."""
    _, _, xs, means, stds = zip(*batch, strict=True)
    scaled = predictor.quantiles(torch.from_numpy(np.stack(xs))).double().numpy()
    three = scaled[..., [scaled.shape[-1] // 2, 0, -1]]
    return three * np.stack(stds)[:, None, :, None] + np.stack(means)[:, None, :, None]


def lines_of(predictor: Predictor, batch: list[tuple], form: str) -> bytes:
    """The rows of a batch, as they are written."""
    names, stamps, *_ = zip(*batch, strict=True)
    values = computed(predictor, batch).swapaxes(1, 2)  # (B, K, h, 3)
    size, k, h = values.shape[:3]
    width = max(stamp.shape[1] for stamp in stamps)
    times = np.zeros((size, 1, h + 1, width + 1), np.uint8)  # 0 is taken out like what is empty
    times[..., 0] = ord(",")
    for line, stamp in zip(times[:, 0], stamps, strict=True):
        line[:, 1 : 1 + stamp.shape[1]] = stamp
    name = texts([*map(quoted, names)])[:, None]  # (B, 1, width)
    channel = texts([f",{quoted(column)}" for column in predictor.columns[:k]])[None] if k > 1 else name[..., :0]
    if form == "wide":
        return joined([name, channel, times[:, :, 0], numbers(values[..., 0])], (size, k))
    step = texts([f",{step}" for step in range(1, h + 1)])
    parts = [name[:, :, None], channel[:, :, None], times[:, :, :1], step, times[:, :, 1:], numbers(values)]
    return joined(parts, (size, k, h))


def write_skipped(out: Path, skipped: dict[str, str]) -> str:
    """The series without a forecast, to `<out>.skipped.csv`; what to tell, or nothing. An older list goes."""
    path = out.with_name(out.name + ".skipped.csv")
    if not skipped:
        path.unlink(missing_ok=True)
        return ""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["series", "reason"])
        table.writerows(skipped.items())
    first, why = next(iter(skipped.items()))
    return f"skipped {len(skipped)} series, such as {first!r} ({why}) → {path}"


if __name__ == "__main__":
    run(main)
