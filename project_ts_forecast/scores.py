"""Scores of forecasts and intervals, by step of the horizon and over all of them, as plain functions of tensors.

    point = point_scores(predicted, y, scale)               # {"mse": (h,), "mae": ..., ...}
    bands = interval_scores(lower, upper, y, coverage=0.9)  # {"coverage": (h,), "width": ..., "winkler": ...}
    naive = repeat_last(windows), seasonal_naive(windows, season=24)

Shapes: N windows, h steps, K outputs; NaN in y is a truth that is not there, and counts nowhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from project_ts_forecast.data import SeriesWindow


def by_step(values: Tensor) -> dict:
    """(N, h, ...) → {"all": mean, "steps": (h,) means}, NaN left out; the mean over all weighs every truth alike."""
    flat = values.double().transpose(0, 1).flatten(1)
    return {"all": flat.nanmean().item(), "steps": flat.nanmean(1).tolist()}


def point_scores(predicted: Tensor, y: Tensor, naive_mae: Tensor) -> dict[str, dict]:
    """MSE, MAE, sMAPE (%, of 200 |e| / (|y| + |p|)) and MASE, each by step; predicted and y (N, h, K).

    naive_mae (N, K): the mean absolute error of the seasonal naive within the train rows of the window's series, by
    which MASE divides (Hyndman & Koehler 2006); NaN where that is zero.
    """
    error = (predicted - y).double()
    size = (predicted.abs() + y.abs()).double()
    smape = torch.where(size > 0, 200 * error.abs() / size, torch.where(error.isnan(), torch.nan, 0.0))
    scores = {
        "mse": error.square(),
        "mae": error.abs(),
        "smape": smape,
        "mase": error.abs() / naive_mae[:, None].double(),
    }
    return {name: by_step(values) for name, values in scores.items()}


def interval_scores(lower: Tensor, upper: Tensor, y: Tensor, coverage: float) -> dict[str, dict]:
    """Coverage, mean width and mean Winkler score (width + 2 / alpha for each unit outside), by step; all (N, h, K)."""
    lower, upper, y = lower.double(), upper.double(), y.double()
    known = ~y.isnan()
    inside = torch.where(known, ((y >= lower) & (y <= upper)).double(), torch.nan)
    width = torch.where(known, upper - lower, torch.nan)
    outside = (lower - y).clamp(min=0) + (y - upper).clamp(min=0)
    scores = {"coverage": inside, "width": width, "winkler": width + 2 / (1 - coverage) * outside}
    return {name: by_step(values) for name, values in scores.items()}


def pinball(quantiles: Tensor, y: Tensor, levels: list[float]) -> dict:
    """Mean pinball loss over the levels, by step; quantiles (N, h, K, levels)."""
    error = (y[..., None] - quantiles).double()
    level = torch.tensor(levels, dtype=torch.float64)
    return by_step(torch.maximum(level * error, (level - 1) * error).mean(-1))


def repeat_last(windows: SeriesWindow, index: np.ndarray, outputs: int) -> Tensor:
    """(N, h, K): the last value of each window, for every step."""
    last = windows.x[windows.starts[index] + windows.win - 1, :outputs]
    return torch.from_numpy(last)[:, None].expand(-1, windows.h, -1)


def seasonal_naive(windows: SeriesWindow, index: np.ndarray, season: int, outputs: int) -> Tensor:
    """(N, h, K): the value of one season before, or of several where the step lies beyond one season.

    It may look back further than the window; the first windows of a series, with no such past, repeat the last value.
    """
    origin = windows.starts[index] + windows.win  # row of the first target
    back = season - np.arange(windows.h) % season
    rows = origin[:, None] - back
    first = np.searchsorted(np.cumsum(windows.counts), index, side="right")
    begin = np.array([0, *windows.ends[:-1]])[first]
    rows = np.where(rows >= begin[:, None], rows, origin[:, None] - 1)
    return torch.from_numpy(windows.x[rows, :outputs])


def autocorrelation(residuals: np.ndarray, lags: int) -> dict:
    """Autocorrelation at lags 1 to `lags` of one-step residuals (n,), and the Ljung-Box test (1978) of them all.

    p below 0.05: the residuals hold a pattern that a better model would use.
    """
    r = residuals[~np.isnan(residuals)]
    r = r - r.mean() if len(r) else r
    lags, n = min(lags, len(r) - 2), len(r)
    if lags < 1 or not (r**2).sum() > 0:
        return {"lags": [], "ljung_box": None, "p": None}
    found = [float((r[lag:] * r[:-lag]).sum() / (r**2).sum()) for lag in range(1, lags + 1)]
    q = n * (n + 2) * sum(value**2 / (n - lag) for lag, value in enumerate(found, 1))
    p = torch.special.gammaincc(torch.tensor(lags / 2, dtype=torch.float64), torch.tensor(q / 2, dtype=torch.float64))
    return {"lags": found, "ljung_box": q, "p": p.item(), "band": 1.96 / math.sqrt(n)}


def lagged_copy(predicted: np.ndarray, y: np.ndarray, step: int) -> dict:
    """Is the forecast `step` rows ahead just the value that was known? predicted, y (n,) by the row they are for.

    lag: by how many rows the truth has to be shifted to look most like the forecast (0 for a good one, `step` for a
    copy of the last value). copy: that lag is `step`, and the forecast errs no less (2 %) than the last value would.
    """
    errors = []
    for lag in range(min(2 * step, len(y) - 2) + 1):
        apart = (predicted[lag:] - y[: len(y) - lag]) ** 2
        errors.append(float(np.nanmean(apart)) if (~np.isnan(apart)).any() else math.inf)
    if not errors or math.isinf(errors[0]):
        return {"lag": None, "copy": False}
    lag = int(np.argmin(errors))
    repeated = float(np.nanmean((y[step:] - y[:-step]) ** 2))
    return {"lag": lag, "copy": lag == step and errors[0] >= 0.98 * repeated}
