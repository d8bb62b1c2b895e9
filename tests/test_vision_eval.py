"""eval: every score, classes and photos that it must tell, flags and temperature."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common import report
from project_vision_cls import eval as evaluation
from project_vision_cls.data import ImageFolder, make_loader
from project_vision_cls.inference import Predictor
from tests.conftest import COLOURS, python


def test_eval_writes_every_score(colour_photos, colour_run):
    done = python(
        "project_vision_cls.eval", "--ckpt", colour_run / "best.pt", "--val_root", colour_photos / "test",
        "--robustness", "--cache_dir", colour_run.parent / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = json.loads((colour_run / "metrics.json").read_text())["eval"]["test"]
    assert scores["accuracy"] > 0.9
    assert scores["top5"] == 1.0
    before, after = scores["before_temperature"], scores["after_temperature"]
    assert before.keys() == after.keys() == {"ece", "ece_equal_mass", "brier", "nll", "reliability"}
    assert len(scores["robustness"]["accuracy_by_severity"]["gaussian_noise"]) == 5
    table = list(csv.reader((colour_run / "confusion_matrix.csv").read_text().splitlines()))
    held = torch.load(colour_run / "confusion_matrix.pt", weights_only=True)
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == held["matrix"].tolist()
    assert sum(map(sum, scores["confusion_matrix"])) == scores["photos"] == 18
    for name in ("mistakes.png", *(("reliability.png", "confusion_matrix.png") if report.can_draw() else ())):
        with Image.open(colour_run / name) as picture:
            assert picture.size[0] > 100


def test_eval_counts_classes_the_model_does_not_know_as_wrong(colour_photos, colour_run, tmp_path):
    root = tmp_path / "extra"
    for split, name in [("red", "red"), ("green", "orange")]:
        (root / name).mkdir(parents=True)
        for file in (colour_photos / "test" / split).iterdir():
            (root / name / file.name).write_bytes(file.read_bytes())
    predictor = Predictor.load(colour_run / "best.pt")
    photos = ImageFolder(root, predictor.classes, predictor.img_size, tmp_path / "cache")
    logits = torch.cat([predictor.logits(pixels) for pixels, _ in make_loader(photos, 8)])
    scores = evaluation.evaluate(predictor, photos, logits)
    assert scores["unknown_classes"] == {"orange": 6}
    assert scores["accuracy"] == pytest.approx(0.5)
    assert scores["classes"]["blue"]["support"] == 0


def test_eval_takes_class_names_as_they_come_and_tells_photos_that_train_has(colour_photos, tmp_path):
    for split in ("train", "val"):
        for name, odd in zip(COLOURS, ["$c_$", "한국어", os.fsdecode(b"latin-\xe9")], strict=True):
            shutil.copytree(colour_photos / split / name, tmp_path / "odd" / split / odd)
    copied = tmp_path / "odd" / "val" / "$c_$" / "copy.png"
    shutil.copy(tmp_path / "odd" / "train" / "$c_$" / "0.png", copied)
    cache = ["--cache_dir", tmp_path / "cache"]
    done = python(
        "project_vision_cls.train", "--train_root", tmp_path / "odd" / "train", "--run_dir", tmp_path / "run",
        "--epochs", 1, "--bs", 16, "--width", 4, *cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = python("project_vision_cls.eval", "--ckpt", tmp_path / "run" / "best.pt", *cache)
    assert done.returncode == 0, done.stderr
    assert "1 of these photos, or near-copies of them, are in the train set" in done.stdout
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["eval"]["val"]
    assert scores["also_in_train"] == ["$c_$/copy.png"]
    assert set(scores["classes"]) == {"$c_$", "latin-\udce9", "한국어"}


def test_temperature_changes_confidence_and_never_the_class(colour_photos, colour_run):
    predictor = Predictor.load(colour_run / "best.pt")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    cold = predictor.probabilities(pixels)
    predictor.assets = {**predictor.assets, "temperature": 5.0}
    hot = predictor.probabilities(pixels)
    assert torch.equal(cold.argmax(1), hot.argmax(1))
    assert (hot.amax(1) < cold.amax(1)).all()
    assert cold.sum(1).tolist() == pytest.approx([1.0] * 50)


def test_flags_are_checked_against_the_checkpoint(colour_photos, colour_run):
    for command in ("eval", "inference"):
        done = python(f"project_vision_cls.{command}", "--ckpt", colour_run / "best.pt", "--num_classes", 9)
        assert done.returncode == 2
        assert "--num_classes 9" in done.stderr
        assert "best.pt has 3" in done.stderr
