"""Intervals of a stream: the conformal radius of one series from its own latest errors, in bounded memory.

    rolled = RolledRadius(predictor.assets["scores"], h=24, coverages=[0.9, 0.5])
    radius = rolled.take(row, truth, ends, unit, coverages)       # (h, K, P), as `conformal.rolling_radii` has it

At each row the errors of all forecasts of it become known; they take the places of the oldest of the checkpoint's, and
the row's own forecast waits for its truths. Of a long horizon STEPS steps are kept, and the others lie in between: 100
to 300 KB a series for each output, however long it runs. Shapes: h steps, S of them kept, K outputs, P pairs of the
model.
"""

from __future__ import annotations

import base64

import numpy as np
from torch import Tensor

STEPS = 24
ARRAYS = ("scores", "places", "waiting", "origins", "radius", "mean", "unit")


def steps_of(h: int) -> np.ndarray:
    """The steps, from 0, whose errors are kept; the first and the last are among them."""
    return np.unique(np.linspace(0, h - 1, min(h, STEPS)).round().astype(np.int64))


class RolledRadius:
    """scores (S, K, P, W), of which places (S,) were written; waiting (h, S, K, 2 P + 1), the ends and the unit of the
    latest h forecasts, and origins (h,) their rows; radius (S, K, pairs), computed at a row. mean and unit (K,): where
    the first forecast lay and what its errors were divided by, in which all is kept.
    """

    def __init__(self, start: Tensor, h: int, coverages: list[float]):
        self.scores = start[:, steps_of(h)].float().cpu().permute(1, 2, 3, 0).numpy().copy()
        kept, outputs, pairs, _ = self.scores.shape
        self.places, self.origins = np.zeros(kept, np.int64), np.full(h, -1)
        self.waiting = np.zeros((h, kept, outputs, 2 * pairs + 1), np.float32)
        self.mean = self.unit = np.zeros(0)
        self.last = self.computed = -1
        self._compute(0, coverages)

    def take(
        self, row: int, truth: np.ndarray, ends: np.ndarray, unit: np.ndarray, coverages: list[float]
    ) -> np.ndarray:
        """The radius (h, K, pairs) for the forecast made at `row`, a count that grows; a row again changes nothing.

        truth (K,): the row's values, NaN where missing; ends (h, K, 2 P): lower and upper ends of the model's own
        intervals, or the forecast twice; unit (K,): what errors are divided by. All in the units of the data.
        """
        h = len(self.origins)
        steps = steps_of(h)
        if row > self.last:
            if self.last < 0:
                self.mean, self.unit = ends[0].mean(-1), unit
            self._score(row, (truth - self.mean) / self.unit, row - 1 - steps)
            if row - self.computed >= max(1, h // 8):  # as often as rolling_radii
                self._compute(row, coverages)
            self.waiting[row % h, ..., :-1] = ((ends - self.mean[:, None]) / self.unit[:, None])[steps]
            self.waiting[row % h, ..., -1] = unit / self.unit
            self.origins[row % h] = self.last = row
        flat = self.radius.reshape(len(steps), -1).T
        return np.stack([np.interp(np.arange(h), steps, line) for line in flat], 1).reshape(h, *self.radius.shape[1:])

    def _score(self, row: int, truth: np.ndarray, made: np.ndarray) -> None:
        """The errors of the forecasts of this row, made (S,) rows ago or more."""
        slots = made % len(self.origins)
        ends, unit = np.split(self.waiting[slots, np.arange(len(slots))], [-1], -1)
        lower, upper = np.split(ends, 2, -1)  # (S, K, P)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.maximum(lower - truth[:, None], truth[:, None] - upper) / unit
        known = (self.origins[slots] == made) & (made >= 0) & np.isfinite(error).all((1, 2))
        self.scores[known, :, :, self.places[known] % self.scores.shape[-1]] = error[known]
        self.places += known

    def _compute(self, row: int, coverages: list[float]) -> None:
        """As `conformal.radii`, which takes ten times as long for so few scores."""
        ranked = np.sort(self.scores, -1)  # NaN comes last
        known = (~np.isnan(ranked)).sum(-1, keepdims=True)  # (S, K, P, 1)
        place = np.minimum(np.ceil((known + 1) * np.array(coverages) - 1e-9).astype(np.int64), known) - 1
        found = np.where(known > 0, np.take_along_axis(ranked, place.clip(min=0), -1), np.inf)  # (S, K, P, pairs)
        pairs = np.arange(len(coverages))
        self.radius, self.computed = found[:, :, np.minimum(pairs, found.shape[2] - 1), pairs], row

    def state(self) -> dict:
        """Plain values, for JSON: arrays as their type, shape and bytes in base64."""
        held = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        coded = {name: [part.dtype.str, part.shape, base64.b64encode(part).decode()] for name, part in held.items()}
        return coded | {"last": self.last, "computed": self.computed}

    @classmethod
    def restored(cls, state: dict) -> RolledRadius:
        """The inverse of `state`. Raises KeyError, TypeError or ValueError for what is none."""
        rolled = cls.__new__(cls)
        for name in ARRAYS:
            kind, shape, text = state[name]
            setattr(rolled, name, np.frombuffer(base64.b64decode(text), np.dtype(kind)).reshape(shape).copy())
        rolled.last, rolled.computed = int(state["last"]), int(state["computed"])
        return rolled
