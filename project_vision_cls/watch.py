"""What is watched of photos: numbers that say how they look, beside what the model made of them.

    features = photo_features(pixels, sizes, answers)       # {"brightness": [...], ...}, one value a photo
    reference = make_reference(features, embedding)         # of validation photos, for the checkpoint

No input, no output.
"""

from __future__ import annotations

import numpy as np

LOOKS = ["brightness", "contrast", "sharpness", "noise", "detail"]  # from which the accuracy to expect is learned
TOGETHER = 64  # photos turned into floats at a time
GRAY = np.array([0.299, 0.587, 0.114], np.float32) / 255  # luma of ITU-R BT.601


def photo_features(pixels: np.ndarray, sizes: list[tuple[int, int]], answers: list[dict]) -> dict[str, list]:
    """(B, S, S, 3) uint8, (width, height) of the files, and the answers → eight features.

    label, prob: of the answer. brightness: mean gray, 0 to 1. contrast: standard deviation of the gray. sharpness:
    log10 of the variance of the Laplacian (Pech-Pacheco et al. 2000), which falls with blur. noise, detail: log10 of
    the median and the mean of the diagonal detail in red - blue, in levels of 255: colours change slowly, so what is
    left is noise (the median as of Donoho & Johnstone 1994; the mean tells sparse noise from dense). side: the shorter
    side of the file, in pixels.
    """
    parts = [pixels[start : start + TOGETHER] for start in range(0, len(pixels), TOGETHER)]
    looks = np.concatenate([np.concatenate([_looks(part @ GRAY), _noise(part)]) for part in parts], axis=1)
    return {
        "label": [answer["label"] for answer in answers],
        "prob": [answer["prob"] for answer in answers],
        **dict(zip(LOOKS, looks.tolist(), strict=True)),
        "side": [float(min(size)) for size in sizes],
    }


def _looks(gray: np.ndarray) -> np.ndarray:
    """(B, S, S) of 0..1 → brightness, contrast and sharpness, (3, B)."""
    laplacian = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    laplacian -= 4 * gray[:, 1:-1, 1:-1]
    variance = laplacian.var(axis=(1, 2))
    return np.stack([gray.mean(axis=(1, 2)), gray.std(axis=(1, 2)), np.log10(variance + 1e-8)])


def _noise(pixels: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) uint8 → noise and detail, (2, B), from blocks of two by two pixels."""
    even = pixels.shape[1] // 2 * 2
    colour = np.subtract(pixels[:, :even, :even, 0], pixels[:, :even, :even, 2], dtype=np.int16)
    diagonal = np.abs(colour[:, ::2, ::2] - colour[:, ::2, 1::2] - colour[:, 1::2, ::2] + colour[:, 1::2, 1::2])
    levels = diagonal.reshape(len(pixels), -1)
    middle = np.partition(levels, levels.shape[1] // 2, axis=1)[:, levels.shape[1] // 2]  # faster than np.median
    # few levels are usual: digits that a log or a checkpoint drops would make other values of the same ones
    return np.log10(np.stack([middle, levels.mean(axis=1)]) / 2 + 0.25).round(3)
