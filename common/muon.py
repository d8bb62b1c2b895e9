"""Muon for convolution kernels, AdamW for the rest, in one optimiser with one state.

    optimizer = Muon(model.named_parameters(), lr=1e-2, weight_decay=0.05)
    loss.backward(); optimizer.step()

Muon replaces the momentum of a matrix by the nearest semi-orthogonal one, so that every direction learns at the same
rate (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024). A convolution kernel
(out, in, kh, kw) is taken as the matrix (out, in * kh * kw).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """lr has AdamW's scale for both kinds: Muon's update is scaled to the RMS 0.2 that AdamW's has.

    That scale is 0.2 * sqrt(max(rows, columns)): J. Liu et al., "Muon is Scalable for LLM Training", 2025. Kernels of
    convolutions are matrices; biases, norms, embeddings and linear layers go to AdamW, vectors without weight decay.
    """

    def __init__(self, named_params: Iterable[tuple[str, Tensor]], lr: float, weight_decay: float = 0.05):
        params = [p for _, p in named_params if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.ndim > 2], "muon": True, "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim == 2], "muon": False, "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim < 2], "muon": False, "weight_decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "momentum": 0.95, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (self._muon if group["muon"] else self._adam)(p, group))

    def _muon(self, p: Tensor, group: dict) -> Tensor:
        state, beta = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - beta)
        matrix = p.grad.lerp(momentum, beta).flatten(1)  # Nesterov
        return orthogonalise(matrix).view_as(p) * (0.2 * math.sqrt(max(matrix.shape)))

    def _adam(self, p: Tensor, group: dict) -> Tensor:
        """Loshchilov & Hutter 2019, without the decay, which `step` applies."""
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].lerp_(p.grad.square(), 1 - beta2)
        root = (state["square"] / (1 - beta2 ** state["step"])).sqrt()
        return state["mean"] / (1 - beta1 ** state["step"]) / (root + 1e-8)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """(m, n) → the matrix with the same singular vectors and singular values near 1, by quintic Newton-Schulz steps.

    The coefficients are those of Jordan et al. 2024: singular values from 0.3 % of the matrix's norm up end
    between about 0.7 and 1.2, smaller ones below; a matrix of zeros stays zero. Every step is a polynomial of X X^T
    times X, so the steps are taken on the small square matrices, which commute, and X is multiplied once.
    """
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    gram = x @ x.T
    whole = step = _quintic(gram)
    for _ in range(steps - 1):
        gram = step @ gram @ step
        step = _quintic(gram)
        whole = step @ whole
    x = whole @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _quintic(gram: Tensor) -> Tensor:
    """3.4445 I - 4.7750 G + 2.0315 G^2."""
    step = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    step.diagonal().add_(3.4445)
    return step
