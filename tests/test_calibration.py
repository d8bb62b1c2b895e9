"""Calibration, selective prediction and intervals against torchmetrics, scikit-learn, scipy and hand-made sums."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from common import meter
from tests.logits import example

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn about on import is not ours to fix
    import torchmetrics.functional.classification as tm
    from scipy.optimize import minimize_scalar
    from sklearn import metrics as sk

CLOSE = 1e-6


# ---- calibration


def softmax_example(**kwargs):
    logits, target = example(**kwargs)
    return logits.softmax(1), target


@pytest.mark.parametrize("n_bins", [1, 7, 15, 100])
def test_ece_against_torchmetrics(n_bins):
    probs, target = softmax_example(n=2000)
    expected = tm.multiclass_calibration_error(probs, target, num_classes=5, n_bins=n_bins)
    assert meter.ece(probs, target, n_bins) == pytest.approx(expected.item(), abs=CLOSE)


def ece_by_hand(confidence, right, edges):
    """One loop over bins (edges[i], edges[i + 1]]."""
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_ece_of_two_classes_is_about_the_predicted_class():
    generator = np.random.default_rng(0)
    p = generator.uniform(size=1000)
    target = (generator.uniform(size=1000) < p**2).astype(int)
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == target
    expected = ece_by_hand(confidence, right, np.linspace(0, 1, 16))
    columns = np.stack([1 - p, p], axis=1)
    for probs in (p, p[:, None], columns):
        assert meter.ece(probs, target) == pytest.approx(expected, abs=CLOSE)
    # torchmetrics bins the probability of class 1 instead, with the share of class 1: another number
    other = tm.binary_calibration_error(torch.tensor(p), torch.tensor(target), n_bins=15).item()
    assert other == pytest.approx(ece_by_hand(p, target, np.linspace(0, 1, 16)), abs=CLOSE)
    assert abs(other - expected) > 0.001


def test_ece_by_mass_against_hand_made_quantiles():
    probs, target = softmax_example(n=1000)
    confidence, pred = probs.max(1)
    edges = np.concatenate([[-1], confidence.sort().values[99::100]])
    expected = ece_by_hand(confidence.numpy(), (pred == target).numpy(), edges)
    assert meter.ece(probs, target, 10, "mass") == pytest.approx(expected, abs=CLOSE)
    assert meter.reliability_bins(probs, target, 10, "mass")["count"].tolist() == [100] * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_are_closed_on_the_right(dtype):
    p = torch.tensor([0.6, 0.6, 0.8, 1.0, 1.0], dtype=dtype)
    bins = meter.reliability_bins(p, torch.tensor([1, 0, 1, 1, 1]), n_bins=5)
    assert bins["count"].tolist() == [0, 0, 2, 1, 2]
    assert bins["accuracy"].tolist()[2:] == [0.5, 1.0, 1.0]
    assert bins["confidence"][:2].isnan().all()
    np.testing.assert_allclose(bins["upper"], [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-7)


def test_one_class_and_rounded_confidences():
    assert meter.ece(torch.tensor([[1.0000001, 0.0], [0.0, 1.0]]), [0, 1]) == pytest.approx(0, abs=CLOSE)
    assert meter.ece(torch.full((3, 4), 0.25), [0, 0, 0]) == pytest.approx(0.75)  # first of equals is predicted


def test_mass_bins_keep_ties_together():
    p = torch.tensor([0.6] * 7 + [0.7, 0.8, 0.9])
    bins = meter.reliability_bins(p, torch.ones(10, dtype=torch.long), n_bins=5, scheme="mass")
    assert bins["count"].tolist() == [7, 1, 2]
    same = meter.reliability_bins(torch.full((9,), 0.75), torch.ones(9, dtype=torch.long), scheme="mass")
    assert same["count"].tolist() == [9]


def test_brier_against_sklearn():
    probs, target = softmax_example()
    expected = sk.brier_score_loss(target.numpy(), probs.numpy(), labels=range(5), scale_by_half=False)
    assert meter.brier(probs, target) == pytest.approx(expected, abs=CLOSE)
    p, binary = probs[:, 0], target == 0
    assert meter.brier(p, binary) == pytest.approx(2 * sk.brier_score_loss(binary.numpy(), p.numpy()), abs=CLOSE)


def test_nll_against_sklearn():
    logits, target = example()
    expected = sk.log_loss(target.numpy(), logits.softmax(1).numpy(), labels=range(5))
    assert meter.nll(logits, target) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("scale", [0.3, 2.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_against_scipy(scale, classes):
    logits, target = example(classes=classes, scale=scale)
    found = minimize_scalar(
        lambda log_t: torch.nn.functional.cross_entropy(logits / math.exp(log_t), target).item(),
        bounds=(-3, 4),
        method="bounded",
        options={"xatol": 1e-9},
    )
    ours = meter.temperature(logits, target)
    assert math.log(ours) == pytest.approx(found.x, abs=1e-6)
    assert meter.nll(logits / ours, target) <= found.fun + 1e-12
    assert meter.temperature(5 * logits, target) == pytest.approx(5 * ours, rel=1e-9)


def test_temperature_where_there_is_no_minimum():
    eye, target = torch.eye(3), torch.arange(3)
    assert meter.temperature(5 * eye, target) == 1.0  # all right: T = 0 would be best
    assert meter.temperature(torch.full((4, 3), 2.5), torch.tensor([0, 1, 2, 0])) == 1.0  # any T is as good
    assert meter.temperature(torch.tensor([[3.0, 1.0]]), [0]) == 1.0
    assert meter.temperature(torch.tensor([[3.0, 1.0]]), [1]) == pytest.approx(meter.T_MAX)  # worse than chance
    nearly = torch.tensor([[1e-4, 0.0]] * 1000)  # one wrong in a thousand by a hair
    assert meter.temperature(nearly, [1] + [0] * 999) == pytest.approx(meter.T_MIN)
    assert meter.T_MIN <= meter.temperature(torch.tensor([[1e30, 0.0], [1e30, 0.0]]), [0, 1]) <= meter.T_MAX
    with pytest.raises(ValueError, match="infinite"):
        meter.temperature(torch.tensor([[math.inf, 0.0]]), [0])


# ---- selective prediction, intervals, bootstrap


def test_coverage_risk_by_hand():
    answered, risk, aurc = meter.coverage_risk(torch.tensor([0.9, 0.6, 0.8, 0.7]), torch.tensor([1, 0, 1, 0]))
    assert answered.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 2])
    assert aurc == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_coverage_risk_answers_equal_confidences_together():
    answered, risk, aurc = meter.coverage_risk(torch.tensor([0.5, 0.5, 0.9]), torch.tensor([True, False, True]))
    np.testing.assert_allclose(answered, [1 / 3, 1])
    np.testing.assert_allclose(risk, [0, 1 / 3])
    assert aurc == pytest.approx(2 / 9)


def test_coverage_counts_the_ends():
    assert meter.coverage([0.0, 0, 0, 0], [1.0, 1, 1, 1], [0.0, 1.0, 1.5, math.nan]) == 0.5
    with pytest.raises(ValueError, match="wanted one shape"):
        meter.coverage(torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3))


def test_bootstrap_ci():
    correct = torch.arange(400) % 4 != 0  # 0.75
    low, high = meter.bootstrap_ci(correct, n=4000)
    spread = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - spread, abs=0.006)
    assert high == pytest.approx(0.75 + spread, abs=0.006)
    assert (low, high) == meter.bootstrap_ci(correct, n=4000)
    assert (low, high) != meter.bootstrap_ci(correct, n=4000, seed=1)
    assert meter.bootstrap_ci(torch.ones(5)) == (1.0, 1.0)
    assert meter.bootstrap_ci([2.5], n=3) == (2.5, 2.5)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(300):
        low, high = meter.bootstrap_ci(torch.rand(100, generator=generator) < 0.6, n=200, seed=seed)
        hits += low <= 0.6 <= high
    assert 0.90 <= hits / 300 <= 0.98
