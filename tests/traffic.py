"""Outcomes of requests on two arms, alike but for what a test says."""

import numpy as np

from common.judge import Outcome


def traffic(n: int, rng: np.random.Generator, share: float = 0.2, **canary: object) -> list[Outcome]:
    """n requests, alike on both arms but for what `canary` says."""
    usual = {"fault": "", "latency_ms": None, "label": None, "confidence": None}
    outcomes = []
    for is_canary in rng.random(n) < share:
        of = {**usual, "latency_ms": float(rng.lognormal(3, 0.3)), "label": "abc"[rng.integers(3)]}
        of["confidence"] = float(rng.random())
        outcomes.append(Outcome(bool(is_canary), **{**of, **(canary if is_canary else {})}))
    return outcomes
