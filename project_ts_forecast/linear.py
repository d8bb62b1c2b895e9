"""The linear map of a window, solved in closed form: ridge regression with what validation chooses.

    chosen = fit_linear(model, train_windows, val_windows)      # sets model.linear; {"mse": ..., "lookbacks": {...}}

Normal equations are summed over batches, so memory is that of a matrix of (win, win). A ridge is solved for the whole
window and for shorter pasts; each gets the strength that validation likes best, and maps are averaged as long as
validation gains: an average of linear maps is one linear map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from project_ts_forecast.data import SeriesWindow
from project_ts_forecast.model import Forecaster

STRENGTHS = [10.0**power for power in (-4, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2, 3)]  # in variances of the inputs
MOST_WINDOWS = 100_000
BATCH = 2048


def fit_linear(model: Forecaster, train: SeriesWindow, val: SeriesWindow) -> dict:
    """Solve `model.linear` on the train windows; returns what validation chose.

    Windows with a filled target are left out. Raises nothing for few windows: the ridge then keeps the map small.
    """
    inputs, targets = _moments(model, train)
    mean_in, mean_out, gram, cross = inputs["mean"], targets["mean"], inputs["gram"], targets["cross"]
    val_in, val_out, weight = _validation(model, val)
    maps = []
    for used, columns in _lookbacks(model):
        values, vectors = torch.linalg.eigh(gram[columns][:, columns])
        turned = vectors.T @ cross[columns]
        mean_variance = values.clamp(min=0).mean().clamp(min=1e-12)
        scored = []
        for strength in STRENGTHS:
            weights = torch.zeros_like(cross)
            weights[columns] = vectors @ (turned / (values.clamp(min=0) + strength * mean_variance)[:, None])
            predicted = (val_in - mean_in) @ weights + mean_out
            scored.append((_mse(predicted, val_out, weight), strength, weights, predicted))
        maps.append((*min(scored, key=lambda one: one[0]), used))
    mse, chosen = _average(maps, val_out, weight)
    weights = sum(maps[i][2] for i in chosen) / len(chosen)
    bias = mean_out - mean_in @ weights
    with torch.no_grad():
        model.linear.map.weight.copy_(weights.T)
        model.linear.map.bias.copy_(bias)
    return {"mse": mse, "lookbacks": {str(maps[i][4]): maps[i][1] for i in chosen}}


def _lookbacks(model: Forecaster) -> list[tuple[int, Tensor]]:
    """(rows of the past, their input columns) for the whole window, a half of it, a quarter and an eighth."""
    win, channels, extra = model.win, model.linear.channels, model.linear.extra
    pasts = [win // part for part in (1, 2, 4, 8) if win // part >= min(win, 8)]
    tail = torch.arange(channels * win, channels * win + extra)
    columns = [[torch.arange((c + 1) * win - past, (c + 1) * win) for c in range(channels)] for past in pasts]
    return [(past, torch.cat([*parts, tail])) for past, parts in zip(pasts, columns, strict=True)]


def _average(maps: list, val_out: Tensor, weight: Tensor) -> tuple[float, list[int]]:
    """Indices of the maps whose mean is best on validation, taken up one by one while that helps."""
    order = sorted(range(len(maps)), key=lambda i: maps[i][0])
    chosen, best = [order[0]], maps[order[0]][0]
    for i in order[1:]:
        mse = _mse(sum(maps[j][3] for j in (*chosen, i)) / (len(chosen) + 1), val_out, weight)
        if mse < best:
            chosen, best = [*chosen, i], mse
    return float(best), chosen


def _mse(predicted: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """weight (n, 1): the squared volatility of each window, as errors count in scaled values."""
    return ((predicted - wanted).square() * weight).mean()


def _batches(model: Forecaster, windows: SeriesWindow, most: int):
    """(inputs (n, P), wanted change in units of volatility (n, H), volatility (n, 1)) in float64, evenly spaced."""
    step = -(-len(windows) // most)
    for start in range(0, len(windows), step * BATCH):
        x, y = windows[list(range(start, min(start + step * BATCH, len(windows)), step))]
        z, now, reference, scale = model.relative(x)
        scale = scale[:, :, : model.outputs]
        wanted = (y - reference) / scale  # (B, h, K)
        if model.linear.mixed:
            whole = ~wanted.isnan().flatten(1).any(1)
            wanted, width = wanted.transpose(1, 2).flatten(1), scale.mean(2)
        else:
            wanted, width = wanted.transpose(1, 2).flatten(0, 1), scale.transpose(1, 2).flatten(0, 1)
            whole = ~wanted.isnan().any(1)
        yield model.linear.inputs(z, now)[whole].double(), wanted[whole].double(), width[whole].double()


def _moments(model: Forecaster, windows: SeriesWindow) -> tuple[dict, dict]:
    """Means and centred second moments of inputs and wanted outputs, summed batch by batch."""
    n, sums = 0, None
    for a, b, _ in _batches(model, windows, MOST_WINDOWS):
        found = [a.sum(0), b.sum(0), a.T @ a, a.T @ b]
        sums = found if sums is None else [total + part for total, part in zip(sums, found, strict=True)]
        n += len(a)
    mean_in, mean_out, gram, cross = (total / max(n, 1) for total in sums)
    gram, cross = gram - mean_in[:, None] * mean_in, cross - mean_in[:, None] * mean_out
    return {"mean": mean_in, "gram": gram}, {"mean": mean_out, "cross": cross}


def _validation(model: Forecaster, windows: SeriesWindow) -> tuple[Tensor, Tensor, Tensor]:
    found = [*zip(*_batches(model, windows, MOST_WINDOWS // 5), strict=True)]
    inputs, wanted, width = (torch.cat(part) for part in found)
    return inputs, wanted, width.square()
