"""Batches that do not depend on workers or fill the memory, and the numbers that pixels become."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from common.seed import seed_all
from project_vision_cls.data import channel_stats, make_loader, normalise, to_input, to_tensor
from tests.noise_photos import folder, put_set


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Relative default folders (runs/cache) lie in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


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
