"""What is learned of accuracy without labels, and the damage that it is learned from."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from common.expected import expect, learn
from common.window_checks import expected_accuracy
from project_nlp_intent import perturb as texts
from project_vision_cls import perturb as photos
from project_vision_cls.calibrate import answered, damaged, learn_accuracy
from project_vision_cls.data import ImageFolder
from project_vision_cls.inference import Predictor
from project_vision_cls.watch import photo_features


def group(noise: float, n: int, seed: int, reach: float = 1.0) -> tuple[dict, np.ndarray]:
    """A model that stays as sure as ever while `noise`, which shows in a feature, makes it wrong."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(8, 1.5, n)
    right = rng.random(n) < confidence * np.exp(-reach * noise)
    return {"prob": confidence.tolist(), "sharp": (rng.normal(0, 1, n) + 10 * noise).tolist()}, right


def test_it_knows_of_damage_that_confidence_does_not():
    plain = group(0.0, 500, 0)
    damaged = [group(noise, 64, seed) for seed, noise in enumerate([0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 3.0] * 3, 1)]
    learned = learn([plain, *damaged], "prob", ["sharp"])
    reference = {"accuracy": float(plain[1].mean()), "expected": learned}
    for noise in (0.0, 0.15, 0.4):
        features, right = group(noise, 20_000, 99)
        found = expected_accuracy(reference, features)
        assert found["value"] == pytest.approx(right.mean(), abs=0.08)
        assert found["drop"] == pytest.approx(reference["accuracy"] - found["value"])
    assert expected_accuracy({**reference, "expected": None}, features)["value"] - right.mean() > 0.2
    same = expect(learned, plain[0])  # where nothing drifted the calibrated confidence has the word
    assert same == pytest.approx(np.mean(plain[0]["prob"]), abs=1e-9)
    assert 0 <= expect(learned, {"prob": [0.9], "sharp": [1e6]}) <= 1
    unmeasured = {**plain[0], "sharp": [float("nan")] * 500}
    assert expect(learned, unmeasured) == pytest.approx(same, abs=0.05)


def test_nothing_is_learned_from_too_little():
    features, right = group(0.0, 49, 0)
    assert learn([(features, right)], "prob", ["sharp"]) is None
    features, right = group(0.0, 60, 0)
    assert learn([(features, np.ones(60, bool))], "prob", ["sharp"]) is None
    assert learn([(features, right)], "prob", ["sharp"]) is not None


def test_a_vision_checkpoint_learns_it_once(colour_run, colour_photos, tmp_path):
    path = shutil.copy(colour_run / "best.pt", tmp_path / "best.pt")
    before = Predictor.load(path)
    val_set = ImageFolder(colour_photos / "train", img_size=before.img_size, cache_dir=tmp_path / "cache")
    val_set.labels[::5] = (val_set.labels[::5] + 1) % len(before.classes)  # four of five answers are right at best
    learn_accuracy(path, val_set, torch.device("cpu"))
    after = Predictor.load(path)
    after.check_golden()
    features, right = answered(after, *val_set[list(range(len(val_set)))])
    assert expect(after.reference["expected"], features) == pytest.approx(np.mean(features["prob"]), abs=0.01)
    noisy, right = answered(
        after,
        photos.perturbed("uniform", val_set[list(range(len(val_set)))][0], 1.0, torch.Generator()),
        val_set.labels,
    )
    assert len(right) == len(val_set)
    assert 0 <= expected_accuracy(after.reference, noisy)["value"] <= 1
    few = ImageFolder(colour_photos / "test", img_size=before.img_size, cache_dir=tmp_path / "cache")
    learn_accuracy(shutil.copy(colour_run / "best.pt", tmp_path / "few.pt"), few, torch.device("cpu"))
    assert "expected" not in Predictor.load(tmp_path / "few.pt").reference


@pytest.mark.parametrize("kind", photos.KINDS)
def test_train_photosare_damaged_more_the_stronger(kind):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 31, 45, 3), dtype=torch.uint8, generator=generator)
    changes = []
    for strength in (0.35, 1.0):
        worse = photos.perturbed(kind, pixels, strength, torch.Generator().manual_seed(1))
        assert worse.dtype == torch.uint8
        assert worse.shape == pixels.shape
        changes.append((worse.double() - pixels.double()).abs().mean().item())
    assert changes[0] > 0
    assert changes[0] < changes[1] or kind == "motion"  # one step of reach is the least there is


def test_texts_are_damaged_word_by_word():
    text, rng = "where is my order number seven", np.random.default_rng(0)
    found = {kind: texts.perturbed(kind, text, 1.0, rng) for kind in texts.KINDS}
    assert found["lost"] == text  # nothing would be left
    assert found["joined"] == text.replace(" ", "")
    assert found["foreign"] == "erehw si ym redro rebmun neves"
    assert sorted(found["shuffled"]) == sorted(text)
    assert found["shuffled"] != text
    assert [texts.perturbed(kind, text, 0.0, rng) for kind in texts.KINDS] == [text] * 4
    assert set(texts.perturbed("lost", text, 0.5, rng).split()) < set(text.split())


def test_colour_noise_is_told_from_gray_texture_and_dense_from_sparse():
    def looks(photo: np.ndarray) -> tuple[float, float]:
        found = photo_features(photo[None], [(1, 1)], [{"label": "a", "prob": 1.0}])
        return found["noise"][0], found["detail"][0]

    rng, still = np.random.default_rng(0), -0.602  # log10(0.25)
    flat = np.full((33, 33, 3), 100, np.uint8)  # an odd side: its last row and column have no block
    texture = np.repeat(rng.integers(0, 256, (33, 33, 1), np.uint8), 3, axis=2)
    assert looks(flat) == looks(texture) == (still, still)
    dense, sparse = flat.copy(), flat.copy()
    dense[::2, ::2, 0] += 4  # a diagonal detail of 4 / 2 in every block
    assert looks(dense) == (0.352, 0.352)  # log10(2.25)
    sparse[::8, ::8, 0] += 64
    assert looks(sparse)[0] == still
    assert looks(sparse)[1] > np.log10(2.0)


def test_learned_from_eighteen_kinds_with_the_plain_photos_first(colour_photos, colour_run):
    predictor = Predictor.load(colour_run / "best.pt")
    sixty = ImageFolder(colour_photos / "train", predictor.classes, predictor.img_size, colour_run.parent / "cache")
    groups = damaged(predictor, sixty)
    assert next(iter(groups)) == ("plain", 0)
    assert len({kind for kind, _ in groups}) == 1 + 9 + 9
    assert {len(right) for _, right in groups.values()} == {60}
    again = damaged(predictor, sixty)
    assert all(groups[way] == again[way] for way in groups)
