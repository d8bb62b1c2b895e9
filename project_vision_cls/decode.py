"""One way from any photo to pixels, used by training, evaluation, inference and the server alike.

    from project_vision_cls.decode import decode
    pixels = decode("photo.jpg", 128)       # (128, 128, 3) uint8; also takes bytes and PIL images

Upright by EXIF, alpha on white, every colour mode to 8-bit RGB, the whole picture squeezed to a square. Embedded colour
profiles are not applied. Of an animation the first frame is taken.
"""

from __future__ import annotations

import base64
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # by content: a file's name may lie
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB of RGB
# what turns a stored picture upright, by the value of EXIF tag 0x0112 (CIPA DC-008, Orientation)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ValueError):
    """A file or a request that is no usable photo; the text is the reason."""


_quiet_lock = threading.Lock()
_quiet_threads: list[warnings.catch_warnings] = []  # one entry a thread inside; the first holds the filters


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow's warnings are dropped: a photo is whole or it is a PhotoError, whatever the warning filters say.

    The filters belong to the whole process: the first thread in changes them, the last one out restores them.
    """
    with _quiet_lock:
        if not _quiet_threads:
            held = warnings.catch_warnings()
            held.__enter__()
            warnings.simplefilter("ignore")
        else:
            held = _quiet_threads[0]
        _quiet_threads.append(held)
    try:
        yield
    finally:
        with _quiet_lock:
            held = _quiet_threads.pop()
            if not _quiet_threads:
                held.__exit__(None, None, None)


def open_photo(source: str | Path | bytes) -> Image.Image:
    """Open a photo by its header only; use it in a `with` block, which closes its file.

    Raises PhotoError for an empty file, a file that is no image of FORMATS, or more than MAX_PIXELS pixels.
    """
    try:
        if len(source) == 0 if isinstance(source, bytes) else _file_size(source) == 0:
            raise PhotoError("empty file")
        with _without_warnings():
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        raise PhotoError(f"not an image ({', '.join(FORMATS)} are read)") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"too large: {error}") from error
    except Exception as error:  # Pillow's parsers raise far more than OSError on hostile input
        raise PhotoError(f"unreadable: {type(error).__name__}: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise PhotoError(f"too large: {image.width} x {image.height} pixels, at most {MAX_PIXELS} in all")
    return image


def _file_size(path: str | Path) -> int:
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):  # opening a named pipe would wait for ever
        raise PhotoError("not a regular file")
    return state.st_size


def file_bytes(item: str | bytes) -> bytes:
    """A photo's file from a request: bytes, or base64 with or without a data: prefix; PhotoError in words."""
    if isinstance(item, bytes):
        return item
    try:
        after = ";" in item and item.partition(";base64,")[2]  # one letter is found far sooner than eight
        return base64.b64decode(after or item, validate=True)
    except ValueError as error:
        raise PhotoError(f"image_base64 is not base64: {error}") from error


def decode(source: str | Path | bytes | Image.Image, size: int) -> np.ndarray:
    """Photo → (size, size, 3) uint8 RGB, upright, the aspect ratio given up so that nothing is cut off.

    A large JPEG is decoded at a fraction of its size (`Image.draft`), never below 2 * `size`. A PIL image keeps its
    size; one that came from a JPEG file and is not loaded yet gives the same pixels as the file.
    Raises PhotoError with the reason where the photo cannot be read whole.
    """
    if isinstance(source, Image.Image):
        content = _jpeg_content(source)
        return read_pixels(source, size, draft=False) if content is None else decode(content, size)
    with open_photo(source) as image:
        return read_pixels(image, size)


def _jpeg_content(image: Image.Image) -> bytes | None:
    """The file behind a JPEG that is not loaded yet, as a draft of the image itself would shrink it for its owner."""
    if not (isinstance(image, JpegImagePlugin.JpegImageFile) and image.tile and image.tell() == 0):
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    return content


def read_pixels(image: Image.Image, size: int, draft: bool = True) -> np.ndarray:
    """`decode` for what `open_photo` gave; with `draft`, a JPEG may come out of it at a fraction of its size."""
    try:
        if draft:
            image.draft(None, (2 * size, 2 * size))  # at `size` itself it would alias, by 60 levels at worst
        with _without_warnings() if image.format == "TIFF" else nullcontext():  # TIFF loads read headers again
            image.load()
        upright = _orientation(image)  # after the load, in which Pillow turns a TIFF upright by itself
        image = _to_8_bit(image).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
        image = _on_white(image)
        return np.array(image.transpose(upright) if upright is not None else image)
    except Exception as error:  # as above: a damaged file may raise anything
        raise PhotoError(f"unreadable: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any photo → RGB, upright, on white, in its own size."""
    image.load()
    upright = _orientation(image)
    image = _on_white(_to_8_bit(image))
    return image.transpose(upright) if upright is not None else image


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        with _without_warnings():
            return _UPRIGHT.get(image.getexif().get(0x0112))
    except Exception:  # damaged EXIF in a whole photo: viewers show such a photo as it is stored
        return None


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Any mode → RGB, or RGBA where something shows through."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_gray_to_8_bit(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _gray_to_8_bit(gray: np.ndarray, mode: str) -> np.ndarray:
    """(H, W) of 16-bit, 32-bit or float gray → uint8. 16 bits are divided by 257, so white stays white.

    Wider integers that fit into 16 bits are taken for 16-bit gray, floats of at most 1 for 0..1.
    """
    gray = np.nan_to_num(gray.astype(np.float32), copy=False)  # one copy, worked on in place: photos are large
    if mode.startswith("I;16") or (mode == "I" and gray.max() > 255):
        gray /= 257
    elif mode == "F" and gray.max() <= 1:
        gray *= 255
    return np.clip(np.rint(gray, out=gray), 0, 255, out=gray).astype(np.uint8)
