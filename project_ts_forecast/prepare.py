"""From the flags of a training to its windows, and what the checkpoint keeps of the data beside the weights.

data, windows, assets = prepare(args)           # Data, {"train": SeriesWindow, "val": ...}, assets
write_manifest(run_dir, args, data, windows, version)       # data_manifest.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from common.amp_ckpt import replace_file
from common.cli import UserError
from project_ts_forecast.anomaly_scores import read_windows
from project_ts_forecast.data import Data, SeriesWindow, fit_normaliser, load_data, split_rows, with_targets
from project_ts_forecast.faults import chosen_settings, usual_settings, watch
from project_ts_forecast.flags import layout_of, rules_of
from project_ts_forecast.read import Layout
from project_ts_forecast.repair import tell
from project_ts_forecast.stamps import write_times


def prepare(args: argparse.Namespace) -> tuple[Data, dict[str, SeriesWindow], dict]:
    """The repaired series, train and validation windows, and the assets that go with the model. Raises UserError."""
    layout = layout_of(args)
    rules = rules_of(args)
    data = load_data(args.csv, layout, rules, args.step)
    season = args.season or data.step.season()
    if args.reference == "seasonal" and not 1 < season <= args.win:
        raise UserError(f"--reference seasonal wants 1 < --season <= --win; the season is {season}, --win {args.win}")
    rows = split_rows(data.pieces, args.split)
    short = [piece for piece in data.pieces if len(piece) < args.win + args.h and not args.pad]
    data.counts["short_series"] += len(short)
    for line in tell(data.counts, data.step, rules):
        print(line)
    normaliser = fit_normaliser(data.pieces, rows["train"])
    targets = len(layout.value_cols)
    parts = [
        with_targets(piece, normaliser, targets, args.calendar and data.step.kind != "rows") for piece in data.pieces
    ]
    windows = {part: SeriesWindow(parts, args.win, args.h, rows[part], args.pad) for part in ("train", "val")}
    for part, found in windows.items():
        if not len(found):
            longest = max(b - a for a, b in rows[part])
            raise UserError(
                f"{args.csv}: no {part} window of --win {args.win} and --h {args.h}: the longest run of {part} rows "
                f"without a gap has {longest}; pass a smaller --win or --h, --pad, --fill, or another --split"
            )
    assets = assets_of(args, layout, data, season) | {"normaliser": normaliser}
    assets["anomaly"] = detector_settings(args, data, rows, layout.value_cols)
    return data, windows, assets


def assets_of(args: argparse.Namespace, layout: Layout, data: Data, season: int) -> dict:
    """What a Predictor needs beside the weights, as far as flags and file tell it."""
    return {
        "value_cols": layout.value_cols,
        "covariate_cols": layout.covariate_cols,
        "time_col": layout.time_col,
        "series_col": layout.series_col,
        "step": [data.step.kind, data.step.size],
        "style": data.style,
        "tz": args.tz,
        "time_format": args.time_format,
        "season": season,
        "fill": args.fill,
        "max_gap": args.max_gap,
        "calendar": args.calendar and data.step.kind != "rows",
        "pad": args.pad,
        "coverage": args.coverage,
        "levels": levels_of(args.coverage),
        "scores": torch.zeros(1, args.h, len(layout.value_cols), 1),
        "local": 1.0,
        "lean": 0.0,
    }


def detector_settings(
    args: argparse.Namespace, data: Data, rows: dict[str, list[tuple[int, int]]], columns: list[str]
) -> dict:
    """Threshold, probation and mute of the anomaly detector; with --labels the threshold that they like best.

    The detector fits nothing, so all labels before the test part count alike.
    """
    settings = usual_settings(max(len(piece) for piece in data.pieces))
    if not args.labels:
        return settings
    before = [(a, b) for (a, _), (_, b) in zip(rows["train"], rows["val"], strict=True)]
    watched = watch(data, before, settings, columns, args.tz)
    settings, found = chosen_settings(watched, read_windows(args.labels), settings, args.csv)
    print(f"anomaly threshold {settings['threshold']:.2f}: F1 by event {found['event']['f1']:.2f} before the test part")
    return settings


def levels_of(coverage: float) -> list[float]:
    """The quantiles in an answer: those of the interval, the quartiles and the median."""
    low = round((1 - coverage) / 2, 6)
    return [low, 0.25, 0.5, 0.75, round(1 - low, 6)]


@torch.no_grad()
def usual_change(windows: SeriesWindow, channels: int) -> torch.Tensor:
    """(channels,) mean absolute change from row to row of the scaled train windows: the unit of volatility."""
    some = torch.linspace(0, len(windows) - 1, min(len(windows), 2000)).long().tolist()
    values = windows[some][0][:, :, :channels]
    if values.shape[1] < 2:
        return torch.ones(channels)
    return (values[:, 1:] - values[:, :-1]).abs().mean((0, 1)).clamp(min=1e-6)


def stamp_ranges(data: Data) -> dict[str, dict]:
    """{series: {"rows", "first", "last"}}: the stamps as the file wrote them, or numbers of rows where it has none."""
    found: dict[str, dict] = {}
    for piece in data.pieces:
        ends = piece.times()[[0, -1]]
        first, last = write_times(ends, data.style) if data.style else ends.tolist()
        held = found.setdefault(piece.name, {"rows": 0, "first": first})
        held |= {"rows": held["rows"] + len(piece), "last": last}
    return found


def write_manifest(
    run_dir: Path, args: argparse.Namespace, data: Data, windows: dict[str, SeriesWindow], version: str
) -> None:
    """data_manifest.json: what the data are, from when to when, and what was found wrong with them."""
    held = {
        "csv": str(args.csv),
        "data_version": version,
        "step": str(data.step),
        "found": dict(data.counts),
        "pieces": len(data.pieces),
        "series": stamp_ranges(data),
        "split": args.split,
        "windows": {part: len(found) for part, found in windows.items()},
    }
    replace_file(run_dir / "data_manifest.json", lambda file: file.write((json.dumps(held, indent=1) + "\n").encode()))
