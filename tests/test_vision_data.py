"""Class folders → data sets: layouts, order, unreadable photos, and the size that suits."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import UserError
from project_vision_cls import data
from project_vision_cls.data import ImageFolder, sensible_size
from project_vision_cls.decode import decode
from project_vision_cls.manifest import tell
from tests.noise_photos import folder, put, put_set, write_manifest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Relative default folders (runs/cache) lie in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_layouts_that_are_refused_in_words(tmp_path, cache):
    refused = {
        "missing": "no such folder",
        "empty": "no photos",
        "flat": "3 photos outside class folders",
        "splits": "which are splits; pass .*splits/train",
    }
    (tmp_path / "empty").mkdir()
    for k in range(3):
        put(tmp_path / "flat" / f"{k}.png", k)
    for name in ("train", "validation", "test"):
        put_set(tmp_path / "splits" / name, {"a": 1, "b": 1})
    for name, reason in refused.items():
        with pytest.raises(UserError, match=reason) as caught:
            folder(tmp_path / name, cache)
        assert str(tmp_path / name) in str(caught.value)
        if name != "splits":  # the next step is another one there
            assert "<class>/*.jpg" in str(caught.value)
            assert "python -m project_vision_cls.synthetic --out data/vision" in str(caught.value)


def test_photos_beside_the_class_folders_are_counted(tmp_path, cache):
    put_set(tmp_path / "train", {"a": 2, "b": 2})
    put(tmp_path / "train" / "stray.png", 99)
    photos = folder(tmp_path / "train", cache)
    assert len(photos) == 4
    assert photos.ignored == {"photos outside class folders": 1}


def test_items_are_the_decoded_photos_in_order(tmp_path, cache):
    put_set(tmp_path / "train", {"b": 2, "a": 3, "B": 1})
    photos = folder(tmp_path / "train", cache)
    assert photos.classes == ["B", "a", "b"]
    assert photos.paths == ["B/000.png", "a/000.png", "a/001.png", "a/002.png", "b/000.png", "b/001.png"]
    assert photos.labels.tolist() == [0, 1, 1, 1, 2, 2]
    for i, path in enumerate(photos.paths):
        pixels, label = photos[i]
        assert np.array_equal(pixels.numpy(), decode(tmp_path / "train" / path, 16))
        assert label == photos.labels[i]
    pixels, labels = photos[[5, 0, 0]]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 16, 16, 3)
    assert labels.tolist() == [2, 0, 0]
    pixels.zero_()  # a copy: the cache stays
    assert photos[5][0].sum() > 0


def test_unreadable_photos_and_an_unreadable_class(tmp_path, cache, capsys):
    root = put_set(tmp_path / "train", {"a": 3, "b": 2})
    (root / "a" / "bad.jpg").write_bytes(b"text")
    (root / "lost").mkdir()
    (root / "lost" / "bad.jpg").write_bytes(b"")
    photos = folder(root, cache)
    assert photos.classes == ["a", "b"]
    assert [record["path"] for record in photos.skipped] == ["a/bad.jpg", "lost/bad.jpg"]
    assert len(photos) == 5
    tell(write_manifest(tmp_path, {"train": photos}))
    told = capsys.readouterr().out
    assert "skipped 2 unreadable photos, such as a/bad.jpg (not an image" in told
    assert "no photo of theirs can be read: lost" in told
    with pytest.raises(UserError, match=r"2 unreadable photos \(a/bad.jpg: not an image.*lost/bad.jpg: empty file"):
        folder(root, cache, strict=True)
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")
    with pytest.raises(UserError, match=r"none of 1 photos can be read \(empty file\)"):
        folder(root, cache)


@pytest.mark.parametrize(("side", "size"), [(1, 32), (32, 32), (48, 32), (49, 64), (96, 64), (97, 128), (4000, 128)])
def test_size_that_suits(side, size):
    assert sensible_size(side) == size


def test_image_size_is_chosen_or_given(tmp_path, cache):
    for k in range(3):
        put(tmp_path / "train" / "a" / f"{k}.png", k, (70, 90))
    assert ImageFolder(tmp_path / "train", cache_dir=cache).img_size == 64
    given = ImageFolder(tmp_path / "train", cache_dir=cache, img_size=40)
    assert given[0][0].shape == (40, 40, 3)


def test_example_of_the_module(tmp_path, cache, monkeypatch):
    """The lines at the top of data.py, with its default folders."""
    put_set(tmp_path / "data" / "vision" / "train", {"a": 3, "b": 3})
    put_set(tmp_path / "data" / "vision" / "val", {"a": 1, "b": 1}, seed=50)
    code = [line[4:] for line in data.__doc__.splitlines() if line.startswith("    ")]
    names = {"mean": [0.5] * 3, "std": [0.2] * 3}
    exec("from project_vision_cls.data import *\n" + "\n".join(code), names)
    assert names["x"].shape == (6, 3, 32, 32)
    assert Path("runs/cache").is_dir()
