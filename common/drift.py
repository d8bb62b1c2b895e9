"""Is what comes now like what came before? Statistics of two samples, numbers in, plain values out.

    value, threshold, *_ = psi(reference, window)       # numbers, or text: categories
    d, p, *_ = ks(reference, window)
    adjusted = holm({"brightness": 0.0004, "confidence": 0.2})

Samples are sequences or arrays of numbers. Where there is nothing to say, they say so: a value of NaN with p = 1, which
no alarm takes for evidence. A p-value says whether there is a difference, never how large: look at the value too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

EPSILON = 1e-4  # the share that an empty bin counts with in psi: ln(p / 0) would be infinite
EXACT_UP_TO = 250_000  # n * m: some 6 ms
ALPHA = 0.01


class Psi(NamedTuple):
    """`value` >= threshold happens by chance in a share of `alpha`. bins: their upper edges, or the categories."""

    value: float
    threshold: float
    p: float
    bins: list
    reference: list[float]  # shares
    current: list[float]


class Ks(NamedTuple):
    """d: the largest distance between the two distribution functions, 0 to 1. n and m: without NaN."""

    d: float
    p: float
    n: int
    m: int


def chi2_sf(x: float, df: float) -> float:
    """P(chi-square with df degrees of freedom > x) = Q(df / 2, x / 2), the regularised upper incomplete gamma."""
    half = torch.tensor([df / 2, max(x, 0.0) / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def chi2_quantile(q: float, df: float) -> float:
    """The x with P(chi-square with df degrees of freedom <= x) = q, by bisection on `chi2_sf` to 1e-12 of x.

    0 < q < 1, df > 0, else ValueError.
    """
    if not (0 < q < 1 and df > 0):
        raise ValueError(f"chi2_quantile: q is {q}, df {df}, wanted 0 < q < 1 and df > 0")
    low, high = 0.0, 2.0 * df + 10
    while chi2_sf(high, df) > 1 - q:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if chi2_sf(middle, df) > 1 - q else (low, middle)
    return (low + high) / 2


def psi(reference: Sequence, current: Sequence, bins: int = 10, epsilon: float = EPSILON, alpha: float = ALPHA) -> Psi:
    """Population stability index: the sum over bins of (c - r) ln(c / r), r and c the shares of the two samples.

    Numbers fall into `bins` bins with equally many of the reference in each (quantiles; a value on an edge belongs to
    the lower bin), or, where the reference has at most that many distinct values, into one bin a value and one for all
    others. NaN has a bin of its own. Text, or {category: count}, has one bin a category; categories that the reference
    does not have share one. A share below `epsilon` counts as `epsilon`.

    Without drift PSI / (1/n + 1/m) is about chi-square with (bins - 1) degrees of freedom (B. Yurdakul, "Statistical
    Properties of Population Stability Index", 2018): from it come `p` and `threshold`, the 1 - alpha quantile for these
    two sample sizes. It holds where a bin expects some five values in either sample. An empty sample: value NaN,
    threshold infinite, p 1. One bin only: value 0, threshold infinite, p 1.
    """
    if bins < 2 or not 0 < epsilon < 0.1 or not 0 < alpha < 1:
        raise ValueError(f"psi: found {bins} bins, epsilon {epsilon}, alpha {alpha}; wanted bins >= 2 and shares")
    names, counts = _binned(reference, current, bins)
    n, m = counts.sum(1)
    if not n or not m:
        return Psi(math.nan, math.inf, 1.0, names, [], [])
    shares = counts / counts.sum(1, keepdims=True)
    r, c = np.maximum(shares, epsilon)
    value = float(((c - r) * np.log(c / r)).sum())
    df, scale = len(names) - 1, 1 / n + 1 / m
    threshold = chi2_quantile(1 - alpha, df) * scale if df else math.inf
    p = chi2_sf(value / scale, df) if df else 1.0
    return Psi(value, float(threshold), p, names, *shares.tolist())


def _binned(reference: Sequence, current: Sequence, bins: int) -> tuple[list, np.ndarray]:
    """Names of the bins and (2, len) counts; bins that are empty in both are left out."""
    if isinstance(reference, dict) or _is_text(reference) or _is_text(current):
        return category_counts(reference, current)
    x, y = (np.asarray(values, np.float64).reshape(-1) for values in (reference, current))
    known = np.unique(x[~np.isnan(x)])
    if len(known) <= bins:
        x, y = ([str(value) for value in values.tolist()] for values in (x, y))
        return category_counts(Counter(x), Counter(y))
    edges = np.unique(np.quantile(x[~np.isnan(x)], np.linspace(0, 1, bins + 1)[1:-1]))
    # NaN sorts behind all numbers, infinity included: searchsorted cannot tell it from the last bin
    counts = [
        np.bincount(np.where(np.isnan(v), len(edges) + 1, np.searchsorted(edges, v)), minlength=len(edges) + 2)
        for v in (x, y)
    ]
    names, counts = [*edges.tolist(), math.inf, math.nan], np.array(counts)
    used = counts.sum(0) > 0
    return [name for name, use in zip(names, used, strict=True) if use], counts[:, used]


def _is_text(values: Sequence) -> bool:
    return isinstance(values, dict) or (len(values) > 0 and isinstance(values[0], str))


def category_counts(reference: Sequence | dict, current: Sequence | dict) -> tuple[list, np.ndarray]:
    """Categories of the reference and then "(other)", where there is any, and (2, len) counts.

    Each sample is text values or {category: count}; counts of zero or less are no categories.
    """
    x, y = (values if isinstance(values, dict) else Counter(values) for values in (reference, current))
    names = sorted(name for name, count in x.items() if count > 0)
    counts = [[float(sample.get(name, 0)) for name in names] for sample in (x, y)]
    other = sum(count for name, count in y.items() if count > 0 and x.get(name, 0) <= 0)
    if other:
        names = [*names, "(other)"]
        counts = [[*counts[0], 0.0], [*counts[1], float(other)]]
    return names, np.array(counts).reshape(2, len(names))


def category_p(reference: Sequence | dict, current: Sequence | dict) -> tuple[float, str]:
    """(p, category): whether the mix of categories changed, and the category that stands out most.

    Two questions, corrected for being two: Pearson's chi-square over all categories together (those that expect fewer
    than five pooled), and for each category Fisher's exact test, corrected for their number; the first sees many small
    changes, the second one large one. The same arguments as `category_counts`; (1.0, "") for an empty sample.
    """
    names, counts = category_counts(reference, current)
    n, m = counts.sum(1)
    if not n or not m or len(names) < 2:
        return 1.0, ""
    pooled = counts.sum(0)
    expected = np.outer([n, m], pooled) / (n + m)
    few = expected.min(0) < 5
    cells = [np.c_[values[:, ~few], values[:, few].sum(1)] for values in (counts, expected)]
    kept = cells[1].min(0) > 0
    x2 = ((cells[0] - cells[1]) ** 2 / np.where(kept, cells[1], 1))[:, kept].sum()
    overall = chi2_sf(x2, kept.sum() - 1) if kept.sum() > 1 else 1.0
    single = fisher(counts[1], pooled, n, m)
    worst = int(single.argmin())
    return float(min(1.0, 2 * min(overall, len(names) * single[worst]))), names[worst]


def fisher(found: np.ndarray, pooled: np.ndarray, n: float, m: float) -> np.ndarray:
    """Two-sided p of Fisher's exact test, twice the smaller tail, for each of K categories, (K,).

    found: (K,) how often the category came in a sample of m; pooled: (K,) how often in both samples, n + m, together.
    """
    found, pooled = (torch.as_tensor(np.asarray(values), dtype=torch.float64)[:, None] for values in (found, pooled))
    x = torch.arange(int(min(m, pooled.max())) + 1, dtype=torch.float64)

    def log_choose(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(a + 1) - torch.lgamma(b + 1) - torch.lgamma(a - b + 1)

    possible = (x <= pooled) & (pooled - x <= n) & (x <= m)
    total, sample = torch.tensor([n + m, m], dtype=torch.float64)
    own, others = torch.where(possible, x, 0.0), torch.where(possible, m - x, 0.0)
    log_p = log_choose(pooled, own) + log_choose(total - pooled, others) - log_choose(total, sample)
    p = torch.where(possible, log_p.exp(), 0.0)
    at = torch.arange(p.shape[1], dtype=torch.float64)
    tails = [(p * side).sum(1) for side in (at <= found, at >= found)]
    return (2 * torch.minimum(*tails)).clamp(max=1.0).numpy()


def ks(reference: Sequence, current: Sequence, exact: bool | None = None) -> Ks:
    """Two-sample Kolmogorov-Smirnov test, two-sided; numbers that are NaN are left out, infinities are not.

    exact: the p-value counts all ways to deal the pooled values into samples of n and m, given their ties (Schröer &
    Trenkler 1995; the recursion of Hodges 1958), for n * m up to EXACT_UP_TO by default. Beyond it, Kolmogorov's limit
    2 * sum over k of (-1)^(k-1) exp(-2 k^2 D^2 nm / (n + m)) (Smirnov 1948). Empty, or all NaN: d NaN, p 1.
    """
    x, y = (np.asarray(values, np.float64).reshape(-1) for values in (reference, current))
    x, y = np.sort(x[~np.isnan(x)]), np.sort(y[~np.isnan(y)])
    n, m = len(x), len(y)
    if not n or not m:
        return Ks(math.nan, 1.0, n, m)
    pooled = np.concatenate([x, y])
    below = np.searchsorted(x, pooled, "right") * m - np.searchsorted(y, pooled, "right") * n  # whole numbers
    gap = int(np.abs(below).max())
    if n * m <= EXACT_UP_TO if exact is None else exact:
        pooled.sort()
        ends = np.append(pooled[1:] != pooled[:-1], True)  # where the distribution functions may be compared
        p = _paths_beyond(n, m, gap, ends)
    else:
        p = kolmogorov_sf(gap / (n * m) * math.sqrt(n * m / (n + m)))
    return Ks(gap / (n * m), p, n, m)


def _paths_beyond(n: int, m: int, gap: int, ends: np.ndarray) -> float:
    """Chance that a random way from (0, 0) to (n, m) is somewhere, at an end of ties, at |i m - j n| >= gap.

    Backwards it would cancel; forwards the chance to have been beyond is summed by itself, so small p stay exact.
    """
    if gap == 0:
        return 1.0
    i = np.arange(n + 1)
    beyond = np.zeros(n + 1)  # at step k: the chance of each i, given that the way comes through (i, k - i)
    for k in range(1, n + m + 1):
        low, high = max(0, k - m), min(n, k)
        at = i[low : high + 1]
        from_left = beyond[np.maximum(at - 1, 0)] * at
        beyond[low : high + 1] = (from_left + beyond[low : high + 1] * (k - at)) / k
        if ends[k - 1]:
            out = np.abs(at * m - (k - at) * n) >= gap
            beyond[low : high + 1][out] = 1.0
    return float(min(1.0, beyond[n]))


def kolmogorov_sf(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution; for small x by the other series, which converges there."""
    if x <= 0:
        return 1.0
    if x < 1:
        terms = (math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 8))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 12))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """The p-values corrected for their number, same keys: compare each with alpha (S. Holm 1979).

    The chance that any of them is <= alpha without any difference is at most alpha, however they depend on each other.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted
