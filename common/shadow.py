"""A candidate that works in the gaps of stable's traffic.

    yield_to_others(STEPS_BACK)                     # in the thread that is to use it, and no other
    shadow = Shadow(predictor, busy=lambda: stable.depth, patience_s=1.0)
    shadow.predict_rows([shadow.decode(item)])      # as of the predictor; waits while stable has work

Before each item and before each layer of the model it looks whether stable is busy. It cannot be starved: from batch
to batch it waits a part of its patience at most, so that MOST_BEHIND requests are through before that is at an end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

STEPS_BACK = 10  # of the thread's priority
MOST_BEHIND = 16  # requests that wait for a shadow; of more, it misses some
LOOK_S = 0.0003  # between two looks; of the order of one layer


class Shadow:
    """Has the `decode` and the `predict_rows` of a predictor (see common.server_microbatch)."""

    def __init__(self, predictor: object, busy: Callable[[], object], patience_s: float):
        self.predictor, self.busy = predictor, busy
        self.most_s = self.left_s = patience_s / MOST_BEHIND / 2
        models = [value for value in vars(predictor).values() if isinstance(value, nn.Module)]
        self.layers = [layer for model in models for layer in model.modules()]

    def decode(self, item: object) -> object:
        """A row for `predict_rows`, once stable is idle."""
        self._give_way()
        return self.predictor.decode(item)

    def predict_rows(self, rows: list) -> list[dict]:
        """One result a row, computed while stable is idle."""
        self._give_way()
        # only for this call: should the candidate become the stable model, it gives way to nobody
        hooks = [layer.register_forward_pre_hook(self._give_way) for layer in self.layers]
        try:
            return self.predictor.predict_rows(rows)
        finally:
            for hook in hooks:
                hook.remove()
            self.left_s = self.most_s

    def _give_way(self, *layer_and_input: object) -> None:
        while self.left_s > 0 and self.busy():
            start = time.monotonic()
            time.sleep(LOOK_S)
            self.left_s -= time.monotonic() - start
