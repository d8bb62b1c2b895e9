"""On a CUDA device: what is trained there is served anywhere, resumed runs repeat, and fp16 stands in for bf16.

Where there is such a device all other tests run on it too, as every command takes it by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

import project_nlp_intent.inference
import project_ts_forecast.inference
import project_vision_cls.inference
from common.amp_ckpt import AmpScaler, load_ckpt
from project_vision_cls import train
from tests.conftest import ROOT, python
from tests.tiny_models import served

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PHOTO, TEXT, SERIES = project_vision_cls.inference, project_nlp_intent.inference, project_ts_forecast.inference


def numbers_of(answer: dict) -> list[float]:
    """What of an answer must be the same on every device, to rounding."""
    if "label" in answer:
        return [answer["prob"] if "prob" in answer else answer["conf"]]
    return [value for key in ("pred", "lower", "upper") for value in torch.tensor(answer[key]).flatten().tolist()]


@pytest.fixture(params=["photos", "texts", "series"])
def trained(request: pytest.FixtureRequest, colour_photos: Path) -> tuple:
    """(module of the Predictor, checkpoint trained on the GPU, items): one project after the other."""
    run = request.getfixturevalue({"photos": "colour_run", "texts": "intent_run", "series": "wave_run"}[request.param])
    if request.param == "photos":
        items = [path.read_bytes() for path in sorted(colour_photos.glob("test/*/*.png"))]
    elif request.param == "texts":
        lines = (request.getfixturevalue("intent_texts") / "test.jsonl").read_text().splitlines()[:40]
        items = [json.loads(line)["text"] for line in lines]
    else:
        rows = request.getfixturevalue("wave_csv").read_text().splitlines()[1:]
        values = [float(row.split(",")[1]) for row in rows]
        items = [values[start : start + 400] for start in range(0, 800, 100)]
    return {"photos": PHOTO, "texts": TEXT, "series": SERIES}[request.param], run / "best.pt", items


def test_it_was_trained_on_the_gpu_and_answers_the_same_on_both_devices(trained):
    module, ckpt, items = trained
    assert torch.cuda.get_device_name() in (ckpt.parent / "run.json").read_text()
    assert all(tensor.device.type == "cpu" for tensor in load_ckpt(ckpt)["model"].values())
    predictors = {device: module.Predictor.load(ckpt, device) for device in ("cpu", "cuda")}
    answers = {}
    for device, predictor in predictors.items():
        assert next(predictor.model.parameters()).device.type == device
        predictor.check_golden()
        answers[device] = predictor.predict(items)
    for here, there in zip(*answers.values(), strict=True):
        assert here.get("label") == there.get("label")
        assert numbers_of(here) == pytest.approx(numbers_of(there), rel=1e-3, abs=1e-3)


def test_an_answer_does_not_depend_on_the_batch_that_it_is_in(trained):
    module, ckpt, items = trained
    predictor = module.Predictor.load(ckpt, "cuda")
    for together, item in zip(predictor.predict(items), items, strict=True):
        (alone,) = predictor.predict([item])
        assert together.get("label") == alone.get("label")
        assert numbers_of(together) == pytest.approx(numbers_of(alone), rel=1e-3, abs=1e-3)


def test_texts_and_series_served_on_the_gpu(intent_run, wave_run, wave_csv):
    values = [float(row.split(",")[1]) for row in wave_csv.read_text().splitlines()[1:]]
    asked = (
        (TEXT, "project_nlp_intent.serve", intent_run, "predict", "text", ["환불해 주세요", "where is my parcel"]),
        (SERIES, "project_ts_forecast.serve", wave_run, "forecast", "values", [values[:300], values[300:700]]),
    )
    for module, server, run, route, key, items in asked:
        expected = module.Predictor.load(run / "best.pt", "cuda").predict(items)
        with served(server, "--ckpt", run / "best.pt", "--device", "cuda") as url:
            for item, wanted in zip(items, expected, strict=True):
                with urllib.request.urlopen(f"{url}/{route}", json.dumps({key: item}).encode(), timeout=60) as reply:
                    found = json.load(reply)
                assert numbers_of(found) == pytest.approx(numbers_of(wanted), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("project", ["vision", "nlp", "ts"])
def test_a_cut_run_goes_on_bit_for_bit_with_deterministic_kernels(
    project, colour_photos, intent_texts, wave_csv, tmp_path
):
    module, source, small = {
        "vision": ("project_vision_cls", ["--train_root", colour_photos / "train"], ["--width", 4, "--bs", 8]),
        "nlp": ("project_nlp_intent", ["--train_jsonl", intent_texts / "train.jsonl"], ["--dim", 16, "--bs", 32]),
        "ts": ("project_ts_forecast", ["--csv", wave_csv], ["--win", 48, "--h", 6, "--hidden", 8, "--bs", 64]),
    }[project]
    flags = [*source, *small, "--epochs", 12, "--patience", 0, "--deterministic", "--device", "cuda"]
    flags += ["--cache_dir", tmp_path / "cache"] if project == "vision" else []
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = python(f"{module}.train", *flags, "--run_dir", whole)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", f"{module}.train", *map(str, flags), "--run_dir", str(cut)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert any(line.startswith("epoch 2/") for line in process.stdout)
        process.kill()
    assert 1 <= load_ckpt(cut / "last.pt")["epoch"] < 12
    done = python(f"{module}.train", *flags, "--run_dir", cut, "--resume")
    assert done.returncode == 0, done.stderr
    first, second = (load_ckpt(run / "last.pt")["model"] for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fp16_with_loss_scaling_where_the_gpu_has_no_bf16(colour_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert AmpScaler("cuda").dtype is torch.float16
    flags = ["--epochs", "6", "--bs", "8", "--lr", "1e-2", "--width", "4", "--cache_dir", str(tmp_path / "cache")]
    train.main(["--train_root", str(colour_photos / "train"), "--run_dir", str(tmp_path / "run"), *flags])
    state = load_ckpt(tmp_path / "run/last.pt")["opt"]["scaler"]
    assert state["scale"] > 1
    assert load_ckpt(tmp_path / "run/best.pt")["metrics"]["val_acc"] > 0.8
    shutil.copy(tmp_path / "run/best.pt", tmp_path / "served.pt")
    project_vision_cls.inference.Predictor.load(tmp_path / "served.pt", "cpu").check_golden()
