"""The README's own commands, run as they stand, but for sizes and the port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.amp_ckpt import load_ckpt, save_ckpt
from project_vision_cls import train
from tests.conftest import ROOT, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- test: (\w+) -->\n```sh\n(.*?)```", README, re.DOTALL))


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a line of the README in `cwd`, with this interpreter as its `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, shell=True, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_commands_for_your_own_photos_and_the_server(tmp_path):
    (drawing,) = re.findall(r"`(python -m project_vision_cls\.synthetic [^`]*)`", README)
    steps = [f"{drawing} --train 8 --val 4 --test 4"]
    steps += [f"{line} --epochs 1" if ".train " in line else line for line in BLOCKS["commands"].strip().splitlines()]
    assert len(steps) == 4
    for step in steps:
        done = shell(step, tmp_path)
        assert done.returncode == 0, f"{step}: {done.stderr}"
    wanted = ["best.pt", "last.pt", "train.jsonl", "metrics.json", "confusion_matrix.csv", "preds.csv", "mistakes.png"]
    assert [name for name in wanted if not (tmp_path / "runs" / "vision" / name).exists()] == []
    check_serving(tmp_path)
    check_operating(tmp_path)
    check_runs(tmp_path)
    check_releasing(tmp_path)
    check_rolling_out(tmp_path)


@pytest.mark.slow
def test_the_commands_for_your_own_texts(tmp_path):
    steps = BLOCKS["texts"].strip().splitlines()
    assert len(steps) == 4
    for step in steps:
        small = (
            " --train 30 --val 10 --test 10" if ".synthetic " in step else " --epochs 2" if ".train " in step else ""
        )
        done = shell(step + small, tmp_path)
        assert done.returncode == 0, f"{step}: {done.stderr}"
    wanted = ["best.pt", "last.pt", "vocab.json", "train.jsonl", "metrics.json", "confusion_matrix.csv", "preds.csv"]
    assert [name for name in wanted if not (tmp_path / "runs" / "nlp" / name).exists()] == []


@pytest.mark.slow
def test_the_commands_for_your_own_series(tmp_path):
    steps = BLOCKS["series"].strip().splitlines()
    assert len(steps) == 4
    for step in steps:
        small = " --meters 2 --rows 2400" if ".synthetic " in step else " --epochs 1" if ".train " in step else ""
        done = shell(step + small, tmp_path)
        assert done.returncode == 0, f"{step}: {done.stderr}"
    wanted = ["best.pt", "last.pt", "train.jsonl", "metrics.json", "data_manifest.json", "preds.csv", "forecast.png"]
    assert [name for name in wanted if not (tmp_path / "runs" / "ts" / name).exists()] == []
    with served(BLOCKS["serve_series"].strip(), tmp_path) as port:
        observe, past, forecast = BLOCKS["curl_series"].strip().replace("8082", port).splitlines()
        seen = json.loads(shell(observe, tmp_path).stdout)
        assert shell(past, tmp_path).returncode == 0
        answer = json.loads(shell(forecast, tmp_path).stdout)
    assert (seen["anomaly"], seen["rows_wanted"]) == (False, 167)
    assert len(answer["pred"]) == len(answer["lower"]) == len(answer["quantiles"]["0.5"]) == 24


@contextmanager
def served(line: str, folder: Path, flags: str = "") -> Iterator[str]:
    """Run a serve command of the README on a free port until the block ends; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, *f"{line} --port {port} {flags}".split()[1:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("listening")
            assert process.stdout.readline().startswith("ready")
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def check_serving(folder: Path) -> None:
    shutil.copy(next((folder / "data/vision/test/mug").iterdir()), folder / "photo.jpg")
    with served(BLOCKS["serve"].strip(), folder) as port:
        calls = BLOCKS["curl"].strip().replace("8080", port).splitlines()
        health, answer = (json.loads(shell(call, folder).stdout) for call in calls)
    assert health["status"] == "ok"
    shown = re.search(r"The answer: `(\{.*?\})`", README, re.DOTALL)[1]
    assert set(re.findall(r'"(\w+)":', shown)) == answer.keys()


def check_operating(folder: Path) -> None:
    token, line = BLOCKS["operate"].strip().splitlines()
    assert shell(token, folder).returncode == 0
    *watch, offline = BLOCKS["watch"].strip().splitlines()
    with served(line, folder) as port:
        calls = BLOCKS["ask"].strip().replace("8080", port).splitlines()
        ready, metrics, document, model, reloaded = (shell(call, folder).stdout for call in calls)
        predict = BLOCKS["curl"].strip().splitlines()[1]
        watched = [shell(call.replace("8080", port), folder).stdout for call in (predict, *watch)]
    answer, alerts, joined = map(json.loads, watched)
    assert (answer["alert"], alerts["firing"], joined["unknown"]) == ([], [], 1)
    assert shell(offline, folder).stdout.startswith("1 requests of model ")
    assert (folder / "drift.html").exists()
    assert json.loads(ready)["status"] == "ready"
    assert "model_ready 2\n" in metrics
    assert {"/predict", "/metrics"} <= json.loads(document)["paths"].keys()
    assert json.loads(model)["name"] == "vision"
    assert json.loads(reloaded)["status"] == "reloaded"


def check_runs(folder: Path) -> None:
    listed, best, same, again = (shell(line, folder) for line in BLOCKS["runs"].strip().splitlines())
    assert listed.stdout.splitlines()[1].startswith("runs/vision  vision")
    assert best.stdout == "runs/vision\n"
    assert same.stdout.startswith("the same data: ")
    assert (again.returncode, "are bit-equal" in again.stdout) == (0, True), again.stdout + again.stderr


def check_rolling_out(folder: Path) -> None:
    ckpt = load_ckpt(folder / "runs/vision/best.pt")
    save_ckpt(folder / "runs/new/best.pt", {**ckpt, "epoch": ckpt["epoch"] + 1})  # the same file would be no candidate
    with served(BLOCKS["rollout"].strip(), folder) as port:
        calls = [f"{call} --url http://localhost:{port}" for call in BLOCKS["decide"].strip().splitlines()]
        status, held, promoted = (json.loads(shell(call, folder).stdout)["status"] for call in calls)
    assert (status, held, promoted) == ("running", "held", "promoted")
    with served(BLOCKS["rollout"].strip(), folder) as port:
        assert json.loads(shell(f"curl -s localhost:{port}/rollout", folder).stdout)["status"] == "promoted"


def check_releasing(folder: Path) -> None:
    card, gate, register, promote, serve, rollback = BLOCKS["release"].strip().splitlines()
    (folder / "data/vision/card.toml").write_text('licence = "MIT"\n')
    assert shell(card, folder).returncode == 0
    assert "**Missing: contact.**" in (folder / "runs/vision/MODEL_CARD.md").read_text()
    judged = shell(gate, folder)  # after one epoch on 48 photos
    assert judged.returncode == 1
    assert "\nNO quality: accuracy: accuracy is " in judged.stdout
    assert shell(register, folder).stdout == "vision@1\n"
    refused = shell(promote, folder)
    assert (refused.returncode, "quality: accuracy: " in refused.stderr) == (1, True)
    assert shell(f"{promote} --override 'it is a test'", folder).returncode == 0
    with served(serve, folder) as port:
        health = json.loads(shell(f"curl -s localhost:{port}/ready", folder).stdout)
    assert health["model_id"] == json.loads((folder / "runs/vision/best.json").read_text())["sha256"][:12]
    assert "there is no release before this one" in shell(rollback, folder).stderr


@pytest.mark.slow
def test_make_demo_runs_the_demo(tmp_path):
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m tests.demo" in planned
    done = python("tests.demo", "--small", "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "vision: accuracy" in done.stdout
    assert "nlp: accuracy" in done.stdout
    assert "ts: MSE" in done.stdout
    assert "SIGTERM → exit status 0" in done.stdout


def test_make_test_runs_the_suite_and_ci_runs_make_test():
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m pytest" in planned
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    for command in ("make demo", "make test"):
        assert f"```sh\n{command}\n```" in README


def test_the_page_is_finished_and_says_what_the_preset_is():
    assert re.findall(r"\b[TC]_[A-Z]+\b", README) == []
    (flags,) = re.findall(r"`--preset accurate` stands for `([^`]*)`", README)
    assert vars(train.parse(flags.split())) == {**vars(train.parse(["--preset", "accurate"])), "preset": "quick"}
    assert f"{train.PHOTOS_SEEN:,} photos" in README


def test_every_command_of_the_page_is_run_here():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert set(blocks) == {*BLOCKS.values(), "make demo\n", "make test\n"}


@pytest.mark.slow
def test_the_bench_command_of_the_page(colour_photos, tmp_path):
    assert "python -m tests.bench.vision --data PACK --seeds 3 --json" in README
    done = python(
        "tests.bench.vision", "--data", colour_photos, "--seeds", 2, "--json", "--rounds", 1, "--steps", 2,
        "--out", tmp_path, "--flags", "--epochs 2 --bs 16 --width 4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"accuracy", "ece", "seconds", "img_per_s", "loader_ratio", "inference_ratio"} <= figures.keys()
    assert [run["seed"] for run in figures["runs"]] == [0, 1]
    assert figures["accuracy"] == pytest.approx(sum(run["accuracy"] for run in figures["runs"]) / 2)


@pytest.mark.slow
def test_the_bench_command_for_texts(intent_texts, tmp_path):
    assert "python -m tests.bench.nlp --data FILE_OR_FOLDER --seeds 3 --json" in README
    done = python(
        "tests.bench.nlp", "--data", intent_texts, "--seeds", 1, "--json", "--rounds", 1, "--out", tmp_path,
        "--flags", "--epochs 2 --bs 32 --dim 16 --channels 16 --hidden 16 --lr 1e-2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    wanted = {"accuracy", "macro_f1", "ece", "oos_auroc", "oos_recall_at_95", "seconds", "inference_ratio"}
    assert wanted <= figures.keys()
    assert figures["accuracy"] == figures["runs"][0]["accuracy"] > 0.3
