"""One pass over a folder of photos: every file decoded once into a uint8 cache, with what there is to know of it.

    files, ignored = list_photos(Path("data/vision/train"))
    images, records = read_photos(root, files, size=96, cache_dir=Path("runs/cache"))

Reads the photos, never writes beside them. The cache, `runs/cache/<key>/`, holds `images.npy` (files, size, size, 3)
and `records.jsonl`, and may be deleted at any time; its key covers each file's name, size and time, `size`, VERSION.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from common.cli import UserError
from common.log import Progress, file_sha256
from project_vision_cls.decode import PhotoError, decode, open_photo

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VERSION = 1  # of the pixels in the cache: raise it when decode() changes
_BLOCK = 2048  # files in flight at once, so that memory does not grow with their number
_CROWD = 256  # a hash band shared by more photos than this tells nothing (blank pictures) and is passed over


def list_photos(root: Path) -> tuple[list[str], dict[str, int]]:
    """Photos under `root`, as sorted relative paths with "/", and what was passed over, by kind and count.

    Follows links to folders, each folder once. Hidden names (`.ipynb_checkpoints`, `._x.jpg`) are passed over.
    """
    files, ignored, seen = [], Counter(), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not names and not folders:
            ignored["empty folders"] += 1
        for name in names:
            if name.startswith("."):
                ignored["hidden files"] += 1
            elif name.lower().endswith(SUFFIXES):
                files.append(Path(folder, name).relative_to(root).as_posix())
            else:
                ignored[f"{Path(name).suffix.lower() or 'no suffix'} files"] += 1
    return sorted(files, key=os.fsencode), dict(sorted(ignored.items()))


def usual_side(root: Path, files: list[str], sample: int = 256) -> int:
    """Median of the shorter side, in pixels, over `sample` evenly spaced photos, by their headers alone."""
    sides = []
    for name in files[:: max(1, len(files) // sample)]:
        try:
            sides.append(min(open_photo(root / name).size))
        except PhotoError:
            continue  # read_photos names it with its reason
    return int(np.median(sides)) if sides else 0


def read_photos(root: Path, files: list[str], size: int, cache_dir: Path) -> tuple[np.ndarray, list[dict]]:
    """Pixels (files, size, size, 3) uint8, memory-mapped, and one record a file, both in the order of `files`.

    A record: path, width, height, sha256, dhash (64-bit difference hash, hex), error ("" or the reason; the pixels of
    such a file are zero). Read from the cache where the files have not changed since.
    """
    folder = cache_dir / _key(root, files, size)
    if not folder.is_dir():
        _build(root, files, size, folder)
    with open(folder / "records.jsonl", encoding="ascii") as lines:
        records = [json.loads(line) for line in lines]
    return np.load(folder / "images.npy", mmap_mode="r"), records


def _key(root: Path, files: list[str], size: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {size} {root.resolve()}".encode(errors="surrogateescape"))
    for name in files:
        stat = os.stat(root / name) if os.path.exists(root / name) else None
        state = (stat.st_size, stat.st_mtime_ns) if stat else None
        digest.update(f"\n{name}\0{state}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _build(root: Path, files: list[str], size: int, folder: Path) -> None:
    """Fill a temporary folder and rename it: of two runs that start at once, one wins and both can read."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot write the photo cache ({error}); pass another --cache_dir") from error
    try:
        shape = (len(files), size, size, 3)
        images = np.lib.format.open_memmap(temporary / "images.npy", "w+", np.uint8, shape)
        with open(temporary / "records.jsonl", "w", encoding="ascii") as out:
            for index, (pixels, record) in enumerate(_decode_all(root, files, size)):
                if pixels is not None:
                    images[index] = pixels
                out.write(json.dumps(record) + "\n")
        images.flush()
        if not folder.is_dir():
            os.rename(temporary, folder)
    except FileExistsError:
        return  # the other run was first; its pixels are the same
    except OSError as error:
        if folder.is_dir():
            return
        raise UserError(
            f"{folder}: cannot write the photo cache ({error}); free the disk or pass --cache_dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_all(root: Path, files: list[str], size: int) -> Iterator[tuple[np.ndarray | None, dict]]:
    """In order, on as many threads as cores: Pillow decodes outside the interpreter lock."""
    progress = Progress(len(files), f"reading {root}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _BLOCK):
            for result in pool.map(lambda name: _read(root, name, size), files[start : start + _BLOCK]):
                yield result
                progress.update(1)
    progress.close()


def _read(root: Path, name: str, size: int) -> tuple[np.ndarray | None, dict]:
    record = {"path": name, "width": 0, "height": 0, "sha256": "", "dhash": "", "error": ""}
    try:
        record["sha256"] = file_sha256(root / name)
        image = open_photo(root / name)
        record["width"], record["height"] = image.size
        pixels = decode(image, size)
    except (PhotoError, OSError) as error:
        return None, {**record, "error": str(error)}
    return pixels, {**record, "dhash": f"{dhash(pixels):016x}"}


def dhash(pixels: np.ndarray) -> int:
    """64-bit difference hash of (H, W, 3) uint8: which cells of a 9 x 8 gray thumbnail are darker than their right one.

    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    gray = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(gray[:, :-1] < gray[:, 1:]).tobytes(), "big")


def near_pairs(hashes: np.ndarray, thumbs: np.ndarray, bits: int = 3, levels: float = 6.0) -> list[tuple[int, int]]:
    """Index pairs of near-duplicates: at most `bits` of 64 hash bits and `levels` of 255 (RMS of the thumbnails) apart.

    hashes: (n,) uint64; thumbs: (n, h, w, 3) uint8. Two hashes that differ in at most 3 bits agree in one of four
    16-bit bands (pigeonhole), so only photos that share a band are compared: no n x n table.
    """
    pairs: set[tuple[int, int]] = set()
    for shift in (0, 16, 32, 48):
        band = (hashes >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(band, kind="stable")
        bounds = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, bounds):
            if 1 < len(group) <= _CROWD:
                i, j = (group[side] for side in np.triu_indices(len(group), 1))
                close = np.bitwise_count(hashes[i] ^ hashes[j]) <= bits
                pairs.update(zip(i[close].tolist(), j[close].tolist(), strict=True))
    return sorted((i, j) for i, j in pairs if _rms(thumbs[i], thumbs[j]) <= levels)


def _rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def duplicate_groups(records: list[dict], thumbs: np.ndarray) -> list[int]:
    """For each photo, the first one it is a copy of, byte for byte or nearly, through any chain of copies.

    records: as `read_photos` gives them; thumbs: (n, h, w, 3) uint8.
    """
    hashes = np.array([int(record["dhash"], 16) for record in records], dtype=np.uint64)
    first: dict[str, int] = {}
    exact = [(first.setdefault(record["sha256"], i), i) for i, record in enumerate(records)]
    root = list(range(len(records)))

    def find(i: int) -> int:  # union-find, with path halving
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in [*exact, *near_pairs(hashes, thumbs)]:
        a, b = sorted((find(i), find(j)))
        root[b] = a
    return [find(i) for i in range(len(records))]
