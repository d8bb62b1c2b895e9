"""pytest tests/test_vision_data.py

Class folders → data sets, splits, batches and the manifest.
"""

import csv
import io
import json
import pickle
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli import UserError
from common.seed import seed_all
from project_vision_cls import data
from project_vision_cls import manifest as manifests
from project_vision_cls.data import (
    ImageFolder,
    channel_stats,
    load_splits,
    make_loader,
    normalise,
    sensible_size,
    split,
    to_input,
    to_tensor,
)
from project_vision_cls.decode import decode
from project_vision_cls.manifest import held_out, tell


def write_manifest(run_dir: Path, sets: dict) -> dict:
    """As training does it."""
    manifest = manifests.make_manifest(sets)
    manifests.write_manifest(run_dir, sets, manifest)
    return manifest


def put(path, seed, size=(20, 24)):
    """A photo of noise: no two seeds look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def put_set(root, counts, seed=0):
    """{class: number of photos} → root/<class>/<k>.png; returns root."""
    for name, n in counts.items():
        for k in range(n):
            seed += 1
            put(root / name / f"{k:03}.png", seed)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Relative default folders (runs/cache) lie in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def folder(root, cache, **options):
    return ImageFolder(root, **{"cache_dir": cache, "img_size": 16, **options})


# layouts


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


# batches


@pytest.fixture
def photos(tmp_path, cache):
    return folder(put_set(tmp_path / "train", {"a": 13, "b": 8}), cache)


def batches(photos, workers, **options):
    seed_all(5)
    made = list(make_loader(photos, 4, workers=workers, **options))
    return [(pixels.numpy().tobytes(), labels.tolist()) for pixels, labels in made], torch.rand(3).tolist()


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"weights": torch.linspace(1, 2, 21)}])
def test_batches_do_not_depend_on_workers(photos, options):
    assert batches(photos, 0, **options) == batches(photos, 2, **options)


def test_every_item_comes_once(photos):
    index = {photos[i][0].numpy().tobytes(): i for i in range(len(photos))}
    assert len(index) == 21
    for shuffle in (False, True):
        order = [index[p.numpy().tobytes()] for pixels, _ in make_loader(photos, 4, shuffle) for p in pixels]
        assert sorted(order) == list(range(21))
        assert (order == list(range(21))) is not shuffle
    assert [len(labels) for _, labels in make_loader(photos, 4, drop_last=True)] == [4] * 5
    assert [len(labels) for _, labels in make_loader(photos, 50, drop_last=True)] == [21]  # never no batch at all


def test_weights_are_chances(photos):
    seed_all(6)
    weights = (photos.labels == 1).float()
    drawn = torch.cat([labels for _ in range(3) for _, labels in make_loader(photos, 8, weights=weights)])
    assert drawn.tolist() == [1] * 63


def test_a_loader_worker_gets_the_file_and_not_the_pixels(photos):
    content = pickle.dumps(photos)
    assert len(content) < photos.images.nbytes // 2
    copy = pickle.loads(content)
    assert isinstance(copy.images, np.memmap)
    assert torch.equal(copy[[3, 4]][0], photos[[3, 4]][0])


def test_memory_does_not_grow_with_the_photos(tmp_path, cache):
    root = put_set(tmp_path / "train", {"a": 60, "b": 60})
    photos = folder(root, cache, img_size=160)  # 9.2 MB of pixels
    tracemalloc.start()
    photos = folder(root, cache, img_size=160)
    for _ in make_loader(photos, 4):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < photos.images.nbytes / 8


# numbers


def test_to_tensor(photos):
    array = photos[0][0].numpy()
    wanted = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32) / 255)
    for photo in (Image.fromarray(array), array, torch.from_numpy(array.copy())):
        assert torch.allclose(to_tensor(photo), wanted, atol=1e-7)
    read_only = array.copy()
    read_only.setflags(write=False)
    assert torch.equal(to_tensor(read_only), to_tensor(array))
    assert to_tensor(Image.new("L", (5, 4), 255)).shape == (3, 4, 5)
    gray = Image.fromarray(np.full((4, 5), 30_000, np.uint16))
    assert to_tensor(gray).max().item() == pytest.approx(117 / 255)  # 16 bits, and not white
    turned, file = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    Image.new("RGB", (5, 4)).save(file, "PNG", exif=turned)
    assert to_tensor(Image.open(file)).shape == (3, 5, 4)
    pixels = photos[[0, 1, 2]][0]
    kept = pixels.clone()
    batch = to_tensor(pixels)
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, kept)


def test_normalise_and_its_short_cut(photos):
    pixels = photos[list(range(21))][0]
    mean, std = channel_stats(photos)
    x = to_tensor(pixels)
    kept = x.clone()
    made = normalise(x, mean, std)
    assert torch.equal(x, kept)
    assert made.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert made.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    short = to_input(pixels, mean, std)
    assert torch.allclose(short, made, atol=1e-5)
    assert short.is_contiguous(memory_format=torch.channels_last)
    gain, shift = torch.rand(2, 21, 1, 1, 1)
    assert torch.allclose(to_input(pixels, mean, std, gain, shift), made * gain + shift, atol=1e-5)
    assert torch.allclose(to_input(pixels[:, ::2, ::2], mean, std), made[:, :, ::2, ::2], atol=1e-5)


def test_channel_stats_are_those_of_numpy(photos, tmp_path, cache):
    values = np.stack([photos[i][0].numpy() for i in range(21)]).reshape(-1, 3) / 255
    mean, std = channel_stats(photos)
    assert mean == pytest.approx(values.mean(0).tolist(), abs=1e-9)
    assert std == pytest.approx(values.std(0).tolist(), abs=1e-9)
    some = np.stack([photos[i][0].numpy() for i in range(0, 21, 3)]).reshape(-1, 3) / 255
    assert channel_stats(photos, sample=10)[0] == pytest.approx(some.mean(0).tolist(), abs=1e-9)
    for name in ("a", "b"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), (255, 0, 51)).save(tmp_path / "flat" / name / "1.png")
    mean, std = channel_stats(folder(tmp_path / "flat", cache))
    assert mean == pytest.approx([1.0, 0.0, 0.2])
    assert std == [1 / 255] * 3


@pytest.mark.parametrize("size", [16, 20, 33, 8, 128])
def test_thumbs_are_cell_means(tmp_path, cache, size):
    photos = folder(put_set(tmp_path / "train", {"a": 3}), cache, img_size=size).take([2, 0])
    edges = np.arange(9) * size // 8
    for i, thumb in enumerate(photos.thumbs()):
        pixels = photos[i][0].numpy()
        for r in range(8):
            for c in range(8):
                cell = pixels[edges[r] : edges[r + 1], edges[c] : edges[c + 1]]
                assert thumb[r, c].tolist() == np.floor(cell.mean((0, 1))).tolist()


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


def test_example_of_the_module(tmp_path, cache, monkeypatch):
    """The lines at the top of data.py, with its default folders."""
    put_set(tmp_path / "data" / "vision" / "train", {"a": 3, "b": 3})
    put_set(tmp_path / "data" / "vision" / "val", {"a": 1, "b": 1}, seed=50)
    code = [line[4:] for line in data.__doc__.splitlines() if line.startswith("    ")]
    names = {"mean": [0.5] * 3, "std": [0.2] * 3}
    exec("from project_vision_cls.data import *\n" + "\n".join(code), names)
    assert names["x"].shape == (6, 3, 32, 32)
    assert Path("runs/cache").is_dir()
