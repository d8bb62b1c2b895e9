"""How unusual a number is beside all before it, in constant memory: the tails of a value and of a residual.

tail = Tail()
tail.excess(3.2)        # -log10(p / TAIL) where 3.2 lies beyond 98 % of what came before on its side, else 0

Reads and writes nothing. Every estimate moves by a bounded step per value, so that no single value, of whatever size,
hides the next ones, and yet a change that stays is learnt within some fifty values.
"""

from __future__ import annotations

import math

TAIL = 0.02  # the share of rows, on either side, whose size is described by the tail
MEMORY = 5000  # rows after which the past fades
WARM = 200  # values that a tail is first set from, if the probation has so many; until then nothing is unusual
HEAVY = 10  # excesses that a tail counts as known from, at most: no history proves a tail to be light
RECENT = 0.02  # weight of the newest row in a level or a smoothed residual: some fifty rows
SETTLE = 10  # residuals before their smoothed value means anything
CLIP = 10.0  # how many mean absolute residuals, or mean excesses, one row may count for


class Tail:
    """How unusual a number is against the two tails of all before it, in constant memory.

    Peaks over threshold (Coles 2001, chapter 4): `p = TAIL * (1 + excess / (k * mean))^-k`, the predictive tail of an
    exponential whose mean is known from k excesses, at most HEAVY of them (a generalised Pareto of shape 1 / k). The
    threshold follows its quantile by Robbins-Monro steps and the mean excess is a clipped running mean: no one row
    moves either far.
    """

    __slots__ = ("first", "floor", "high", "high_mean", "low", "low_mean", "n", "warm")

    def __init__(self, warm: int = WARM):
        self.warm, self.n, self.first, self.floor = warm, 0, [], 0.0
        self.high = self.high_mean = self.low = self.low_mean = 0.0

    def excess(self, x: float) -> float:
        """-log10(p / TAIL) of `x` if it lies beyond a threshold, else 0; then `x` is learnt."""
        if self.first is not None:
            self.first.append(x)
            if len(self.first) == self.warm:
                self._start()
            return 0.0
        self.n = min(self.n + 1, MEMORY)
        k = TAIL * self.n  # excesses that the threshold and the mean are known from
        found = 0.0
        if x > self.high:
            found, self.high, self.high_mean = self._beyond(x - self.high, self.high, self.high_mean, k)
        elif self.high_mean > self.floor:
            self.high -= self.high_mean * TAIL / k
        if x < self.low:
            found, low, self.low_mean = self._beyond(self.low - x, -self.low, self.low_mean, k)
            self.low = -low
        elif self.low_mean > self.floor:
            self.low += self.low_mean * TAIL / k
        return found

    def _beyond(self, excess: float, threshold: float, mean: float, k: float) -> tuple[float, float, float]:
        """-log10(p / TAIL) of an excess, then the threshold and the mean excess after it."""
        mean = mean or 1e-9 * excess  # of a history of zeros
        heavy = min(k, HEAVY)
        found = heavy * math.log1p(excess / (mean * heavy)) / math.log(10)
        learnt = mean + (min(excess, CLIP * mean) - mean) / max(k, 5.0)
        return found, threshold + mean * (1 - TAIL) / k, max(learnt, self.floor)

    def _start(self) -> None:
        """Thresholds and mean excesses of the first values."""
        values, self.n, self.first = sorted(self.first), self.warm, None
        k = max(1, round(TAIL * self.warm))
        middle, self.low, self.high = values[self.warm // 2], values[k], values[-k - 1]
        # what hardly varied has some spread all the same, not none
        self.floor = max(1e-3 * (self.high - self.low), 1e-9 * abs(middle))
        self.high_mean = max(_at_most(sum(values[-k:]) / k - self.high, self.high - middle), self.floor)
        self.low_mean = max(_at_most(self.low - sum(values[:k]) / k, middle - self.low), self.floor)


def _at_most(mean: float, spread: float) -> float:
    """A mean excess of a few values, held to the distance of threshold and median: an outlier may be among them.

    That distance is log(0.5 / TAIL) = 3.2 mean excesses of an exponential tail. 0 says nothing: most values are equal.
    """
    return min(mean, spread) if spread > 0 else mean


class Residual:
    """A residual seen twice: as it is, and smoothed over some fifty rows."""

    __slots__ = ("n", "scale", "shift", "smooth", "spike")

    def __init__(self, warm: int = WARM):
        self.n, self.scale, self.smooth, self.spike, self.shift = 0, 0.0, 0.0, Tail(warm), Tail(warm)

    def excess(self, residual: float) -> tuple[float, float, float]:
        """What the residual adds as a spike and as a shift, and the residual clipped, for what learns from it."""
        self.n += 1
        size, limit = abs(residual), CLIP * self.scale
        if self.n <= 20 or limit == 0:
            limit = size
        self.scale += max(RECENT / 2, 1 / self.n) * (min(size, 2 * limit) - self.scale)
        clipped = max(-limit, min(limit, residual))
        self.smooth += max(RECENT, 1 / self.n) * (clipped - self.smooth)
        return self.spike.excess(residual), self.shift.excess(self.smooth) if self.n > SETTLE else 0.0, clipped


class Flat:
    """How unusual it is that a value still repeats itself, beside the runs of equal values that have ended."""

    __slots__ = ("rows", "run", "said", "squares", "warm")

    def __init__(self, warm: int = WARM):
        self.warm, self.run, self.said, self.rows, self.squares = warm, 0, 0, 0.0, 0.0

    def excess(self, repeats: bool) -> float:
        """-log10(p / TAIL) of the present run if it is that long, else 0.

        `p = (1 + run / (HEAVY * mean))^-HEAVY`, `mean` being the mean length of the run that a row of the past lay in.
        Of a run that goes on, this is news for fifty rows from where it is beyond doubt; then it adds nothing more.
        """
        if not repeats:
            fade = min(1.0, MEMORY / (self.rows + self.run)) if self.run else 1.0
            self.rows, self.squares = fade * (self.rows + self.run), fade * (self.squares + self.run**2)
            self.run = self.said = 0
        self.run += 1
        if self.rows < self.warm:
            return 0.0
        found = HEAVY * math.log10(1 + self.run * self.rows / (HEAVY * self.squares)) + math.log10(TAIL)
        self.said += found > 4
        return max(0.0, found) if self.said <= 50 else 0.0
