"""The scan of a photo folder: what it finds, what it passes over, and what it says of files that it cannot read."""

import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image

from project_vision_cls import scan
from project_vision_cls.data import ImageFolder
from project_vision_cls.decode import decode
from project_vision_cls.manifest import make_manifest, write_manifest
from project_vision_cls.scan import list_photos, phash, usual_side
from tests.scenes import put, read

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
