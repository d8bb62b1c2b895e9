"""Are two clouds of points drawn from one distribution? The maximum mean discrepancy, on embeddings of a model.

    value, p, bandwidth = mmd(reference, window)        # (n, d) and (m, d)

Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012). It sees changes that no single number shows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

QUADRATIC_UP_TO = 2000  # points in both samples together; beyond it the linear-time estimate is taken


class Mmd(NamedTuple):
    """value: the unbiased estimate of MMD squared, which may be below 0. bandwidth: sigma of the kernel."""

    value: float
    p: float
    bandwidth: float


def mmd(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    bandwidth: float | None = None,
    permutations: int = 999,
    enough: int | None = None,
    seed: int = 0,
    linear: bool | None = None,
) -> Mmd:
    """MMD squared with the kernel exp(-|a - b|^2 / (2 sigma^2)), (n, d) and (m, d) or (n,) and (m,).

    The unbiased estimate (lemma 6): mean k(x, x') over pairs + mean k(y, y') over pairs - 2 mean k(x, y). p is the
    share of `permutations` whose value is as large, itself counted (the +1, which keeps p above 0 and the test exact).
    enough: stop, after any 500 of them, when so many were as large: a p that is not small need not be known well (Besag
    & Clifford 1991). bandwidth: sigma; by default the median distance of all points from each other, of 1,000 at most.
    linear: the estimate of lemma 14, O(n), whose p is that of a normal distribution; by default for more than
    QUADRATIC_UP_TO points. Rows that are not finite are left out; with fewer than 2 rows on a side (linear: 4) the
    value is NaN and p = 1. All points equal: value 0, p 1. Raises ValueError for shapes that do not fit.
    """
    x, y = _rows(x, "x"), _rows(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"mmd: x has {x.shape[1]} columns, y has {y.shape[1]}, wanted the same")
    linear = len(x) + len(y) > QUADRATIC_UP_TO if linear is None else linear
    if min(len(x), len(y)) < (4 if linear else 2):
        return Mmd(math.nan, 1.0, math.nan)
    sigma = median_distance(torch.cat([x, y]), seed) if bandwidth is None else bandwidth
    if sigma <= 0:  # the median of all equal points; another tiny sigma would only see who is equal to whom
        return Mmd(0.0, 1.0, 0.0)
    return Mmd(*(_linear(x, y, sigma) if linear else _quadratic(x, y, sigma, permutations, enough, seed)), sigma)


def _rows(values: Tensor | np.ndarray, name: str) -> Tensor:
    values = torch.as_tensor(values).detach().cpu().double()
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(f"mmd: {name} has the shape {tuple(values.shape)}, wanted (rows, columns)")
    return values[values.isfinite().all(1)]


def median_distance(points: Tensor, seed: int = 0, most: int = 1000) -> float:
    """Median of the distances between all pairs of different rows, of `most` rows drawn by `seed`."""
    if len(points) > most:
        points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:most]]
    return torch.pdist(points).quantile(0.5).item() if len(points) <= 5000 else math.nan


def _kernel(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return (square.clamp_(min=0) / (-2 * sigma * sigma)).exp_()


def _quadratic(
    x: Tensor, y: Tensor, sigma: float, permutations: int, enough: int | None, seed: int
) -> tuple[float, float]:
    n, m = len(x), len(y)
    points = torch.cat([x, y])
    points = points - points.mean(0)  # the squares above lose fewer digits
    k = _kernel(points, points, sigma).fill_diagonal_(0.0)
    total, rows = k.sum(), k.sum(1)

    def estimate(chosen: Tensor) -> Tensor:
        """(n + m, P) of 0 and 1, n ones a column: who is in the first sample → (P,)."""
        inside = (chosen * (k @ chosen)).sum(0)
        across = rows @ chosen - inside
        return inside / (n * (n - 1)) + (total - inside - 2 * across) / (m * (m - 1)) - 2 * across / (n * m)

    own = (torch.arange(n + m) < n).double()[:, None]
    value = estimate(own).item()
    generator, done, beyond = torch.Generator().manual_seed(seed), 0, 0
    while done < permutations and not (enough and beyond >= enough):
        some = min(500, permutations - done)
        order = torch.rand(n + m, some, generator=generator).argsort(0)
        # equal to the last digits is equal: the same sum in another order
        beyond += int((estimate((order < n).double()) >= value - 1e-12).sum())
        done += some
    return value, (1 + beyond) / (1 + done)


def _linear(x: Tensor, y: Tensor, sigma: float) -> tuple[float, float]:
    pairs = min(len(x), len(y)) // 2
    x1, x2, y1, y2 = x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2], y[0 : 2 * pairs : 2], y[1 : 2 * pairs : 2]

    def k(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().sum(1) / (-2 * sigma * sigma)).exp()

    h = k(x1, x2) + k(y1, y2) - k(x1, y2) - k(x2, y1)
    value, spread = h.mean().item(), h.std().item()
    if spread == 0:
        return value, 1.0 if value <= 0 else 0.0
    return value, 0.5 * math.erfc(value / spread * math.sqrt(pairs / 2))
