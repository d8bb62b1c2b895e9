"""Which texts are answered and which are turned away: a score of the logits, and a threshold for it.

    best = choose(logits, labels, coverage=0.95)         # {"score": "margin", "threshold": 1.7, "coverage": 0.95}
    in_scope = SCORES[best["score"]](logits) >= best["threshold"]

Higher scores are more in scope. Nothing of it is trained on out-of-scope texts; where validation has some (label OUT),
they choose among the scores. Reads and writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = {
    "max_logit": lambda logits: logits.amax(1),
    "above_mean": lambda logits: logits.amax(1) - logits.mean(1),  # of an unknown text the nets raise every class alike
    "energy": lambda logits: logits.logsumexp(1),  # Liu et al. 2020, negated
    "margin": lambda logits: logits.topk(2, 1).values.diff(dim=1).neg().flatten(),
    "prob": lambda logits: logits.softmax(1).amax(1),  # Hendrycks & Gimpel 2017
}
DEFAULT = "above_mean"  # best on CLINC150's validation part; taken where there is no out-of-scope text to choose by


def choose(logits: Tensor, labels: Tensor, coverage: float) -> dict:
    """The best score on validation by AUROC, and the threshold at which `coverage` of the in-scope texts are answered.

    logits (n, C), after temperature; labels (n,): negative for texts of no known class.
    """
    inside, outside = logits[labels >= 0].double(), logits[labels == -2].double()
    found = {name: auroc(score(inside), score(outside)) for name, score in SCORES.items()} if len(outside) else {}
    name = max(found, key=found.__getitem__) if found else DEFAULT
    return {
        "score": name,
        "threshold": threshold(SCORES[name](inside), coverage),
        "coverage": coverage,
        "auroc": found,
        "out_of_scope": len(outside),
    }


def threshold(inside: Tensor, coverage: float) -> float:
    """The largest value that at least `coverage` of the scores (n,) reach."""
    ranked = inside.sort(descending=True).values
    return ranked[min(len(ranked), max(1, round(coverage * len(ranked)))) - 1].item()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that an in-scope text scores above an out-of-scope one, ties by half (Mann & Whitney 1947)."""
    ranked = outside.sort().values
    below = torch.searchsorted(ranked, inside.contiguous())
    equal = torch.searchsorted(ranked, inside.contiguous(), right=True) - below
    return ((below + equal / 2).sum() / (len(inside) * len(outside))).item()


def recall_at(inside: Tensor, outside: Tensor, coverage: float = 0.95) -> float:
    """Share of the out-of-scope texts turned away where `coverage` of the in-scope ones are answered."""
    return (outside < threshold(inside, coverage)).double().mean().item()
