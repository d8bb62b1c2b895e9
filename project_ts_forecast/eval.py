"""python -m project_ts_forecast.eval --ckpt runs/ts/best.pt

Scores a checkpoint on the test part of its CSV, or on another one, beside two forecasts that need no model: repeating
the last value, and the value of one season before, on the same windows. Writes to the checkpoint's folder: metrics.json
(its part "eval"); with the plots extra also forecast.png, residuals.png and coverage.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import report
from common.amp_ckpt import load_ckpt, replace_file
from common.cli import UserError, check_flag, command_parser, number, run
from common.data_versions import tell_changes
from common.eval_rows import write_rows
from common.log import plain
from project_ts_forecast import faults, scores
from project_ts_forecast.anomaly_scores import read_windows
from project_ts_forecast.calibrate import collect
from project_ts_forecast.conformal import pair_scores, rolling_radii, widen
from project_ts_forecast.data import PARTS, Data, SeriesWindow, load_data, scale_of, split_rows, with_targets
from project_ts_forecast.flags import layout_of, rules_of
from project_ts_forecast.inference import Predictor

whole = number(int, 1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/ts/best.pt", help="checkpoint to score")
    add("--csv", help="table with the same columns (default: the one it was trained on)")
    add("--part", choices=[*PARTS, "all"], help="rows to score (default: test; all of another --csv)")
    add("--bs", type=whole, default=256, help="windows per forward pass")
    add("--labels", help="JSON of the anomalous windows of each series: scores the anomaly detector too")
    add(
        "--backtest",
        type=number(int, 0),
        default=0,
        help="train and score anew at so many origins, for the card's robustness",
    )
    add("--every", type=number(int, 0), default=0, help="rows between these origins (0: an equal share of the part)")
    add("--win", type=int, help="checked against the checkpoint when given")
    add("--h", type=int, help="checked against the checkpoint when given")
    add("--hidden", type=int, help="checked against the checkpoint when given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    config, run_dir = load_ckpt(args.ckpt)["config"], Path(args.ckpt).parent
    for name in ("win", "h", "hidden"):
        check_flag(name, getattr(args, name), config[name], args.ckpt)
    part = args.part or ("all" if args.csv else "test")
    tell_changes(run_dir)
    data = read_again(config, args.csv)
    windows = windows_of(predictor, config, data, part)
    held = collect(predictor, windows, args.bs)
    metrics = evaluate(predictor, data, windows, held) | {"csv": args.csv or config["csv"], "part": part}
    rows = table_of(predictor, data, windows, held)
    if args.labels:
        columns, settings, zone = (predictor.assets[key] for key in ("value_cols", "anomaly", "tz"))
        watched = faults.watch(data, rows_of(config, data, part), settings, columns, zone)
        windows = read_windows(args.labels)
        metrics["anomalies"] = plain(faults.against_labels(watched, windows, settings, metrics["csv"]))
    if args.backtest:
        # imported here, since it brings in all of training, which scoring has no need of
        from project_ts_forecast.backtest import backtest

        metrics["backtest"] = backtest(config, data, args.backtest, args.every, run_dir)
    name = part if not args.csv else Path(args.csv).stem
    metrics |= write_rows(run_dir, name, *rows, sys.argv[1:] if argv is None else argv)
    write_metrics(run_dir / "metrics.json", name, metrics)
    write_figures(metrics, run_dir)
    say(part, metrics, run_dir)


def read_again(config: dict, csv: str | None = None) -> Data:
    """The series of a checkpoint's config, read by its flags, from its CSV or from another."""
    flags = argparse.Namespace(**{**config, "csv": csv or config["csv"]})
    return load_data(flags.csv, layout_of(flags), rules_of(flags), flags.step)


def windows_of(predictor: Predictor, config: dict, data: Data, part: str) -> SeriesWindow:
    """The windows with targets in `part` ("train", "val", "test" or "all"). Raises UserError where there is none."""
    assets = predictor.assets
    if [data.step.kind, data.step.size] != assets["step"]:
        raise UserError(f"the rows are {data.step} apart, those of the training were {predictor.step}; resample them")
    rows = rows_of(config, data, part)
    pieces = [with_targets(p, assets["normaliser"], predictor.outputs, assets["calendar"]) for p in data.pieces]
    windows = SeriesWindow(pieces, predictor.win, predictor.h, rows, assets["pad"])
    if not len(windows):
        longest = max(b - a for a, b in rows)
        raise UserError(
            f"no window of {predictor.win} rows and {predictor.h} ahead: the longest run of {part} rows has {longest}"
        )
    return windows


def rows_of(config: dict, data: Data, part: str) -> list[tuple[int, int]]:
    """(first, end) of the part in each piece."""
    return [(0, len(p)) for p in data.pieces] if part == "all" else split_rows(data.pieces, config["split"])[part]


def evaluate(predictor: Predictor, data: Data, windows: SeriesWindow, held: dict[str, Tensor]) -> dict:
    """All scores as plain values: in scaled units, where all series weigh alike, and in the units of the data.

    held: what `collect` gives.
    """
    index, k, season = np.arange(len(windows)), predictor.outputs, predictor.assets["season"]
    bands = {
        "split": widen(held["out"], held["spread"], predictor.radius),
        "rolling": widen(held["out"], held["spread"], rolling(predictor, held, windows)),
    }
    forecasts = {
        "model": bands["split"][..., len(predictor.levels) // 2],
        "repeat_last": scores.repeat_last(windows, index, k),
        "seasonal_naive": scores.seasonal_naive(windows, index, season, k),
    }
    mean, std, unit = per_window(predictor, data, windows, season)
    y, coverage = held["y"], predictor.assets["coverage"]
    metrics = {
        "model_id": predictor.model_id,
        "windows": len(windows),
        "series": len({piece.name for piece in data.pieces}),
        "season": season,
        "found": dict(data.counts),
        "scaled": {name: scores.point_scores(found, y, unit) for name, found in forecasts.items()},
        "original": {
            name: scores.point_scores(found * std + mean, y * std + mean, unit * std[:, 0])
            for name, found in forecasts.items()
        },
        "intervals": {name: interval_part(found, y, std, coverage, predictor.levels) for name, found in bands.items()},
        "residuals": residual_part(forecasts["model"], y, windows, season),
        "example": example_part(
            bands["rolling"] * std[..., None] + mean[..., None], y * std + mean, windows, mean, std
        ),
    }
    mse = {name: part["mse"]["all"] for name, part in metrics["scaled"].items()}
    metrics["skill"] = {name: 1 - mse["model"] / mse[name] if mse[name] else None for name in list(mse)[1:]}
    return plain(metrics)


def table_of(
    predictor: Predictor, data: Data, windows: SeriesWindow, held: dict[str, Tensor]
) -> tuple[dict, str, dict]:
    """(columns, score, slices) for `write_rows`: every window's MASE; those that overlap are of one group.

    MASE, since it does not depend on how a model scales its data. Windows without any known target are left out.
    """
    season, y = predictor.assets["season"], held["y"].double()
    said = widen(held["out"], held["spread"], predictor.radius)[..., len(predictor.levels) // 2].double()
    mean, std, unit = per_window(predictor, data, windows, season)
    loss = ((said - y).abs() / unit[:, None]).nanmean((1, 2))
    said, y = (values[:, 0, 0] * std[:, 0, 0] + mean[:, 0, 0] for values in (said, y))
    block = windows.h + season  # rows after which errors have little to do with each other
    ids, groups, names, quarters = [], [], [], []
    for order, (piece, count) in enumerate(zip(data.pieces, windows.counts, strict=True)):
        ids += [f"{piece.name}/{order}/{i}" for i in range(count)]
        groups += [f"{order}/{i // block}" for i in range(count)]
        names += [piece.name] * count
        quarters += [f"{4 * i // count + 1} of 4" for i in range(count)]
    kept = torch.nonzero(~loss.isnan()).flatten().tolist()
    columns = {"id": ids, "truth": y.tolist(), "pred": said.tolist(), "loss": loss.tolist()}
    columns, found = columns | {"group": groups}, {"series": names, "quarter": quarters}
    columns, found = ({key: [v[i] for i in kept] for key, v in part.items()} for part in (columns, found))
    return columns, "loss", found


def rolling(predictor: Predictor, held: dict[str, Tensor], windows: SeriesWindow) -> Tensor:
    """(N, h, K, P) radii: a series begins with the checkpoint's scores, and its own take their place as they come."""
    found = pair_scores(held["out"], held["y"], held["spread"], len(predictor.coverages))
    start = predictor.assets["scores"].cpu()
    parts = found.split(windows.counts)
    return torch.cat([rolling_radii(part, start, predictor.coverages) for part in parts if len(part)]).float()


def per_window(predictor: Predictor, data: Data, windows: SeriesWindow, season: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation (N, 1, K) of each window's series, and the unit of MASE (N, K) in scaled values.

    The unit is the mean absolute error of the seasonal naive on the rows before the first target of the series.
    """
    lines = {"mean": [], "std": [], "unit": []}
    k = predictor.outputs
    begins = [0, *windows.ends[:-1]]
    firsts = [0, *np.cumsum(windows.counts)[:-1].tolist()]
    for piece, count, begin, first in zip(data.pieces, windows.counts, begins, firsts, strict=True):
        mean, std = scale_of(predictor.assets["normaliser"], piece.name)
        end = windows.starts[first] + windows.win if count else begin
        past = windows.x[begin:end, :k].astype(np.float64)
        lag = season if len(past) > season else 1
        unit = np.abs(past[lag:] - past[:-lag]).mean(0) if len(past) > lag else np.full(k, np.nan)
        for name, line in zip(lines, (mean[:k], std[:k], np.where(unit > 0, unit, np.nan)), strict=True):
            lines[name].append(np.broadcast_to(line, (count, k)))
    mean, std, unit = (torch.from_numpy(np.concatenate(found)) for found in lines.values())
    return mean[:, None], std[:, None], unit


def interval_part(bands: Tensor, y: Tensor, std: Tensor, coverage: float, levels: list[float]) -> dict:
    """Interval scores in scaled units; width and Winkler score also in the data's own."""
    lower, upper = bands[..., 0], bands[..., -1]
    found = scores.interval_scores(lower, upper, y, coverage) | {"pinball": scores.pinball(bands, y, levels)}
    own = scores.interval_scores(lower * std, upper * std, y * std, coverage)
    return found | {"original": {name: own[name] for name in ("width", "winkler")}, "target": coverage}


def residual_part(predicted: Tensor, y: Tensor, windows: SeriesWindow, season: int) -> dict:
    """Of the longest series, first channel: autocorrelation one step ahead, and the lagged-copy check."""
    longest = int(np.argmax(windows.counts))
    first = sum(windows.counts[:longest])
    part = slice(first, first + windows.counts[longest])
    p, t = (values[part, :, 0].double().numpy() for values in (predicted, y))
    steps = sorted({1, windows.h})
    copies = {str(step): scores.lagged_copy(p[:, step - 1], t[:, step - 1], step) for step in steps}
    return {"autocorrelation": scores.autocorrelation(t[:, 0] - p[:, 0], max(10, 2 * season)), "lagged_copy": copies}


def example_part(bands: Tensor, y: Tensor, windows: SeriesWindow, mean: Tensor, std: Tensor) -> dict:
    """One window in the middle, for the figure: past, truth and quantiles of the first channel, in original units."""
    i = len(y) // 2
    past = torch.from_numpy(windows.x[windows.starts[i] : windows.starts[i] + windows.win, 0]).double()
    past = past * std[i, 0, 0] + mean[i, 0, 0]
    return {
        "past": past[-4 * windows.h - 24 :].tolist(),
        "truth": y[i, :, 0].tolist(),
        "quantiles": bands[i, :, 0].T.tolist(),
    }


def write_metrics(path: Path, name: str, metrics: dict) -> None:
    """Put `metrics` into metrics.json as eval.<name>; the other parts stay as they are."""
    held = json.loads(path.read_text()) if path.exists() else {}
    held.setdefault("eval", {})[name] = metrics
    replace_file(path, lambda file: file.write((json.dumps(held, indent=1) + "\n").encode()))


def write_figures(metrics: dict, run_dir: Path) -> None:
    """What `evaluate` found, to look at, where matplotlib is installed."""
    if report.can_draw():
        example = metrics["example"]
        report.forecast_figure(example["past"], example["truth"], example["quantiles"], run_dir / "forecast.png")
        found = metrics["residuals"]["autocorrelation"]
        report.autocorrelation_figure(found["lags"], found.get("band", 0.0), run_dir / "residuals.png")
        steps = {name: part["coverage"]["steps"] for name, part in metrics["intervals"].items()}
        report.coverage_figure(steps, metrics["intervals"]["split"]["target"], run_dir / "coverage.png")


def say(part: str, metrics: dict, run_dir: Path) -> None:
    """The scores that matter, in a few lines."""
    print(f"{part}: {metrics['windows']} windows of {metrics['series']} series")
    for name, own in metrics["original"].items():
        mse, found = metrics["scaled"][name]["mse"], {key: values["all"] for key, values in own.items()}
        print(
            f"  {name:15} MSE {mse['all']:.4f} scaled (first step {mse['steps'][0]:.4f}, last {mse['steps'][-1]:.4f}), "
            f"MAE {found['mae']:.4g}, sMAPE {found['smape']:.2f} %, MASE {float(found['mase']):.3f}"
        )
    for name, found in metrics["intervals"].items():
        covered = found["coverage"]
        print(
            f"  {found['target']:.0%} intervals, {name}: coverage {covered['all']:.3f} (first step "
            f"{covered['steps'][0]:.3f}, last {covered['steps'][-1]:.3f}), width {found['width']['all']:.3f} scaled"
        )
    for step, found in metrics["residuals"]["lagged_copy"].items():
        if found["copy"]:
            print(f"  step {step} is a copy of the last known value: this model adds nothing to repeating it")
    if found := metrics.get("anomalies"):
        event, row = ([float(found[by][key] or 0) for key in ("precision", "recall", "f1")] for by in ("event", "row"))
        print("  anomalies by event: precision {:.2f}, recall {:.2f}, F1 {:.2f}".format(*event), end="; ")
        print("by row {:.2f}, {:.2f}, {:.2f}".format(*row), end="; ")
        print(f"{found['found']} of {found['events']} windows found, {found['false_alarms']} false alarms")
    for i, fold in enumerate(metrics.get("backtest", {}).get("folds", [])):
        print(f"  backtest {i + 1}: MSE {fold['mse']:.4f}, repeating the last value {fold['repeat_last']:.4f}")
    print(f"details: {run_dir}/metrics.json")


if __name__ == "__main__":
    run(main)
