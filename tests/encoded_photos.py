"""Pictures as the bytes of a file, of kinds that Pillow writes and of some that it does not."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width=96, height=64, mode="RGB"):
    """A smooth, lopsided picture: no flip or turn of it equals itself."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    pixels = np.stack([255 * x, 255 * y, 120 + 100 * np.sin(5 * x * y + x)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def png(width, height, depth, colour, raw, before=b""):
    """A PNG by hand, as Pillow does not write every kind that exists; `raw` holds the filtered scan lines."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
