"""What is watched of photos: numbers that say how they look, beside what the model made of them.

    features = photo_features(pixels, sizes, answers)       # {"brightness": [...], ...}, one value a photo
    reference = make_reference(features, embedding)         # of validation photos, for the checkpoint

No input, no output.
"""

from __future__ import annotations

import numpy as np

TOGETHER = 64  # photos turned into floats at a time
GRAY = np.array([0.299, 0.587, 0.114], np.float32) / 255  # luma of ITU-R BT.601


def photo_features(pixels: np.ndarray, sizes: list[tuple[int, int]], answers: list[dict]) -> dict[str, list]:
    """(B, S, S, 3) uint8, (width, height) of the files, and the answers → six features.

    label, prob: of the answer. brightness: mean gray, 0 to 1. contrast: standard deviation of the gray. sharpness:
    log10 of the variance of the Laplacian (Pech-Pacheco et al. 2000), which falls with blur. side: the shorter side of
    the file, in pixels.
    """
    looks = [_looks(pixels[start : start + TOGETHER] @ GRAY) for start in range(0, len(pixels), TOGETHER)]
    brightness, contrast, sharpness = np.concatenate(looks, axis=1).tolist()
    return {
        "label": [answer["label"] for answer in answers],
        "prob": [answer["prob"] for answer in answers],
        "brightness": brightness,
        "contrast": contrast,
        "sharpness": sharpness,
        "side": [float(min(size)) for size in sizes],
    }


def _looks(gray: np.ndarray) -> np.ndarray:
    """(B, S, S) of 0..1 → brightness, contrast and sharpness, (3, B)."""
    laplacian = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    laplacian -= 4 * gray[:, 1:-1, 1:-1]
    variance = laplacian.var(axis=(1, 2))
    return np.stack([gray.mean(axis=(1, 2)), gray.std(axis=(1, 2)), np.log10(variance + 1e-8)])
