"""What the answers of one turn of the event loop add to metrics and monitoring: counted together, they cost half.

    tally = Tally(metrics, monitor)
    tally.good(job, seconds)                # a prediction that is answered
    tally.count(endpoint, 200, loop)        # every answer
    tally.flush()                           # the loop does it, when its turn is over

An alarm that an answer sets off is in the answers of the next turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from common.endpoints import Endpoint
from common.metrics import Metrics, answer_labels
from common.monitor import Monitor
from common.predictions import Prediction, observe


class Tally:
    """Used by the event loop only."""

    def __init__(self, metrics: Metrics, monitor: Monitor):
        self.metrics, self.monitor, self.labels = metrics, monitor, {}
        self.answered: list[tuple[Prediction, dict]] = []
        self.counted: list[tuple[Endpoint | None, int]] = []

    def good(self, job: Prediction, seconds: dict[str, float]) -> None:
        """A good answer; it is counted too, when it is sent. seconds: by stage, as common.predictions.stages says."""
        self.answered.append((job, seconds))

    def count(self, endpoint: Endpoint | None, status: int, loop: asyncio.AbstractEventLoop) -> None:
        """An answer of any kind; None: to a request that names no place here."""
        if not self.counted:
            loop.call_soon(self.flush)
        self.counted.append((endpoint, status))

    def flush(self) -> None:
        """Hand over what has come since the last time."""
        answered, counted, self.answered, self.counted = self.answered, self.counted, [], []
        for key, n in Counter(counted).items():
            for name, label in self._labels(*key).items():
                self.metrics.count(name, label, n)
        if answered:
            observe(self.metrics, answered)
            self.monitor.answered(answered)
        self.monitor.counted([status for endpoint, status in counted if endpoint and endpoint.predicts])

    def _labels(self, endpoint: Endpoint | None, status: int) -> dict[str, str]:
        if (endpoint, status) not in self.labels:
            where = (endpoint.name, endpoint.predicts) if endpoint else ("_other", True)
            self.labels[endpoint, status] = answer_labels(*where, status)
        return self.labels[endpoint, status]
