"""How fast an error budget is being used up, over two windows at a time.

    budget = BurnRate(objective=0.999)      # one request in a thousand may be bad
    budget.add(bad=2, n=500)
    value, n = budget.value()               # 1 or more: the alarm fires

Beyer et al., "The Site Reliability Workbook" (2018), chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

# (long window, short window, times the rate that would use the budget up in 30 days): 2 % of it in an hour, 5 % in six
PAIRS = ((3600.0, 300.0, 14.4), (21600.0, 1800.0, 6.0))
BUCKET_S = 10.0


class BurnRate:
    """Counts good and bad requests in buckets of ten seconds, for as long as the longest window. Thread-safe.

    objective: the share that is to be good, 0 < objective < 1. A process that has not lived as long as a window counts
    what it has seen. The short window makes an alarm end soon after its cause.
    """

    def __init__(self, objective: float, pairs: tuple = PAIRS):
        if not 0 < objective < 1:
            raise ValueError(f"BurnRate: objective is {objective}, wanted a share between 0 and 1, such as 0.999")
        self.budget, self.pairs = 1 - objective, pairs
        longest = max(long for long, _, _ in pairs)
        self._buckets: deque[list] = deque(maxlen=math.ceil(longest / BUCKET_S) + 1)  # [number, all, bad]
        self._lock = threading.Lock()

    def add(self, bad: int, n: int = 1, now: float | None = None) -> None:
        """Count `n` requests, `bad` of them bad; `now` in seconds on a steady clock."""
        number = (time.monotonic() if now is None else now) // BUCKET_S
        with self._lock:
            if not self._buckets or self._buckets[-1][0] != number:
                self._buckets.append([number, 0, 0])
            bucket = self._buckets[-1]
            bucket[1] += n
            bucket[2] += bad

    def value(self, now: float | None = None) -> tuple[float, int]:
        """(burn rate over its factor, requests in the long window) of the pair of windows that is worst.

        The burn rate of a pair is the lower one of its two windows: 1 / factor of it or less is no alarm. (NaN, 0)
        without a request.
        """
        number = (time.monotonic() if now is None else now) // BUCKET_S
        with self._lock:
            buckets = [tuple(bucket) for bucket in self._buckets]
        return max(
            (self._pair(buckets, number, *pair) for pair in self.pairs), key=lambda pair: (pair[0] == pair[0], pair)
        )

    def _pair(self, buckets: list[tuple], number: float, long: float, short: float, factor: float) -> tuple[float, int]:
        rates, total = [], 0
        for seconds in (short, long):
            seen = [bucket for bucket in buckets if bucket[0] > number - seconds / BUCKET_S]
            total, bad = sum(bucket[1] for bucket in seen), sum(bucket[2] for bucket in seen)
            if total == 0:
                return math.nan, 0
            rates.append(bad / total / self.budget)
        return min(rates) / factor, total
