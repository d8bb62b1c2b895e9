"""What is watched of a series: how well the model foresaw the last row of each past, and what the past looks like.

    features = past_features(predictor, x, filled, late)      # {"residual": [...], ...}, one value a past

No input, no output.
"""

from __future__ import annotations

import torch
from torch import Tensor


def past_features(predictor: object, x: Tensor, filled: list[int], late: list[bool]) -> dict[str, list]:
    """Pasts (B, win, C + F), scaled, how many rows of each were filled, and which had late stamps → seven features.

    The last row of a past was still to come for the row before it, so each request also tells how right the model was,
    without a label. residual: what came minus the forecast of it one step before, in units of volatility. size: its
    absolute value, which shows a wider spread. covered: "yes" or "no", whether the interval held it. level: the last
    value. spread: log10 of the past's standard deviation. missing, late: "yes" or "no", whether
    rows were filled, and whether stamps came off the step. All of the first output.
    """
    before = torch.cat([x[:, :1], x[:, :-1]], 1)
    bands = predictor.quantiles(before)[:, 0, 0].double()  # (B, levels), one step ahead
    _, volatility = predictor.outputs_of(before)
    came = x[:, -1, 0].double().cpu()
    residual = (came - bands[:, bands.shape[1] // 2]) / volatility[:, 0].double().clamp(min=1e-6)
    covered = (bands[:, 0] <= came) & (came <= bands[:, -1])
    return {
        "residual": residual.tolist(),
        "size": residual.abs().tolist(),
        "covered": ["yes" if inside else "no" for inside in covered.tolist()],
        "level": came.tolist(),
        "spread": (x[:, :, 0].double().std(1).cpu() + 1e-8).log10().tolist(),
        "missing": ["yes" if count else "no" for count in filled],
        "late": ["yes" if one else "no" for one in late],
    }
