"""pytest tests/test_corruptions.py

Every corruption: shape and type kept, repeatable, worse with severity; brightness, noise and blur against references.
"""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from project_vision_cls.corruptions import CONSTANTS, CORRUPTIONS
from project_vision_cls.synthetic import render

SEVERITIES = (1, 2, 3, 4, 5)
each = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def photos():
    """Six photos, uint8 (64, 64, 3) each."""
    names = ("bottle", "gear", "key", "leaf", "mug", "wrench")
    return [np.asarray(render(name, np.random.default_rng(3), size=64, vary=0)) for name in names]


def corrupted(name, image, severity, seed=0):
    return CORRUPTIONS[name](image, severity, np.random.default_rng(seed))


@each
def test_shape_type_and_repeatability(name, photos):
    before = photos[0].copy()
    for severity in SEVERITIES:
        result = corrupted(name, photos[0], severity)
        assert result.shape == photos[0].shape
        assert result.dtype == np.uint8
        assert result.flags.writeable
        np.testing.assert_array_equal(result, corrupted(name, photos[0], severity))
    np.testing.assert_array_equal(photos[0], before)


@each
def test_severity_grows_the_distance(name, photos):
    def distance(severity):
        return np.mean([np.abs(corrupted(name, p, severity) - p.astype(float)).mean() for p in photos])

    distances = [distance(severity) for severity in SEVERITIES]
    assert distances == sorted(distances), distances
    assert 0 < distances[0] < distances[-1]


@each
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (2, 1, 3), (901, 700, 3)])
def test_any_size(name, shape):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert corrupted(name, image, 5).shape == shape


@each
def test_an_array_that_is_a_view(name, photos):
    view = photos[0][::-1, ::2]
    np.testing.assert_array_equal(corrupted(name, view, 3), corrupted(name, view.copy(), 3))


@each
@pytest.mark.parametrize(
    ("image", "severity", "error", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), 1, TypeError, "wanted a uint8 array, found float32"),
        ([[1, 2, 3]], 1, TypeError, "wanted a uint8 array, found list"),
        (np.zeros((4, 4), np.uint8), 1, ValueError, r"wanted shape \(height, width, 3\).*found \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 1, ValueError, r"found \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), 1, ValueError, "empty side"),
        (np.zeros((4, 4, 3), np.uint8), 0, ValueError, "severity is 0, wanted one of 1, 2, 3, 4, 5"),
        (np.zeros((4, 4, 3), np.uint8), 6, ValueError, "severity is 6"),
        (np.zeros((4, 4, 3), np.uint8), 1.5, ValueError, "severity is 1.5"),
        (np.zeros((4, 4, 3), np.uint8), True, ValueError, "severity is True"),
    ],
)
def test_refusals_name_the_corruption_and_the_value(name, image, severity, error, words):
    with pytest.raises(error, match=f"{name}: .*{words}" if words[0] == "w" else words):
        corrupted(name, image, severity)


def test_published_constants():
    assert set(CONSTANTS) == set(CORRUPTIONS)
    assert all(len(row) == 5 for row in CONSTANTS.values())
    assert CONSTANTS["gaussian_noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert CONSTANTS["defocus_blur"][3:] == ((1, 0.2), (1.5, 0.1))
    assert CONSTANTS["jpeg_compression"] == (80, 65, 58, 50, 40)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_a_step_in_hsv_value(severity):
    image = np.random.default_rng(2).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    image[0, 0], image[0, 1], image[0, 2] = 0, 255, (0, 10, 0)
    expected = np.empty_like(image)
    for place in np.ndindex(9, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        raised = min(value + CONSTANTS["brightness"][severity - 1], 1)
        expected[place] = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, raised)))
    assert np.abs(corrupted("brightness", image, severity).astype(int) - expected).max() <= 1  # float32 at a .5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_size(severity):
    gray = np.full((200, 200, 3), 128, np.uint8)
    normal = corrupted("gaussian_noise", gray, severity) / 255
    assert normal.std() == pytest.approx(CONSTANTS["gaussian_noise"][severity - 1], rel=0.03)
    shot = corrupted("shot_noise", gray, severity) / 255
    assert shot.std() == pytest.approx((128 / 255 / CONSTANTS["shot_noise"][severity - 1]) ** 0.5, rel=0.03)
    impulse = corrupted("impulse_noise", gray, severity)
    assert (impulse != 128).mean() == pytest.approx(CONSTANTS["impulse_noise"][severity - 1], rel=0.1)
    assert set(np.unique(impulse)) == {0, 128, 255}


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur"])
def test_blur_keeps_flat_areas_and_the_total_light(name):
    flat = np.full((6, 5, 3), 77, np.uint8)
    point = np.zeros((15, 15, 3), np.uint8)
    point[7, 7] = 255
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupted(name, flat, severity), flat)
        spread = corrupted(name, point, severity)[..., 0].astype(int)
        np.testing.assert_array_equal(spread, spread.T)
        assert spread.sum() == pytest.approx(255, abs=13)  # 25 pixels, each rounded by up to 0.5


def test_defocus_of_severity_5_is_a_3_by_3_mean(photos):
    """Every neighbour lies within the radius 1.5, and sigma 0.1 adds no soft edge."""
    expected = Image.fromarray(photos[0]).filter(ImageFilter.BoxBlur(1))
    difference = corrupted("defocus_blur", photos[0], 5).astype(int) - np.asarray(expected)
    assert np.abs(difference[1:-1, 1:-1]).max() <= 1


def test_gaussian_blur_equals_scipy(photos):
    ndimage = pytest.importorskip("scipy.ndimage")
    for severity, sigma in zip(SEVERITIES, CONSTANTS["gaussian_blur"], strict=True):
        expected = ndimage.gaussian_filter(photos[1] / 255, (sigma, sigma, 0), mode="nearest", truncate=4)
        assert np.abs(corrupted("gaussian_blur", photos[1], severity) - 255 * expected).max() <= 0.51
