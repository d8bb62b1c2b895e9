"""Made-up scenes as photos on a disk, and the scan that reads them."""

import numpy as np
from PIL import Image, ImageDraw

from project_vision_cls.scan import list_photos, read_photos


def scene(seed, size=96):
    """A made-up photo: light that falls off to one side, and a few things in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    light = rng.uniform(90, 160) + rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y
    image = Image.fromarray((light[..., None] + rng.normal(0, 2, (size, size, 3))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = rng.integers(0, size * 3 // 4, 2).tolist()
        box = (left, top, left + int(rng.integers(8, size // 2)), top + int(rng.integers(8, size // 2)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def put(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed).save(path, "JPEG", **options)
    return path


def read(root, cache, size=16):
    files, _ = list_photos(root)
    return read_photos(root, files, size, cache)
