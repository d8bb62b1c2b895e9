"""Train and validation: no photo on both sides, split by seed; and the manifest that records them."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli import UserError
from project_vision_cls.data import load_splits, split
from project_vision_cls.decode import decode
from project_vision_cls.manifest import held_out, tell
from tests.noise_photos import folder, put, put_set, write_manifest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Relative default folders (runs/cache) lie in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


# train and validation


def splits(tmp_path, cache, val_root=None):
    return load_splits(str(tmp_path / "train"), val_root, 0.25, 1, img_size=16, cache_dir=cache)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_beside_train_is_found(tmp_path, cache, name):
    put_set(tmp_path / "train", {"a": 2, "b": 2})
    put_set(tmp_path / name, {"a": 1, "b": 1}, seed=50)
    train, val = splits(tmp_path, cache)
    assert val.root == tmp_path / name
    assert (len(train), len(val), val.classes) == (4, 2, ["a", "b"])


def test_labels_follow_the_classes_of_train(tmp_path, cache, capsys):
    put_set(tmp_path / "train", {"a": 2, "c": 2, "d": 2})
    put_set(tmp_path / "elsewhere", {"b": 2, "c": 1, "d": 1}, seed=50)  # a is missing, b is extra
    train, val = splits(tmp_path, cache, str(tmp_path / "elsewhere"))
    assert val.classes == ["a", "c", "d"]
    assert val.labels.tolist() == [-1, -1, 1, 2]
    assert val.unknown_classes == {"b": 2}
    assert val.take([1, 2]).unknown_classes == {"b": 1}
    manifest = write_manifest(tmp_path, {"train": train, "val": val})
    assert manifest["classes"]["a"] == {"train": 2, "val": 0}
    assert manifest["unknown_classes"] == {"val": {"b": 2}}
    tell(manifest)
    told = capsys.readouterr().out
    assert "val: classes that train does not have, counted as wrong: b (2)" in told
    assert "classes without a validation photo: a" in told


def test_splits_that_are_refused_in_words(tmp_path, cache):
    put_set(tmp_path / "train", {"a": 2, "b": 2})
    put_set(tmp_path / "other", {"x": 1, "y": 1}, seed=50)
    with pytest.raises(UserError, match=r"classes \['x', 'y'\], wanted some of \['a', 'b'\]"):
        splits(tmp_path, cache, str(tmp_path / "other"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        splits(tmp_path, cache, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="too few photos to hold out 25%"):
        load_splits(str(put_set(tmp_path / "tiny" / "train", {"a": 1, "b": 1})), None, 0.25, 1, cache_dir=cache)
    with pytest.raises(UserError, match=r"one class \(a\); wanted at least two"):
        load_splits(str(put_set(tmp_path / "one" / "train", {"a": 3})), None, 0.25, 1, cache_dir=cache)


def test_split_is_stratified_seeded_and_whole(tmp_path, cache):
    photos = folder(put_set(tmp_path / "train", {"a": 40, "b": 20, "c": 8, "d": 2, "e": 1}), cache)
    train, val = split(photos, 0.25, seed=3)
    assert Counter(val.labels.tolist()) == {0: 10, 1: 5, 2: 2}
    assert sorted(train.paths + val.paths) == photos.paths
    assert not set(train.paths) & set(val.paths)
    assert split(photos, 0.25, seed=3)[1].paths == val.paths
    assert split(photos, 0.25, seed=4)[1].paths != val.paths
    for part in (train, val):
        for i in (0, len(part) - 1):
            assert np.array_equal(part[i][0].numpy(), decode(photos.root / part.paths[i], 16))
    most = Counter(split(photos, 0.9, seed=3)[0].labels.tolist())
    assert sorted(most) == [0, 1, 2, 3, 4]  # each class keeps a photo to train on


def test_split_keeps_copies_on_one_side(tmp_path, cache):
    root = put_set(tmp_path / "train", {"a": 12, "b": 12})
    for kind in ("a", "b"):
        for k in range(6):
            shutil.copy(root / kind / f"{k:03}.png", root / kind / f"{k:03}-same.png")
            with Image.open(root / kind / f"{k:03}.png") as image:
                image.resize((160, 160), Image.Resampling.BICUBIC).save(root / kind / f"{k:03}-near.jpg", quality=95)
    photos = folder(root, cache)
    for seed in range(5):
        train, val = split(photos, 0.3, seed)
        assert len(val) == pytest.approx(0.3 * len(photos), abs=4)
        families = [{path[:5] for path in part.paths} for part in (train, val)]
        assert not families[0] & families[1]


def test_a_split_is_stored_and_found_again(tmp_path, cache):
    root = put_set(tmp_path / "train", {"a": 12, "b,\n": 12})
    (root / "a" / "bad.jpg").touch()
    train, val = splits(tmp_path, cache)
    manifest = write_manifest(tmp_path, {"train": train, "val": val})
    assert [row["split"] for row in manifest["skipped"]] == ["train"]  # told once
    again = held_out(folder(root, cache), tmp_path)
    assert again.paths == val.paths
    assert torch.equal(again.labels, val.labels)
    with pytest.raises(UserError, match=r"none of the 6 photos held out .* --val_root"):
        held_out(folder(put_set(tmp_path / "new", {"x": 2, "y": 2}), cache), tmp_path)
    with pytest.raises(UserError, match="not found, and it names the held-out photos; pass --val_root"):
        held_out(again, tmp_path / "train")


# the manifest


def test_manifest_counts_sizes_and_duplicates(tmp_path, cache):
    train_root = put_set(tmp_path / "train", {"a": 4, "b": 3})
    put(train_root / "a" / "wide.png", 70, (200, 50))
    val_root = put_set(tmp_path / "val", {"a": 2, "b": 1}, seed=50)
    shutil.copy(train_root / "a" / "000.png", val_root / "b" / "leak.png")  # across splits, in conflict
    shutil.copy(train_root / "b" / "001.png", train_root / "a" / "twice.png")  # within train, in conflict
    with Image.open(train_root / "a" / "002.png") as image:  # across splits, near, under one label
        image.resize((160, 160), Image.Resampling.BICUBIC).save(val_root / "a" / "near.jpg", quality=95)
    (val_root / "a" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (val_root / "a" / "notes.txt").touch()
    train, val = splits(tmp_path, cache)
    manifest = write_manifest(tmp_path, {"train": train, "val": val})
    assert json.loads((tmp_path / "data_manifest.json").read_text()) == manifest
    assert manifest["photos"] == {"train": 9, "val": 5}
    assert manifest["classes"] == {"a": {"train": 6, "val": 3}, "b": {"train": 3, "val": 2}}
    assert manifest["sizes"] == {"width": [20, 20, 200], "height": [24, 24, 160]}
    assert manifest["img_size"] == 16
    assert manifest["ignored"] == {"val": {".txt files": 1}}
    assert [(row["split"], row["path"]) for row in manifest["skipped"]] == [("val", "a/cut.jpg")]
    assert manifest["skipped"][0]["reason"]
    assert manifest["duplicate_groups"] == {"exact": 2, "near": 1, "across_splits": 2, "conflicting_labels": 2}
    found = {
        tuple(sorted(g["files"])): (g["kind"], g["across_splits"], g["conflicting_labels"])
        for g in manifest["duplicates"]
    }
    assert found == {
        ("train/a/000.png", "val/b/leak.png"): ("exact", True, True),
        ("train/a/twice.png", "train/b/001.png"): ("exact", False, True),
        ("train/a/002.png", "val/a/near.jpg"): ("near", True, False),
    }
    with open(tmp_path / "data_files.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter((row["split"], bool(row["error"])) for row in rows) == {
        ("train", False): 9,
        ("val", False): 5,
        ("val", True): 1,
    }
    wide = next(row for row in rows if row["path"] == "a/wide.png")
    assert (wide["width"], wide["height"]) == ("200", "50")


def test_data_version_goes_with_the_content(tmp_path, cache):
    def version(root):
        return write_manifest(tmp_path, {"train": folder(root, cache)})["data_version"]

    root = put_set(tmp_path / "train", {"a": 3, "b": 2})
    first = version(root)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy)
    assert version(copy) == first
    put(copy / "a" / "000.png", 99)
    changed = version(copy)
    (root / "a" / "002.png").rename(root / "b" / "002.png")
    assert len({first, changed, version(root)}) == 3


def test_what_is_told_survives_any_name_and_any_number(tmp_path, cache, capsys):
    root = put_set(tmp_path / "train", {"a": 2, "b": 2})
    for k in range(30):
        (root / "a" / f"x.{k}").touch()
    (root / "a" / "bad\udcff.jpg").touch()
    tell(write_manifest(tmp_path, {"train": folder(root, cache)}))
    told = capsys.readouterr().out
    assert "bad\\udcff.jpg (empty file)" in told
    assert "and 22 more" in told
