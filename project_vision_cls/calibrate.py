"""From validation photos to what a checkpoint holds beyond its weights.

scores, logits = validate(predictor, val_set, bs=128)
ckpt |= calibrated(predictor, val_set, logits)          # assets with the temperature, reference, golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.amp_ckpt import load_ckpt, save_ckpt
from common.meter import nll, temperature
from common.reference import MOST_POINTS, MOST_VALUES, make_reference
from project_vision_cls.data import ImageFolder, make_loader
from project_vision_cls.inference import Predictor
from project_vision_cls.watch import photo_features


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
