"""One way from any photo to pixels: orientation, colour modes, depths, and every kind of source."""

import io
import struct

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageOps

from project_vision_cls import decode as module
from project_vision_cls.decode import decode
from tests.encoded_photos import encoded, picture, png

PILLOW = int(PIL.__version__.partition(".")[0])


def palette(index):
    image = Image.new("P", (20, 20), index)
    image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    return image


def colour_of(data, size=8):
    """Mean colour; the pixels must be uint8 (size, size, 3)."""
    pixels = decode(data, size)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (size, size, 3)
    return pixels.reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    wanted = np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(data, 32) - wanted).max() <= 1
    if orientation > 1:  # and the tag does matter for this picture
        assert np.abs(decode(encoded(picture(), kind), 32) - wanted).max() > 50


def test_damaged_exif_is_passed_over():
    plain = encoded(picture(), "JPEG")
    for tail in (b"MM\0*" + b"\xff" * 40, b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30, b"nonsense", b""):
        body = b"Exif\0\0" + tail
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
        assert np.array_equal(decode(data, 32), decode(plain, 32))


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "RGBA"])
def test_opaque_colours_stay(mode):
    image = Image.new("RGB", (20, 20), (200, 30, 60)).convert(mode)
    not_in_tiff = ["HSV", "YCbCr"] if PILLOW < 13 else ["HSV"]  # older ones cannot read what they write
    for source in [image, *([] if mode in not_in_tiff else [encoded(image, "TIFF")])]:
        assert colour_of(source) == pytest.approx([200, 30, 60], abs=4)


def test_cmyk_jpeg_with_adobe_marker():
    data = encoded(Image.new("RGB", (32, 32), (200, 30, 60)).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert colour_of(data) == pytest.approx([200, 30, 60], abs=4)


def test_lab():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (20, 20), (200, 30, 60)), to_lab)
    assert colour_of(encoded(image, "TIFF")) == pytest.approx([200, 30, 60], abs=3)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"),
        encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        encoded(Image.new("LA", (20, 20), (0, 0)), "PNG"),
        encoded(Image.new("RGB", (20, 20), (10, 20, 30)), "PNG", transparency=(10, 20, 30)),
        encoded(Image.new("L", (20, 20), 10), "PNG", transparency=10),
        encoded(palette(3), "PNG", transparency=3),
        encoded(palette(1), "PNG", transparency=b"\xff\x00"),
        encoded(palette(3), "GIF", transparency=3),
    ],
)
def test_what_is_transparent_becomes_white(data):
    assert colour_of(data).tolist() == [255, 255, 255]


def test_half_transparent_is_blended_with_white():
    data = encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), "PNG")
    assert colour_of(data) == pytest.approx([255, 127, 127], abs=1)


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (1000, 4), (0x8000, 128), (0xFFFF, 255)])
def test_16_bits(value, wanted):
    gray = Image.fromarray(np.full((20, 20), value, np.uint16))
    line = b"\0" + struct.pack(">24H", *[value] * 24)
    line_a = b"\0" + struct.pack(">16H", *[value, 0xFFFF] * 8)
    for source in [
        gray,
        encoded(gray, "PNG"),
        encoded(gray, "TIFF"),
        png(8, 8, 16, 2, line * 8),
        png(8, 8, 16, 4, line_a * 8),
    ]:
        assert colour_of(source) == pytest.approx([wanted] * 3, abs=1)


def test_16_bits_keep_their_steps():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    data = encoded(Image.fromarray(np.tile(ramp, (256, 1))), "PNG")
    assert decode(data, 256)[100, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (np.int32, 200, 200),
        (np.int32, 65535, 255),
        (np.int32, -7, 0),
        (np.float32, 0.5, 128),
        (np.float32, 1.0, 255),
        (np.float32, 200.0, 200),
        (np.float32, np.nan, 0),
    ],
)
def test_wide_and_float_gray(kind, value, wanted):
    assert colour_of(encoded(Image.fromarray(np.full((9, 9), value, kind)), "TIFF")).tolist() == [wanted] * 3


def test_few_bits():
    black_and_white = Image.fromarray(np.tile([False, True], (16, 8)))
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        assert set(np.unique(decode(encoded(black_and_white, kind), 16))) == {0, 255}
    assert colour_of(png(8, 8, 2, 0, b"\0\x55\x55" * 8)).tolist() == [85, 85, 85]
    assert colour_of(png(8, 8, 4, 0, (b"\0" + b"\x88" * 4) * 8)).tolist() == [136, 136, 136]


def test_the_content_decides_and_not_the_name(tmp_path):
    for name in ("a.jpg", "b.JPG", "c.PNG", "d.bmp"):
        picture().save(tmp_path / name, "PNG")
        assert np.array_equal(decode(tmp_path / name, 32), decode(picture(), 32))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO", "TIFF"])
def test_of_many_pictures_the_first_is_taken(kind):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert colour_of(data) == pytest.approx([254, 0, 0], abs=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (127, 129)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_shape(shape, kind):
    assert colour_of(encoded(Image.new("RGB", shape, (200, 30, 60)), kind), 128) == pytest.approx([200, 30, 60], abs=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_kind_of_source_gives_the_same_pixels(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    picture(900, 700).save(path, kind, exif=exif)
    wanted = decode(path, 48)
    assert np.array_equal(decode(str(path), 48), wanted)
    assert np.array_equal(decode(path.read_bytes(), 48), wanted)
    with Image.open(path) as image:
        assert np.array_equal(decode(image, 48), wanted)
        assert image.size in {(900, 700), (700, 900)}  # decode shrinks nobody's image
        assert np.array_equal(decode(image, 48), wanted)


def test_pixels_can_be_written_to():
    pixels = decode(picture(), 32)
    pixels[0] = 0
    assert pixels.flags.owndata


def test_large_jpeg_is_decoded_at_a_fraction(monkeypatch):
    data = encoded(picture(2000, 1500), "JPEG", quality=95)
    sizes = []
    to_8_bit = module._to_8_bit
    monkeypatch.setattr(module, "_to_8_bit", lambda image: sizes.append(image.size) or to_8_bit(image))
    quick = decode(data, 96).astype(int)
    whole = Image.open(io.BytesIO(data))
    whole.load()
    assert np.abs(quick - decode(whole, 96)).max() <= 5
    assert sizes == [(500, 375), (2000, 1500)]
