"""pytest tests/test_vision_scan.py

The scan of a photo folder: what it finds, its cache under every kind of accident, and near-duplicates.
"""

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from common.cli import UserError
from project_vision_cls import scan
from project_vision_cls.data import ImageFolder
from project_vision_cls.decode import decode
from project_vision_cls.manifest import make_manifest, write_manifest
from project_vision_cls.scan import duplicate_groups, list_photos, near_pairs, phash, read_photos, usual_side

ROOT = Path(__file__).resolve().parents[1]
ODD_NAMES = [
    "a,b.jpg",
    'quo"te.jpg',
    "new\nline.jpg",
    "return\r.jpg",
    " blank .jpg",
    "ünï-写真.jpg",
    "-f.jpg",
    "l\udcff.jpg",
]


def scene(seed, size=96):
    """A made-up photo: light that falls off to one side, and a few things in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    light = rng.uniform(90, 160) + rng.uniform(-60, 60) * x + rng.uniform(-60, 60) * y
    image = Image.fromarray((light[..., None] + rng.normal(0, 2, (size, size, 3))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = rng.integers(0, size * 3 // 4, 2).tolist()
        box = (left, top, left + int(rng.integers(8, size // 2)), top + int(rng.integers(8, size // 2)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def put(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed).save(path, "JPEG", **options)
    return path


def read(root, cache, size=16):
    files, _ = list_photos(root)
    return read_photos(root, files, size, cache)


# what is found


def test_what_is_found_and_what_is_passed_over(tmp_path):
    root = tmp_path / "photos"
    for name in ("b/1.JPG", "b/2.jpeg", "a/deep/er/3.PnG", "a/4.webp", "a/5.bmp", "a/B.jpg", "a/a.jpg"):
        put(root / name)
    for name in (".hidden/1.jpg", "a/.ipynb_checkpoints/4-checkpoint.jpg", "a/._4.jpg", "__MACOSX/a/4.jpg", "a/n.txt"):
        put(root / name)
    (root / "empty").mkdir()
    (root / "a" / "README").touch()
    files, ignored = list_photos(root)
    assert files == ["a/4.webp", "a/5.bmp", "a/B.jpg", "a/a.jpg", "a/deep/er/3.PnG", "b/1.JPG", "b/2.jpeg"]
    assert ignored == {
        ".txt files": 1,
        "empty folders": 1,
        "hidden files": 1,
        "hidden folders": 3,
        "no suffix files": 1,
    }


def test_links_end_and_take_nothing_from_its_place(tmp_path):
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    put(root / "b" / "1.jpg")
    put(elsewhere / "2.jpg")
    put(root / "a" / "3.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "c").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "c")
    assert list_photos(root)[0] == ["a/3.jpg", "b/1.jpg", "c/2.jpg"]
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert list_photos(linked)[0] == ["a/3.jpg", "b/1.jpg", "c/2.jpg"]


def test_a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    put(tmp_path / "a" / "1.jpg")
    put(tmp_path / "b" / "1.jpg")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # chmod does not stop root
    assert list_photos(tmp_path) == (["a/1.jpg"], {"folders that cannot be opened": 1})


def test_usual_side(tmp_path):
    for i, shape in enumerate([(40, 100), (60, 50), (300, 200), (70, 80), (90, 60)]):
        Image.new("RGB", shape).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_text("text")
    files, _ = list_photos(tmp_path)
    assert usual_side(tmp_path, files) == 60
    assert usual_side(tmp_path, ["broken.png"]) == 0
    assert usual_side(tmp_path, []) == 0


# what is read


def test_pixels_and_records(tmp_path):
    put(tmp_path / "photos" / "a" / "1.jpg", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "photos" / "a" / "2.jpg", 2, exif=exif)
    images, records = read(tmp_path / "photos", tmp_path / "cache", 24)
    assert images.shape == (2, 24, 24, 3)
    assert isinstance(images, np.memmap)
    for pixels, record in zip(images, records, strict=True):
        path = tmp_path / "photos" / record["path"]
        assert np.array_equal(pixels, decode(path, 24))
        assert record["phash"] == f"{phash(pixels):016x}"
        assert (record["width"], record["height"], record["error"]) == (96, 96, "")
        assert record["sha256"] == scan.file_sha256(path)


def test_unreadable_files_are_listed_and_left_alone(tmp_path):
    root = tmp_path / "photos"
    whole = put(root / "a" / "ok.jpg").read_bytes()
    broken = {"cut.jpg": whole[:700], "empty.jpg": b"", "text.png": b"<html>"}
    for name, content in broken.items():
        (root / "a" / name).write_bytes(content)
    (root / "a" / "dead.jpg").symlink_to("nowhere")
    (root / "a" / "folder.jpg").mkdir()
    os.mkfifo(root / "a" / "pipe.jpg")
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    images, records = read(root, tmp_path / "cache")
    reasons = {record["path"]: record["error"] for record in records}
    assert set(reasons) == {f"a/{name}" for name in [*broken, "ok.jpg", "dead.jpg", "pipe.jpg"]}
    assert [path for path, reason in reasons.items() if not reason] == ["a/ok.jpg"]
    assert reasons["a/empty.jpg"] == "empty file"
    assert "not an image" in reasons["a/text.png"]
    assert "No such file" in reasons["a/dead.jpg"]
    assert reasons["a/pipe.jpg"] == "not a regular file"
    for pixels, record in zip(images, records, strict=True):
        assert bool(record["error"]) == (pixels.max() == 0)
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before


def test_odd_names_survive_to_records_cache_and_csv(tmp_path):
    root = tmp_path / "photos"
    for i, name in enumerate(ODD_NAMES):
        put(root / "a, b" / name, i)
        put(root / "b" / name, 100 + i)
    for _ in range(2):  # built, and read from the cache
        photos = ImageFolder(root, cache_dir=tmp_path / "cache", img_size=16)
        assert set(photos.paths) == {f"{kind}/{name}" for kind in ("a, b", "b") for name in ODD_NAMES}
        assert photos.classes == ["a, b", "b"]
    write_manifest(tmp_path, {"train": photos}, make_manifest({"train": photos}))
    with open(tmp_path / "data_files.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["path"] for row in csv.DictReader(file)] == photos.paths


# the cache


@pytest.fixture
def photos(tmp_path):
    for i in range(5):
        put(tmp_path / "photos" / "a" / f"{i}.jpg", i)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """The names that were decoded, in the order of their reading."""
    names, read_one = [], scan._read
    monkeypatch.setattr(scan, "_read", lambda root, name, size: names.append(name) or read_one(root, name, size))
    return names


def test_a_second_run_decodes_nothing(photos, tmp_path, decoded):
    first = read(photos, tmp_path / "cache")
    assert len(decoded) == 5
    second = read(photos, tmp_path / "cache")
    assert len(decoded) == 5
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.*")) == ["images.npy", "records.jsonl"]
    assert sorted(path.name for path in photos.rglob("*.*")) == [f"{i}.jpg" for i in range(5)]


def test_the_cache_follows_the_files(photos, tmp_path, decoded):
    read(photos, tmp_path / "cache")
    state = (photos / "a" / "0.jpg").stat()
    put(photos / "a" / "0.jpg", 77)
    images, _ = read(photos, tmp_path / "cache")
    assert np.array_equal(images[0], decode(photos / "a" / "0.jpg", 16))
    os.utime(photos / "a" / "0.jpg", ns=(state.st_atime_ns, state.st_mtime_ns + 10))
    read(photos, tmp_path / "cache")
    read(photos, tmp_path / "cache", size=20)
    (photos / "a" / "4.jpg").rename(photos / "a" / "5.jpg")
    assert read(photos, tmp_path / "cache")[1][4]["path"] == "a/5.jpg"
    assert len(decoded) == 5 * 5


@pytest.mark.parametrize("gone", ["images.npy", "records.jsonl"])
def test_a_cache_that_lost_a_part_is_built_again(photos, tmp_path, gone):
    before, records = read(photos, tmp_path / "cache")
    path = next((tmp_path / "cache").rglob(gone))
    path.unlink()
    after, again = read(photos, tmp_path / "cache")
    assert path.exists()
    assert np.array_equal(before, after)
    assert records == again


def test_cut_files_in_the_cache_are_not_taken_for_whole(photos, tmp_path):
    before, _ = read(photos, tmp_path / "cache")
    before = before.copy()
    for name in ("images.npy", "records.jsonl"):
        path = next((tmp_path / "cache").rglob(name))
        for size in (0, path.stat().st_size // 2):
            os.truncate(path, size)
            assert np.array_equal(read(photos, tmp_path / "cache")[0], before)


def test_a_cache_among_the_photos_is_refused(photos):
    with pytest.raises(UserError, match="lies inside the photo folder"):
        read(photos, photos / "cache")
    assert not (photos / "cache").exists()


def test_a_cache_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the photo cache .*--cache_dir"):
        read(photos, tmp_path / "file" / "cache")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*free the disk"):
        read(photos, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_dead_builds_are_cleared_after_a_day(photos, tmp_path):
    cache = tmp_path / "cache"
    for name, age in (("old", 100_000), ("young", 1000)):
        folder = cache / f".building-{name}"
        folder.mkdir(parents=True)
        (folder / "images.npy").touch()
        for path in (folder / "images.npy", folder):
            os.utime(path, (time.time() - age,) * 2)
    read(photos, cache)
    assert [path.name for path in cache.glob(".building-*")] == [".building-young"]


BUILD = """
import sys, time
from pathlib import Path
from project_vision_cls import scan
root, cache, gate, slow = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
read = scan._read
scan._read = lambda *args: time.sleep(slow) or read(*args)
print("ready", flush=True)
while not gate.exists():
    time.sleep(0.01)
images, records = scan.read_photos(root, scan.list_photos(root)[0], 16, cache)
print(int(images.sum()), len(records), flush=True)
"""


def build(*args):
    return subprocess.Popen([sys.executable, "-c", BUILD, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_builds_at_once_and_a_killed_one(photos, tmp_path):
    cache, gate = tmp_path / "cache", tmp_path / "gate"
    runs = [build(photos, cache, gate, 0.2) for _ in range(2)]
    killed = build(photos, tmp_path / "other", gate, 0.5)
    for run in [*runs, killed]:
        assert run.stdout.readline() == "ready\n"
    gate.touch()
    for _ in range(500):  # until the third has begun to write
        if list((tmp_path / "other").glob(".building-*/records.jsonl")):
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    told = {run.communicate()[0] for run in runs}
    wanted = sum(int(decode(photos / "a" / f"{i}.jpg", 16).sum()) for i in range(5))
    assert told == {f"{wanted} 5\n"}
    assert len(list(cache.iterdir())) == 1
    assert [path.name[:10] for path in (tmp_path / "other").iterdir()] == [".building-"]
    assert int(read(photos, tmp_path / "other")[0].sum()) == wanted


# near-duplicates


def brute_force(hashes, bits):
    pairs = itertools.combinations(range(len(hashes)), 2)
    return [(i, j) for i, j in pairs if int(hashes[i] ^ hashes[j]).bit_count() <= bits]


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 10])
def test_near_pairs_equal_brute_force(bits):
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 2**64, 250, dtype=np.uint64)
    for i in range(150):  # near relations of the first ones, at every distance up to 12 bits
        flipped = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(1, 13), replace=False))
        hashes[100 + i] = hashes[i] ^ np.uint64(flipped)
    assert len(np.unique(hashes)) == 250
    thumbs = np.broadcast_to(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (250, 8, 8, 3))
    assert near_pairs(hashes, thumbs, bits) == brute_force(hashes, bits)


def test_many_equal_hashes_make_a_chain_and_not_a_table():
    hashes = np.full(20000, 5, np.uint64)
    thumbs = np.broadcast_to(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), (20000, 8, 8, 3))
    assert len(near_pairs(hashes, thumbs)) == 19999


def test_flat_pictures_tell_nothing():
    thumbs = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 0, 128, 255)])
    hashes = np.array([phash(thumb) for thumb in thumbs], np.uint64)
    assert set(hashes.tolist()) == {0}
    assert near_pairs(hashes, thumbs) == []
    assert near_pairs(hashes[:0], thumbs[:0]) == []


def test_phash_bits_are_the_low_frequencies():
    y, x = np.mgrid[:64, :64]
    for v, u in ((0, 1), (3, 0), (7, 7), (2, 5)):  # a picture of one cosine has one frequency over the median
        wave = np.cos(np.pi / 64 * (2 * y + 1) * v / 2 * 1) * np.cos(np.pi / 64 * (2 * x + 1) * u / 2)
        pixels = np.repeat((128 + 100 * wave).round().astype(np.uint8)[..., None], 3, axis=2)
        bits = np.unpackbits(np.frombuffer(phash(pixels).to_bytes(8, "big"), np.uint8)).reshape(8, 8)
        assert bits[v, u] == 1
    mixed = np.asarray(scene(3))
    assert phash(mixed).bit_count() in range(28, 33)


def copies(image):
    """Ways in which the same photo comes back."""

    def jpeg(image, quality=90):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    w, h = image.size
    yield jpeg(image, 75)
    yield jpeg(image, 40)
    yield jpeg(image.resize((w // 2, h // 2)))
    yield jpeg(image.resize((2 * w, 2 * h)))
    yield jpeg(image.crop((w // 100, h // 100, w - w // 100, h - h // 100)))
    yield jpeg(ImageEnhance.Brightness(image).enhance(1.1))
    yield jpeg(ImageEnhance.Contrast(image).enhance(0.9))


def write_scenes(root, n, size=200):
    for i in range(n):
        path = root / f"{i % 2}" / f"scene{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(i, size).save(path)


def groups(root, cache):
    photos = ImageFolder(root, cache_dir=cache, img_size=64)
    return photos.paths, duplicate_groups([photos.records[row] for row in photos.rows], photos.thumbs())


def test_copies_are_found(tmp_path):
    write_scenes(tmp_path / "photos", 12)
    for original in sorted((tmp_path / "photos").rglob("*.png")):
        with Image.open(original) as image:
            for k, copy in enumerate(copies(image)):
                copy.save(original.with_name(f"{original.stem}-copy{k}.png"))
    paths, group = groups(tmp_path / "photos", tmp_path / "cache")
    found = {path: paths[first] for path, first in zip(paths, group, strict=True)}
    right = [found[path] == path.replace(".png", "").split("-")[0] + ".png" or "-copy" in found[path] for path in paths]
    assert all(right)
    by_group = {}
    for path, first in found.items():
        by_group.setdefault(first, set()).add(Path(path).stem.split("-")[0])
    assert all(len(scenes) == 1 for scenes in by_group.values())  # never two scenes in one group
    missed = len(by_group) - 12
    assert missed <= 2  # of 84 copies


def test_different_photos_are_not_flagged(tmp_path):
    write_scenes(tmp_path / "photos", 120, 100)
    rng = np.random.default_rng(1)
    for i in range(80):  # one small thing on the same paper in the same light
        y, x = np.mgrid[:100, :100] / 100
        paper = np.repeat((200 - 40 * x - 30 * y)[..., None], 3, axis=2) + rng.normal(0, 2, (100, 100, 3))
        image = Image.fromarray(paper.clip(0, 255).astype(np.uint8))
        left, top = rng.integers(20, 60, 2).tolist()
        box = (left, top, left + int(rng.integers(12, 40)), top + int(rng.integers(12, 40)))
        ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(0, 120, 3).tolist()))
        image.save(tmp_path / "photos" / "0" / f"paper{i}.png")
    paths, group = groups(tmp_path / "photos", tmp_path / "cache")
    assert len(paths) == 200
    assert len(set(group)) >= 198  # of 19,900 pairs, two ellipses of one shape at one place, in two colours, pass


def test_groups_join_exact_and_near_copies_through_chains(tmp_path):
    root = tmp_path / "photos"
    write_scenes(root, 4)
    shutil.copy(root / "0" / "scene000.png", root / "1" / "same.png")
    with Image.open(root / "0" / "scene000.png") as image:
        next(copies(image)).save(root / "1" / "near.jpg", quality=85)
    shutil.copy(root / "1" / "near.jpg", root / "0" / "z.jpg")
    paths, group = groups(root, tmp_path / "cache")
    first = paths.index("0/scene000.png")
    assert {path for path, g in zip(paths, group, strict=True) if g == first} == {
        "0/scene000.png",
        "0/z.jpg",
        "1/near.jpg",
        "1/same.png",
    }
    assert len(set(group)) == 4


def test_records_are_plain_json(photos, tmp_path):
    _, records = read(photos, tmp_path / "cache")
    lines = next((tmp_path / "cache").rglob("records.jsonl")).read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_photo_that_can_be_read_again_is_read_again(tmp_path, monkeypatch):
    """Rights and disks come back without a trace in the file's time: the cache must not keep the error for ever."""
    put(tmp_path / "photos" / "a" / "1.jpg", 1)
    put(tmp_path / "photos" / "a" / "2.jpg", 2)
    names, cache = ["a/1.jpg", "a/2.jpg"], tmp_path / "cache"
    read = scan._read

    def denied(root, name, size):
        pixels, record = read(root, name, size)
        return (None, {**record, "error": "Permission denied"}) if name == "a/2.jpg" else (pixels, record)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "_read", denied)
        assert [r["error"] for r in read_photos(tmp_path / "photos", names, 32, cache)[1]] == ["", "Permission denied"]
    images, records = read_photos(tmp_path / "photos", names, 32, cache)
    assert [r["error"] for r in records] == ["", ""]
    assert images[1].any()
