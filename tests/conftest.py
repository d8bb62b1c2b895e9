"""Photos small enough to train on in seconds, and one trained run that many tests read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from common import generate_model_card
from common.amp_ckpt import load_ckpt, save_ckpt
from common.log import file_sha256
from common.registry import main

ROOT = Path(__file__).parent.parent
FACTS = {"licence": "MIT", "contact": "the testers", "data_source": "drawn by the tests", "data_licence": "CC0-1.0"}
# the same examples every time, however busy the machine; tests.bench.fuzz looks for new ones
settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


def patch(colour: tuple[int, int, int], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A noisy patch of a colour, (width, height) pixels."""
    pixels = np.array(colour) + rng.normal(0, 60, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_colour_photos(root: Path, counts: dict[str, int], size: int = 32, seed: int = 0) -> None:
    """`root/<split>/<colour>/N.png`: patches that are learnt in a few steps."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                patch(colour, (size, size), rng).save(folder / f"{i}.png")


def python(*args: object, cwd: Path = ROOT, **options) -> subprocess.CompletedProcess:
    """Run `python -m <args>` as a user would, one thread, and give back its output."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def registry(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """`python -m common.registry <words>` in this process: (exit status, output). UserError comes as it is."""

    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return end.value.code, shown.out + shown.err

    return call


@pytest.fixture(scope="session")
def colour_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (20 a class), val (8) and test (6)."""
    root = tmp_path_factory.mktemp("photos")
    make_colour_photos(root, {"train": 20, "val": 8, "test": 6})
    return root


@pytest.fixture(scope="session")
def colour_run(colour_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short training on `colour_photos`."""
    run_dir = tmp_path_factory.mktemp("runs") / "vision"
    flags = ["--epochs", 6, "--bs", 8, "--lr", 1e-2, "--width", 4, "--cache_dir", run_dir.parent / "cache"]
    flags += ["--deterministic"]  # on a GPU too it can be reproduced bit by bit
    done = python("project_vision_cls.train", "--train_root", colour_photos / "train", "--run_dir", run_dir, *flags)
    assert done.returncode == 0, done.stderr
    return run_dir


def wave(rows: int, seed: int = 0) -> np.ndarray:
    """(rows,) hourly readings: a daily wave on a slow drift, with noise."""
    rng = np.random.default_rng(seed)
    hours = np.arange(rows)
    return (
        20 + 5 * np.sin(2 * np.pi * hours / 24) + 0.05 * rng.standard_normal(rows).cumsum() + rng.normal(0, 0.3, rows)
    )


def write_series(path: Path, values: np.ndarray, start: str = "2024-01-01T00:00") -> Path:
    """A CSV with the columns time and load, a row an hour."""
    stamps = np.datetime64(start, "m") + 60 * np.arange(len(values))
    rows = [f"{stamp},{value:.6f}" for stamp, value in zip(stamps, values, strict=True)]
    path.write_text("\n".join(["time,load", *rows]) + "\n")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small nets, called often: on a busy machine torch's threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TS_FLAGS = ["--win", 48, "--h", 6, "--hidden", 8, "--epochs", 2, "--bs", 64, "--lr", 3e-3]


@pytest.fixture(scope="session")
def wave_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 hours of `wave`."""
    return write_series(tmp_path_factory.mktemp("series") / "wave.csv", wave(1200))


@pytest.fixture(scope="session")
def wave_run(wave_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short training on `wave_csv`."""
    run_dir = tmp_path_factory.mktemp("runs") / "ts"
    done = python("project_ts_forecast.train", "--csv", wave_csv, "--run_dir", run_dir, "--deterministic", *TS_FLAGS)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="session")
def intent_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (40 texts a class), val.jsonl and test.jsonl (10, and 30 out of scope)."""
    root = tmp_path_factory.mktemp("texts")
    done = python(
        "project_nlp_intent.synthetic", "--out", root, "--train", 40, "--val", 10, "--test", 10, "--oos", 30, "--force"
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="session")
def intent_run(intent_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a short training on `intent_texts`."""
    run_dir = tmp_path_factory.mktemp("runs") / "nlp"
    flags = ["--epochs", 6, "--bs", 32, "--lr", 1e-2, "--dim", 16, "--channels", 32, "--hidden", 32]
    flags += ["--deterministic"]
    done = python(
        "project_nlp_intent.train", "--train_jsonl", intent_texts / "train.jsonl", "--run_dir", run_dir, *flags
    )
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="session")
def scored_run(colour_run: Path, colour_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colour_run` after an evaluation on the test photos, with cards."""
    run = shutil.copytree(colour_run, tmp_path_factory.mktemp("scored") / "vision")
    flags = ["--val_root", colour_photos / "test", "--cache_dir", run.parent / "cache", "--robustness"]
    done = python("project_vision_cls.eval", "--ckpt", run / "best.pt", *flags)
    assert done.returncode == 0, done.stderr
    (run / "card.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in FACTS.items()))
    generate_model_card.main(["--run_dir", str(run)])
    return run


def second_run(run: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run whose checkpoint has other values, and so another SHA-256, and a record that says so."""
    other = shutil.copytree(run, folder / f"other{len(list(folder.glob('other*')))}")
    save_ckpt(other / "best.pt", {**load_ckpt(other / "best.pt"), **(changes or {"extra": "another"})})
    record = json.loads((other / "run.json").read_text())
    record["checkpoint"]["sha256"] = file_sha256(other / "best.pt")
    (other / "run.json").write_text(json.dumps(record))
    return other
