"""Augmentation of whole batches, on their device, with torch's global generator.

    x, target = augmented(pixels, labels, flags, mean, std, classes)

What moves pixels works on uint8, a quarter of the memory of floats; light and contrast join the normalisation. Big
temporary tensors are avoided: on the CPU it is the fresh memory that costs, not the arithmetic.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from project_vision_cls.data import to_input


def crop_flip(pixels: Tensor, pad: int, hflip: bool = True, vflip: bool = False) -> Tensor:
    """Shift every photo by up to `pad` pixels each way (borders mirrored), and flip every other one, by chance.

    pixels: (B, S, S, 3) uint8, in random order, since it is the first half that `hflip` flips; the same comes back.
    """
    b, s, device = len(pixels), pixels.shape[1], pixels.device
    pad = min(pad, s - 1)  # beyond that there is no more to mirror
    half = (b + torch.randint(2, ()).item()) // 2 if hflip else 0
    wide, mirrored = pixels.new_empty(b, s, s + 2 * pad, 3), pixels.flip(2)
    for part, middle, sides in ((slice(half), mirrored, pixels), (slice(half, b), pixels, mirrored)):
        wide[part, :, pad : pad + s] = middle[part]
        wide[part, :, :pad] = sides[part, :, s - 1 - pad : s - 1]
        wide[part, :, pad + s :] = sides[part, :, 1 : pad + 1]
    down, right = torch.randint(2 * pad + 1, (2, b, 1), device=device)
    row = (torch.arange(-pad, s - pad, device=device) + down).abs()
    row = (s - 1) - ((s - 1) - row).abs()  # mirrored at both ends
    if vflip:
        row = torch.where(torch.rand(b, 1, device=device) < 0.5, row.flip(1), row)
    row += torch.arange(0, b * s, s, device=device)[:, None]
    # whole rows are cheap to copy; a gather of single pixels takes several times as long
    windows = wide.as_strided((b * s * wide.shape[2] - s + 1, 3 * s), (3, 1))  # one from every pixel
    return windows.index_select(0, (row * wide.shape[2] + right).view(-1)).view(b, s, s, 3)


def erase(pixels: Tensor, share: float) -> Tensor:
    """Gray out one square of side `share` * S at a random place of every photo (random erasing, Zhong et al. 2017).

    The centre lies anywhere, so a square may reach over the border. pixels: (B, S, S, 3) uint8; the same comes back.
    """
    b, s, half = len(pixels), pixels.shape[1], int(share * pixels.shape[1] / 2)
    pixels = pixels.clone()
    for photo, (row, column) in zip(pixels.unbind(), torch.randint(0, s, (b, 2)).tolist(), strict=True):
        photo[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = 127
    return pixels


def light(b: int, strength: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, 1, 1, 1) each: contrast, a gain in 1 ± strength, and brightness, a shift in ± strength deviations."""
    gain, shift = (torch.rand(2, b, 1, 1, 1, device=device) * 2 - 1) * strength
    return 1 + gain, shift


def mixup(x: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend every photo and its target with its neighbour's (Zhang et al. 2018). x (B, 3, S, S), target (B, C)."""
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return _neighbours(x).lerp_(x, share), torch.lerp(_neighbours(target), target, share)


def cutmix(pixels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of the neighbour into each photo, targets by area (Yun et al. 2019); changes pixels itself.

    pixels (B, S, S, 3), target (B, C).
    """
    s = pixels.shape[1]
    side = round(s * (1 - torch.rand(()).item()) ** 0.5)
    top, left = torch.randint(0, s - side + 1, (2,)).tolist()
    box = pixels[:, top : top + side, left : left + side]
    box.copy_(_neighbours(box))
    return pixels, torch.lerp(target, _neighbours(target), side * side / (s * s))


def _neighbours(x: Tensor) -> Tensor:
    """Every item's predecessor, in memory like that of x, which `roll` does not promise."""
    return torch.cat([x[-1:], x[:-1]])


def augmented(
    pixels: Tensor, labels: Tensor, flags: argparse.Namespace, mean: list[float], std: list[float], classes: int
) -> tuple[Tensor, Tensor]:
    """(B, S, S, 3) uint8, (B,) → input (B, 3, S, S) and target (B, classes), both float32."""
    pixels = crop_flip(pixels, round(flags.crop * pixels.shape[1]), flags.hflip, flags.vflip)
    if flags.erase:
        pixels = erase(pixels, flags.erase)
    target = F.one_hot(labels, classes).float()
    mixed = flags.cutmix and torch.rand(()).item() < flags.cutmix
    if mixed:
        pixels, target = cutmix(pixels, target)
    gain, shift = light(len(pixels), flags.light, pixels.device) if flags.light else (1.0, 0.0)
    x = to_input(pixels, mean, std, gain, shift)
    return mixup(x, target, flags.mixup) if flags.mixup and not mixed else (x, target)
