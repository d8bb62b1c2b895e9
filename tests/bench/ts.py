"""python -m tests.bench.ts --data ETTh1.csv --seeds 3 --json

Trains and scores the time-series project by its commands, on ETTh1 as published (rows 0 to 8639 train, 8640 to 11519
validation, 11520 to 14399 test; oil temperature, a past of 336 rows): chosen on validation, reported on test. Other
parts: --nab DIR (the anomaly benchmark), --small DIR (AirPassengers.csv and taylor.csv), --speed (windows of ten
million rows, and forecasts to a CSV beside the model's forward pass alone). With --json the last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from common.cli import command_parser, run
from project_ts_forecast.batch_predict import series_of, write_csv
from project_ts_forecast.data import SeriesWindow
from project_ts_forecast.inference import Predictor
from project_ts_forecast.read import find_layout
from project_ts_forecast.repair import Rules, repair
from tests.bench.launch import shown
from tests.bench.nab import nab

ETTH1 = "--value_cols OT --split 8640,11520,14400 --win 336"
SMALL = {  # the last two years a year ahead, the last week a day ahead, and the same week from one origin before it
    "AirPassengers": "--split 96,120,144 --win 36 --h 12 --arch linear",
    "taylor": "--split 3360,3696,4032 --season 336 --win 336 --h 48 --arch linear",
    "taylor_week": "--split 2688,3696,4032 --season 336 --win 672 --h 336 --arch linear",
}


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", help="ETTh1.csv")
    add("--nab", help="folder of the anomaly benchmark, with windows.json")
    add("--small", help="folder with AirPassengers.csv and taylor.csv")
    add("--speed", action="store_true", help="windows and forecasts per second; the latter wants --data")
    add("--seeds", type=int, default=1, help="number of trainings, with the seeds 0, 1, …")
    add("--horizons", default="24,48,96,168,336,720", help="rows ahead, with commas")
    add("--flags", default="", help="further flags of every training on --data")
    add("--out", help="keep the runs in this folder (default: a temporary one)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    figures: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.out or temporary)
        if args.data:
            figures |= etth1(Path(args.data), out, args)
        if args.small:
            csv = {name: Path(args.small, name.removesuffix("_week") + ".csv") for name in SMALL}
            figures |= {name: one_run(csv[name], out / name, flags) for name, flags in SMALL.items()}
        if args.nab:
            figures |= nab(Path(args.nab), Path(args.nab, "windows.json"))
        if args.speed:
            figures |= windows_of_ten_million()
            figures |= forecasts(Path(args.data), out) if args.data else {}
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def etth1(data: Path, out: Path, args: argparse.Namespace) -> dict:
    """Means over the seeds by horizon; seconds is the longest training."""
    runs = {
        h: [one_run(data, out / f"h{h}_seed{s}", f"{ETTH1} --h {h} --seed {s} {args.flags}") for s in range(args.seeds)]
        for h in args.horizons.split(",")
    }
    names = [name for name in next(iter(runs.values()))[0] if name != "seconds"]
    figures: dict = {
        name: {h: statistics.mean(run[name] for run in held) for h, held in runs.items()} for name in names
    }
    figures["mse_sd"] = {h: statistics.pstdev(run["mse"] for run in held) for h, held in runs.items()}
    return figures | {"seconds": max(run["seconds"] for held in runs.values() for run in held)}


def one_run(data: Path, run_dir: Path, flags: str) -> dict:
    """Train and score once, through the commands: scores on the test part, in scaled values but for MASE."""
    start = time.monotonic()
    shown("project_ts_forecast.train", "--csv", data, *flags.split(), "--run_dir", run_dir)
    seconds = time.monotonic() - start  # of the whole command
    shown("project_ts_forecast.eval", "--ckpt", run_dir / "best.pt")
    found = json.loads((run_dir / "metrics.json").read_text())
    test, band = found["eval"]["test"], found["eval"]["test"]["intervals"]["rolling"]
    point = {name: part["mse"]["all"] for name, part in test["scaled"].items()}
    return {
        "mse": point.pop("model"),
        **point,
        "val_mse": found["train"]["val_mse"],
        "gain": found["train"]["gain"],
        "mase": test["original"]["model"]["mase"]["all"],
        "mase_seasonal_naive": test["original"]["seasonal_naive"]["mase"]["all"],
        "coverage": band["coverage"]["all"],
        "coverage_first": band["coverage"]["steps"][0],
        "coverage_last": band["coverage"]["steps"][-1],
        "width": band["width"]["all"],
        "coverage_split": test["intervals"]["split"]["coverage"]["all"],
        "seconds": seconds,
    }


def windows_of_ten_million() -> dict:
    """Seconds and megabytes that the windows of a series of ten million rows take beside the series."""
    series = np.zeros((10_000_000, 1), np.float32)
    tracemalloc.start()
    start = time.perf_counter()
    windows = SeriesWindow(series, win=336, h=24)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"windows": len(windows), "windows_seconds": seconds, "windows_mb": peak / 1e6}


def forecasts(data: Path, out: Path, rounds: int = 5) -> dict:
    """Forecasts per second from a CSV's rows to a CSV of forecasts, over those of the forward pass on ready batches.

    Of the LSTM: the linear map alone is so fast that writing the rows is all that counts.
    """
    run_dir = out / "speed"
    flags = f"{ETTH1} --h 24 --epochs 1 --arch lstm --run_dir {run_dir}"
    shown("project_ts_forecast.train", "--csv", data, *flags.split())
    predictor = Predictor.load(run_dir / "best.pt")
    (raw,) = series_of(data, find_layout(data, value_cols=["OT"]))
    pieces = repair(raw, predictor.step, Rules(), Counter())
    x = predictor.scaled(pieces[0])[0]
    pasts = torch.from_numpy(np.ascontiguousarray(sliding_window_view(x, predictor.win, 0).swapaxes(1, 2)))

    def alone() -> None:
        with torch.inference_mode():
            for batch in pasts.split(256):
                predictor.model(batch)

    def whole() -> None:
        write_csv(predictor, iter(pieces), run_dir / "preds.csv", 256, True, "tidy")

    taken: dict[str, list[float]] = {"alone": [], "whole": []}
    for _ in range(rounds + 1):  # in turn, so that a slow moment hits both; the first round warms up
        for name, part in (("alone", alone), ("whole", whole)):
            start = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(found[1:]) for name, found in taken.items()}
    return {"forecasts_per_s": len(pasts) / seconds["whole"], "forecast_ratio": seconds["alone"] / seconds["whole"]}


if __name__ == "__main__":
    run(main)
