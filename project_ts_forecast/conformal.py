"""Intervals that keep their promise: conformal prediction, for each step of the horizon.

    scores = pair_scores(out, y, spread, pairs=2)           # how far outside its interval each truth lay
    radius = radii(scores, coverages=[0.9, 0.5])            # split conformal: the quantile of past scores
    quantiles = widen(out, spread, radius)                  # (B, h, K, 2 * pairs + 1), ascending

Conformalised quantile regression (Romano, Patterson & Candès 2019): a score is max(low - y, y - high), in units of the
window's own volatility. A model without quantiles has low = high = forecast, which gives the plain absolute residual.
`rolling_radii` uses, for each origin, the latest scores that were known then. Shapes: N windows, h steps, K outputs, Q
quantiles of the model, P pairs. Pure functions of tensors; NaN is a truth that is not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOCAL = (0.0, 0.5, 1.0)
MOST_SCORES = 2_000_000  # numbers kept in a checkpoint: windows times steps times outputs times pairs


def pair_scores(out: Tensor, y: Tensor, spread: Tensor, pairs: int) -> Tensor:
    """out (N, h, K, Q), y (N, h, K), spread (N, K) → (N, h, K, P), the outermost pair first; P is 1 where Q is 1."""
    found = []
    for pair in range(pairs if out.shape[-1] > 1 else 1):
        low, high = out[..., pair], out[..., out.shape[-1] - 1 - pair]
        found.append(torch.maximum(low - y, y - high) / spread[:, None])
    return torch.stack(found, -1)


def radii(scores: Tensor, coverages: list[float]) -> Tensor:
    """(N, h, K, P) → (h, K, len(coverages)): the smallest radius that covers ceil((n + 1) * coverage) of n scores."""
    scores = scores.expand(*scores.shape[:-1], len(coverages))
    known = (~scores.isnan()).sum(0)  # (h, K, P)
    ranked = scores.nan_to_num(nan=torch.inf).sort(0).values
    wanted = torch.tensor(coverages, dtype=torch.float64)
    # the largest score where n is too small for the coverage asked for
    place = torch.minimum(((known + 1) * wanted - 1e-9).ceil().long(), known) - 1
    found = ranked.gather(0, place.clamp(min=0)[None])[0]
    return torch.where(known > 0, found, torch.inf)


def widen(out: Tensor, spread: Tensor, radius: Tensor) -> Tensor:
    """out (B, h, K, Q), spread (B, K), radius (h, K, P) or (B, h, K, P) → (B, h, K, 2 P + 1) in ascending order.

    The middle one is the model's forecast; the others lie around it, however narrow their radius.
    """
    middle, pairs = out[..., out.shape[-1] // 2], radius.shape[-1]
    lows, highs, low, high = [], [], middle, middle
    for pair in reversed(range(pairs)):  # from the inside out
        at = min(pair, out.shape[-1] // 2)
        margin = radius[..., pair] * spread[:, None]
        low = torch.minimum(low, out[..., at] - margin)
        high = torch.maximum(high, out[..., out.shape[-1] - 1 - at] + margin)
        lows, highs = [low, *lows], [*highs, high]
    return torch.stack([*lows, middle, *highs], -1)


def rolling_radii(
    scores: Tensor, start: Tensor, coverages: list[float], every: int = 0, steps: Tensor | None = None
) -> Tensor:
    """scores (T, h, K, P) of windows one row apart, start (W, h, K, P) known before the first → (T, h, K, P).

    The radius of step k (from 0) for the window at t comes from the latest W scores of that step whose truth was known:
    of windows up to t - 1 - k. It is computed anew every `every` windows (0: an eighth of the horizon). steps: (h,)
    which step each of the h is, where some are left out.
    """
    every = every or max(1, scores.shape[1] // 8)
    full, kept = torch.cat([start, scores]), len(start)
    place = torch.arange(scores.shape[1])
    k = place if steps is None else steps
    found = []
    for t in range(0, len(scores), every):
        rows = torch.arange(kept)[:, None] + (t - k).clamp(min=0)  # (W, h)
        radius = radii(full[rows, place], coverages)
        found.append(radius.expand(min(every, len(scores) - t), *radius.shape))
    return torch.cat(found)


def choose_local(out: Tensor, y: Tensor, spread: Tensor, coverage: float, one_series: bool) -> float:
    """How far intervals should follow the window's own volatility: the power of `spread` with the best Winkler score.

    0: not at all, 1: in proportion. One series is scored with rolling radii from its first half on; of many series
    every other window calibrates and the rest are scored. At most 24 steps of the horizon are looked at.
    """
    steps = torch.linspace(0, out.shape[1] - 1, min(24, out.shape[1])).long()
    out, y, last = out[:, steps], y[:, steps], int(steps[-1])
    found = {}
    for power in LOCAL:
        local = spread**power
        scores = pair_scores(out, y, local, 1)
        if one_series and len(scores) > 4 * last + 100:
            half = (len(scores) + last) // 2
            # the truths of the first half - last windows lie before the first window that is scored
            radius = rolling_radii(scores[half:], scores[: half - last], [coverage], max(1, half // 20), steps)
            scored = slice(half, None)
        else:
            radius, scored = radii(scores[::2], [coverage]), slice(1, None, 2)
        bands = widen(out[scored], local[scored], radius)
        low, high, truth = bands[..., 0], bands[..., -1], y[scored]
        outside = (low - truth).clamp(min=0) + (truth - high).clamp(min=0)
        found[power] = (high - low + 2 / (1 - coverage) * outside).nanmean().item()
    return min(found, key=found.get)


def kept_scores(scores: Tensor, one_series: bool, most: int = 1000) -> Tensor:
    """Those a checkpoint keeps: the latest of one series, or an even sample of many; at most `most` windows."""
    most = max(200, min(most, MOST_SCORES // scores[0].numel()))
    if len(scores) <= most:
        return scores
    if one_series:
        return scores[-most:].clone()
    return scores[torch.linspace(0, len(scores) - 1, most).long()]
