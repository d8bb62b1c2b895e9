"""How right a model is on traffic without labels: learned at the end of training, from validation that was damaged.

    learned = learn(groups, "prob", ["brightness", "contrast", "sharpness"])     # part of a checkpoint's reference
    value = expect(learned, {"prob": [0.9, 0.4], "brightness": [0.5, 0.1], ...})

Confidence alone is not enough: on noisy photos a net stays as sure as ever and is wrong. But noise shows in how the
photos look, and what such looks cost can be learned where the labels are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STRENGTHS = (0.15, 0.35, 0.6, 1.0)  # of each kind of damage, 1 being the most that is still of interest
FEWEST, MOST, PART = 50, 500, 160  # validation examples: wanted at all, used, and used for each kind and strength
TRUSTED = (0.3, 0.7)  # share of the undamaged accuracy below which a group says nothing, above which it counts in full
RIDGE = 1.0


def learn(groups: list[tuple[dict[str, Sequence], Sequence[bool]]], confidence: str, names: list[str]) -> dict | None:
    """Plain values and tensors for `expect`, from [(features, which answers were right), ...].

    The first group is undamaged, each other one damaged in one way. P(right) is a logistic regression on the logit c of
    the confidence, each feature z (in standard deviations of the first group), z^2 and c z; groups that lost nearly all
    accuracy count less, as whatever made them says little of moderate damage. On undamaged data the mean is shifted to
    that of the calibrated confidence.
    To learn on damaged data what a shift does to accuracy is an idea of Deng & Zheng ("Are Labels Always Necessary for
    Classifier Accuracy Evaluation?", CVPR 2021) and of Guillory et al. ("Predicting with Confidence on Unseen
    Distributions", ICCV 2021).
    None where there are fewer than FEWEST undamaged examples, or all of them are right, or all wrong.
    """
    plain, right = groups[0]
    first = float(np.mean(right)) if len(right) else 0.0
    if len(right) < FEWEST or first in (0.0, 1.0):
        return None
    values = torch.tensor([list(plain[name]) for name in names], dtype=torch.float64)
    known = {"confidence": confidence, "features": names, "centre": values.mean(1), "scale": values.std(1) + 1e-9}
    x = torch.cat([_columns(known, features) for features, _ in groups])
    y = torch.cat([torch.as_tensor(np.asarray(right), dtype=torch.float64) for _, right in groups])
    low, high = TRUSTED
    trust = [min(max((float(np.mean(right)) / first - low) / (high - low), 0.0), 1.0) for _, right in groups]
    weight = torch.cat([torch.full((len(right),), t).double() for t, (_, right) in zip(trust, groups, strict=True)])
    edges = x[weight > 0].quantile(torch.tensor([0.005, 0.995]).double(), dim=0)
    known |= {"low": edges[0], "high": edges[1]}  # beyond what was seen, a square says nothing
    known["weights"] = _logistic(x.clamp(*edges), y, weight)
    return {**known, "shift": float(np.mean(plain[confidence])) - _chances(known, plain).mean().item()}


def expect(learned: dict, features: dict[str, Sequence]) -> float:
    """The accuracy to expect, 0 to 1, of answers with these features; a value of NaN counts as an average one."""
    return min(max(_chances(learned, features).mean().item() + learned["shift"], 0.0), 1.0)


def _columns(known: dict, features: dict[str, Sequence]) -> Tensor:
    """(n, 1 + 3 features): c, z, z^2 and c z."""
    confidence = torch.tensor(list(features[known["confidence"]]), dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    values = torch.tensor([list(features[name]) for name in known["features"]], dtype=torch.float64)
    z = ((values - known["centre"][:, None]) / known["scale"][:, None]).nan_to_num(0.0).T
    c = confidence.logit()[:, None]
    return torch.cat([c, z, z.square(), c * z], 1)


def _chances(known: dict, features: dict[str, Sequence]) -> Tensor:
    x, weights = _columns(known, features).clamp(known["low"], known["high"]), known["weights"]
    return (x @ weights[1:] + weights[0]).sigmoid()


def _logistic(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Bias and weights, (1 + k,), of a logistic regression of y (n,) on x (n, k) with a ridge, by Newton's method."""
    mean, scale = x.mean(0), x.std(0) + 1e-9
    z = torch.cat([torch.ones(len(x), 1).double(), (x - mean) / scale], 1)
    ridge = torch.full((z.shape[1],), RIDGE).double().index_fill(0, torch.tensor([0]), 1e-6)
    found = torch.zeros(z.shape[1]).double()
    for _ in range(25):
        p = (z @ found).clamp(-30, 30).sigmoid()
        slope = z.T @ (weight * (p - y)) + ridge * found
        curve = (z * (weight * p * (1 - p))[:, None]).T @ z + ridge.diag()
        found = found - torch.linalg.solve(curve, slope)
    weights = found[1:] / scale
    return torch.cat([(found[0] - weights @ mean)[None], weights])
