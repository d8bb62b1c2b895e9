"""What a model's traffic looked like when it was trained, and whether it looks like that now.

    reference = make_reference({"prob": [0.9, 0.8], "label": ["mug", "cup"]}, embedding)    # in a checkpoint
    results = compare(reference, {"prob": [...], "label": [...]}, embedding, policy)        # of a window

A feature is a list with one value a request: numbers (NaN where there is none), or text, which makes it a category.
An embedding is (n, d): what the model makes of an input before it decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.drift import Ks, category_counts, category_p, holm, ks, psi
from common.mmd import mmd

MOST_VALUES, MOST_POINTS = 2000, 250  # of each feature, and of the embedding, that a checkpoint carries
PERMUTATIONS = 9999  # of MMD: with 999, p would never get below alpha after the correction
# what counts as a large difference, where a policy does not say: D of KS, share of the traffic that changed its
# category, PSI, MMD squared
EFFECTS = {"ks": 0.1, "mix": 0.05, "psi": 0.1, "mmd": 0.01}
EMBEDDING = "embedding"


def make_reference(features: dict[str, Sequence], embedding: Tensor | np.ndarray | None = None) -> dict:
    """{"features": {name: {"values": tensor} or {"counts": {category: n}}}, "embedding": (n, d) tensor or None}.

    Of long features evenly spaced values are kept: the data may be sorted by class.
    """
    found = {}
    for name, values in features.items():
        if len(values) and isinstance(values[0], str):
            found[name] = {"counts": dict(Counter(values))}
        else:
            found[name] = {"values": _spaced(torch.as_tensor(np.asarray(values, np.float64)), MOST_VALUES).float()}
    points = None if embedding is None else _spaced(torch.as_tensor(embedding).detach().cpu(), MOST_POINTS).float()
    return {"features": found, EMBEDDING: points}


def _spaced(values: Tensor, most: int) -> Tensor:
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).long()]


def names_of(reference: dict) -> list[str]:
    """The features that can be compared, the embedding last."""
    embedding = [EMBEDDING] if reference.get(EMBEDDING) is not None else []
    return [*reference.get("features", {}), *embedding]


def thresholds(reference: dict, policy: dict) -> dict[str, float]:
    """{feature: the effect from which on it drifted} for those that the policy watches."""
    watched = {name: policy["drift"].get(name, {}) for name in names_of(reference)}
    return {
        name: about.get("effect", EFFECTS[_test(name, reference, about)])
        for name, about in watched.items()
        if about.get("watch", True)
    }


def _test(name: str, reference: dict, about: dict) -> str:
    if name == EMBEDDING:
        return "mmd"
    return about.get("test", "mix" if "counts" in reference["features"][name] else "ks")


def compare(reference: dict, features: dict[str, Sequence], embedding: Tensor | None, policy: dict) -> list[dict]:
    """One result for each feature of the reference that the policy watches.

    {"feature", "test", "effect", "threshold", "p", "adjusted", "drifted", "n", "was", "now", "what"}: drifted means
    that p, corrected for the number of features (Holm), is at most policy["alpha"], and the effect at least its
    threshold. was and now: means, or shares of the category that stands out. A feature that was not measured has n 0.
    """
    results = [
        _one(name, threshold, reference, embedding if name == EMBEDDING else features.get(name), policy["drift"])
        for name, threshold in thresholds(reference, policy).items()
    ]
    tested = {result["feature"]: result["p"] for result in results if result["n"]}
    adjusted = holm(tested)
    for result in results:
        result["adjusted"] = adjusted.get(result["feature"], 1.0)
        large = result["effect"] is not None and result["effect"] >= result["threshold"]
        result["drifted"] = large and result["adjusted"] <= policy["alpha"]
    return results


def _one(name: str, threshold: float, reference: dict, values: Sequence | Tensor | None, watched: dict) -> dict:
    test = _test(name, reference, watched.get(name, {}))
    held = reference[EMBEDDING] if name == EMBEDDING else reference["features"][name]
    held = held.get("counts", held.get("values")) if isinstance(held, dict) else held
    result = {"feature": name, "test": test, "effect": None, "threshold": threshold, "p": 1.0, "n": 0}
    result |= {"was": None, "now": None, "what": ""}
    if values is not None and len(values):
        result |= TESTS[test](held, values)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in result.items()}


def _ks(held: Tensor, values: Sequence) -> dict:
    values = np.asarray(values, np.float32)  # as precise as what is held: equal values must stay equal
    found: Ks = ks(held, values)
    return {"effect": found.d, "p": found.p, "n": found.m, **_means(held, values)}


def _psi(held: Tensor | dict, values: Sequence) -> dict:
    if isinstance(held, dict):
        return {**_mix(held, values), "effect": psi(held, Counter(values)).value}
    found = psi(held, values)
    return {"effect": found.value, "p": found.p, "n": len(values), **_means(held, values)}


def _means(held: Tensor, values: Sequence) -> dict:
    means = [float(np.nanmean(v)) if np.isfinite(v).any() else math.nan for v in map(_array, (held, values))]
    return {"was": means[0], "now": means[1]}


def _array(values: Sequence | Tensor) -> np.ndarray:
    return np.asarray(values, np.float64)


def _mix(held: dict, values: Sequence) -> dict:
    """Effect: half the sum of |changes of share|, the share of the traffic that would have to move back."""
    counts = Counter(values)
    names, table = category_counts(held, counts)
    shares = table / table.sum(1, keepdims=True)
    p, worst = category_p(held, counts)
    at = names.index(worst) if worst else 0
    was, now = shares[:, at].tolist()
    return {
        "effect": float(np.abs(shares[0] - shares[1]).sum() / 2),
        "p": p,
        "n": len(values),
        "was": was,
        "now": now,
        "what": worst,
    }


def _mmd(held: Tensor, points: Tensor) -> dict:
    found = mmd(held, points, permutations=PERMUTATIONS, enough=20)
    return {"effect": found.value, "p": found.p, "n": len(points)}


TESTS = {"ks": _ks, "psi": _psi, "mix": _mix, "mmd": _mmd}
