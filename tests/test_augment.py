"""pytest tests/test_augment.py

Augmentation against slow references: what moves, what changes, what stays, and that a seed repeats it.
"""

import argparse

import numpy as np
import pytest
import torch

from project_vision_cls.augment import augmented, crop_flip, cutmix, erase, light, mixup
from project_vision_cls.data import normalise, to_tensor

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
OFF = {"crop": 0.0, "hflip": False, "vflip": False, "light": 0.0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}


def photos(b=16, s=12, seed=0):
    return torch.randint(0, 256, (b, s, s, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def every_shift_and_flip(photo, pad, hflip, vflip):
    """All that crop_flip may make of one (S, S, 3) photo, by NumPy's own mirrored padding."""
    s = len(photo)
    wide = np.pad(photo, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = wide[top : top + s, left : left + s]
            for rows in [1, -1] if vflip else [1]:
                for columns in [1, -1] if hflip else [1]:
                    yield (top - pad, left - pad, rows, columns), window[::rows, ::columns]


@pytest.mark.parametrize(("pad", "hflip", "vflip"), [(0, True, True), (2, True, False), (2, False, True), (11, 0, 0)])
def test_crop_flip_only_shifts_and_mirrors(pad, hflip, vflip):
    torch.manual_seed(1)
    pixels = photos(24)
    moved = crop_flip(pixels, pad, bool(hflip), bool(vflip))
    assert moved.dtype == torch.uint8
    assert moved.shape == pixels.shape
    seen = set()
    for before, after in zip(pixels.numpy(), moved.numpy(), strict=True):
        found = [how for how, made in every_shift_and_flip(before, pad, hflip, vflip) if np.array_equal(made, after)]
        assert found
        seen.add(found[0])
    assert len(seen) > (3 if pad == 0 else 8) - (pad == 0)  # 3 of the 4 flips at least, and many shifts
    assert {how[2] for how in seen} == ({1, -1} if vflip else {1})
    assert {how[3] for how in seen} == ({1, -1} if hflip else {1})


def test_crop_flip_without_both_is_the_identity():
    assert torch.equal(crop_flip(photos(), 0, False, False), photos())


@pytest.mark.parametrize(("s", "pad"), [(1, 3), (2, 5), (8, 8)])
def test_crop_wider_than_the_photo(s, pad):
    values = set(photos(s=s).flatten().tolist())
    assert set(crop_flip(photos(s=s), pad).flatten().tolist()) <= values


def test_shifts_and_flips_are_evenly_spread():
    torch.manual_seed(2)
    ramp = torch.arange(9, dtype=torch.uint8)[None, None, :, None].expand(4000, 9, 9, 3).contiguous()
    middle = crop_flip(ramp, 2, hflip=True)[:, 4, 4, 0]  # 4 + shift, of a row 0..8 that may be mirrored
    counts = torch.bincount(middle, minlength=9)
    assert counts[:2].sum() == counts[7:].sum() == 0
    assert ((counts[2:7] - 800).abs() < 120).all()  # some 4 standard deviations


@pytest.mark.parametrize("share", [0.25, 0.5, 0.01])
def test_erase_grays_one_square(share):
    torch.manual_seed(3)
    pixels = photos(64, 32) | 128  # never 127
    kept = pixels.clone()
    erased = erase(pixels, share)
    assert torch.equal(pixels, kept)
    assert erased.dtype == torch.uint8
    gray = (erased == 127).all(dim=3)
    assert torch.equal(erased[~gray], pixels[~gray])
    side = 2 * int(share * 32 / 2) + 1
    for mask in gray:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = (int(line[-1] - line[0]) + 1 for line in (rows, columns))
        assert int(mask.sum()) == height * width  # one whole rectangle,
        assert side // 2 < height <= side  # cut only by the border
        assert side // 2 < width <= side
    assert gray.sum((1, 2)).max() == side * side
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in gray}) > 30


def test_light_is_uniform_within_its_strength():
    torch.manual_seed(4)
    gain, shift = light(20000, 0.2, torch.device("cpu"))
    assert gain.shape == shift.shape == (20000, 1, 1, 1)
    for values, middle in ((gain, 1.0), (shift, 0.0)):
        assert values.mean().item() == pytest.approx(middle, abs=0.005)
        assert values.std().item() == pytest.approx(0.2 / 3**0.5, abs=0.003)
        assert (values - middle).abs().max() <= 0.2 + 1e-6
    assert np.corrcoef(gain.flatten(), shift.flatten())[0, 1] == pytest.approx(0, abs=0.04)


def numbered(b=6, s=16):
    """Photo k is all k, its target is class k: what is mixed can be read off the values."""
    x = torch.arange(b).float().view(b, 1, 1, 1).expand(b, 3, s, s).clone(memory_format=torch.channels_last)
    return x, torch.eye(b)


def test_mixup_blends_photos_and_targets_alike():
    torch.manual_seed(5)
    shares = []
    for _ in range(20):
        x, target = numbered()
        mixed, blended = mixup(x, target, 0.4)
        assert torch.equal(x, numbered()[0])
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert blended.sum(1).tolist() == pytest.approx([1.0] * 6)
        wanted = (blended * torch.arange(6.0)).sum(1)  # the mean of the numbers, weighed as the targets say
        assert torch.allclose(mixed, wanted.view(-1, 1, 1, 1).expand_as(mixed), atol=1e-5)
        shares.append(blended[0, 0].item())
    assert 0 <= min(shares) < 0.4 < 0.6 < max(shares) <= 1


def test_cutmix_targets_match_the_area():
    torch.manual_seed(6)
    shares = []
    for _ in range(200):
        pixels, target = cutmix(torch.arange(6).view(6, 1, 1, 1).to(torch.uint8).repeat(1, 10, 10, 3), torch.eye(6))
        assert target.sum(1).tolist() == pytest.approx([1.0] * 6)
        for k in range(6):
            foreign = pixels[k] != k
            assert set(pixels[k].unique().tolist()) <= {k, (k - 1) % 6}
            assert target[k, (k - 1) % 6].item() == pytest.approx(foreign.float().mean().item(), abs=1e-6)
        shares.append(1 - target[0, 0].item())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)  # the area is uniform in 0..1


def flags(**given):
    return argparse.Namespace(**{**OFF, **given})


def test_augmented_with_everything_off_is_the_normalised_photo():
    pixels, labels = photos(), torch.arange(16) % 4
    x, target = augmented(pixels, labels, flags(), MEAN, STD, 4)
    assert torch.allclose(x, normalise(to_tensor(pixels), MEAN, STD), atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(target, torch.eye(4)[labels])


def test_light_is_a_gain_and_a_shift_of_the_normalised_photo():
    pixels, labels = photos(), torch.zeros(16, dtype=torch.int64)
    torch.manual_seed(7)
    crop_flip(pixels, 0, False, False)  # draws as augmented does
    gain, shift = light(16, 0.3, pixels.device)
    torch.manual_seed(7)
    x, _ = augmented(pixels, labels, flags(light=0.3), MEAN, STD, 2)
    assert torch.allclose(x, normalise(to_tensor(pixels), MEAN, STD) * gain + shift, atol=1e-5)


@pytest.mark.parametrize("extra", [{"mixup": 0.4}, {"cutmix": 0.99}, {"cutmix": 0.5, "mixup": 0.2}])
def test_a_seed_repeats_all_of_it_and_the_input_stays(extra):
    pixels, labels = photos(), torch.arange(16) % 4
    every = flags(crop=0.125, hflip=True, vflip=True, light=0.2, erase=0.25, **extra)
    made = []
    for seed in (8, 8, 9):
        torch.manual_seed(seed)
        made.append(augmented(pixels, labels, every, MEAN, STD, 4))
    (x, target), again, other = made
    assert torch.equal(x, again[0])
    assert torch.equal(target, again[1])
    assert not torch.equal(x, other[0])
    assert torch.equal(pixels, photos())
    assert x.dtype == target.dtype == torch.float32
    assert x.shape == (16, 3, 12, 12)
    assert target.sum(1).tolist() == pytest.approx([1.0] * 16)
    darkest, lightest = (normalise(torch.full((1, 3, 1, 1), value), MEAN, STD) for value in (0.0, 1.0))
    assert (x >= darkest * 1.2 - 0.2001).all()
    assert (x <= lightest * 1.2 + 0.2001).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    pixels, labels = photos().cuda(), torch.arange(16).cuda() % 4
    every = flags(crop=0.125, hflip=True, vflip=True, light=0.2, erase=0.25, cutmix=0.5, mixup=0.2)
    x, target = augmented(pixels, labels, every, MEAN, STD, 4)
    assert x.device.type == target.device.type == "cuda"
    assert x.is_contiguous(memory_format=torch.channels_last)
    moved = crop_flip(pixels, 2).cpu().numpy()
    for before, after in zip(photos().numpy(), moved, strict=True):
        assert any(np.array_equal(made, after) for _, made in every_shift_and_flip(before, 2, True, False))
