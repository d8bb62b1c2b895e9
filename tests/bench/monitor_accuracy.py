"""A part of tests.bench.monitor: accuracy expected from confidences, beside the true one, on held-out data."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from common.log import read_jsonl
from common.monitor import expected_accuracy
from project_nlp_intent.inference import Predictor as TextPredictor
from project_vision_cls.corruptions import CORRUPTIONS
from project_vision_cls.inference import Predictor as PhotoPredictor

MODERATE = 2  # severity of 5, for photos
TYPOS = 0.05  # share of the letters of a text that are doubled, dropped or swapped


def accuracy(args, folder: Path, stack: ExitStack) -> dict:
    """{"photos": {"clean": {"true", "expected", "gap"}, ...}, ...}, gaps in points; {} without data."""
    found = {}
    if args.vision and args.photos:
        found["photos"] = photos(PhotoPredictor.load(args.vision / "best.pt"), args.photos)
    if args.intent and args.texts:
        found["texts"] = texts(TextPredictor.load(args.intent / "best.pt"), args.texts)
    clean = [abs(part["clean"]["gap"]) for part in found.values()]
    damaged = [abs(one["gap"]) for part in found.values() for name, one in part.items() if name != "clean"]
    worst = {"accuracy_gap_clean": max(clean), "accuracy_gap_damaged": max(damaged)} if found else {}
    return {**worst, "accuracy": found}


def gap(reference: dict, answers: list[dict], right: list[bool]) -> dict:
    """In points."""
    confidence = "conf" if "conf" in reference["features"] else "prob"
    expected = expected_accuracy(reference, {confidence: [answer[confidence] for answer in answers]})["value"]
    true = float(np.mean(right))
    return {
        "true": round(100 * true, 2),
        "expected": round(100 * expected, 2),
        "gap": round(100 * (expected - true), 2),
    }


def photos(predictor: PhotoPredictor, folder: Path) -> dict:
    files = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in (".jpg", ".png")]
    names, pixels = [path.parent.name for path in files], [predictor.decode(path) for path in files]
    rng, found = np.random.default_rng(0), {}
    for damage in ("clean", *CORRUPTIONS):
        hurt = pixels if damage == "clean" else [CORRUPTIONS[damage](photo, MODERATE, rng) for photo in pixels]
        answers = [one for i in range(0, len(hurt), 64) for one in predictor.predict_rows(hurt[i : i + 64])]
        right = [answer["label"] == name for answer, name in zip(answers, names, strict=True)]
        found[damage] = gap(predictor.reference, answers, right)
    return found


def texts(predictor: TextPredictor, path: Path) -> dict:
    lines, _ = read_jsonl(path)
    lines = [line for line in lines if line["label"] in predictor.classes]
    found, rng = {}, random.Random(0)
    for damage in ("clean", "typos"):
        hurt = [line["text"] if damage == "clean" else misspelt(line["text"], rng) for line in lines]
        answers = predictor.predict(hurt)
        right = [answer["label"] == line["label"] for answer, line in zip(answers, lines, strict=True)]
        found[damage] = gap(predictor.reference, answers, right)
    return found


def misspelt(text: str, rng: random.Random) -> str:
    """Some letters doubled, dropped or swapped with the next."""
    letters, i = list(text), 0
    while i < len(letters):
        if rng.random() < TYPOS:
            kind = rng.randrange(3)
            if kind == 0:
                letters.insert(i, letters[i])
                i += 1
            elif kind == 1 and len(letters) > 1:
                del letters[i]
                continue
            elif i + 1 < len(letters):
                letters[i], letters[i + 1] = letters[i + 1], letters[i]
        i += 1
    return "".join(letters)
