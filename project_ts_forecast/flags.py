"""Flags that training and evaluation have in common: what the columns are, and what to do with what is wrong.

add_data_flags(parser)
data = load_data(args.csv, layout_of(args), rules_of(args), args.step)
"""

from __future__ import annotations

import argparse

from common.cli import number
from project_ts_forecast.model import ARCHS, REFERENCES
from project_ts_forecast.read import Layout, find_layout
from project_ts_forecast.repair import DUPLICATES, FILLS, IRREGULAR, ORDERS, Rules

toggle = argparse.BooleanOptionalAction
whole, count, share, some = number(int, 1), number(int, 0), number(float, 0, 1), number(float, 0)


def columns(text: str) -> list[str]:
    """`type=` of a flag: names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which file, which columns, and the policies."""
    data = parser.add_argument_group("data").add_argument
    data("--csv", default="data/ts/demo.csv", help="table of the series, long or wide")
    data("--time_col", help="column of the stamps (default: the first that looks like it; none counts rows)")
    data("--value_cols", type=columns, help="columns to forecast, with commas (default: all that hold numbers)")
    data("--covariate_cols", type=columns, default=[], help="columns that are only looked at, with commas")
    data("--series_col", help="column that names the series (default: the only one of words that come again)")
    data("--wide", action=toggle, default=False, help="each value column is a series of its own, not a channel")
    data("--time_format", default="", help="of strptime, for stamps that are neither ISO 8601 nor unix time")
    data("--tz", default="", help="time zone of local stamps, such as Europe/Berlin; settles what clock changes blur")
    data("--step", default="", help="time between rows: 15min, 1h, 1d, 1mo, or rows (default: worked out)")
    data("--season", type=count, default=0, help="rows of a season (0: a day, a week of days, a year of months)")
    data("--split", default="0.7,0.15,0.15", help="train, val, test: shares, or the rows or stamps where they end")
    data("--labels", help="JSON of the anomalous windows of each series, to choose the detector's threshold by")
    wrong = parser.add_argument_group("what is wrong with the data").add_argument
    wrong("--fill", choices=FILLS, default="last", help="what fills missing rows and values")
    wrong("--max_gap", type=count, default=3, help="longest run of rows that is filled; longer ones cut the series")
    wrong("--on_duplicate", choices=DUPLICATES, default="last", help="which of several rows with one stamp counts")
    wrong("--on_unsorted", choices=ORDERS, default="sort", help="stamps out of order")
    wrong("--on_irregular", choices=IRREGULAR, default="jitter", help="stamps off the grid; jitter: a quarter step")


def layout_of(args: argparse.Namespace) -> Layout:
    """What the file of the flags holds; see `find_layout`."""
    return find_layout(
        args.csv,
        time_col="" if args.time_col is None and args.step == "rows" else args.time_col,
        value_cols=args.value_cols,
        covariate_cols=args.covariate_cols,
        series_col=args.series_col,
        wide=args.wide,
        time_format=args.time_format,
    )


def rules_of(args: argparse.Namespace) -> Rules:
    """The policies of the flags."""
    return Rules(
        args.fill, args.max_gap, args.on_duplicate, args.on_unsorted, args.on_irregular, args.tz, max(1, args.season)
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The model and how it is trained."""
    net = parser.add_argument_group("model and optimisation").add_argument
    net("--arch", choices=ARCHS, default="hybrid", help="linear map, LSTM, or the map corrected by the LSTM")
    net("--win", type=whole, default=64, help="rows the model looks back on")
    net("--h", type=whole, default=1, help="rows ahead that it forecasts")
    net("--hidden", type=whole, default=128, help="units of the LSTM")
    net("--dropout", type=number(float, 0, 0.9), default=0.1, help="share of the LSTM's units dropped in training")
    net("--mixed", action=toggle, default=False, help="the linear map of each output looks at all channels")
    net("--calendar", action=toggle, default=False, help="hour, weekday and day of the year come in; wants stamps")
    net("--reference", choices=REFERENCES, default="last", help="what a window and its forecast are relative to")
    net("--volatility", action=toggle, default=False, help="scale each window by its own volatility")
    net("--pad", action=toggle, default=False, help="train on and accept short pasts, their first row repeated")
    net("--loss", choices=["smooth_l1", "quantile"], default="smooth_l1", help="of the LSTM")
    net("--mc_samples", type=count, default=0, help="dropout masks whose spread shapes the intervals; 0 is off")
    net("--coverage", type=number(float, 0.51, 0.999), default=0.9, help="share of truths inside lower and upper")
    net("--epochs", type=count, default=12, help="passes over the train windows")
    net("--bs", type=whole, default=256, help="windows per step")
    net("--lr", type=number(float, 1e-9), default=3e-4, help="peak learning rate")
    net("--warmup", type=share, default=0.1, help="share of the steps over which the rate rises; then it falls to 0")
    net("--weight_decay", type=some, default=1e-3, help="decoupled weight decay, times the learning rate")
    net("--clip", type=some, default=1.0, help="largest gradient norm; 0 is off")
    net("--ema", action=toggle, default=True, help="evaluate, save and serve an average of the weights")
    net("--ema_decay", type=share, default=0.99, help="decay of that average, per update")
    net("--patience", type=count, default=4, help="epochs without improvement before stopping; 0 never stops")
    net("--amp", action=toggle, default=True, help="mixed precision on CUDA")
    net("--cpu_bf16", action=toggle, default=False, help="bf16 on the CPU too (slower on most)")
