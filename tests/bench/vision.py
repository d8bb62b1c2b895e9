"""python -m tests.bench.vision --data PACK --seeds 3 --json

PACK holds train, val and test. Trains with the documented preset once a seed, chooses on val, reports on test; then
compares the training loop with a bare forward/backward/step loop over cached tensors, and inference over a folder with
decoding + model alone. Prints what it does; with --json the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.amp_ckpt import EMA, AmpScaler
from common.cli import command_parser, run
from common.log import read_jsonl
from project_vision_cls import train
from project_vision_cls.augment import augmented
from project_vision_cls.data import channel_stats, make_loader, to_input
from project_vision_cls.inference import Predictor, walk_photos, write_csv
from project_vision_cls.model import build_model
from tests.bench.launch import shown


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder with train, val and test, each <class>/*.jpg")
    add("--seeds", type=int, default=3, help="number of trainings, with the seeds 0, 1, …")
    add("--flags", default="--preset accurate", help="flags of every training")
    add("--rounds", type=int, default=15, help="repetitions of each timing; medians are reported")
    add("--steps", type=int, default=20, help="training steps in one timing")
    add("--out", help="keep the runs in this folder (default: a temporary one)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.out or temporary)
        runs = [one_run(Path(args.data), out, seed, args.flags) for seed in range(args.seeds)]
        figures = summary(runs) | {"loader_ratio": loader_ratio(Path(args.data), out, args)}
        figures |= inference_ratio(Path(args.data, "test"), out, args.rounds)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def one_run(data: Path, out: Path, seed: int, flags: str) -> dict:
    """Train and score one seed, through the commands; {"accuracy", "ece", ...} on test."""
    run_dir = out / f"seed{seed}"
    roots, cache = ["--train_root", data / "train", "--val_root", data / "val"], ["--cache_dir", out / "cache"]
    start = time.monotonic()
    shown("project_vision_cls.train", *roots, *flags.split(), "--seed", seed, "--run_dir", run_dir, *cache)
    seconds = time.monotonic() - start  # of the whole command: the first seed also reads the photos
    for split in ("val", "test"):
        shown("project_vision_cls.eval", "--ckpt", run_dir / "best.pt", "--val_root", data / split, *cache)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    test, val = metrics["eval"]["test"], metrics["eval"]["val"]
    epochs, _ = read_jsonl(run_dir / "train.jsonl")
    return {
        "seed": seed,
        "accuracy": test["accuracy"],
        "val_accuracy": val["accuracy"],
        "macro_f1": test["macro_f1"],
        "ece": test["after_temperature"]["ece"],
        "ece_before": test["before_temperature"]["ece"],
        "seconds": seconds,
        "img_per_s": statistics.median(epoch["img_per_s"] for epoch in epochs),
    }


def summary(runs: list[dict]) -> dict:
    """Means over the seeds; seconds is the longest training."""
    figures = {key: statistics.mean(run[key] for run in runs) for key in runs[0] if key not in ("seed", "seconds")}
    spread = statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0.0
    return {**figures, "accuracy_sd": spread, "seconds": max(run["seconds"] for run in runs), "runs": runs}


def interleaved(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in every round; they run in turn, so that a slow moment of the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):  # the first round warms up
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in taken.items()}


def median_ratio(upper: list[float], lower: list[float]) -> float:
    """The median over the rounds of what the two parts took, one over the other."""
    return statistics.median(u / v for u, v in zip(upper, lower, strict=True))


def loader_ratio(data: Path, out: Path, args: argparse.Namespace) -> float:
    """Photos/s of the training loop (loader, augmentation, EMA and all) over those of a bare loop, same net."""
    flags = train.parse(["--train_root", str(data / "train"), "--cache_dir", str(out / "cache"), *args.flags.split()])
    photos, _ = train.load_data(flags)
    mean, std = channel_stats(photos)
    config = {"arch": flags.arch, "width": flags.width, "depth": flags.depth, "img_size": photos.img_size}
    model = build_model(config, len(photos.classes)).to(memory_format=torch.channels_last)
    optimizer, scaler, ema = train.make_optimizer(flags, model), AmpScaler("cpu", clip=flags.clip), EMA(model)
    classes = len(photos.classes)

    def whole() -> None:
        loader = make_loader(photos, flags.bs, shuffle=True, workers=flags.workers, drop_last=True)
        batches = (batch for _ in range(args.steps) for batch in loader)
        for step, (pixels, labels) in zip(range(args.steps), batches, strict=False):
            x, target = augmented(pixels, labels, flags, mean, std, classes)
            loss = F.cross_entropy(model(x), target, label_smoothing=flags.label_smoothing)
            scaler.step(loss, optimizer, model.parameters(), step)
            ema.update(model)

    loader = make_loader(photos, flags.bs, shuffle=True, drop_last=True)
    cached = [
        (to_input(pixels, mean, std), labels) for _, (pixels, labels) in zip(range(args.steps), loader, strict=False)
    ]

    def bare() -> None:
        for _, (x, labels) in zip(range(args.steps), itertools.cycle(cached), strict=False):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()

    seconds = interleaved({"whole": whole, "bare": bare}, args.rounds)
    return median_ratio(seconds["bare"], seconds["whole"])


def inference_ratio(test: Path, out: Path, rounds: int) -> dict:
    """Photos/s from a folder to a CSV over those of decoding on the same threads and then the model, nothing else."""
    predictor = Predictor.load(out / "seed0" / "best.pt")
    files = list(walk_photos(test))

    def alone() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(predictor.decode, files))
        for start in range(0, len(rows), 64):
            predictor.logits(torch.from_numpy(np.stack(rows[start : start + 64])))

    def whole() -> None:
        write_csv(predictor, walk_photos(test), test, out / "preds.csv", 64, False)

    seconds = interleaved({"whole": whole, "alone": alone}, rounds)
    return {
        "inference_ratio": median_ratio(seconds["alone"], seconds["whole"]),
        "inference_img_per_s": len(files) / statistics.median(seconds["whole"]),
    }


if __name__ == "__main__":
    run(main)
