"""A part of tests.bench.monitor: accuracy expected without labels, beside the true one, on held-out data.

The typos are of no kind that the expectation was learned from. Photos are judged twice: by what the checkpoint learned,
which knows the kinds of damage, and by what it would have learned without the kind in question (`gap_unseen`).
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from common.expected import learn
from common.log import read_jsonl
from common.window_checks import expected_accuracy
from project_nlp_intent.inference import Predictor as TextPredictor
from project_vision_cls.calibrate import damaged
from project_vision_cls.corruptions import CORRUPTIONS
from project_vision_cls.data import ImageFolder
from project_vision_cls.inference import Predictor as PhotoPredictor
from project_vision_cls.watch import LOOKS, photo_features

MODERATE = 2  # severity of 5, for photos; the ones below and above it are reported too
TYPOS = 0.05  # share of the letters of a text that are doubled, dropped or swapped


def accuracy(args, folder: Path, stack: ExitStack) -> dict:
    """{"photos": {"clean": {"true", "expected", "gap", "confidence_gap"}, ...}, ...}; {} without data.

    Gaps are in points. confidence_gap: of the mean confidence, which needs nothing learned. gap_unseen: of an
    expectation learned without this kind of damage.
    """
    found = {}
    if args.vision and args.photos:
        found["photos"] = photos(PhotoPredictor.load(args.vision / "best.pt"), args.photos, folder / "cache")
    if args.intent and args.texts:
        found["texts"] = texts(TextPredictor.load(args.intent / "best.pt"), args.texts)
    clean = [abs(part["clean"]["gap"]) for part in found.values()]
    worst = {"accuracy_gap_clean": max(clean), **worst_gaps(found)} if found else {}
    return {**worst, "accuracy": found}


def worst_gaps(found: dict) -> dict:
    """{"accuracy_gap_damaged", "..._mild", "..._strong"}: the largest gap of moderate damage, less and more.

    With "_unseen" at the end: of kinds that nothing was learned from.
    """
    gaps: dict[str, list[float]] = {}
    for part in found.values():
        for name, one in part.items():
            end = {"1": "_mild", "3": "_strong"}.get(name[-1], "")
            for key in ("gap", "gap_unseen"):
                value = 0.0 if name == "clean" else abs(one.get(key, one["gap"]))
                gaps.setdefault(f"accuracy_gap_damaged{end}{key[3:]}", []).append(value)
    return {name: max(values) for name, values in gaps.items()}


def gap(reference: dict, features: dict[str, list], right: list[bool]) -> dict:
    """In points."""
    scope = features.get("in_scope", ["yes"] * len(right))
    right = [one for one, inside in zip(right, scope, strict=True) if inside == "yes"]
    values = features["conf" if "conf" in features else "prob"]
    true, found = float(np.mean(right)), expected_accuracy(reference, features)["value"]
    figures = {"true": true, "expected": found, "gap": found - true, "confidence_gap": float(np.mean(values)) - true}
    return {name: round(100 * value, 2) for name, value in figures.items()}


def photos(predictor: PhotoPredictor, folder: Path, scratch: Path) -> dict:
    """Test photos in `folder`; validation photos lie beside it, in `val`."""
    groups = damaged(predictor, ImageFolder(folder.parent / "val", predictor.classes, predictor.img_size, scratch))
    files = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in (".jpg", ".png")]
    names, pixels = [path.parent.name for path in files], [predictor.decode(path) for path in files]
    rng = np.random.default_rng(0)
    jobs = {"clean": lambda photo: photo} | {
        name if severity == MODERATE else f"{name} {severity}": partial(function, severity=severity, rng=rng)
        for severity in (MODERATE - 1, MODERATE, MODERATE + 1)
        for name, function in CORRUPTIONS.items()
    }
    return {
        name: judged(predictor, groups, name, names, [hurt(photo) for photo in pixels]) for name, hurt in jobs.items()
    }


def judged(predictor: PhotoPredictor, groups: dict, job: str, names: list[str], pixels: list[np.ndarray]) -> dict:
    """The gaps of photos with their true names; `groups` as project_vision_cls.calibrate makes them."""
    answers = [one for i in range(0, len(pixels), 64) for one in predictor.predict_rows(pixels[i : i + 64])]
    right = [answer["label"] == name for answer, name in zip(answers, names, strict=True)]
    features = photo_features(np.stack(pixels), [(1, 1)] * len(pixels), answers)
    others = [group for (kind, _), group in groups.items() if kind != job.split()[0]]
    unseen = {**predictor.reference, "expected": learn(others, "prob", LOOKS)}
    found = gap(predictor.reference, features, right)
    return found if job == "clean" else {**found, "gap_unseen": gap(unseen, features, right)["gap"]}


def texts(predictor: TextPredictor, path: Path) -> dict:
    lines, _ = read_jsonl(path)
    lines = [line for line in lines if line["label"] in predictor.classes]
    found, rng = {}, random.Random(0)
    for damage in ("clean", "typos"):
        hurt = [line["text"] if damage == "clean" else misspelt(line["text"], rng) for line in lines]
        answers = predictor.predict(hurt)
        right = [answer["label"] == line["label"] for answer, line in zip(answers, lines, strict=True)]
        features = predictor.features([predictor.decode(text) for text in hurt], answers)
        found[damage] = gap(predictor.reference, features, right)
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
