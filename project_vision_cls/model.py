"""Two small convolutional nets for photos, and how a checkpoint's config becomes one of them.

    model = build_model({"arch": "resnet", "width": 16, "img_size": 128}, num_classes=6)
    logits = model(x)       # x (B, 3, S, S) normalised float → (B, num_classes)

No input, no output, no global state.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU: (B, c_in, H, W) → (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + two conv blocks of x; keeps the shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x + self.blocks(x)


class SmallCNN(nn.Module):
    """Plain stack: `depth` conv blocks, each halving the picture and doubling the channels, then a linear head."""

    def __init__(self, num_classes: int, width: int = 32, depth: int = 3):
        super().__init__()
        channels = [3] + [width * 2**i for i in range(depth)]
        blocks = [nn.Sequential(ConvBlock(a, b), nn.MaxPool2d(2)) for a, b in pairwise(channels)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(channels[-1], num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) → what the head decides by, (B, channels)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) → logits (B, num_classes)."""
        return self.head(self.embed(x))


class SmallResNet(nn.Module):
    """Residual net of nine weight layers (D. Page, "How to Train Your ResNet", 2018) with a stem for larger photos.

    The stem halves the picture until it is about 32 pixels wide, so a step costs much the same at any `img_size`.
    """

    def __init__(self, num_classes: int, width: int = 16, img_size: int = 32):
        super().__init__()
        w = width
        halvings = max(0, round(math.log2(img_size / 32)))
        stem = [ConvBlock(3 if i == 0 else w, w, stride=2) for i in range(halvings)] or [ConvBlock(3, w)]
        self.body = nn.Sequential(
            *stem,  # (B, w, 32, 32)
            nn.Sequential(ConvBlock(w, 2 * w), nn.MaxPool2d(2), Residual(2 * w)),  # (B, 2w, 16, 16)
            nn.Sequential(ConvBlock(2 * w, 4 * w), nn.MaxPool2d(2)),  # (B, 4w, 8, 8)
            nn.Sequential(ConvBlock(4 * w, 8 * w), nn.MaxPool2d(2), Residual(8 * w)),  # (B, 8w, 4, 4)
        )
        self.head = nn.Linear(8 * w, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) → what the head decides by, (B, channels)."""
        return self.body(x).amax((2, 3))  # adaptive pooling does not repeat on CUDA

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) → logits (B, num_classes)."""
        return self.head(self.embed(x))


def build_model(config: dict, num_classes: int) -> nn.Module:
    """Untrained net of `config` (arch "resnet" or "cnn", width, depth, img_size); ValueError for another arch."""
    if config["arch"] == "resnet":
        return SmallResNet(num_classes, config["width"], config["img_size"])
    if config["arch"] == "cnn":
        return SmallCNN(num_classes, config["width"], config["depth"])
    raise ValueError(f"arch is {config['arch']!r}, wanted 'resnet' or 'cnn'")
