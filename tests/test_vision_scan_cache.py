"""The cache of a photo scan: nothing is decoded twice, and no accident leaves it wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.cli import UserError
from project_vision_cls import scan
from project_vision_cls.decode import decode
from project_vision_cls.scan import read_photos
from tests.scenes import put, read

ROOT = Path(__file__).resolve().parents[1]


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
