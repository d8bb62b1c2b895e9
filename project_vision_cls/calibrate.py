"""From validation photos to what a checkpoint holds beyond its weights.

scores, logits = validate(predictor, val_set, bs=128)
ckpt |= calibrated(predictor, val_set, logits)          # assets with the temperature, reference, golden
learn_accuracy(run_dir / "best.pt", val_set, device)    # once, at the end
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.amp_ckpt import load_ckpt, save_ckpt
from common.expected import FEWEST, MOST, PART, STRENGTHS, learn
from common.meter import nll, temperature
from common.reference import MOST_POINTS, MOST_VALUES, make_reference
from project_vision_cls.corruptions import CORRUPTIONS
from project_vision_cls.data import ImageFolder, make_loader
from project_vision_cls.inference import Predictor
from project_vision_cls.perturb import KINDS, perturbed
from project_vision_cls.watch import LOOKS, photo_features

SEVERITIES = (1, 2, 3)  # of each corruption, of 5: more tells little of moderate damage


def validate(predictor: Predictor, photos: ImageFolder, bs: int) -> tuple[dict, Tensor]:
    """Scores and logits (n, C). A photo of a class that is not in the train set counts as wrong, and has no loss."""
    logits = torch.cat([predictor.logits(pixels) for pixels, _ in make_loader(photos, bs)])
    known = photos.labels >= 0
    accuracy = (logits.argmax(dim=1) == photos.labels).double().mean().item()
    return {"val_loss": float(nll(logits[known], photos.labels[known])), "val_acc": accuracy}, logits


def calibrated(predictor: Predictor, val_set: ImageFolder, logits: Tensor) -> dict:
    """What a checkpoint holds beyond the weights, from the validation logits (n, C).

    The temperature, the reference that monitoring compares with, and golden inputs with their probabilities.
    """
    known = val_set.labels >= 0
    predictor.assets = {**predictor.assets, "temperature": temperature(logits[known], val_set.labels[known])}
    probs = (logits.double() / predictor.assets["temperature"]).softmax(dim=1)
    right = (probs.argmax(dim=1) == val_set.labels).double().mean().item()
    reference = {**reference_of(predictor, val_set, probs), "accuracy": right}
    pixels = val_set[np.linspace(0, len(val_set) - 1, 4).astype(int).tolist()][0]
    golden = {"pixels": pixels, "probs": predictor.probabilities(pixels)}
    return {"assets": predictor.assets, "reference": reference, "golden": golden}


def reference_of(predictor: Predictor, photos: ImageFolder, probs: Tensor) -> dict:
    """What monitoring compares traffic with: `photos` (2,000 at most, evenly spaced) and their probabilities (n, C)."""
    chosen = np.unique(np.linspace(0, len(photos) - 1, MOST_VALUES).astype(int))
    prob, pred = probs[chosen].max(dim=1)
    answers = [{"label": predictor.classes[c], "prob": p} for c, p in zip(pred.tolist(), prob.tolist(), strict=True)]
    records = [photos.records[row] for row in photos.rows[chosen]]
    sizes = [(record["width"], record["height"]) for record in records]
    pixels = np.take(photos.images, photos.rows[chosen], axis=0)
    embedded = pixels[np.unique(np.linspace(0, len(pixels) - 1, MOST_POINTS).astype(int))]
    return make_reference(photo_features(pixels, sizes, answers), predictor.embed(list(embedded)))


def mirror_best(path: Path, val_set: ImageFolder, bs: int, device: torch.device) -> None:
    """Let best.pt answer with two looks at a photo, as it is and mirrored: calibrate and score it anew.

    Epochs are compared by one look: two tell them apart no better, and take twice the time.
    """
    held, predictor = load_ckpt(path, project="vision"), Predictor.load(path, device)
    predictor.assets = {**predictor.assets, "mirror": True, "temperature": 1.0}
    scores, logits = validate(predictor, val_set, bs)
    save_ckpt(path, {**held, **calibrated(predictor, val_set, logits), "metrics": scores})
    print(f"with mirrored photos: val_loss {scores['val_loss']:.3f}  val_acc {scores['val_acc']:.2%}")


def learn_accuracy(path: Path, val_set: ImageFolder, device: torch.device) -> None:
    """Put into the reference of best.pt what tells its accuracy without labels, from damaged validation photos.

    With fewer than FEWEST photos there is nothing to learn from.
    """
    held, predictor = load_ckpt(path, project="vision"), Predictor.load(path, device)
    if (val_set.labels >= 0).sum() < FEWEST:
        return
    learned = learn(list(damaged(predictor, val_set).values()), "prob", LOOKS)
    save_ckpt(path, {**held, "reference": {**held["reference"], "expected": learned}})


def damaged(predictor: Predictor, val_set: ImageFolder) -> dict[tuple[str, float], tuple[dict[str, list], list[bool]]]:
    """{("plain", 0), ("haze", 0.35), ..., ("contrast", 2), ...: (features, which answers were right)}, in this order.

    Damage of the nine kinds of perturb.py and the nine of corruptions.py, in 10,600 predictions at most.
    """
    rows = np.flatnonzero(val_set.labels >= 0)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(int))]
    chance, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    ways = {(kind, s): partial(perturbed, kind, strength=s, generator=chance) for kind in KINDS for s in STRENGTHS}
    ways |= {(kind, s): partial(corrupted, kind, severity=s, rng=rng) for kind in CORRUPTIONS for s in SEVERITIES}
    groups = {("plain", 0): answered(predictor, *val_set[rows.tolist()])}
    for way, worse in ways.items():
        some = rows[torch.randperm(len(rows), generator=chance)[:PART].numpy()]
        pixels, labels = val_set[some.tolist()]
        groups[way] = answered(predictor, worse(pixels), labels)
    return groups


def corrupted(kind: str, pixels: Tensor, severity: int, rng: np.random.Generator) -> Tensor:
    """(B, S, S, 3) uint8 in and out, each photo damaged by one of CORRUPTIONS."""
    return torch.from_numpy(np.stack([CORRUPTIONS[kind](photo, severity, rng) for photo in pixels.numpy()]))


def answered(predictor: Predictor, pixels: Tensor, labels: Tensor) -> tuple[dict[str, list], list[bool]]:
    """Features of photos (B, S, S, 3), and whether each answer was right."""
    answers = [one for part in pixels.split(64) for one in predictor.predict_rows(list(part.numpy()))]
    features = photo_features(pixels.numpy(), [(1, 1)] * len(answers), answers)
    return features, [answer["pred"] == label for answer, label in zip(answers, labels.tolist(), strict=True)]
