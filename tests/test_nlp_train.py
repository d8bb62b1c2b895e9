"""Training: repeats bit for bit, goes on after a real kill, and saves the weights that it scored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.log import read_jsonl
from project_nlp_intent import train
from project_nlp_intent.calibrate import validate
from project_nlp_intent.data import IntentDataset
from project_nlp_intent.inference import Predictor
from tests.conftest import ROOT, python

# bits are promised on the CPU; on a GPU see test_cuda.py
SMALL = ["--dim", 16, "--channels", 16, "--hidden", 16, "--bs", 32, "--lr", 1e-2, "--device", "cpu"]


def run(texts: Path, run_dir: Path, *flags: object) -> subprocess.CompletedProcess:
    return python(
        "project_nlp_intent.train", "--train_jsonl", texts / "train.jsonl", "--run_dir", run_dir, *SMALL, *flags
    )


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
    return [{k: v for k, v in line.items() if k not in ("seconds", "texts_per_s")} for line in history]


def equal_runs(a: Path, b: Path) -> None:
    """Weights, optimiser, EMA, stopper, history, temperature, thresholds, golden outputs."""
    for name in ("best.pt", "last.pt"):
        left, right = load_ckpt(a / name), load_ckpt(b / name)
        for key in ("model", "assets", "metrics", "epoch", "reference", "golden"):
            assert same(left[key], right[key]), f"{name}: {key}"
    for key in ("model", "optimizer", "scaler", "ema", "stopper"):
        assert same(left["opt"].get(key), right["opt"].get(key)), key
    assert timeless(left["opt"]["history"]) == timeless(right["opt"]["history"])


@pytest.mark.slow
def test_killed_and_resumed_ends_like_the_uninterrupted_run(intent_texts, tmp_path):
    whole = run(intent_texts, tmp_path / "whole", "--epochs", 5)
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    flags = ["--train_jsonl", intent_texts / "train.jsonl", "--run_dir", cut, *SMALL, "--epochs", 5]
    command = [sys.executable, "-m", "project_nlp_intent.train", *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= load_ckpt(cut / "last.pt")["epoch"] < 5
    done = run(intent_texts, cut, "--epochs", 5, "--resume")
    assert done.returncode == 0, done.stderr
    equal_runs(tmp_path / "whole", cut)
    refused = run(intent_texts, cut, "--epochs", 9, "--resume")
    assert refused.returncode == 2
    assert "epochs was 5, now 9" in refused.stderr


def test_what_is_scored_is_what_is_saved(intent_texts, intent_run):
    """The accuracy in the checkpoint is the one its own weights get: EMA is applied, not only kept."""
    ckpt = load_ckpt(intent_run / "best.pt", project="nlp")
    predictor = Predictor.load(intent_run / "best.pt")
    texts = IntentDataset(intent_texts / "val.jsonl", predictor.classes)
    texts.encode(predictor.encoder)
    scores, _ = validate(predictor, texts, bs=7)
    assert scores["val_acc"] == ckpt["metrics"]["val_acc"] > 0.8
    assert scores["val_loss"] == pytest.approx(ckpt["metrics"]["val_loss"], abs=1e-5)
    last = load_ckpt(intent_run / "last.pt")
    assert not same(dict(last["model"]), dict(last["opt"]["model"]))


def test_artefacts_and_what_a_checkpoint_holds(intent_run):
    names = {path.name for path in intent_run.iterdir()}
    wanted = {"best.pt", "best.json", "last.pt", "train.jsonl", "metrics.json", "vocab.json"}
    assert wanted | {"data_manifest.json", "data_texts.csv"} <= names
    lines, torn = read_jsonl(intent_run / "train.jsonl")
    assert torn == 0
    assert {"loss", "val_loss", "val_acc", "lr", "texts_per_s", "best"} <= lines[0].keys()
    ckpt = load_ckpt(intent_run / "best.pt")
    assert (
        ckpt["provenance"]["data_version"]
        == json.loads((intent_run / "data_manifest.json").read_text())["data_version"]
    )
    reject = ckpt["assets"]["reject"]
    assert reject["out_of_scope"] == 30
    assert reject["auroc"][reject["score"]] == max(reject["auroc"].values()) > 0.8
    assert {"pred_counts", "confidence", "scope_score", "length", "unknown"} <= ckpt["reference"].keys()
    assert "order" in json.loads((intent_run / "vocab.json").read_text())["vocab"]


def test_without_a_validation_file_a_split_is_made_and_stored(intent_texts, tmp_path):
    (tmp_path / "train.jsonl").write_text((intent_texts / "train.jsonl").read_text() + "broken\n")
    done = run(tmp_path, tmp_path / "run", "--epochs", 1, "--no-ema", "--arch", "textcnn", "--tokenizer", "bpe")
    assert done.returncode == 0, done.stderr
    assert "396 train, 44 val texts of 11 classes" in done.stdout
    assert "put 1 lines aside, such as line 441: not JSON" in done.stdout
    assert (tmp_path / "run" / "quarantine.jsonl").exists()
    scored = python("project_nlp_intent.eval", "--ckpt", tmp_path / "run/best.pt")
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["eval"]["val"]["texts"] == 44
    assert metrics["eval"]["val"]["accuracy"] == metrics["train"]["val_acc"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_classes", "7"], "--num_classes 7: "),
        (["--lr", "-1"], "--lr: -1: wanted 0 or more"),
        (["--bs", "1"], "--bs: 1: wanted 2 or more"),
        (["--arch", "bert"], "--arch"),
        (["--val_jsonl", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--resume"], "--resume: no last.pt"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_words(intent_texts, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        train.main(["--train_jsonl", str(intent_texts / "train.jsonl"), "--run_dir", str(tmp_path / "run"), *flags])
    assert words in str(refused.value)


WAYS = (
    "--arch ngram|--arch textcnn --tokenizer char --epochs 6|--arch transformer --dim 32 --token_drop 0|"
    "--class_weights|--cpu_bf16"
)


@pytest.mark.parametrize("flags", [way.split() for way in WAYS.split("|")], ids=" ".join)
def test_every_way_of_training_learns(intent_texts, tmp_path, flags):
    shared = ["--train_jsonl", intent_texts / "train.jsonl", "--run_dir", tmp_path, "--epochs", 4, *SMALL, *flags]
    train.main([str(word) for word in shared])
    assert max(line["val_acc"] for line in read_jsonl(tmp_path / "train.jsonl")[0]) > 0.25  # chance is 0.09


def test_a_few_texts_are_enough_to_run(tmp_path):
    rows = [
        {"text": text, "label": label} for text, label in [("hi", "a"), ("hello", "a"), ("bye", "b"), ("ciao", "b")]
    ]
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train.main(["--train_jsonl", str(tmp_path / "train.jsonl"), "--run_dir", str(tmp_path / "run"), "--epochs", "2"])
    assert Predictor.load(tmp_path / "run" / "best.pt").predict(["hi"])[0]["label"] in ("a", "b")


def test_a_non_finite_loss_stops_the_run_with_its_step(intent_texts, tmp_path):
    done = run(intent_texts, tmp_path / "run", "--epochs", 3, "--lr", "1e30")
    assert done.returncode == 2
    assert "step " in done.stderr
    assert "a finite number is wanted" in done.stderr
