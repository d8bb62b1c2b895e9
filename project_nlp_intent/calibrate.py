"""From validation texts to what a checkpoint holds beyond its weights.

balance(predictor, val_set, bs=256)
scores, logits = validate(predictor, val_set, bs=256)
ckpt |= calibrated(predictor, val_set, logits)          # assets with temperature and reject, reference, golden
learn_accuracy(run_dir / "best.pt", val_set, device)    # once, at the end
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.amp_ckpt import load_ckpt, save_ckpt
from common.expected import FEWEST, MOST, PART, STRENGTHS, learn
from common.meter import T_MAX, T_MIN, nll, temperature
from common.reference import make_reference
from project_nlp_intent.data import OUT, IntentDataset, make_loader
from project_nlp_intent.inference import Predictor
from project_nlp_intent.perturb import KINDS, perturbed
from project_nlp_intent.reject import SCORES, choose
from project_nlp_intent.watch import text_features

RIDGE = 1e-3  # per squared change of a net's weight, in logarithms: no net is dropped for a handful of texts
COVERAGE = 0.95  # of in-scope validation texts that the stored threshold answers


def validate(predictor: Predictor, texts: IntentDataset, bs: int) -> tuple[dict, Tensor]:
    """Scores and logits (n, C) of an encoded set.

    Accuracy is over the texts that are in scope; one of a class that is not in the train set counts as wrong, and has
    no loss.
    """
    logits = torch.cat([predictor.logits(inputs) for inputs, _ in make_loader(texts, bs)])
    known, inside = texts.labels >= 0, texts.labels != OUT
    accuracy = (logits.argmax(dim=1) == texts.labels)[inside].double().mean().item()
    return {"val_loss": float(nll(logits[known], texts.labels[known])), "val_acc": accuracy}, logits


@torch.no_grad()
def balance(predictor: Predictor, texts: IntentDataset, bs: int) -> None:
    """Set how much each net counts, from its validation logits."""
    net, known = predictor.model, texts.labels >= 0
    parts = [
        net.branches({k: v.to(predictor.device) for k, v in inputs.items()}) for inputs, _ in make_loader(texts, bs)
    ]
    every = [torch.cat([part[name] for part in parts]).float().cpu() for name in net.nets]
    net.heat.copy_(1 / (len(every) * weights_of(torch.stack(every)[:, known], texts.labels[known])))


def weights_of(logits: Tensor, labels: Tensor) -> Tensor:
    """(nets,), 1 in all: with these weights, and the best temperature, the nets' mean is most likely to be right.

    logits (nets, n, C). Found from the weights at which each net has the temperature that suits it alone; those stay
    where the mean is right everywhere, since the likelihood then has nothing to tell.
    """
    alone = 1 / torch.tensor([heat_of(net, labels) for net in logits])
    logits = logits * alone[:, None, None]
    change = torch.zeros(len(logits), requires_grad=True)  # in logarithms
    search = torch.optim.LBFGS([change], max_iter=25, tolerance_grad=1e-3, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        mixed = (change.exp()[:, None, None] * logits).mean(0)
        value = F.cross_entropy(mixed, labels) + RIDGE * change.square().sum()
        value.backward()
        return value

    if len(logits) > 1 and (logits.sum(0).argmax(1) != labels).any():
        with torch.enable_grad():
            search.step(loss)
    weights = alone * change.detach().exp()
    return weights / weights.sum()


def heat_of(logits: Tensor, labels: Tensor) -> float:
    """The temperature that suits logits (n, C).

    Where every answer is right, the likelihood says nothing of it; then the one at which the mean confidence is
    (n + 1) / (n + 2), the rule of succession.
    """
    if (logits.argmax(1) != labels).any():
        return temperature(logits, labels)
    low, high, wanted = math.log(T_MIN), math.log(T_MAX), (len(labels) + 1) / (len(labels) + 2)
    for _ in range(45):
        middle = (low + high) / 2
        sure = (logits.double() / math.exp(middle)).softmax(1).amax(1).mean()
        low, high = (middle, high) if sure > wanted else (low, middle)
    return math.exp(low)


def calibrated(predictor: Predictor, val_set: IntentDataset, logits: Tensor, coverage: float = COVERAGE) -> dict:
    """What a checkpoint holds beyond the weights, from the validation logits (n, C).

    The temperature, the threshold for out-of-scope texts, the reference that monitoring compares with, and golden
    inputs with their probabilities.
    """
    known = val_set.labels >= 0
    heat = heat_of(logits[known], val_set.labels[known])
    reject = choose(logits.double() / heat, val_set.labels, coverage)
    predictor.assets = {**predictor.assets, "temperature": heat, "reject": reject}
    scaled = logits[known].double() / heat  # what is out of scope in validation says nothing of what will come
    confidence, pred = scaled.softmax(1).max(1)
    encoded, known = val_set.encoded, known.numpy()
    reference = {
        "pred_counts": torch.bincount(pred, minlength=logits.shape[1]).tolist(),
        "confidence": _sample(confidence.numpy()),
        "scope_score": _sample(SCORES[reject["score"]](scaled).numpy()),
        "length": _sample(np.diff(encoded.token_starts)[known]),
        "unknown": _sample(encoded.unknown[known]),
        "rejected": 1 - coverage,
    }
    answers, chosen = predictor.answers(encoded, logits), np.flatnonzero(known)
    features = {name: [values[i] for i in chosen] for name, values in text_features(encoded, answers).items()}
    reference |= make_reference(features)
    right = pred == val_set.labels[torch.from_numpy(known)]
    accepted = torch.tensor([answers[i]["in_scope"] for i in chosen])
    reference["accuracy"] = right.double().mean().item()
    if accepted.any():
        reference["accuracy_accepted"] = right[accepted].double().mean().item()
    texts = [val_set.texts[i] for i in np.linspace(0, len(val_set) - 1, 4).astype(int)]
    golden = {"texts": texts, "probs": predictor.scaled(texts).softmax(1)}
    return {"assets": predictor.assets, "reference": reference, "golden": golden}


def _sample(values: np.ndarray) -> list[float]:
    """At most some 1,000 of the values, evenly spaced."""
    return values[:: max(1, len(values) // 1000)].astype(float).tolist()


def learn_accuracy(path: Path, val_set: IntentDataset, device: torch.device) -> None:
    """Put into the reference of best.pt what tells its accuracy without labels, from damaged validation texts.

    Costs at most 3,100 predictions; with fewer than FEWEST texts there is nothing to learn from.
    """
    held, predictor = load_ckpt(path, project="nlp"), Predictor.load(path, device)
    rows, rng = np.flatnonzero(val_set.labels >= 0), np.random.default_rng(0)
    if len(rows) < FEWEST:
        return
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(int))]
    groups = [answered(predictor, [val_set.texts[i] for i in rows], val_set.labels[rows])]
    for kind in KINDS:
        for strength in STRENGTHS:
            some = rng.permutation(rows)[:PART]
            texts = [perturbed(kind, val_set.texts[i], strength, rng) for i in some]
            groups.append(answered(predictor, texts, val_set.labels[some]))
    learned = learn(groups, "conf", ["length", "unknown"])
    save_ckpt(path, {**held, "reference": {**held["reference"], "expected": learned}})


def answered(predictor: Predictor, texts: list[str], labels: Tensor) -> tuple[dict[str, list], list[bool]]:
    """Features of cleaned texts, and whether each answer was right."""
    answers = [one for start in range(0, len(texts), 64) for one in predictor.predict_rows(texts[start : start + 64])]
    right = [answer["pred"] == label for answer, label in zip(answers, labels.tolist(), strict=True)]
    return predictor.features(texts, answers), right
