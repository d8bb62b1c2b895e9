"""pytest tests/test_synthetic.py

The synthetic photo set: repeatable to the byte, counted, openable, never written over somebody else's files.
"""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from project_vision_cls.synthetic import SHAPES, SPLITS, make_photos, render


def digests(folder):
    """Relative path -> SHA-256 of every photo below folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpg")
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set with 2 + 1 + 1 photos per class; tests must not write into it."""
    out = tmp_path_factory.mktemp("photos") / "vision"
    assert make_photos(out, train=2, val=1, test=1, size=48) == 4 * len(SHAPES)
    return out


def test_counts_and_names(small):
    assert len(SHAPES) == 6
    for split, count in zip(SPLITS, (2, 1, 1), strict=True):
        assert sorted(folder.name for folder in (small / split).iterdir()) == sorted(SHAPES)
        for class_name in SHAPES:
            files = sorted(path.name for path in (small / split / class_name).iterdir())
            assert files == [f"{index:04d}.jpg" for index in range(count)]


def test_every_file_is_an_rgb_jpeg_that_shows_something(small):
    sizes = set()
    for path in small.rglob("*.jpg"):
        with Image.open(path) as photo:
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            sizes.add(photo.size)
            assert np.asarray(photo).std() > 5
    assert all(40 <= side <= 56 for size in sizes for side in size)
    assert len(sizes) > 3


def test_same_seed_same_bytes_and_other_seed_other_photos(small, tmp_path):
    make_photos(tmp_path / "again", train=2, val=1, test=1, size=48)
    assert digests(tmp_path / "again") == digests(small)
    make_photos(tmp_path / "other", seed=1, train=2, val=1, test=1, size=48)
    assert not set(digests(tmp_path / "other").values()) & set(digests(small).values())


def test_no_photo_appears_twice(small):
    found = digests(small)
    assert len(set(found.values())) == len(found)


def test_other_counts_leave_the_photos_as_they_are(small, tmp_path):
    make_photos(tmp_path, train=3, val=0, test=2, size=48)
    more, before = digests(tmp_path), digests(small)
    assert len(more) == 5 * len(SHAPES)
    for name in before.keys() & more.keys():
        assert more[name] == before[name]
    make_photos(tmp_path, train=3, val=1, test=2, size=48)  # adding to its own folder needs no force
    assert digests(tmp_path).items() >= digests(small).items()


def test_refuses_a_folder_of_others(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"not empty and was not made by this command.*--force"):
        make_photos(tmp_path, train=1, val=0, test=0, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    make_photos(tmp_path, train=1, val=0, test=0, size=16, force=True)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"
    assert len(list(tmp_path.rglob("0000.jpg"))) == len(SHAPES)


@pytest.mark.parametrize(("changed", "named"), [({"seed": 1}, "seed"), ({"size": 20}, "size"), ({"train": 0}, "train")])
def test_refuses_to_mix_two_sets(tmp_path, changed, named):
    settings = {"seed": 0, "train": 1, "val": 0, "test": 0, "size": 16}
    make_photos(tmp_path, **settings)
    before = digests(tmp_path)
    with pytest.raises(FileExistsError, match=f"holds photos with other {named} .*made_by_synthetic.json"):
        make_photos(tmp_path, **{**settings, **changed})
    assert digests(tmp_path) == before


@pytest.mark.parametrize("bad", [{"seed": -1}, {"train": -1}, {"size": 7}, {"vary": 0.5}, {"vary": -0.1}])
def test_refuses_settings_out_of_range(tmp_path, bad):
    with pytest.raises(ValueError, match="wanted seed and counts >= 0"):
        make_photos(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("class_name", SHAPES)
@pytest.mark.parametrize("size", [8, 33, 128])
def test_render_any_size(class_name, size):
    photo = render(class_name, np.random.default_rng(5), size=size, vary=0)
    assert (photo.size, photo.mode) == ((size, size), "RGB")


def test_render_refuses_an_unknown_class():
    with pytest.raises(ValueError, match=r"no shape is called 'cat': choose one of bottle, gear, key"):
        render("cat", np.random.default_rng(0))


def test_mean_colour_does_not_give_the_class_away():
    """Nearest class mean of the photo's mean colour stays near chance, 1/6."""
    colours = np.array(
        [
            [np.asarray(render(name, np.random.default_rng([9, n, i]), size=24)).mean(axis=(0, 1)) for i in range(40)]
            for n, name in enumerate(SHAPES)
        ]
    )  # (class, photo, channel)
    centres = colours[:, :20].mean(axis=1)
    nearest = np.linalg.norm(colours[:, 20:, None] - centres, axis=3).argmin(axis=2)
    assert (nearest == np.arange(len(SHAPES))[:, None]).mean() < 0.35


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "project_vision_cls.synthetic", *arguments], capture_output=True, text=True, check=False
    )


def test_command_says_what_it_made_and_what_comes_next(tmp_path):
    counts = ("--train", "1", "--val", "1", "--test", "1", "--size", "16")
    done = command("--out", str(tmp_path / "v"), *counts)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert "made 18 photos of 6 classes" in done.stdout
    assert f"python -m project_vision_cls.train --train_root {tmp_path / 'v'}/train" in done.stdout
    (tmp_path / "note.txt").write_text("mine")
    refused = command("--out", str(tmp_path), *counts)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "was not made by this command" in refused.stderr
    assert "Traceback" not in refused.stderr
