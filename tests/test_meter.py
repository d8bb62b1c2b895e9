"""Means, accuracy and F1 against torchmetrics and scikit-learn; what metrics refuse, and what holds for any input."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import meter
from tests.logits import example

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn about on import is not ours to fix
    import torchmetrics.functional.classification as tm
    from sklearn import metrics as sk

CLOSE = 1e-6


# ---- AverageMeter


def test_average_meter_weights_by_n():
    average = meter.AverageMeter()
    average.update(torch.tensor([2.0], requires_grad=True), n=3)
    average.update(np.float32(6.0))
    average.update(4, n=4)
    assert average.avg == pytest.approx((6 + 6 + 16) / 8)
    assert average.count == 8


def test_average_meter_keeps_tensors_until_read_and_shows_nan():
    average = meter.AverageMeter()
    average.update(torch.tensor(1.0, requires_grad=True))
    assert isinstance(average.total, torch.Tensor)
    assert not average.total.requires_grad
    average.update(torch.tensor(math.nan))
    average.update(torch.tensor(1.0))
    assert math.isnan(average.avg)


def test_average_meter_does_not_drift():
    average = meter.AverageMeter()
    for _ in range(10_000):
        average.update(torch.tensor(0.1, dtype=torch.float32), n=1000)
    assert average.avg == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_average_meter_refuses():
    with pytest.raises(ValueError, match="found no values"):
        _ = meter.AverageMeter().avg
    for value, n in [(torch.ones(2), 1), (np.ones(3), 1), (1.0, 0), (torch.ones(0), 1)]:
        with pytest.raises(ValueError, match="wanted one element"):
            meter.AverageMeter().update(value, n)


# ---- accuracy and the confusion matrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accuracy_topk_against_torchmetrics_and_sklearn(dtype):
    logits, target = example()
    logits = logits.to(dtype)
    top1, top2, top5, top9 = meter.accuracy_topk(logits, target, (1, 2, 5, 9))
    assert top1 == pytest.approx(sk.accuracy_score(target, logits.float().numpy().argmax(1)), abs=CLOSE)
    if dtype != torch.bfloat16:  # so few bits make ties, which the other two break as they like
        assert top1 == pytest.approx(
            tm.multiclass_accuracy(logits, target, num_classes=5, average="micro").item(), abs=CLOSE
        )
        assert top2 == pytest.approx(sk.top_k_accuracy_score(target, logits.numpy(), k=2, labels=range(5)), abs=CLOSE)
    assert top1 < top2 < top5 == top9 == 1.0


def test_accuracy_breaks_ties_to_the_lower_index():
    tied = torch.zeros(4, 4)
    assert meter.accuracy_topk(tied, torch.arange(4), (1, 2, 3, 4)) == (0.25, 0.5, 0.75, 1.0)
    assert meter.accuracy_topk(np.array([[-np.inf, 0.0]]), [1]) == (1.0,)


def test_confusion_matrix_against_sklearn_and_torchmetrics():
    logits, target = example()
    pred = logits.argmax(1)
    cm = meter.confusion_matrix(pred, target, 5)
    assert cm.dtype == torch.int64
    np.testing.assert_array_equal(cm, sk.confusion_matrix(target, pred))  # rows = truth in both
    assert torch.equal(cm, tm.multiclass_confusion_matrix(pred, target, num_classes=5))
    halves = meter.confusion_matrix(pred[:200], target[:200], 5) + meter.confusion_matrix(pred[200:], target[200:], 5)
    assert torch.equal(cm, halves)


def test_class_report_against_sklearn_and_torchmetrics():
    logits, target = example(scale=4.0)
    pred = logits.argmax(1)
    cm = meter.confusion_matrix(pred, target, 5)
    report = meter.class_report(cm)
    expected = sk.precision_recall_fscore_support(target, pred)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(report[name], values, atol=CLOSE, err_msg=name)
    assert torch.equal(meter.f1(cm), report["f1"])
    each = {"num_classes": 5, "average": "none"}
    np.testing.assert_allclose(report["precision"], tm.multiclass_precision(pred, target, **each), atol=CLOSE)
    np.testing.assert_allclose(report["recall"], tm.multiclass_recall(pred, target, **each), atol=CLOSE)
    np.testing.assert_allclose(report["f1"], tm.multiclass_f1_score(pred, target, **each), atol=CLOSE)
    assert meter.macro_f1(cm) == pytest.approx(sk.f1_score(target, pred, average="macro"), abs=CLOSE)
    assert meter.macro_f1(cm) == pytest.approx(tm.multiclass_f1_score(pred, target, num_classes=5).item(), abs=CLOSE)
    assert meter.balanced_accuracy(cm) == pytest.approx(sk.balanced_accuracy_score(target, pred), abs=CLOSE)
    assert meter.balanced_accuracy(cm) == pytest.approx(
        tm.multiclass_accuracy(pred, target, num_classes=5, average="macro").item(), abs=CLOSE
    )


def test_classes_that_do_not_occur():
    target, pred = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])  # 2 only predicted, 3 nowhere
    cm = meter.confusion_matrix(pred, target, 4)
    assert meter.class_report(cm)["support"].tolist() == [2, 2, 0, 0]
    assert meter.f1(cm)[2:].tolist() == [0.0, 0.0]
    expected = sk.f1_score(target, pred, average="macro", zero_division=0)
    assert meter.macro_f1(cm) == pytest.approx(expected, abs=CLOSE)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = sk.balanced_accuracy_score(target, pred)
    assert meter.balanced_accuracy(cm) == pytest.approx(expected, abs=CLOSE)


# ---- what is refused, in words

EMPTY, NO_LABELS = torch.empty(0, 3), torch.empty(0, dtype=torch.long)
REFUSED = [
    (meter.accuracy_topk, (EMPTY, NO_LABELS), r"logits: found shape \(0, 3\)"),
    (meter.accuracy_topk, (torch.rand(3), [0, 0, 0]), r"wanted \(N, C\)"),
    (meter.accuracy_topk, (torch.rand(2, 3), [0, 0, 0]), r"target: found shape \(3,\).*wanted.*\(2,\)"),
    (meter.accuracy_topk, (torch.rand(2, 3), [0, 3]), "found labels 0 to 3, wanted 0 to 2"),
    (meter.accuracy_topk, (torch.rand(2, 3), [0, 1], (0,)), "found k = 0"),
    (meter.accuracy_topk, (torch.tensor([[1.0, math.nan]]), [0]), "found NaN in 1 of 1 rows"),
    (meter.confusion_matrix, (NO_LABELS, NO_LABELS, 3), r"target: found shape \(0,\)"),
    (meter.confusion_matrix, ([0, 1], [0, 1, 1], 3), r"pred: found shape \(2,\).*wanted.*\(3,\)"),
    (meter.confusion_matrix, ([0, -1], [0, 1], 3), "pred: found labels -1 to 0, wanted 0 to 2"),
    (meter.confusion_matrix, ([0, 1], [0, 3], 3), "target: found labels 0 to 3"),
    (meter.confusion_matrix, (torch.rand(2), [0, 1], 2), "pred: found .*float32, wanted integer labels"),
    (meter.confusion_matrix, (torch.zeros(2, 1).long(), [0, 1], 2), r"pred: found shape \(2, 1\)"),
    (meter.class_report, (torch.zeros(3, 3).long(),), "at least one example"),
    (meter.macro_f1, (torch.ones(2, 3).long(),), r"found shape \(2, 3\)"),
    (meter.balanced_accuracy, (torch.eye(2),), "wanted .*integer counts"),
    (meter.ece, (EMPTY, NO_LABELS), r"probs: found shape \(0, 3\)"),
    (meter.ece, (torch.tensor([[2.0, -1.0]]), [0]), "found values -1 to 2, wanted probabilities"),
    (meter.ece, (torch.tensor([[0.5, 0.6]]), [0]), "sum 1"),
    (meter.ece, (torch.tensor([0.5]), [2]), "found labels 2 to 2, wanted 0 to 1"),
    (meter.ece, (torch.tensor([math.nan]), [1]), "found NaN"),
    (meter.ece, (torch.tensor([0.5]), [1], 0), "found n_bins = 0"),
    (meter.ece, (torch.tensor([0.5]), [1], 5, "area"), "'area', wanted"),
    (meter.brier, (torch.rand(0), NO_LABELS), "probs: found shape"),
    (meter.nll, (EMPTY, NO_LABELS), "logits: found shape"),
    (meter.temperature, (EMPTY, NO_LABELS), "logits: found shape"),
    (meter.coverage_risk, (torch.rand(0), NO_LABELS), "confidence: found shape"),
    (meter.coverage_risk, (torch.rand(2), [0, 2]), "correct: found labels 0 to 2, wanted 0 to 1"),
    (meter.coverage, ([], [], []), "at least one target"),
    (meter.bootstrap_ci, ([],), "correct: found shape"),
    (meter.bootstrap_ci, ([1.0], 0), "wanted n >= 1"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED)
def test_refusals_are_in_words(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


# ---- what holds for any input

anything = st.tuples(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 20.0]))


@settings(max_examples=60, deadline=None)
@given(anything)
def test_ranges(shape):
    logits, target = example(*shape)
    probs, cm = logits.softmax(1), meter.confusion_matrix(logits.argmax(1), target, shape[1])
    (top1,) = meter.accuracy_topk(logits, target)
    assert cm.sum() == len(target)
    assert top1 == pytest.approx((cm.trace() / cm.sum()).item())
    for value in (top1, meter.macro_f1(cm), meter.balanced_accuracy(cm), meter.brier(probs, target) / 2):
        assert 0 <= value <= 1
    for scheme in ("width", "mass"):
        bins = meter.reliability_bins(probs, target, 15, scheme)
        assert bins["count"].sum() == len(target)
        # the gap over all is the least the bins can show
        least = abs(probs.max(1).values.mean().item() - top1)
        assert least - 1e-9 <= meter.ece(probs, target, 15, scheme) <= 1
    fitted = meter.temperature(logits, target)
    assert meter.T_MIN <= fitted <= meter.T_MAX
    assert meter.nll(logits / fitted, target) <= meter.nll(logits, target) + 1e-9
    answered, risk, aurc = meter.coverage_risk(probs.max(1).values, logits.argmax(1) == target)
    assert answered[-1] == 1
    assert risk[-1] == pytest.approx(1 - top1)
    assert 0 <= aurc <= 1
    low, high = meter.bootstrap_ci(target, n=50)
    assert target.min() <= low <= high <= target.max()


@settings(max_examples=60, deadline=None)
@given(anything, st.randoms(use_true_random=False))
def test_order_does_not_matter(shape, random):
    logits, target = example(*shape)
    logits = logits.round(decimals=1)  # ties must not make the order matter either
    order = list(range(len(target)))
    random.shuffle(order)

    def all_of(logits, target):
        probs, pred = logits.softmax(1), logits.argmax(1)
        cm = meter.confusion_matrix(pred, target, shape[1])
        aurc = meter.coverage_risk(probs.max(1).values, pred == target)[2]
        eces = [meter.ece(probs, target, 5, scheme) for scheme in ("width", "mass")]
        scores = [meter.brier(probs, target), meter.nll(logits, target), meter.temperature(logits, target)]
        return [*cm.flatten().tolist(), *meter.accuracy_topk(logits, target, (1, 2)), aurc, *eces, *scores]

    assert all_of(logits[order], target[order]) == pytest.approx(all_of(logits, target), rel=1e-7, abs=1e-9)
