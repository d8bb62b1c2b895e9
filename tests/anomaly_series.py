"""Series without anomalies, of many kinds, and their time stamps."""

from __future__ import annotations

import numpy as np

MONDAY = 1_704_067_200.0  # 2024-01-01, seconds


def stamps(n: int, step: float = 300.0) -> np.ndarray:
    return MONDAY + step * np.arange(n)


def series(kind: str, n: int = 4000, seed: int = 0) -> np.ndarray:
    """A series without anomalies."""
    rng = np.random.default_rng(seed)
    day = np.sin(2 * np.pi * stamps(n) / 86400)
    noise = rng.normal(size=n)
    if kind == "autoregressive":
        for i in range(1, n):
            noise[i] += 0.9 * noise[i - 1]
        return noise
    made = {
        "normal": noise,
        "uniform": rng.uniform(size=n),
        "daily": 10 * day + noise,
        "counts": rng.poisson(3 + 2 * day).astype(float),
        "student t, 3 degrees of freedom": rng.standard_t(3, n),
        "lognormal": np.exp(noise),
        "rare spikes": rng.exponential(size=n) * (rng.uniform(size=n) < 0.02),
        "random walk": np.cumsum(noise),
    }
    return made[kind]
