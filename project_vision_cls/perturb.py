"""Nine more ways to damage photos, beside those of corruptions.py: to learn what damage costs the model.

    worse = perturbed("haze", pixels, 0.5, torch.Generator().manual_seed(0))

Batches (B, S, S, 3) uint8 in and out; strength 0 (nothing) to 1. No input, no output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def perturbed(kind: str, pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Photos damaged in the way that is named, one of KINDS."""
    x = KINDS[kind](pixels.permute(0, 3, 1, 2).float() / 255, strength, generator)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def speckle(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Noise that grows with the light."""
    return x * (1 + 0.35 * strength * torch.randn(x.shape, generator=generator))


def grain(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gray noise in blocks of two by two pixels."""
    b, _, height, width = x.shape
    noise = torch.randn(b, 1, (height + 1) // 2, (width + 1) // 2, generator=generator)
    return x + 0.14 * strength * F.interpolate(noise, scale_factor=2)[:, :, :height, :width]


def uniform(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Even noise between two bounds."""
    return x + 0.21 * strength * (2 * torch.rand(x.shape, generator=generator) - 1)


def motion(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A blur to the side, of up to a seventeenth of the width."""
    reach = max(1, round(strength * x.shape[3] / 34))
    return F.avg_pool2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), (1, 2 * reach + 1), 1)


def coarse(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Shrunk, and stretched again."""
    size = [max(2, round(side / (1 + 1.4 * strength))) for side in x.shape[2:]]
    small = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[2:], mode="bilinear")


def gamma(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Another curve of brightness, up or down by chance."""
    up = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return x.clamp(min=1e-3) ** torch.where(up, 0.77 * strength, -0.77 * strength).exp()


def haze(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Mixed with an even gray, of any lightness."""
    return x.lerp(torch.rand(len(x), 1, 1, 1, generator=generator), 0.5 * strength)


def cast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A tint: each colour channel weaker or stronger."""
    return x * (1 + 0.42 * strength * (2 * torch.rand(len(x), 3, 1, 1, generator=generator) - 1))


def posterise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Fewer levels of each colour: 16 down to 3."""
    steps = max(2, round(16 / (1 + 5 * strength))) - 1
    return (x * steps).round() / steps


WAYS = (speckle, grain, uniform, motion, coarse, gamma, haze, cast, posterise)
KINDS = {function.__name__: function for function in WAYS}
