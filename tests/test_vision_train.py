"""Training: repeats bit for bit, goes on after a real kill, and saves the weights that it scored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.log import read_jsonl
from project_vision_cls import train
from project_vision_cls.calibrate import validate
from project_vision_cls.data import ImageFolder
from project_vision_cls.inference import Predictor
from tests.conftest import ROOT, python

# bits are promised on the CPU; on a GPU see test_cuda.py
SMALL = ["--bs", "16", "--width", "4", "--lr", "1e-2", "--cutmix", "0.5", "--erase", "0.2", "--device", "cpu"]


def run(photos: Path, run_dir: Path, *flags: object) -> subprocess.CompletedProcess:
    shared = ["--train_root", photos / "train", "--run_dir", run_dir, "--cache_dir", photos / "cache"]
    return python("project_vision_cls.train", *shared, *SMALL, *flags)


def same(a: object, b: object) -> bool:
    """Equal to the bit, whatever is nested in what."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "img_per_s")} for line in history]


def equal_runs(a: Path, b: Path) -> None:
    """Weights, optimiser, EMA, stopper, history, temperature, golden outputs."""
    for name in ("best.pt", "last.pt"):
        left, right = load_ckpt(a / name), load_ckpt(b / name)
        for key in ("model", "assets", "metrics", "epoch", "reference", "golden"):
            assert same(left[key], right[key]), f"{name}: {key}"
    for key in ("model", "optimizer", "scaler", "ema", "stopper"):
        assert same(left["opt"].get(key), right["opt"].get(key)), key
    assert timeless(left["opt"]["history"]) == timeless(right["opt"]["history"])
    assert timeless(read_jsonl(a / "train.jsonl")[0]) == timeless(read_jsonl(b / "train.jsonl")[0])


@pytest.mark.slow
def test_same_seed_same_weights_with_0_and_2_workers(colour_photos, tmp_path):
    for name, flags in {"a": [], "b": ["--workers", 2], "c": ["--seed", 1]}.items():
        done = run(colour_photos, tmp_path / name, "--epochs", 2, *flags)
        assert done.returncode == 0, done.stderr
    equal_runs(tmp_path / "a", tmp_path / "b")
    first, other = (load_ckpt(tmp_path / name / "last.pt")["opt"]["model"] for name in "ac")
    assert not same(first, other), "another seed, the same weights"


@pytest.mark.slow
def test_killed_and_resumed_ends_like_the_uninterrupted_run(colour_photos, tmp_path):
    flags = ["--epochs", 6, "--patience", 4]
    whole = run(colour_photos, tmp_path / "whole", *flags)
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    shared = ["--train_root", colour_photos / "train", "--run_dir", cut, "--cache_dir", colour_photos / "cache"]
    command = [sys.executable, "-m", "project_vision_cls.train", *map(str, [*shared, *SMALL, *flags])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        time.sleep(0.05)  # somewhere in epoch 3
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    epochs_done = load_ckpt(cut / "last.pt")["epoch"]
    assert 2 <= epochs_done < 6
    done = run(colour_photos, cut, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    equal_runs(tmp_path / "whole", cut)


def test_resume_refuses_other_flags_and_other_photos(colour_photos, colour_run, tmp_path):
    shared = [
        "--train_root",
        colour_photos / "train",
        "--run_dir",
        colour_run,
        "--cache_dir",
        colour_run.parent / "cache",
    ]
    done = python("project_vision_cls.train", *shared, "--resume", "--epochs", 9, "--bs", 8)
    assert done.returncode == 2
    assert "epochs was 6, now 9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_resume_changes_nothing(colour_photos, tmp_path):
    """The split that a run made is kept in its files: another seed must not write its own over it."""
    alone = tmp_path / "photos"
    alone.symlink_to(colour_photos / "train")
    flags = ["--train_root", f"{alone}/", "--run_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache", *SMALL]
    assert python("project_vision_cls.train", *flags, "--epochs", 1).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for wrong in (["--seed", 7], ["--device", "cuda:99"], ["--device", "toaster"], ["--epochs", 2]):
        done = python("project_vision_cls.train", *flags, "--epochs", 1, "--resume", *wrong)
        assert done.returncode == 2, done.stdout
        assert len(done.stderr.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    scored = python("project_vision_cls.eval", "--ckpt", tmp_path / "run/best.pt", "--cache_dir", tmp_path / "cache")
    assert scored.returncode == 0, scored.stderr
    assert "val: 9 photos" in scored.stdout


def test_mirror_answers_with_the_mean_of_two_looks(colour_photos, tmp_path):
    shared = ["--train_root", str(colour_photos / "train"), "--run_dir", str(tmp_path), "--epochs", "2", "--bs", "8"]
    train.main([*shared, "--width", "4", "--lr", "1e-2", "--cache_dir", str(colour_photos / "cache"), "--mirror"])
    predictor = Predictor.load(tmp_path / "best.pt")
    predictor.check_golden()
    photos = ImageFolder(colour_photos / "val", predictor.classes, predictor.img_size, colour_photos / "cache")
    assert validate(predictor, photos, 8)[0] == load_ckpt(tmp_path / "best.pt")["metrics"]
    pixels = photos[list(range(len(photos)))][0]
    one, other = (predictor.logits(view).softmax(1) for view in (pixels, pixels.flip(2)))
    assert torch.allclose(one, other, atol=1e-6)
    predictor.assets = {**predictor.assets, "mirror": False}
    looks = torch.stack([predictor.logits(view).softmax(1) for view in (pixels, pixels.flip(2))])
    assert torch.allclose(looks.mean(0), one, atol=1e-6)


def test_a_finished_run_resumes_to_itself(colour_run, tmp_path):
    run_dir = shutil.copytree(colour_run, tmp_path / "run")
    before = (run_dir / "best.pt").read_bytes()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    (run_dir / "metrics.json").write_text(json.dumps({**metrics, "eval": {"kept": 1}}))
    config = load_ckpt(run_dir / "last.pt")["config"]
    flags = ["--epochs", 6, "--bs", 8, "--lr", 1e-2, "--width", 4, "--cache_dir", colour_run.parent / "cache"]
    flags += ["--deterministic"]
    done = python(
        "project_vision_cls.train", "--train_root", config["train_root"], "--run_dir", run_dir, *flags, "--resume"
    )
    assert done.returncode == 0, done.stderr
    assert (run_dir / "best.pt").read_bytes() == before
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["eval"] == {"kept": 1}
    assert metrics["train"]["seconds"] == pytest.approx(
        sum(line["seconds"] for line in read_jsonl(run_dir / "train.jsonl")[0])
    )
    assert "best: epoch" in done.stdout


def test_what_is_scored_is_what_is_saved(colour_photos, colour_run):
    """The accuracy in the checkpoint is the one its own weights get: EMA is applied, not only kept."""
    ckpt = load_ckpt(colour_run / "best.pt", project="vision")
    predictor = Predictor.load(colour_run / "best.pt")
    photos = ImageFolder(colour_photos / "val", predictor.classes, predictor.img_size, colour_run.parent / "cache")
    scores, _ = validate(predictor, photos, bs=7)
    assert scores["val_acc"] == ckpt["metrics"]["val_acc"]
    assert scores["val_loss"] == pytest.approx(ckpt["metrics"]["val_loss"], abs=1e-6)
    last = load_ckpt(colour_run / "last.pt")
    assert same(dict(last["model"]), dict(last["opt"]["ema"]["module"]))
    assert not same(dict(last["model"]), dict(last["opt"]["model"]))


def test_artefacts_and_log(colour_run):
    names = {path.name for path in colour_run.iterdir()}
    wanted = {"best.pt", "best.json", "last.pt", "train.jsonl", "metrics.json", "data_manifest.json", "data_files.csv"}
    assert wanted <= names
    lines, torn = read_jsonl(colour_run / "train.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert torn == 0
    assert {"loss", "val_loss", "val_acc", "lr", "img_per_s", "best"} <= lines[0].keys()
    provenance = load_ckpt(colour_run / "best.pt")["provenance"]
    assert provenance["seed"] == 42
    manifest = json.loads((colour_run / "data_manifest.json").read_text())
    assert provenance["data_version"] == manifest["data_version"]


def test_a_second_run_sets_the_first_aside(colour_photos, tmp_path):
    for _ in range(2):
        done = run(colour_photos, tmp_path / "run", "--epochs", 1)
        assert done.returncode == 0, done.stderr
    (earlier,) = (tmp_path / "run" / "earlier").iterdir()
    assert load_ckpt(earlier / "best.pt")["epoch"] == 1
    assert str(earlier) in done.stdout


def test_without_a_validation_folder_a_split_is_made_and_stored(tmp_path, colour_photos):
    alone = tmp_path / "alone" / "train"
    alone.parent.mkdir()
    alone.symlink_to(colour_photos / "train")
    done = python(
        "project_vision_cls.train", "--train_root", alone, "--run_dir", tmp_path / "run", "--epochs", 1, "--bs", 16,
        "--width", 4, "--cache_dir", tmp_path / "cache", "--no-ema",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "51 train, 9 val photos of 3 classes" in done.stdout
    scored = python("project_vision_cls.eval", "--ckpt", tmp_path / "run/best.pt", "--cache_dir", tmp_path / "cache")
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["eval"]["val"]["photos"] == 9
    assert metrics["eval"]["val"]["accuracy"] == metrics["train"]["val_acc"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_classes", "7"], "--num_classes 7: "),
        (["--lr", "0"], "--lr: 0: wanted 1e-09 or more"),
        (["--img_size", "500"], "--img_size: 500: wanted 0 to 224"),
        (["--bs", "many"], "--bs: invalid int value: 'many'"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--val_root", "nowhere"], "nowhere: no such folder"),
        (["--resume"], "--resume: no last.pt"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_words(colour_photos, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        train.main(["--train_root", str(colour_photos / "train"), "--run_dir", str(tmp_path / "run"), *flags])
    assert words in str(refused.value)


def test_no_data_names_the_layout_and_the_demo_command(tmp_path):
    done = python("project_vision_cls.train", cwd=tmp_path)
    assert done.returncode == 2
    assert "data/vision/train/<class>/*.jpg" in done.stderr
    assert "python -m project_vision_cls.synthetic --out data/vision" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_presets_are_defaults_that_a_flag_overrules():
    assert train.parse([]).lr == 3e-4
    assert train.parse(["--preset", "accurate"]).epochs == 0
    assert train.parse(["--preset", "accurate", "--epochs", "7"]).epochs == 7


def test_learning_rate_rises_and_falls():
    rates = [train.rate(step, 100, 0.2) for step in range(100)]
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates.index(max(rates)) in (19, 20)
    assert 0 < rates[-1] < 0.02
    assert [train.rate(step, 10, 0.0) for step in (0, 9)] == pytest.approx([10 / 11, 1 / 11])


WAYS = "--optimizer adamw|--arch cnn|--balanced|--class_weights|--mixup 0.2|--accumulate 2|--cpu_bf16|--no-amp"


@pytest.mark.parametrize("flags", [way.split() for way in WAYS.split("|")], ids=" ".join)
def test_every_way_of_training_learns_the_colours(colour_photos, tmp_path, flags):
    shared = ["--train_root", str(colour_photos / "train"), "--run_dir", str(tmp_path), "--epochs", "4", "--bs", "8"]
    train.main([*shared, "--width", "8", "--lr", "1e-2", "--cache_dir", str(colour_photos / "cache"), *flags])
    assert read_jsonl(tmp_path / "train.jsonl")[0][-1]["val_acc"] > 0.9


def test_a_non_finite_loss_stops_the_run_with_its_step(colour_photos, tmp_path):
    done = run(colour_photos, tmp_path / "run", "--epochs", 3, "--lr", "1e30", "--clip", 0, "--optimizer", "adamw")
    assert done.returncode == 2
    assert "step " in done.stderr
    assert "a finite number is wanted" in done.stderr
