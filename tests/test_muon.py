"""Muon's matrices are orthogonal, its AdamW is AdamW, and a resumed run goes on to the bit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.amp_ckpt import REQUIRED, load_ckpt, save_ckpt
from common.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 27), (27, 16), (64, 576), (600, 30), (1, 9), (9, 1), (128, 128)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_singular_values_end_near_one_and_the_vectors_stay(shape, size):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * size
    made = orthogonalise(matrix)
    assert made.shape == shape
    values = torch.linalg.svdvals(made)
    assert values.max() < 1.3
    assert values.min() > (0.3 if shape[0] != shape[1] else 0.0)  # a square one has values near zero that stay small
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.T @ made @ right.T
    torch.testing.assert_close(rotated, rotated.diag().diag(), rtol=0, atol=1e-3)
    assert (rotated.diag() > 0).all()  # signs stay, too


def test_small_matrices_give_what_the_large_one_would():
    matrix = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    x = (matrix / matrix.norm()).double()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalise(matrix).double(), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(orthogonalise(matrix.T).double(), x.T, rtol=0, atol=1e-5)


def test_zero_and_one_by_one():
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert orthogonalise(torch.tensor([[-7.0]])).item() == pytest.approx(-1, abs=0.32)


def step_of(kernel: torch.Tensor, grad: torch.Tensor, lr: float = 0.1, decay: float = 0.0) -> torch.Tensor:
    weight = nn.Parameter(kernel.clone())
    weight.grad = grad
    Muon([("w", weight)], lr=lr, weight_decay=decay).step()
    return weight.detach()


def test_a_kernel_moves_by_the_update_size_of_adamw():
    grad = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    moved = step_of(torch.zeros(16, 8, 3, 3), grad)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)  # lr * RMS 0.2
    assert (moved * grad).sum() < 0
    torch.testing.assert_close(moved, step_of(torch.zeros(16, 8, 3, 3), grad * 1000))  # whatever the gradient's size
    wanted = -0.1 * 0.2 * math.sqrt(72) * orthogonalise(grad.flatten(1)).view_as(grad)
    torch.testing.assert_close(moved, wanted)


def test_weight_decay_of_kernels_and_a_gradient_of_zero():
    kernel = torch.ones(4, 3, 3, 3)
    torch.testing.assert_close(step_of(kernel, torch.zeros_like(kernel), decay=0.5), kernel * 0.95)


def test_channels_last_makes_no_difference():
    generator = torch.Generator().manual_seed(0)
    kernel, grad = (torch.randn(8, 4, 3, 3, generator=generator) for _ in range(2))
    last = [t.to(memory_format=torch.channels_last) for t in (kernel, grad)]
    torch.testing.assert_close(step_of(kernel, grad), step_of(*last))


def test_linear_layers_get_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": [theirs.weight], "weight_decay": 0.3}, {"params": [theirs.bias], "weight_decay": 0.0}]
    optimizers = [
        Muon(ours.named_parameters(), lr=0.02, weight_decay=0.3),
        torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99)),
    ]
    for _ in range(30):
        x = torch.randn(5, 6)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=0, atol=1e-6)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def stripes(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 1, 8, 8) noise with stripes, down (0) or across (1)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 2
    down = torch.tensor([1.0, -1.0]).repeat(4).expand(n, 1, 8, 8)
    x = torch.where(labels.view(n, 1, 1, 1) == 0, down, down.transpose(2, 3))
    return x + 0.5 * torch.randn(n, 1, 8, 8, generator=generator), labels


def fit(model: nn.Module, optimizer: Muon, steps: int) -> float:
    x, y = stripes()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_small_net_learns():
    model = net(0)
    optimizer = Muon(model.named_parameters(), lr=0.02)
    assert fit(model, optimizer, 1) > 0.4
    assert fit(model, optimizer, 60) < 0.05


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    one, two = net(0), net(1)
    first = Muon(one.named_parameters(), lr=0.02)
    fit(one, first, 5)
    first.param_groups[0]["lr"] = 0.01  # as a schedule does
    ckpt = {key: {} for key in REQUIRED} | {"project": "p", "model": one.state_dict(), "opt": first.state_dict()}
    save_ckpt(tmp_path / "last.pt", ckpt)
    held = load_ckpt(tmp_path / "last.pt")
    two.load_state_dict(held["model"])
    second = Muon(two.named_parameters(), lr=0.5)
    second.load_state_dict(held["opt"])
    assert fit(one, first, 5) == fit(two, second, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_parameters_without_a_gradient_and_frozen_ones_stay():
    model = net(0)
    model[0].weight.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    optimizer = Muon(model.named_parameters(), lr=0.1)
    model[5].bias.grad = torch.ones(2)
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert changed == [False] * 5 + [True]
