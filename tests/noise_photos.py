"""Class folders of noise photos: written, read as training reads them, and their manifest."""

from pathlib import Path

import numpy as np
from PIL import Image

from project_vision_cls import manifest as manifests
from project_vision_cls.data import ImageFolder


def write_manifest(run_dir: Path, sets: dict) -> dict:
    """As training does it."""
    manifest = manifests.make_manifest(sets)
    manifests.write_manifest(run_dir, sets, manifest)
    return manifest


def put(path, seed, size=(20, 24)):
    """A photo of noise: no two seeds look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def put_set(root, counts, seed=0):
    """{class: number of photos} → root/<class>/<k>.png; returns root."""
    for name, n in counts.items():
        for k in range(n):
            seed += 1
            put(root / name / f"{k:03}.png", seed)
    return root


def folder(root, cache, **options):
    return ImageFolder(root, **{"cache_dir": cache, "img_size": 16, **options})
