"""python -c "from project_vision_cls.corruptions import CORRUPTIONS; print(*CORRUPTIONS)"

Damages photos on purpose, so that evaluation can say how accuracy falls with noise, blur, light and compression.
Arrays in, arrays out: uint8 (height, width, 3) -> the same; severity 1 (mild) to 5; all chance comes from rng.

Names and constants are those of CIFAR-10-C: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261, and its repository github.com/hendrycks/robustness, file
ImageNet-C/create_c/make_cifar_c.py. They were chosen for 32 x 32 photos: blur is in pixels, so larger photos suffer
less from it. Values are rounded here and truncated there: at most 1 of 255 apart.
"""

import io

import numpy as np
from PIL import Image

# name: (what severity 1, 2, 3, 4 and 5 mean), brightness running from 0 to 1
CONSTANTS = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons at full brightness
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values that turn black or white
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius of disk and sigma, pixels
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma, pixels
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of hue, saturation, value
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor on the distance to the mean
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # factor on both sides
    "jpeg_compression": (80, 65, 58, 50, 40),  # JPEG quality
}


def constant(name, image, severity):
    """The constant of a corruption; raises TypeError or ValueError for an image or severity that is not usable."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"{name}: wanted a uint8 array, found {found}: convert it with np.asarray(photo, np.uint8)")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name}: wanted shape (height, width, 3) without an empty side, found {image.shape}")
    if isinstance(severity, bool) or severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"{name}: severity is {severity!r}, wanted one of 1, 2, 3, 4, 5")
    return CONSTANTS[name][int(severity) - 1]


def to_unit(image):
    """Uint8 0..255 -> float32 0..1, same shape."""
    return image.astype(np.float32) / 255


def to_uint8(values):
    """Floats, cut to 0..1 -> uint8 0..255, same shape."""
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds independent normal noise: uint8 (height, width, 3) -> the same."""
    deviation = constant("gaussian_noise", image, severity)
    return to_uint8(to_unit(image) + deviation * rng.standard_normal(image.shape, dtype=np.float32))


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Counts photons, Poisson-distributed: uint8 (height, width, 3) -> the same."""
    photons = constant("shot_noise", image, severity)
    return to_uint8(rng.poisson(to_unit(image) * photons) / photons)


def impulse_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Turns single values (not whole pixels) black or white, half each: uint8 (height, width, 3) -> the same."""
    share = constant("impulse_noise", image, severity)
    chance = rng.random(image.shape, dtype=np.float32)
    return np.where(chance < share / 2, 0, np.where(chance < share, 255, image)).astype(np.uint8)


def gaussian_weights(sigma, radius):
    """Weights (2 * radius + 1,) of a normal density with sigma in pixels, summing to 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def convolve(values, kernel, edge):
    """Floats (height, width, 3) with a symmetric kernel (rows, columns), odd sides; edge: a mode of np.pad."""
    height, width = values.shape[:2]
    rows, columns = kernel.shape
    padded = np.pad(values, ((rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)), mode=edge)
    result = np.zeros_like(values)
    for y, x in zip(*np.nonzero(kernel), strict=True):
        result += kernel[y, x] * padded[y : y + height, x : x + width]
    return result


def defocus_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Spreads each point over a soft-edged disk: uint8 (height, width, 3) -> the same; rng is not used."""
    radius, sigma = constant("defocus_blur", image, severity)
    offset = np.arange(-2, 3)  # the largest radius, 1.5, and one pixel of soft edge fit into 5 x 5
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.float32)[..., None]
    soft = gaussian_weights(sigma, 1)
    kernel = convolve(disk / disk.sum(), soft[:, None] * soft, "constant")[..., 0]
    return to_uint8(convolve(to_unit(image), kernel, "reflect"))


def gaussian_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blurs with a normal density cut at 4 sigma: uint8 (height, width, 3) -> the same; rng is not used."""
    sigma = constant("gaussian_blur", image, severity)
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5))
    return to_uint8(convolve(convolve(to_unit(image), weights[:, None], "edge"), weights[None], "edge"))


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Raises V of hue, saturation, value, hue and saturation kept: uint8 (height, width, 3) -> the same; no rng.

    V is the largest channel, and at fixed hue and saturation the channels are proportional to it.
    """
    added = constant("brightness", image, severity)
    values = to_unit(image)
    value = values.max(axis=2, keepdims=True)
    raised = np.minimum(value + added, 1)
    return to_uint8(np.where(value > 0, values * raised / np.where(value > 0, value, 1), raised))


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Draws every channel towards its mean over the photo: uint8 (height, width, 3) -> the same; rng is not used."""
    factor = constant("contrast", image, severity)
    values = to_unit(image)
    means = values.mean(axis=(0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return to_uint8((values - means) * factor + means)


def pixelate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Shrinks and enlarges with box filters: uint8 (height, width, 3) -> the same; rng is not used."""
    factor = constant("pixelate", image, severity)
    photo = Image.fromarray(image)
    small = [max(1, int(side * factor)) for side in photo.size]
    return np.array(photo.resize(small, Image.Resampling.BOX).resize(photo.size, Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Saves as JPEG and reads back: uint8 (height, width, 3) -> the same; rng is not used."""
    quality = constant("jpeg_compression", image, severity)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as photo:
        return np.array(photo)


NOISES = (gaussian_noise, shot_noise, impulse_noise)
OTHERS = (defocus_blur, gaussian_blur, brightness, contrast, pixelate, jpeg_compression)
CORRUPTIONS = {function.__name__: function for function in (*NOISES, *OTHERS)}  # name -> function(image, severity, rng)
