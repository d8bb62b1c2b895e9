"""pytest tests/test_vision_decode.py

One way from any photo to pixels: orientation, colour modes, odd files, and nothing but PhotoError from broken ones.
"""

import io
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageOps

from project_vision_cls import decode as module
from project_vision_cls.decode import PhotoError, decode, open_photo

ROOT = Path(__file__).resolve().parents[1]
PILLOW = int(PIL.__version__.partition(".")[0])


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width=96, height=64, mode="RGB"):
    """A smooth, lopsided picture: no flip or turn of it equals itself."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    pixels = np.stack([255 * x, 255 * y, 120 + 100 * np.sin(5 * x * y + x)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def palette(index):
    image = Image.new("P", (20, 20), index)
    image.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    return image


def png(width, height, depth, colour, raw, before=b""):
    """A PNG by hand, as Pillow does not write every kind that exists; `raw` holds the filtered scan lines."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


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


def refused(source, size=16):
    """The reason of the PhotoError, or "" for a photo that was read; anything else fails the test."""
    try:
        assert decode(source, size).shape == (size, size, 3)
    except PhotoError as error:
        return str(error) or "no reason given"
    return ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_broken_files(kind):
    random.seed(kind)
    whole = encoded(picture(48, 40), kind, **({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"} if kind == "JPEG" else {}))
    assert not refused(whole)
    cuts = sorted({0, 1, 2, 8, 20, *random.sample(range(len(whole)), 60)})
    reasons = [refused(whole[:cut]) for cut in cuts]
    assert all(reasons[:5])
    assert "no reason given" not in reasons
    assert sum(map(bool, reasons)) >= len(cuts) - 8  # a missing end marker or trailer does no harm
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.choice([1, 3, 20])):
            data[random.randrange(len(data))] = random.randrange(256)
        refused(bytes(data))


def test_random_bytes():
    random.seed(5)
    starts = [
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x20\0\0\0WEBPVP8 ",
        b"BM",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
    ]
    for start in starts:
        for length in (1, 10, 300):
            assert refused(start + random.randbytes(length))


def test_reasons(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    assert refused(tmp_path / "empty.jpg") == refused(b"") == "empty file"
    assert "not an image" in refused(tmp_path / "text.jpg")
    assert refused(tmp_path / "folder.jpg") == refused(tmp_path / "pipe.jpg") == "not a regular file"
    assert "No such file" in refused(tmp_path / "dead.jpg")
    assert "unreadable" in refused(encoded(picture(), "JPEG")[:600])


def test_bombs_are_refused_without_a_word(tmp_path):
    """In its own process: with warnings as they are by default, and memory too small for the pixels."""
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2, b""))
    (tmp_path / "large.png").write_bytes(png(10000, 9500, 8, 2, b""))
    code = """
import resource, sys
from project_vision_cls.decode import PhotoError, decode
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
for path in sys.argv[1:]:
    try:
        decode(path, 32)
    except PhotoError as error:
        print(error)
"""
    paths = [str(tmp_path / name) for name in ("bomb.png", "large.png")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["too large", "too large"]
    assert done.stderr == ""


def test_the_biggest_allowed_photo_is_opened():
    with open_photo(png(9459, 9459, 8, 2, b"")) as image:
        assert image.width * image.height <= module.MAX_PIXELS
    with pytest.raises(PhotoError, match="too large: 9460 x 9460"):
        open_photo(png(9460, 9460, 8, 2, b""))


def test_warnings_do_not_matter_in_any_thread():
    """Pillow warns about this file; 8 threads decode it, and the filters are afterwards what they were."""
    data = png(8, 8, 8, 2, (b"\0" + bytes(24)) * 8, before=struct.pack(">I", 8) + b"acTL" + bytes(8) + bytes(4))
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x00\x01\x03\0\xff\0\0\0\xff\xff\0\0"
    plain = encoded(picture(), "JPEG")
    jpeg = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    with pytest.warns(UserWarning), Image.open(io.BytesIO(jpeg)) as image:  # noqa: PT030 (any wording)
        image.getexif()
    before, reasons = list(warnings.filters), []
    work = [threading.Thread(target=lambda: reasons.extend(refused(d) for d in [data, jpeg] * 20)) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(set(reasons[::2])) <= 2
    assert reasons.count("") >= 160
    assert warnings.filters == before


def test_files_are_closed(tmp_path):
    picture().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "large.png").write_bytes(png(10000, 9500, 8, 2, b""))
    before = len(os.listdir("/proc/self/fd"))
    for name in ("whole", "cut", "text", "large"):
        held = []
        try:
            decode(tmp_path / f"{name}.png", 16)
        except PhotoError as error:
            held.append(error)  # with its traceback, and so with every frame that may hold the file
        assert len(os.listdir("/proc/self/fd")) == before, name
