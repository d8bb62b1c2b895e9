"""Broken, huge and odd files: nothing but PhotoError comes from them, and nothing stays behind."""

import io
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from PIL import Image

from project_vision_cls import decode as module
from project_vision_cls.decode import PhotoError, decode, open_photo
from tests.encoded_photos import encoded, picture, png

ROOT = Path(__file__).resolve().parents[1]


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
