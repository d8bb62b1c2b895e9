"""Forecasters: a linear map of the window, an LSTM, or the linear map corrected by the LSTM.

    model = build_model({"arch": "hybrid", "win": 336, "h": 24, "hidden": 32, ...}, channels=7, outputs=1, extra=4)
    quantiles = model(x)      # x (B, win, channels + extra), scaled → (B, h, outputs, Q), scaled

Inside, a window is taken relative to its last value (or another reference) and, by flag, to its own volatility, so that
a level never seen before is no new input. No file is read or written, no global state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ARCHS = ("hybrid", "linear", "lstm")
REFERENCES = ("last", "seasonal", "mean", "none")
LSTM_STEPS = 64  # longer windows go in patches of several rows: the LSTM's time grows with its steps


class LinearMap(nn.Module):
    """One matrix from the window to all h steps: of each output's own channel (shared), or of all channels (mixed)."""

    def __init__(self, win: int, channels: int, h: int, outputs: int = 1, extra: int = 0, mixed: bool = False):
        super().__init__()
        self.h, self.outputs, self.mixed, self.extra = h, outputs, mixed, extra
        self.channels = channels if mixed else 1  # whose pasts come in
        self.map = nn.Linear(win * self.channels + extra, h * (outputs if mixed else 1))
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def inputs(self, z: Tensor, now: Tensor) -> Tensor:
        """z (B, win, channels), now (B, extra), the calendar at the window's end → (B * outputs or B, inputs)."""
        if self.mixed:
            return torch.cat([z.transpose(1, 2).flatten(1), now], 1)
        own = z[:, :, : self.outputs].transpose(1, 2)  # (B, K, win)
        return torch.cat([own, now[:, None].expand(-1, self.outputs, -1)], 2).flatten(0, 1)

    def forward(self, z: Tensor, now: Tensor) -> Tensor:
        """→ (B, h, outputs)."""
        out = self.map(self.inputs(z, now))
        return out.view(len(z), self.outputs, self.h).transpose(1, 2)


class LSTMForecaster(nn.Module):
    """An LSTM over the window, in patches of rows, and a linear head for all steps at once.

    With `samples`, evaluation runs the head under as many fixed dropout masks (MC dropout, Gal & Ghahramani 2016, on
    the last layer): the same for every row and every batch, so that a forecast does not depend on its neighbours.
    """

    def __init__(
        self,
        channels: int = 1,
        h: int = 1,
        hidden: int = 128,
        outputs: int = 1,
        quantiles: int = 1,
        win: int = 64,
        dropout: float = 0.1,
        samples: int = 0,
    ):
        super().__init__()
        self.h, self.outputs, self.quantiles = h, outputs, quantiles
        self.patch = -(-win // LSTM_STEPS)
        self.lstm = nn.LSTM(self.patch * channels, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, h * outputs * quantiles)
        masks = torch.rand(samples, hidden, generator=torch.Generator().manual_seed(0)) >= dropout
        self.register_buffer("masks", masks.float() / (1 - dropout))

    def forward(self, z: Tensor) -> Tensor:
        """z (B, win, channels) → (B, h, outputs, quantiles)."""
        used = z.shape[1] // self.patch * self.patch
        steps = z[:, z.shape[1] - used :].reshape(len(z), used // self.patch, -1)
        _, (state, _) = self.lstm(steps)
        out = self.head(self.dropout(state[-1]))
        return out.view(len(z), self.h, self.outputs, self.quantiles)

    def sampled(self, z: Tensor) -> Tensor:
        """z (B, win, channels) → (samples, B, h, outputs, quantiles)."""
        used = z.shape[1] // self.patch * self.patch
        _, (state, _) = self.lstm(z[:, z.shape[1] - used :].reshape(len(z), used // self.patch, -1))
        out = self.head(state[-1] * self.masks[:, None])
        return out.view(len(self.masks), len(z), self.h, self.outputs, self.quantiles)


class Forecaster(nn.Module):
    """Reference + volatility * (linear map + gain * LSTM), each part by `arch`.

    gain: how much of the LSTM's correction counts; lean: how far a forecast leans on the value of one season before, 0
    to 1; training chooses both on validation. usual: (K,) mean absolute change from row to row in the train set, the
    unit of volatility. levels: the Q quantiles, the middle one is the forecast.
    """

    def __init__(self, config: dict, channels: int, outputs: int, extra: int):
        super().__init__()
        self.arch, self.win, self.h = config["arch"], config["win"], config["h"]
        self.channels, self.outputs = channels, outputs
        self.reference, self.season = config["reference"], config["season"]
        self.volatility, self.span = config["volatility"], min(self.win - 1, max(7 * config["season"], 24))
        levels = config["levels"] if config["loss"] == "quantile" or config["mc_samples"] else [0.5]
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("usual", torch.ones(channels))
        self.register_buffer("gain", torch.tensor(1.0))
        self.lean = 0.0
        self.linear = self.lstm = None
        if self.arch != "lstm":
            self.linear = LinearMap(self.win, channels, self.h, outputs, extra, config["mixed"])
        if self.arch != "linear":
            quantiles = len(levels) if config["loss"] == "quantile" else 1
            sizes = (channels + extra, self.h, config["hidden"], outputs, quantiles, self.win)
            self.lstm = LSTMForecaster(*sizes, config["dropout"], config["mc_samples"])

    def spread(self, x: Tensor) -> Tensor:
        """(B, win, C + F) → (B, C): the window's own volatility, 1 where it is usual; never below 1/20.

        Mean absolute change from row to row over the last seven seasons.
        """
        values = x[:, -self.span - 1 :, : self.channels]
        if self.win < 3:
            return torch.ones_like(values[:, -1])
        return ((values[:, 1:] - values[:, :-1]).abs().mean(1) / self.usual).clamp(0.05, 20.0)

    def relative(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, win, C + F) → z (B, win, C), now (B, F), reference (B, h, K), scale (B, 1, C) or 1."""
        values, now = x[:, :, : self.channels], x[:, -1, self.channels :]
        at = values.mean(1, keepdim=True) if self.reference == "mean" else values[:, -1:]
        at = torch.zeros_like(at) if self.reference == "none" else at
        scale = self.spread(x)[:, None] if self.volatility else torch.ones_like(at)
        if self.reference == "seasonal":
            reference = self.seasonal(x)
        else:
            reference = at[:, :, : self.outputs].expand(-1, self.h, -1)
        return (values - at) / scale, now, reference, scale

    def seasonal(self, x: Tensor) -> Tensor:
        """(B, win, C + F) → (B, h, K): the last season of the window, over and over."""
        past = x[:, self.win - self.season :, : self.outputs]
        return past.repeat(1, -(-self.h // self.season), 1)[:, : self.h]

    def forward(self, x: Tensor) -> Tensor:
        """(B, win, C + F) → (B, h, K, Q), quantiles in ascending order."""
        z, now, reference, scale = self.relative(x)
        out = self.linear(z, now)[..., None] if self.linear is not None else 0
        # a correction that validation had no use for is not computed
        if self.lstm is not None and (self.training or self.linear is None or self.gain != 0):
            out = out + self.gain * self.correction(torch.cat([z, x[:, :, self.channels :]], 2))
        out = reference[..., None] + out * scale[:, :, : self.outputs, None]
        if self.lean and not self.training:
            out = torch.lerp(out, self.seasonal(x)[..., None], self.lean)
        return out.sort(-1).values if out.shape[-1] > 1 else out

    def correction(self, z: Tensor) -> Tensor:
        """The LSTM's part; with MC dropout, mean and spread over the masks give the quantiles."""
        if self.training or not len(self.lstm.masks):
            return self.lstm(z)
        sampled = self.lstm.sampled(z)
        normal = torch.special.ndtri(self.levels.double()).to(z.dtype)
        return sampled.mean(0) + sampled.std(0) * normal


def build_model(config: dict, channels: int, outputs: int, extra: int = 0) -> Forecaster:
    """Untrained model of `config`; channels and extra (calendar) come in, the first `outputs` channels are forecast."""
    return Forecaster(config, channels, outputs, extra)
