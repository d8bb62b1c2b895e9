"""Metrics as plain functions, and one running mean.

    >>> import torch
    >>> from common.meter import accuracy_topk, confusion_matrix, ece, macro_f1
    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    >>> round(accuracy_topk(logits, target)[0], 3)
    0.667
    >>> confusion_matrix(logits.argmax(1), target, num_classes=2).tolist()
    [[1, 0], [1, 1]]

Reads tensors (any device) or numpy arrays, works on the CPU, returns Python floats or CPU tensors; writes nothing.
Wrong input (empty, shape, label out of range, NaN) raises ValueError that says what was found and what was wanted.
Shapes: N examples, C classes. Labels are integers (or booleans) from 0 to C-1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Values = Tensor | np.ndarray | Sequence  # what torch.as_tensor takes
T_MIN, T_MAX = 0.01, 100.0  # bounds of the fitted temperature


class AverageMeter:
    """Weighted running mean of scalars. Tensors are summed on their own device; only reading `avg` waits for it."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: Tensor | float, n: int = 1) -> None:
        """Add `value`, the mean over `n` examples: a number or a one-element tensor, else ValueError."""
        shape = tuple(getattr(value, "shape", ()))
        if n < 1 or math.prod(shape) != 1:
            raise ValueError(f"AverageMeter.update: found shape {shape}, n = {n}, wanted one element, n >= 1")
        if isinstance(value, Tensor):
            # float64, since float32 drifts over an epoch of many steps; Apple's MPS has no float64
            value = value.detach().reshape(()).to(torch.float32 if value.device.type == "mps" else torch.float64)
        self.total = self.total + (value if isinstance(value, Tensor) else float(value)) * n
        self.count += n

    @property
    def avg(self) -> float:
        """The mean as a float; NaN if any value was NaN. ValueError before the first update."""
        if self.count == 0:
            raise ValueError("AverageMeter.avg: found no values, wanted at least one update() before")
        return float(self.total) / self.count


def _matrix(values: Values, name: str) -> Tensor:
    """(N, C) floating point on the CPU, not empty, without NaN."""
    values = torch.as_tensor(values).detach().cpu()
    if values.ndim != 2 or values.numel() == 0 or not values.is_floating_point():
        found = f"shape {tuple(values.shape)} of {values.dtype}"
        raise ValueError(f"{name}: found {found}, wanted (N, C) floating point with N and C at least 1")
    if values.isnan().any():
        raise ValueError(f"{name}: found NaN in {int(values.isnan().any(1).sum())} of {len(values)} rows, wanted none")
    return values


def _labels(labels: Values, num_classes: int, name: str, n: int | None = None) -> Tensor:
    """(N,) int64 on the CPU, not empty, each in [0, num_classes)."""
    labels = torch.as_tensor(labels).detach().cpu()
    wanted = (n or max(1, labels.numel()),)
    if labels.shape != wanted or labels.is_floating_point():
        found = f"shape {tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"{name}: found {found}, wanted integer labels of shape {wanted if n else '(N,), N >= 1'}")
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{name}: found labels {labels.min()} to {labels.max()}, wanted 0 to {num_classes - 1}")
    return labels


def _probabilities(probs: Values) -> Tensor:
    """(N, C) probabilities; (N,) or (N, 1), the probability of class 1, becomes two columns."""
    probs = torch.as_tensor(probs).detach().cpu()
    if probs.ndim == 1 or (probs.ndim == 2 and probs.shape[1] == 1):
        probs = torch.stack([1 - probs.reshape(-1), probs.reshape(-1)], dim=1)
    probs = _matrix(probs, "probs")
    # wide enough for softmax in bfloat16, narrow enough to catch logits passed by mistake
    if probs.min() < -1e-3 or probs.max() > 1 + 1e-3 or (probs.sum(1, dtype=torch.float64) - 1).abs().max() > 0.02:
        low, high = probs.min().item(), probs.max().item()
        raise ValueError(f"probs: found values {low:.4g} to {high:.4g}, wanted probabilities: rows in [0, 1], sum 1")
    return probs


def accuracy_topk(logits: Values, target: Values, topk: Sequence[int] = (1,)) -> tuple[float, ...]:
    """Share of examples whose true class is among the k highest scores, one float for each k.

    logits (N, C), target (N,). Among equal scores the lower class index comes first, as in numpy's argmax.
    k above C counts as C (accuracy 1.0); k below 1 raises ValueError.
    """
    logits = _matrix(logits, "logits")
    target = _labels(target, logits.shape[1], "target", len(logits))
    if min(topk) < 1:
        raise ValueError(f"accuracy_topk: found k = {min(topk)}, wanted at least 1")
    own = logits.gather(1, target[:, None])
    earlier = torch.arange(logits.shape[1]) < target[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)  # how many classes stand before the true one
    return tuple((rank < k).double().mean().item() for k in topk)


def confusion_matrix(pred: Values, target: Values, num_classes: int) -> Tensor:
    """(C, C) int64 counts, rows = truth, columns = prediction. pred (N,), target (N,). Matrices of batches add up."""
    target = _labels(target, num_classes, "target")
    pred = _labels(pred, num_classes, "pred", len(target))
    counts = torch.bincount(target * num_classes + pred, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_report(cm: Values) -> dict[str, Tensor]:
    """Per class, from a (C, C) confusion matrix: {"precision", "recall", "f1", "support"}, each (C,).

    F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979). support = examples in truth. 0 / 0 is 0, as in scikit-learn.
    """
    cm = torch.as_tensor(cm).detach().cpu()
    if cm.ndim != 2 or cm.shape[0] != cm.shape[1] or cm.is_floating_point() or cm.sum() <= 0 or cm.min() < 0:
        found = f"shape {tuple(cm.shape)} of {cm.dtype} with sum {cm.sum()}"
        raise ValueError(f"confusion matrix: found {found}, wanted (C, C) integer counts of at least one example")
    hit, support, predicted = cm.diagonal().double(), cm.sum(1), cm.sum(0)
    return {
        "precision": hit / predicted.clamp(min=1),
        "recall": hit / support.clamp(min=1),
        "f1": 2 * hit / (support + predicted).clamp(min=1),
        "support": support,
    }


def f1(cm: Values) -> Tensor:
    """F1 of each class, (C,) float64, from a (C, C) confusion matrix; 0 for a class that never occurs."""
    return class_report(cm)["f1"]


def macro_f1(cm: Values) -> float:
    """Mean F1 over the classes in truth or prediction: scikit-learn's f1_score(average="macro") without `labels`."""
    scores, cm = f1(cm), torch.as_tensor(cm).cpu()
    return scores[(cm.sum(0) + cm.sum(1)) > 0].mean().item()


def balanced_accuracy(cm: Values) -> float:
    """Mean recall over the classes that occur in truth; the others are left out, as in scikit-learn."""
    report = class_report(cm)
    return report["recall"][report["support"] > 0].mean().item()


def reliability_bins(probs: Values, target: Values, n_bins: int = 15, scheme: str = "width") -> dict[str, Tensor]:
    """The reliability diagram of the predicted class (DeGroot & Fienberg 1983; Guo et al. 2017).

    probs (N, C), or (N,) / (N, 1) probabilities of class 1, target (N,). Returns {"upper", "count", "confidence",
    "accuracy"}, each (bins,): right edge, examples, mean top probability, share right; the last two NaN if empty.
    scheme "width": n_bins of equal width; "mass": of about equal count, where equal confidences share a bin, so there
    may be fewer. Bins are closed on the right; the first also holds 0.
    """
    probs = _probabilities(probs)
    target = _labels(target, probs.shape[1], "target", len(probs))
    if n_bins < 1 or scheme not in ("width", "mass"):
        raise ValueError(f"bins: found n_bins = {n_bins}, scheme {scheme!r}, wanted n_bins >= 1, 'width' or 'mass'")
    confidence, pred = probs.max(1)
    step = torch.arange(1, n_bins + 1)
    if scheme == "width":
        # rounded like the values: float32 0.2 belongs to the bin that ends at 0.2, though it is above float64 0.2
        upper = (step.double() / n_bins).to(confidence.dtype).double()
    else:
        upper = confidence.sort().values[(step * len(probs) + n_bins - 1) // n_bins - 1].double().unique()
    confidence = confidence.double()
    index = torch.bucketize(confidence, upper).clamp(max=len(upper) - 1)  # a rounded 1.0000001 stays in the last
    count = torch.bincount(index, minlength=len(upper))
    total = torch.bincount(index, confidence, minlength=len(upper))
    right = torch.bincount(index, (pred == target).double(), minlength=len(upper))
    return {"upper": upper, "count": count, "confidence": total / count, "accuracy": right / count}


def ece(probs: Values, target: Values, n_bins: int = 15, scheme: str = "width") -> float:
    """Expected calibration error, in [0, 1]: mean |accuracy - confidence| over bins by count (Naeini et al. 2015).

    Same inputs and bins as `reliability_bins`. Binary input too is scored by the confidence of the predicted class.
    """
    bins = reliability_bins(probs, target, n_bins, scheme)
    gap = (bins["accuracy"] - bins["confidence"]).abs().nan_to_num()  # NaN: empty bin, weight 0
    return ((gap * bins["count"]).sum() / bins["count"].sum()).item()


def brier(probs: Values, target: Values) -> float:
    """Mean over N of the squared error summed over classes, in [0, 2] (Brier 1950): twice the one-column binary form.

    probs (N, C), or (N,) / (N, 1) probabilities of class 1; target (N,).
    """
    probs = _probabilities(probs).double()
    target = _labels(target, probs.shape[1], "target", len(probs))
    return (probs - F.one_hot(target, probs.shape[1])).square().sum(1).mean().item()


def nll(logits: Values, target: Values) -> float:
    """Mean negative log-likelihood of the true class under softmax(logits), in nats. logits (N, C), target (N,)."""
    logits = _matrix(logits, "logits").double()
    return F.cross_entropy(logits, _labels(target, logits.shape[1], "target", len(logits))).item()


def temperature(logits: Values, target: Values) -> float:
    """T that minimises nll(logits / T, target) on held-out data (Guo et al. 2017), in [T_MIN, T_MAX].

    logits (N, C), finite; target (N,). The NLL is convex in 1 / T: bisection on the sign of its slope finds the one
    minimum, or the bound nearest to it. When every example is right (or tied), the NLL falls all the way to T = 0 and
    the data say nothing about T: the answer is 1.0, probabilities as they are.
    """
    logits = _matrix(logits, "logits").double()
    target = _labels(target, logits.shape[1], "target", len(logits))
    if not logits.isfinite().all():
        raise ValueError("temperature: found infinite logits, wanted finite ones")
    z = logits - logits.max(1, keepdim=True).values
    own = z.gather(1, target[:, None]).mean()
    if own == 0:
        return 1.0
    low, high = math.log(T_MIN), math.log(T_MAX)
    for _ in range(45):  # leaves an interval of 3e-13 in log T
        middle = (low + high) / 2
        expected = ((z / math.exp(middle)).softmax(1) * z).sum(1).mean()
        low, high = (low, middle) if expected < own else (middle, high)  # d NLL / d(1/T) = E[z] - z of the true class
    return math.exp((low + high) / 2)


def coverage_risk(confidence: Values, correct: Values) -> tuple[Tensor, Tensor, float]:
    """Selective prediction: the error left when only the surest are answered (Geifman & El-Yaniv 2017).

    confidence (N,), correct (N,) booleans or 0 / 1. Returns (coverage, risk, aurc): for each distinct confidence, from
    the highest, the share answered and the error rate among them, (K,) each; aurc = mean risk over the N examples.
    """
    confidence = _matrix(torch.as_tensor(confidence)[..., None], "confidence").squeeze(1)
    correct = _labels(correct, 2, "correct", len(confidence))
    confidence, order = confidence.sort(descending=True)
    _, size = confidence.unique_consecutive(return_counts=True)  # equal confidences are answered together
    answered = size.cumsum(0)
    risk = (1 - correct[order]).cumsum(0)[answered - 1].double() / answered
    return answered.double() / len(confidence), risk, ((risk * size).sum() / len(confidence)).item()


def coverage(lower: Values, upper: Values, y: Values) -> float:
    """Share of targets inside [lower, upper], ends included; the three tensors have one shape."""
    lower, upper, y = (torch.as_tensor(values).detach().cpu() for values in (lower, upper, y))
    if not lower.shape == upper.shape == y.shape or y.numel() == 0:
        shapes = ", ".join(str(tuple(values.shape)) for values in (lower, upper, y))
        raise ValueError(f"coverage: found shapes {shapes}, wanted one shape with at least one target")
    return ((lower <= y) & (y <= upper)).double().mean().item()


def bootstrap_ci(correct: Values, n: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of the mean of `correct` (N,) by the percentile bootstrap with n resamples (Efron 1979).

    Same seed, same answer. When all values are equal the interval is a point: the data cannot show their spread.
    """
    values = _matrix(torch.as_tensor(correct).cpu().double()[..., None], "correct").squeeze(1)
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap_ci: found n = {n}, level = {level}, wanted n >= 1 and 0 < level < 1")
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, 2**21 // len(values))  # resamples at a time: some 32 MiB of indices and values
    means = [
        values[torch.randint(len(values), (min(rows, n - start), len(values)), generator=generator)].mean(1)
        for start in range(0, n, rows)
    ]
    means = torch.cat(means)
    return means.quantile((1 - level) / 2).item(), means.quantile((1 + level) / 2).item()
