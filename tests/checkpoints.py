"""A small net, a batch for it, a checkpoint that lacks nothing, and equality to the bit."""

import math

import pytest
import torch
from torch import nn

from common.amp_ckpt import REQUIRED

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def batch(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def same(a: object, b: object) -> bool:
    """Equal to the bit (NaN equals NaN), with the same types, whatever is nested in what."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(*(t.flatten().contiguous().view(torch.uint8) for t in (a, b)))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def ckpt(**changes: object) -> dict:
    held = {key: {} for key in REQUIRED} | {"project": "vision", "epoch": 3}
    return held | {"model": {"w": torch.randn(5, 3), "n": torch.tensor(7)}} | changes
