"""Figures of an evaluation, drawn where matplotlib is installed (`pip install ml-e2e[plots]`).

    from common.report import confusion_figure, can_draw
    if can_draw():
        confusion_figure(matrix, classes, "runs/vision/confusion_matrix.png")

Everything drawn is also in metrics.json, so nothing is lost without the extra.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor


def can_draw() -> bool:
    """True where matplotlib can be imported."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure, path: str | Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a letter the font lacks is drawn as a box
        figure.savefig(path, dpi=120)


def confusion_figure(matrix: Tensor, classes: list[str], path: str | Path) -> None:
    """(C, C) counts, rows = truth → a picture shaded by the share of each row; counts are written up to 30 classes."""
    side = max(4.0, 0.5 * len(classes) + 2)
    figure, axes = _figure(side, side)
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 60:
        names = [name.encode(errors="replace").decode() for name in classes]  # of folders, so of any bytes
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(classes) <= 30:
        for row, column in torch.nonzero(matrix).tolist():
            shade = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, int(matrix[row, column]), ha="center", va="center", color=shade, fontsize=8)
    _save(figure, path)


def reliability_figure(before: dict[str, Tensor], after: dict[str, Tensor], path: str | Path) -> None:
    """Accuracy against confidence by bin (`meter.reliability_bins`), before and after temperature."""
    figure, axes = _figure(4.5, 4.5)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, label="calibrated")
    for bins, name in ((before, "before temperature"), (after, "after temperature")):
        full = bins["count"] > 0
        axes.plot(bins["confidence"][full].numpy(), bins["accuracy"][full].numpy(), marker="o", label=name)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    _save(figure, path)


def risk_figure(coverage: Tensor, risk: Tensor, path: str | Path) -> None:
    """Error rate among the surest answers against the share answered (`meter.coverage_risk`)."""
    figure, axes = _figure(4.5, 3.5)
    axes.plot(coverage.numpy(), risk.numpy())
    axes.set(xlabel="share answered", ylabel="error rate among them", xlim=(0, 1), ylim=(0, None))
    _save(figure, path)


def forecast_figure(past: list[float], truth: list[float], quantiles: list[list[float]], path: str | Path) -> None:
    """The end of a past, the truth after it, and the forecast (the middle of the quantiles) with its bands as a fan."""
    figure, axes = _figure(8, 3.5)
    ahead = range(len(past), len(past) + len(truth))
    for i in range(len(quantiles) // 2):
        axes.fill_between(ahead, quantiles[i], quantiles[-1 - i], color="C0", alpha=0.2, linewidth=0)
    axes.plot(range(len(past)), past, color="black", linewidth=1, label="past")
    axes.plot(ahead, truth, color="black", linewidth=1, linestyle="dotted", label="truth")
    axes.plot(ahead, quantiles[len(quantiles) // 2], color="C0", label="forecast")
    axes.set(xlabel="row")
    axes.legend()
    _save(figure, path)


def autocorrelation_figure(lags: list[float], band: float, path: str | Path) -> None:
    """Autocorrelation of residuals from lag 1 on; between the lines it may be chance (95 %)."""
    figure, axes = _figure(6, 3)
    axes.bar(range(1, len(lags) + 1), lags, width=0.5)
    for edge in (-band, band):
        axes.axhline(edge, color="gray", linewidth=1, linestyle="dashed")
    axes.set(xlabel="lag (rows)", ylabel="autocorrelation of residuals")
    _save(figure, path)


def coverage_figure(steps: dict[str, list[float]], target: float, path: str | Path) -> None:
    """Share of truths inside their interval, by step of the horizon, for each way of making intervals."""
    figure, axes = _figure(6, 3)
    axes.axhline(target, color="gray", linewidth=1, label="promised")
    for name, values in steps.items():
        axes.plot(range(1, len(values) + 1), values, marker="." if len(values) < 50 else None, label=name)
    axes.set(xlabel="step", ylabel="coverage", ylim=(0, 1.02))
    axes.legend()
    _save(figure, path)
