"""From validation windows to what a checkpoint holds beyond its weights.

scores, held = validate(predictor, val_windows, bs=256)
ckpt |= calibrated(predictor, held, one_series=True)        # assets with the scores, reference, golden
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.reference import MOST_VALUES, make_reference
from project_ts_forecast.conformal import choose_local, kept_scores, pair_scores, radii, widen
from project_ts_forecast.data import SeriesWindow, make_loader, scale_of
from project_ts_forecast.inference import Predictor
from project_ts_forecast.scores import seasonal_naive
from project_ts_forecast.watch import past_features

GAINS = torch.linspace(0, 1, 11).tolist()
LEAST_GAIN = 0.01  # share of the squared error that a correction has to save in both halves, or it is left out


def collect(predictor: Predictor, windows: SeriesWindow, bs: int) -> dict[str, Tensor]:
    """out (N, h, K, Q), spread (N, K), y (N, h, K) of all windows, in their order, scaled."""
    parts = [(*predictor.outputs_of(x), y) for x, y in make_loader(windows, bs)]
    return dict(zip(("out", "spread", "y"), map(torch.cat, zip(*parts, strict=True)), strict=True))


def loss_of(out: Tensor, y: Tensor, levels: Tensor, kind: str) -> Tensor:
    """Mean Smooth-L1 of the middle quantile, or mean pinball loss of all (Koenker & Bassett 1978); NaN targets drop
    out.

    out (B, h, K, Q), y (B, h, K) in one unit.
    """
    known = ~y.isnan()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(out[..., out.shape[-1] // 2][known], y[known])
    error = y[known][:, None] - out[known]
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def validate(predictor: Predictor, windows: SeriesWindow, bs: int, base: Tensor | None, kind: str) -> tuple[dict, dict]:
    """Scores, and what `collect` gives, with the gain of the LSTM's correction set to what serves validation best.

    Where leaning on the season before serves it better, the predictor does that from then on.
    base (N, h, K): forecasts without the LSTM; None where there is nothing to choose.
    """
    model = predictor.model
    if base is not None:
        model.gain.fill_(1.0)
    held = collect(predictor, windows, bs)
    if base is not None:
        whole = held["out"][..., held["out"].shape[-1] // 2]
        model.gain.fill_(best_gain(base, whole, held["y"]))
        held = collect(predictor, windows, bs)
    if model.season <= model.win:  # what lies in the window
        naive = seasonal_naive(windows, np.arange(len(windows)), model.season, model.outputs)
        model.lean = best_lean(held["out"][..., held["out"].shape[-1] // 2], naive, held["y"])
        predictor.assets = {**predictor.assets, "lean": model.lean}
        held["out"] = torch.lerp(held["out"], naive[..., None], model.lean)
    middle = held["out"][..., held["out"].shape[-1] // 2]
    scores = {"val_mse": _mse(middle, held["y"]), "val_mae": (middle - held["y"]).abs().nanmean().item()}
    scores["val_loss"] = loss_of(held["out"], held["y"], model.levels.cpu(), kind).item()
    return scores | {"gain": float(model.gain), "lean": model.lean}, held


def best_gain(base: Tensor, whole: Tensor, y: Tensor) -> float:
    """How much of the way from `base` to `whole`, forecasts (N, h, K), serves y best; 0 if it does not serve it surely.

    Neighbouring windows share most of their truths, so a small gain on all of them is easily chance: it has to be there
    in the first and in the second half of the windows.
    """
    gain = _best_share(base, whole, y)
    for half in (slice(None, len(y) // 2), slice(len(y) // 2, None)):
        found, without = (_mse(torch.lerp(base[half], whole[half], share), y[half]) for share in (gain, 0.0))
        if not found < without * (1 - LEAST_GAIN):
            return 0.0
    return gain


def best_lean(whole: Tensor, naive: Tensor, y: Tensor) -> float:
    """How far to lean from the model's forecast on that of one season before, both (N, h, K).

    Not at all where the model surely beats it, unless leaning surely helps all the same; else what serves y best.
    """
    if lean := best_gain(whole, naive, y):
        return lean
    return 0.0 if best_gain(naive, whole, y) else _best_share(whole, naive, y)


def _best_share(base: Tensor, whole: Tensor, y: Tensor) -> float:
    errors = [_mse(torch.lerp(base, whole, gain), y) for gain in GAINS]
    return GAINS[errors.index(min(errors))]


def _mse(predicted: Tensor, y: Tensor) -> float:
    return (predicted - y).double().square().nanmean().item()


def calibrated(predictor: Predictor, held: dict[str, Tensor], windows: SeriesWindow) -> dict:
    """What a checkpoint holds beyond the weights, from the outputs on validation windows.

    The scores of the conformal step, the reference that monitoring compares with, and golden inputs with their answers.
    """
    one = len(windows.counts) == 1
    local = choose_local(held["out"], held["y"], held["spread"], predictor.coverages[0], one)
    held = {**held, "spread": held["spread"] ** local}  # it was collected with the power 1
    scores = pair_scores(held["out"], held["y"], held["spread"], len(predictor.coverages))
    kept = kept_scores(scores, one)
    predictor.assets = {**predictor.assets, "scores": kept, "local": local}
    predictor.radius = radii(kept, predictor.coverages).float()
    bands = widen(held["out"], held["spread"], predictor.radius)
    inside = ((held["y"] >= bands[..., 0]) & (held["y"] <= bands[..., -1]))[~held["y"].isnan()]
    middle = held["out"][..., held["out"].shape[-1] // 2]
    some = torch.linspace(0, len(middle) - 1, min(len(middle), 1000)).long()
    residuals = ((held["y"] - middle) / held["spread"][:, None])[some]
    reference = {
        "residuals": residuals[:, 0].flatten().nan_to_num(0.0).tolist(),  # one step ahead, in units of volatility
        "absolute_residual": residuals.abs().nanmean().item(),  # over all steps
        "coverage": inside.double().mean().item(),
        "values": held["y"][some][:, 0].flatten().nan_to_num(0.0).tolist(),
        "spread": held["spread"][some].flatten().tolist(),
    }
    every = torch.linspace(0, len(windows) - 1, min(len(windows), MOST_VALUES)).long().numpy()
    filled = [int(np.isnan(windows.y[start : start + windows.win]).any(1).sum()) for start in windows.starts[every]]
    reference |= make_reference(past_features(predictor, windows[every][0], filled, [False] * len(filled)))
    if one:  # in the units of the data, as /feedback measures it
        _, std = scale_of(predictor.assets["normaliser"], next(iter(predictor.assets["normaliser"]["series"])))
        reference["error"] = ((held["y"] - middle).abs() * torch.from_numpy(std[: predictor.outputs])).nanmean().item()
    x = windows[torch.linspace(0, len(windows) - 1, 4).long().tolist()][0]
    golden = {"x": x, "quantiles": predictor.quantiles(x)}
    return {"assets": predictor.assets, "reference": reference, "golden": golden}
